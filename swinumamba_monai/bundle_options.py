# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What was typed behind ``python -m monai.bundle run``, looked at before anything runs.

MONAI takes every ``--name value``: a name that no config has changes nothing and is obeyed in silence, and a value that
looks like Python is read as Python, so that the folder ``plate#3`` becomes ``plate`` and ``20241125`` a number. A value
of another kind than the config's own fails many calls later. In a config every ``#`` becomes ``::``, in paths too.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial, reduce
from pathlib import Path

from swinumamba_monai.bundle_failures import REFERENCE, explain_failure, id_parts
from swinumamba_monai.errors import InputError, check_known, explained, is_bundle_command, listed, report_plainly, shown
from swinumamba_monai.option_values import check_value

# The arguments of monai.bundle's commands, and those that `--tracking` adds.
_OF_MONAI = "run_id init_id final_id meta_file config_file logging_file tracking args_file".split()
_OF_MONAI += "workflow_name workflow_type properties_path".split()
_OF_TRACKING = "output_dir tracking_uri experiment_name run_name save_execute_config".split()
_COMMANDS = (["run"], ["run_workflow"])
_PATH_ENDINGS = ("_dir", "_path", "_root", "_file", "_uri")
_LISTS = ("ckpt_path", "config_file", "meta_file")  # these may be several files
_MACROS = ("$", "@", "%")  # a value that begins with one is an expression of MONAI
_SEPARATOR = "#"  # separator in ids, which MONAI writes as ::
_FLAG = re.compile("--|-[a-zA-Z]")
_NO_PYTHON = {"true": "True", "false": "False", "null": "'$None'"}  # texts on the command line, and texts are true


def check_options(arguments: Sequence[str] | None = None, resolved: MutableMapping[str, object] | None = None) -> None:
    """Refuse options that no config has, paths that the command line would change, and values of a wrong kind.

    An option is looked for in the configs: of ``--network_def#depths``, ``network_def`` must be there, for it may be
    given any argument of its class; of ``--train#max_epochs``, all, for nothing would read it. The same holds for the
    entries of a config that goes on top of another.
    Where all are right, what fails later because of one of them is reported in one sentence, too.

    Args:
        arguments: what stands behind ``run``; by default what this process was started with, and nothing is done in
            one that was not started as ``python -m monai.bundle run``.
        resolved: what MONAI has made of the entries of the config so far; gets the paths that it would change, as they
            were typed, before anything asks for them. None from a MONAI that does not give it to expressions under the
            name that ours has.

    Raises:
        InputError: the option is in no config, with the nearest one that is; a path is not read as it was typed; a
            value is not of the kind of the config's own; nothing reads an entry of a config; what is to be run is
            nothing that runs, where MONAI would end in silence; several processes were started of configs for one.
    """
    if arguments is None:
        if not is_bundle_command() or sys.argv[1:2] not in _COMMANDS:
            return
        arguments = sys.argv[2:]
        if sys.argv[1] == "run_workflow" and arguments and not _FLAG.match(arguments[0]):
            arguments = arguments[1:]  # the class of the workflow, where `run` has what to run
    from fire.parser import DefaultParseValue
    from monai.bundle import ConfigParser

    typed = _typed_options(arguments)
    options = {name: True if text is None else DefaultParseValue(text) for name, text in typed.items()}
    for name, text in typed.items():
        _check_path(name, text, options[name])
    if "args_file" in options:
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    files = options.get("config_file")
    if files is None:
        return  # MONAI says so itself
    if isinstance(files, str):
        files = [files] if "," not in files or Path(files).is_file() else files.split(",")  # as MONAI does
    config = ConfigParser.load_config_files(files)
    _check_run_id(arguments, options, {**config, **options})
    _check_processes(files, {**config, **options})
    not_of_config = [*_OF_MONAI, *(_OF_TRACKING if "tracking" in options else ())]
    for name, value in options.items():
        if name not in not_of_config or name in config:
            check_option(name, value, config)
            _check_expression(name, value, config)
        if name in typed and value is None and name not in not_of_config:
            _check_dropped(name, config)
        text = str(value)
        if _is_path(name) and _SEPARATOR in text and not text.startswith(_MACROS):
            if resolved is None:
                raise InputError(
                    f"--{name} {shown(text)}: this version of MONAI reads # as ::; rename the file or folder."
                )
            resolved[name] = value
    _check_learning_rates({**config, **options})
    of_files = [ConfigParser.load_config_file(file) for file in files]
    # What a file on top replaces may be all that reads an entry of the first, which is no mistake of anybody.
    text = json.dumps([config, *of_files])
    on_top = {}
    for number, (file, entries) in enumerate(zip(files, of_files)):
        below = ConfigParser.load_config_files(files[:number]) if number else {}
        _check_entries(file, entries, below, config, text)
        on_top.update(entries if number else {})
    report_plainly(partial(explain_failure, options={**on_top, **options}, config=config))


