# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a client of the annotation server may say: every value is checked for what it is, and all else is refused.

MONAI Label hands the values of a request on to configs, where ``$`` and ``@`` begin code, to environment variables and
to paths. So nothing gets there that has not gone through one of these checks, which return the value to go on with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath, PureWindowsPath

from swinumamba_monai.errors import InputError, listed, shown
from swinumamba_monai.switches import is_on

MAX_EPOCHS = 100_000
MAX_NAME = 240  # bytes; a file's name has 255, and gets an ending
MAX_DEPTH = 8  # number of levels of nested lists and objects
MAX_VALUES = 100_000  # number of values in a request: points of a click, corners of a region, letters
MAX_NUMBER = 2**53  # largest number that JavaScript keeps whole, too

_DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,2})?")
_SUM = re.compile(r"((SHA256|SHA512|MD5):)?[0-9A-Fa-f]{1,128}")
_CODE = ("$", "@", "%")  # as MONAI's configs begin what they evaluate or look up
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)[ ]*(\..*)?", re.IGNORECASE)

Check = Callable[[str, object], object]


def check_name(field: str, value: object, optional: bool = False) -> str:
    """A name that is part of a file's: of an image, a label's tag, a model, a session.

    Args:
        field: name of the value in the request.
        value: the client's value.
        optional: whether it may be empty.

    Raises:
        InputError: no text, over 240 bytes, a path or device on any system, or one that begins like code.
    """
    if optional and (value is None or value == ""):
        return ""
    printable = isinstance(value, str) and value.isprintable() and len(value.encode()) <= MAX_NAME
    # Windows takes ".. " and "..." for folders too, and "c:a" for a file elsewhere.
    if not printable or value.startswith((*_CODE, "~")) or not value.strip(". ") or set(value) & set("/\\"):
        raise InputError(f"{field} must be a name, without folders and of at most {MAX_NAME} bytes.")
    if PureWindowsPath(value).drive or _WINDOWS_DEVICE.fullmatch(value):
        raise InputError(f"{field} must be a name, without a drive or device.")
    return value


def check_file_name(field: str, value: object) -> str:
    """The name of a file that is sent, without the client's folders, which some clients send too."""
    return check_name(field, re.split(r"[/\\]", value)[-1] if isinstance(value, str) else value)


def check_sum(field: str, value: object) -> str | None:
    """A hash of a file in hexadecimal digits, perhaps with what kind it is before a colon; None for nothing."""
    if value is not None and not (isinstance(value, str) and _SUM.fullmatch(value)):
        raise InputError(f"{field} must be a hash of the kind SHA256, SHA512 or MD5, like SHA256:0a1b.")
    return value


def check_device(field: str, value: object, known: Collection[str] = ()) -> str:
    """A device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or one of ``known``, the names that the server gives them."""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not (_DEVICE.fullmatch(value) or value in known):
        raise InputError(f"{field} must be a device like cpu, cuda or cuda:0.")
    return value


def check_bounds(field: str, value: float) -> float:
    """A number that JavaScript keeps whole, too: a larger one would not fit where MONAI Label puts it."""
    if not abs(value) <= MAX_NUMBER:
        raise InputError(f"{field} must be a number of at most {MAX_NUMBER}.")
    return value


def check_data(field: str, value: object) -> object:
    """JSON that is only kept, or numbers that are only computed with: it is bounded, and no text begins like code.

    What is kept goes out again, as JSON in UTF-8: a NaN or half a letter among it would break every later answer.
    """
    remaining = MAX_VALUES

    def check(value: object, depth: int) -> None:
        nonlocal remaining
        remaining -= len(value) if isinstance(value, str) else 1
        if remaining < 0 or depth > MAX_DEPTH:
            raise InputError(f"{field} holds more than {MAX_VALUES} values and letters or {MAX_DEPTH} levels.")
        if isinstance(value, Mapping):
            for name, part in value.items():
                check(name, depth + 1)
                check(part, depth + 1)
        elif isinstance(value, list):
            for part in value:
                check(part, depth + 1)
        elif isinstance(value, str):
            if value.startswith(_CODE):
                raise InputError(f"{field} holds text that begins with one of {' '.join(_CODE)}.")
            if "\0" in value or value.encode(errors="replace").decode() != value:
                raise InputError(f"{field} holds text with characters that are none.")
        elif isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:  # nor is NaN
            raise InputError(f"{field} holds a number that is none, or beyond {MAX_NUMBER}.")

    check(value, 0)
    return value


def _switch(field: str, value: object) -> bool:
    numbers = {"1": True, "0": False}  # as clients of forms send them
    try:
        return is_on(numbers.get(str(value), value))
    except InputError as error:
        raise InputError(f"{field} must be true or false.") from error


def _number(kind: type, low: float, high: float) -> Check:
    def check(field: str, value: object) -> object:
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        whole = kind is not int or isinstance(value, (int, str))
        if number is None or isinstance(value, bool) or not whole or not low <= number <= high:
            raise InputError(f"{field} must be a number from {low} to {high}.")
        return number

    return check


