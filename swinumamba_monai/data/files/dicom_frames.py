# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Enhanced DICOM files, whose frames have headers of their own: what these say, and the volumes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from swinumamba_monai.data.files.dicom_parts import PART_TAGS, grouped, is_stack, parts_of
from swinumamba_monai.data.files.dicom_pixels import read_header

if TYPE_CHECKING:
    import pydicom

# Where a frame says what a file of a single slice says of itself: the sequences, and the element in them.
_PLACES = {
    "ImagePositionPatient": "PlanePositionSequence ImagePositionPatient",
    "ImageOrientationPatient": "PlaneOrientationSequence ImageOrientationPatient",
    "EchoTime": "MREchoSequence EffectiveEchoTime",
    "AcquisitionNumber": "FrameContentSequence FrameAcquisitionNumber",
    "TemporalPositionIdentifier": "FrameContentSequence TemporalPositionIndex",
    "DiffusionBValue": "MRDiffusionSequence DiffusionBValue",
    "DiffusionGradientOrientation": (
        "MRDiffusionSequence DiffusionGradientDirectionSequence DiffusionGradientOrientation"
    ),
    "TriggerTime": "CardiacSynchronizationSequence NominalCardiacTriggerDelayTime",
    "InversionTime": "MRModifierSequence InversionTimes",
    "FlipAngle": "MRTimingAndRelatedParametersSequence FlipAngle",
    "ImageType": "MRImageFrameTypeSequence FrameType",
    "StackID": "FrameContentSequence StackID",
}
_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_INDEX = "DimensionIndex"  # and a number: what tells frames apart where none of the names above does

Frame = tuple[Path, int]  # a file, and the number of a frame in it


def volumes_in(key: str, files: Mapping[Path, object]) -> list[tuple[str, frozenset[Frame], str]]:
    """The volumes in files that hold several slices each.

    Args:
        key: key of the series.
        files: the files of the series.

    Returns:
        For each volume its key, its frames, and what tells it from the others; nothing where there is one, or where
        nothing tells them apart, or where frames have no headers of their own.
    """
    headers: dict[Frame, SimpleNamespace] = {}
    with suppress(Exception):  # pydicom has no common class for a broken file; reading it says what is wrong
        for file in files:
            status = file.stat()
            found = _read_headers(file, status.st_size, status.st_mtime_ns)
            headers |= {(file, number): header for number, header in enumerate(found)}
    if len({file for file, _ in headers}) < len(files):
        return []
    indices = {name: None for header in headers.values() for name in vars(header) if name.startswith(_INDEX)}
    parts = parts_of(key, headers, (*PART_TAGS, "StackID", *indices))
    if len(parts) == 1 and not is_stack(headers):
        stacks = grouped(headers, lambda _, header: str(header.StackID))
        parts = [(f"{key}-StackID-{stack}", stacks[stack], f"StackID {stack}") for stack in sorted(stacks)]
    return [(name, frozenset(frames), words) for name, frames, words in parts] if len(parts) > 1 else []


@lru_cache(maxsize=8)  # a series is looked for whenever one of its volumes is read
def _read_headers(file: Path, size: int, changed: int) -> tuple[SimpleNamespace, ...]:
    """The header of every frame; ``size`` and ``changed`` tell the file from one before it of the same name."""
    dataset = read_header(file, _GROUPS)
    return tuple(_header(groups_of(dataset, number)) for number in range(count_groups(dataset)))


def _header(groups: Sequence[pydicom.Dataset]) -> SimpleNamespace:
    """What a frame says, as a file of a single slice would; "" for what it does not say."""
    found = {name: element_of(groups, place) for name, place in _PLACES.items()}
    header = SimpleNamespace(**{name: "" if value is None else value for name, value in found.items()})
    for number, index in enumerate(element_of(groups, "FrameContentSequence DimensionIndexValues") or (), start=1):
        setattr(header, f"{_INDEX}{number}", index)
    return header


def count_groups(dataset: pydicom.Dataset) -> int:
    """The number of frames with a header of their own."""
    return len(getattr(dataset, _GROUPS[0], None) or ())


def groups_of(dataset: pydicom.Dataset, number: int) -> list[pydicom.Dataset]:
    """What a file says of its frame ``number``, from 0 on: in the frame's own header, if any, and in that of all."""
    own, shared = (getattr(dataset, name, None) or [] for name in _GROUPS)
    return [*own[number : number + 1], *shared[:1]]


def element_of(groups: Sequence[pydicom.Dataset], place: str) -> object | None:
    """The value of an element in the first of the headers of a frame that has it; None where none has.

    Args:
        groups: headers, as :func:`groups_of` gives them.
        place: names of the sequences that it is in, of each of which the first item counts, and its own, with blanks
            between them.
    """
    *sequences, element = place.split()
    for holder in groups:
        for name in sequences:
            holder = (getattr(holder, name, None) or [None])[0]
        if (value := getattr(holder, element, None)) is not None:
            return value
    return None