def _check_processes(files: Sequence[str], config: Mapping[str, object]) -> None:
    """Refuse a config for one process under torchrun, where each would do the whole run into the same folder."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1" and not re.search("idist.initialize|init_process_group", json.dumps(config, default=str)):
        names = {Path(file).stem for file in files}
        name = next((name for name in ("evaluate", "inference") if name in names), "train")
        raise InputError(
            f"{processes} processes were started, but these configs drive one; add configs/multi_gpu_{name}.json, as "
            "the last --config_file."
        )


def _check_dropped(name: str, config: Mapping[str, object]) -> None:
    """Refuse a None that MONAI drops where the config has something else, which would stay."""
    top, *rest = id_parts(name)
    default = reduce(_part, rest[:-1], config.get(top, config.get(f"+{top}")))
    if rest:
        default = _part(default, rest[-1]) if isinstance(default, list) or rest[-1] in (default or {}) else "its own"
    if default is not None:
        raise InputError(f"--{name} None is dropped by MONAI, so that {shown(default)} would stay; write '$None'.")


def _check_run_id(arguments: Sequence[str], options: Mapping[str, object], entries: Mapping[str, object]) -> None:
    """Refuse to run what holds no expression, such as ``train``, a section, for ``training``."""
    typed = [word for word in arguments[:1] if not _FLAG.match(word)]
    name = str(options.get("run_id") or (typed or ["run"])[0])
    if _SEPARATOR in name or "::" in name or _runs(entries.get(name)):
        return
    lists = [key for key, value in entries.items() if isinstance(value, list) and _runs(value)]
    check_known("workflow", [name], [key for key in lists if key not in ("imports", "initialize", "finalize")])


def _runs(value: object) -> bool:
    """Whether something of a config is an expression, or a list with one."""
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, str) and part.startswith(("$", "%")) for part in parts)


def _check_entries(
    file: str, entries: Mapping[str, object], below: Mapping[str, object], config: Mapping[str, object], text: str
) -> None:
    """Refuse entries of a config that do not fit the one below it, or that nothing in ``text`` reads, by its name."""
    for name, value in entries.items():
        top = id_parts(name)[0].lstrip("+")
        try:
            _check_expression(name, value, config)
            if top in below:
                check_option(name, value, below)
            elif isinstance(value, (dict, list)) or str(value).startswith(_MACROS) or top.startswith("_"):
                continue  # something to run, perhaps by its id, or a remark
            elif not re.search(rf"[@%]{re.escape(top)}\b", text):
                values = sorted(entry for entry in config if entry != name and not isinstance(config[entry], dict))
                raise _unknown(name, top, values, "a remark has a name that begins with _")
        except InputError as error:
            raise InputError(f"{shown(file)}: {error}") from error


def as_literal(text: str) -> str:
    """What MONAI's configs read as this very text: they turn ``#`` into ``::``, and macros have a meaning of theirs."""
    if _SEPARATOR not in text and not text.startswith(_MACROS):
        return text
    escaped = repr(text)
    for mark in (_SEPARATOR, *_MACROS):
        escaped = escaped.replace(mark, f"\\x{ord(mark):02x}")
    return f"${escaped}"


