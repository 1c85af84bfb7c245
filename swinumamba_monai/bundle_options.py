# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What was typed behind ``python -m monai.bundle run``, looked at before anything runs.

MONAI takes every ``--name value``: a name that no config has changes nothing and is obeyed in silence, and a value that
looks like Python is read as Python, so that the folder ``plate#3`` becomes ``plate`` and ``20241125`` a number. A value
of another kind than the config's own fails many calls later. In a config every ``#`` becomes ``::``, in paths too.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence

import torch

from swinumamba_monai.errors import InputError, is_bundle_command, shown
from swinumamba_monai.switches import is_on

# The arguments of monai.bundle.run, and those that `--tracking` adds.
_OF_MONAI = "run_id init_id final_id meta_file config_file logging_file tracking args_file".split()
_OF_TRACKING = "output_dir tracking_uri experiment_name run_name save_execute_config".split()
_PATH_ENDINGS = ("_dir", "_path", "_root", "_file", "_uri")
_LISTS = ("ckpt_path", "config_file", "meta_file")  # these may be several files
_MACROS = ("$", "@", "%")  # a value that begins with one is an expression of MONAI
_SEPARATOR = "#"  # of ids, which MONAI writes as ::
# Whole numbers that cannot be 0, and sizes.
_COUNTS = "max_epochs iterations_per_epoch batch_size sw_batch_size val_interval log_interval".split()
_COUNTS += "picture_interval mask_patch_size in_channels num_classes".split()
_WHOLE = (*_COUNTS, "min_size")  # whole numbers, also where the config computes its own
_SIZES = ("roi_size", "spatial_size")
_FLAG = re.compile("--|-[a-zA-Z]")


def check_options(arguments: Sequence[str] | None = None, resolved: MutableMapping[str, object] | None = None) -> None:
    """Refuse options that no config has, paths that the command line would change, and values of a wrong kind.

    An option is looked for at the top of the configs: in ``--network_def#depths``, ``network_def`` is.

    Args:
        arguments: what stands behind ``run``; by default what this process was started with, and nothing is done in
            one that was not started as ``python -m monai.bundle run``.
        resolved: what MONAI has made of the entries of the config so far; gets the paths that it would change, as they
            were typed, before anything asks for them.

    Raises:
        InputError: the option is in no config, with the nearest one that is; a path is not read as it was typed; a
            value is not of the kind of the config's own.
    """
    if arguments is None:
        if not is_bundle_command() or sys.argv[1:2] != ["run"]:
            return
        arguments = sys.argv[2:]
    from fire.parser import DefaultParseValue
    from monai.bundle import ConfigParser

    typed = _typed_options(arguments)
    for name, text in typed.items():
        if text is None and _is_path(name):
            raise InputError(f"--{name} needs a path behind it.")
    typed = {name: "True" if text is None else text for name, text in typed.items()}
    for name, text in typed.items():
        _check_path(name, text, DefaultParseValue(text))
    options = {name: DefaultParseValue(text) for name, text in typed.items()}
    if "args_file" in options:
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    files = options.get("config_file")
    if files is None:
        return  # MONAI says so itself
    config = ConfigParser.load_config_files(files)
    not_of_config = [*_OF_MONAI, *(_OF_TRACKING if "tracking" in options else ())]
    for name in options:
        _check_name(name, config, not_of_config)
        if name in typed:
            _check_kind(name, options[name], config.get(name))
        text = str(options[name])
        if resolved is not None and _is_path(name) and _SEPARATOR in text and not text.startswith(_MACROS):
            resolved[name] = options[name]


def as_literal(text: str) -> str:
    """What MONAI's configs read as this very text: they turn ``#`` into ``::``, and macros have a meaning of theirs."""
    if _SEPARATOR not in text and not text.startswith(_MACROS):
        return text
    escaped = repr(text)
    for mark in (_SEPARATOR, *_MACROS):
        escaped = escaped.replace(mark, f"\\x{ord(mark):02x}")
    return f"${escaped}"


def check_option(name: str, value: object, config: Mapping[str, object]) -> None:
    """Refuse an option that a config does not have, or a value that is not of the kind of the config's own.

    Args:
        name: name of the option, such as ``min_size`` or ``network_def#depths``.
        value: value of the option.
        config: content of the config.
    """
    _check_name(name, config)
    _check_kind(name, value, config.get(name))


def _check_name(name: str, config: Mapping[str, object], not_of_config: Sequence[str] = ()) -> None:
    """Refuse a name that the config does not have at its top, with the nearest one that it has."""
    top = name.replace("::", "#").split("#")[0].lstrip("+")
    if top in not_of_config or top in {entry.lstrip("+") for entry in config}:
        return
    values = sorted(entry for entry in config if not isinstance(config[entry], dict))
    near = difflib.get_close_matches(top, values, n=2, cutoff=0.5)
    hint = f"did you mean --{' or --'.join(near)}?" if near else "its options stand at the top of the file."
    raise InputError(f"--{shown(name)} is no option of this config; {hint}")


def _check_kind(name: str, value: object, default: object) -> None:
    """Refuse a value that is not of the kind of the config's own."""
    if isinstance(value, str) and value.startswith(_MACROS):
        return
    if name == "device":
        try:
            torch.device(value)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"--device must be one like cpu, cuda or cuda:1, got {shown(value)}.") from error
    elif isinstance(default, bool):
        is_on(value)
    elif isinstance(default, (int, float)) or name in _WHOLE:
        whole = not isinstance(default, float)
        kind = "a whole number" if whole else "a number"
        least = 1 if name in _COUNTS else 0
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        example = f", such as {default}" if isinstance(default, (int, float)) else ""
        if not (is_number and least <= value < math.inf):
            raise InputError(f"--{name} must be {kind} from {least} on{example}; got {shown(repr(value))}.")
    elif name in _SIZES:
        sides = value if isinstance(value, (list, tuple)) else [value] * len(default)
        if len(sides) != len(default) or not all(type(side) is int and side > 0 for side in sides):
            raise InputError(f"--{name} must be [height,width] in pixels, or one number; got {shown(repr(value))}.")


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


def _check_path(name: str, text: str, value: object) -> None:
    """Refuse a path that would not arrive as it was typed."""
    if not _is_path(name) or value is None or value == text or text.startswith(_MACROS):
        return
    if isinstance(value, str) and text[:1] in ("'", '"'):
        return  # quotes that reached Python: this very text is wanted
    if name in _LISTS and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return
    raise InputError(
        f"--{name} {shown(text)} would be read as {shown(repr(value))}; write ./{shown(text)} for a path of this name."
    )