def _choice(*allowed: str) -> Check:
    def check(field: str, value: object) -> str:
        value = value[0] if isinstance(value, list) and value else value
        for choice in allowed:
            if isinstance(value, str) and value.lower() == choice.lower():
                return choice
        raise InputError(f"{field} must be one of {', '.join(filter(None, allowed))}.")

    return check


def _gpus(field: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"(all|[0-9]{1,2}(,[0-9]{1,2}){0,15})?", value):
        raise InputError(f"{field} must be all, or numbers of GPUs with commas between them.")
    return value or "all"


def _weights(field: str, value: object) -> str:
    value = check_name(field, value[0] if isinstance(value, list) and value else value)
    if PurePosixPath(value).suffix != ".pt":
        raise InputError(f"{field} must be the name of a .pt file in the bundle's models folder.")
    return value


def _optional_name(field: str, value: object) -> str:
    return check_name(field, value, optional=True)


_WHO: dict[str, Check] = {"model": check_name, "client_id": _optional_name, "user": _optional_name}

TRAINING: dict[str, Check] = {
    **_WHO,
    "name": _optional_name,
    "device": check_device,
    "pretrained": _switch,
    "max_epochs": _number(int, 1, MAX_EPOCHS),
    "val_split": _number(float, -1, 0.9),
    "multi_gpu": _switch,
    "gpus": _gpus,
    "tracking": _choice("mlflow", "None", ""),
    "tracking_uri": _choice(""),  # where it tracks is for whoever starts the server to say
    "tracking_experiment_name": _optional_name,
    "tracking_run_name": _optional_name,
    "run_id": _choice("run", ""),
    "model_filename": _weights,
}

INFERENCE: dict[str, Check] = {
    **_WHO,
    "device": check_device,
    "model_filename": _weights,
    "label_tag": check_name,
    "save_label": _switch,
    "logging": _choice("DEBUG", "INFO", "WARNING", "ERROR"),
    "timeout": _number(float, 1, 24 * 3600),
    "output": _choice("image", "json", "all", "asap", "dsa", ""),
    "result_extension": _choice(".nii.gz", ".nii", ".nrrd", ".png", ""),
    "result_dtype": _choice("uint8", "uint16", "int16", "int32", "float32", ""),
    "result_compress": _switch,
    "restore_label_idx": _switch,
    "largest_cc": _switch,
    "multi_gpu": _switch,
    "gpus": _gpus,
    "max_workers": _number(int, 0, 64),
    "max_batch_size": _number(int, 0, 1 << 20),
    **dict.fromkeys(
        ("level", "location", "size", "tile_size", "min_poly_area", "roi", "slice", "foreground", "background"),
        check_data,
    ),
    **dict.fromkeys(("label", "label_info", "labels", "selected_label_name"), check_data),
}

SAMPLING: dict[str, Check] = {**_WHO, "strategy": check_name, "label_tag": _optional_name, "labels": check_data}


def check_segments(value: object, names: Mapping[int, str]) -> None:
    """Refuse the list of a label's segments in which a class has another number than it has here.

    3D Slicer numbers the segments that are there: behind one that was removed all move up, and each would be learnt as
    the class before it.

    Args:
        value: what a client says of a label; Slicer says ``{"label_info": [{"name": "liver", "idx": 1}]}``, with an
            entry for each number from 1 on. Segments of other names, and all other forms, are passed over.
        names: names of the classes by their numbers.

    Raises:
        InputError: a segment is called like a class, and its number is not that of the class.
    """
    segments = value.get("label_info") if isinstance(value, Mapping) else None
    number_of = {name: number for number, name in names.items()}
    for place, segment in enumerate(segments if isinstance(segments, list) else (), start=1):
        name, number = (segment.get(key) if isinstance(segment, Mapping) else None for key in ("name", "idx"))
        # Slicer counts a segment of the background in `idx`, and does not write it into the label.
        if isinstance(name, str) and number_of.get(name, place) not in (place, number):
            order = listed([names[number] for number in sorted(names)], len(names))
            raise InputError(
                f"the label has {shown(name)} as number {place}, and here that is {number_of[name]}; keep a segment "
                f"for each class, also where it is empty, in this order: {order}."
            )


def check_fields(given: object, checks: Mapping[str, Check]) -> dict[str, object]:
    """The fields of a request as its checks return them.

    Args:
        given: the client's fields; None counts as nothing.
        checks: :data:`TRAINING`, :data:`INFERENCE` or :data:`SAMPLING`.

    Raises:
        InputError: no object, a field that has no check, or one whose value its check refuses.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError("the request must be an object of names and values.")
    for field in given:
        if field not in checks:
            known = ", ".join(sorted(checks))
            raise InputError(f"the request has a field that is not known here; the known ones are {known}.")
    return {field: checks[field](field, value) for field, value in given.items()}