def read_entries(texts: Sequence[str], options: Mapping[str, object]) -> dict[str, object]:
    """Entries of a config as a command takes them: by ``--set``, and as options of their own.

    Args:
        texts: what stands behind ``--set``, such as ``"min_size=0"``, read as MONAI's command line reads a value.
        options: values of the options by the names of their entries; None for one that was not given.

    Raises:
        InputError: a text is not like that, or an entry was given both ways.
    """
    from fire.parser import DefaultParseValue

    entries = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"--set takes NAME=VALUE, such as min_size=0, not {shown(repr(text))}.")
        entries[name] = DefaultParseValue(value)
    for name, value in options.items():
        if value is not None:
            if name in entries:
                raise InputError(f"--{name} and --set {name} are both given; leave one out.")
            entries[name] = DefaultParseValue(value) if isinstance(value, str) else value
    return entries


def check_option(name: str, value: object, config: Mapping[str, object]) -> None:
    """Refuse an option that a config does not have, or a value that is not of the kind of the config's own.

    Args:
        name: name of the option, such as ``min_size`` or ``network_def#depths``.
        value: value of the option.
        config: content of the config.

    Raises:
        InputError: there is no such option, with the nearest that there is; or what the value must be.
    """
    top, *rest = id_parts(name)
    options = {entry.lstrip("+"): entry for entry in config}
    if top.lstrip("+") not in options:
        values = sorted(entry for entry in config if not isinstance(config[entry], dict))
        raise _unknown(name, top.lstrip("+"), values, "its options stand at the top of the file")
    if rest and isinstance(value, str) and value.lower() in _NO_PYTHON:
        raise InputError(f"--{shown(name)} {value} would be the text '{value}'; write {_NO_PYTHON[value.lower()]}.")
    default = config[options[top.lstrip("+")]]
    for part in rest:
        if isinstance(default, dict) and part not in default:
            if "_target_" in default or isinstance(value, dict):
                return  # an argument that the class knows, or not; a component with a name of its own
            names = [f"{name.rpartition('#')[0]}#{key}" for key in default]
            raise _unknown(name, name.replace("::", "#"), names, f"there are {listed(default)}")
        if not isinstance(default, (dict, list)):
            return  # MONAI says that there is nothing in it
        default = _part(default, part)
    top, passed = rest[-1] if rest else top, []
    while isinstance(default, str) and (found := REFERENCE.fullmatch(default)) and default not in passed:
        passed.append(default)
        parts = id_parts(found[1])
        default, top, rest = reduce(_part, parts, config), parts[-1], parts[1:]
    if isinstance(value, str) and value.startswith(_MACROS):
        return
    if value is not None:
        _check_made(name, value, default)
    if not rest or top == "data":  # a folder is not given there
        check_value(top, value, default, name)


def _check_expression(name: str, value: object, config: Mapping[str, object]) -> None:
    """Refuse an expression that is no Python, or refers to what the config does not have."""
    if not isinstance(value, str) or not value.startswith(_MACROS):
        return
    for entry in REFERENCE.findall(value) if value[0] != "%" else ():
        if (top := id_parts(entry)[0]) not in config:
            near = difflib.get_close_matches(top, config, n=1, cutoff=0.5)
            hint = f"; did you mean @{near[0]}?" if near else "."
            raise InputError(f"--{shown(name)} {shown(value)} refers to @{shown(entry)}, which the config lacks{hint}")
    if value[0] == "$":
        with explained(f"--{name} {shown(value)} is no Python", "what begins with $ is an expression", SyntaxError):
            ast.parse(REFERENCE.sub("entry", value[1:]))


