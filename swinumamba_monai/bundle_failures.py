# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which entry of a config is behind an error that MONAI raises while it makes a component of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from traceback import walk_tb

from swinumamba_monai.errors import InputError, listed, quoted, shown

REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")  # a reference to an entry, at the top of the config or in a section
_NOT_MADE = re.compile(r"Failed to instantiate component '([\w.]+)' with keywords: (\S*)")
_NOT_FOUND = re.compile(r"Cannot locate class or function path: '(.*)'")
_NOT_DEFINED = re.compile(r"the referring item `@([\w:]+)` is not defined in the config content")
_TOO_FEW = "the dataset length is less than the number of participating ranks"  # MONAI's DistributedSampler
_OWN_FRAMES = 3  # frames of an error that a constructor raises itself: MONAI's call of it, a decorator, the constructor


def id_parts(name: str) -> list[str]:
    """The parts of an id, ``optimizer`` and ``lr`` of ``optimizer#lr``."""
    return re.split("#|::", name)


def explain_failure(
    error: BaseException, options: Mapping[str, object], config: Mapping[str, object]
) -> InputError | None:
    """The sentence for what a config cannot be read as, because of what was given for it, or None.

    MONAI says of such a component its class and the names of its arguments; an option is behind one of them if it has
    its name, or if the config's own value of the argument mentions it. Where no option is, the sentence names the
    entry of the config, if it is the constructor itself that refuses: what fails further down may be no fault of the
    config, and keeps its traceback.

    Args:
        error: what ended the run.
        options: names and values that were given, on the command line or by a config on top of the first.
        config: content of the config.
    """
    config = {**config, **options}
    failure = cause = None
    while error is not None:
        if str(error).startswith(_TOO_FEW):
            return InputError(
                f"each of the {os.environ.get('WORLD_SIZE')} processes needs an image of the section that is validated "
                "or evaluated, which has fewer; start no more processes than it has images."
            )
        if missing := _NOT_FOUND.search(str(error)):
            return _not_there(missing[1], options, config)
        if lacking := _NOT_DEFINED.search(str(error)):
            return _lacking(lacking[1], options)
        if str(error).startswith("Failed to evaluate ConfigExpression"):
            wanted = [name for name, value in options.items() if _is_evaluated(value, str(error))]
            if wanted and error.__cause__ is not None:
                return InputError(f"{_as_typed(wanted, options)} cannot be evaluated ({quoted(error.__cause__)}).")
        if found := _NOT_MADE.match(str(error)):
            failure, cause = found, error.__cause__
        error = error.__cause__ or error.__context__
    if failure is None or cause is None:
        return None
    return _not_made(failure[1], failure[2].split(","), cause, options, config)


def _as_typed(names: Iterable[str], options: Mapping[str, object]) -> str:
    """Options as they were typed."""
    return listed(f"--{name} {options[name]}" for name in names)


def _lacking(entry: str, options: Mapping[str, object]) -> InputError:
    """The sentence for an entry that others refer to."""
    section = entry.split("::")[0]
    given = _as_typed((name for name in options if id_parts(name)[0] == section), options)
    instead = f", for {given} took its place" if given else ""
    return InputError(f"the config refers to @{entry.replace('::', '#')}, which it lacks{instead}.")


def _not_made(
    target: str, arguments: Sequence[str], cause: BaseException, options: Mapping[str, object], config: Mapping
) -> InputError | None:
    """The sentence for a component that cannot be made of its arguments, or None where no option is behind it."""
    places, behind = [], set()
    for place, component in _components(config):
        if target.endswith(str(component.get("_target_"))):
            places.append(place)
            texts = [json.dumps(component[name]) for name in arguments if name in component]
            behind |= {id_parts(found)[-1] for text in texts for found in REFERENCE.findall(text)}
    last = {name: id_parts(name)[-1] for name in options}
    guilty = [name for name in options if last[name] in arguments]
    guilty = guilty or [name for name in options if last[name] in behind]
    made = target.rpartition(".")[2]
    if not guilty:
        if len(places) == 0 or len(list(walk_tb(cause.__traceback__))) > _OWN_FRAMES:
            return None
        places = dict.fromkeys(places)  # an entry of a config on top is there twice
        return InputError(f"{made} cannot be made as {listed(places)} of the config says ({quoted(cause)}).")
    named = [name for name in guilty if re.search(rf"\b{re.escape(last[name])}\b", str(cause))]
    return InputError(f"{made} cannot be made with {_as_typed(named or guilty, options)} ({quoted(cause)}).")


def _not_there(target: str, options: Mapping[str, object], config: Mapping[str, object]) -> InputError:
    """The sentence for a ``_target_`` that cannot be imported."""
    places = [f"--{name}" for name, value in options.items() if value == target]
    places += [f"{place}#_target_" for place, component in _components(config) if component["_target_"] == target]
    behind = f", which {listed(places[:1])} names" if places else ""
    return InputError(
        f"there is no class or function {shown(target)}{behind}, or what it imports is not installed; "
        "write its whole path, such as torch.nn.L1Loss, or the name of one of MONAI's."
    )


def _is_evaluated(value: object, message: str) -> bool:
    """Whether MONAI's message, which breaks lines and replaces references, is of this expression."""
    if not isinstance(value, str) or not value.startswith("$"):
        return False
    expression = REFERENCE.sub(r"__local_refs['\1']", value)
    return re.sub(r"\W", "", message.partition(":")[2]) == re.sub(r"\W", "", expression)


def _components(config: object, place: str = "") -> Iterator[tuple[str, Mapping[str, object]]]:
    """The id of everything in a config that has a class, and its definition."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield place, config
        parts = list(config.items())
    else:
        parts = list(enumerate(config)) if isinstance(config, list) else []
    for key, part in parts:
        yield from _components(part, f"{place}#{key}" if place else str(key))