def _part(value: object, key: str) -> object:
    """What a list or dict of a config has by this name or number; None where it has none."""
    if isinstance(value, list):
        return value[int(key)] if key.isdigit() and int(key) < len(value) else None
    return value.get(key) if isinstance(value, Mapping) else None


def _check_made(name: str, value: object, default: object) -> None:
    """Refuse what cannot take the place of a component, of a section, of a table, or of a list of components."""
    if isinstance(default, Mapping) and default and all(type(n) in (int, float) for n in default.values()):
        # A number for each name, as the tolerances of the organs.
        several = value.values() if isinstance(value, Mapping) else value
        numbers = [value] if isinstance(several, (int, float, str)) else several
        if not all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers):
            raise InputError(
                f"--{shown(name)} must be a number from 0 on for all, a list of one each, or a table such as "
                f"{shown(str(dict([*default.items()][:1])))}; got {shown(repr(value))}."
            )
        return
    if isinstance(default, Mapping):
        fits = isinstance(value, Mapping) and ("_target_" in value or ("_target_" not in default and len(value) > 0))
    else:
        is_list = isinstance(default, list) and any(isinstance(item, Mapping) for item in default)
        fits = isinstance(value, list) or not is_list
    if not fits:
        first = next(iter(default)) if isinstance(default, Mapping) else 0
        raise InputError(
            f"--{shown(name)} {shown(value)} cannot take the place of what the config has there; change a part of it, "
            f"such as --{shown(name)}#{first}, or give an expression that begins with $."
        )


def _unknown(name: str, word: str, known: Sequence[str], otherwise: str) -> InputError:
    """The sentence for an option that is not there, with the nearest of those that are."""
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    hint = f"did you mean --{' or --'.join(near)}?" if near else f"{otherwise}."
    return InputError(f"--{shown(name)} is no option of this config; {hint}")


def _check_learning_rates(values: Mapping[str, object]) -> None:
    """Refuse a learning rate that would rise from what was asked for to the one at the end."""
    first, last = (values.get(name) for name in ("learning_rate", "min_learning_rate"))
    if isinstance(first, (int, float)) and isinstance(last, (int, float)) and first < last:
        raise InputError(
            f"--learning_rate {first} is below --min_learning_rate {last}, at which the training ends: it would rise; "
            "give both."
        )


def _typed_options(arguments: Sequence[str]) -> dict[str, str | None]:
    """Names and texts, as Fire tells them apart: ``--name text``, ``--name=text``; None for ``--name`` alone."""
    options, rest = {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break  # what follows is for Fire itself
        if not _FLAG.match(word):
            continue  # the id to run
        name, equals, text = word.lstrip("-").partition("=")
        if not equals:
            text = rest.pop(0) if rest and not _FLAG.match(rest[0]) else None
        options[name.replace("-", "_")] = text
    return options


def _is_path(name: str) -> bool:
    return name == "pretrained" or name.endswith(_PATH_ENDINGS)


def _check_path(name: str, text: str | None, value: object) -> None:
    """Refuse a path that would not arrive as it was typed."""
    if not _is_path(name):
        return
    if text is None or not text.strip():  # of a variable of the shell that is not set; it would be this very folder
        raise InputError(f"--{name} needs a path behind it.")
    if name == "logging_file" and value is False:
        return  # MONAI's own word for leaving logging as it is
    if text.lower() in (*_NO_PYTHON, "none") and text != "None":
        raise InputError(f"--{name} {text} is a path; write ./{text} for one of this name, or '$None'.")
    if value is None or value == text or text.startswith(_MACROS):
        return
    if isinstance(value, str) and text[:1] in ("'", '"'):
        return  # quotes that reached Python: this very text is wanted
    if name in _LISTS and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return
    raise InputError(
        f"--{name} {shown(text)} would be read as {shown(repr(value))}; write ./{shown(text)} for a path of this name."
    )
