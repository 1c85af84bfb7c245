# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The volumes in enhanced DICOM files, whose frames have headers of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from swinumamba_monai.data.files.dicom_parts import PART_TAGS, is_stack, parts_of
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
            groups = read_header(file, _GROUPS)
            shared = getattr(groups, _GROUPS[1], None) or []
            for number, own in enumerate(getattr(groups, _GROUPS[0], None) or []):
                headers[file, number] = _header([own, *shared[:1]])
    if len({file for file, _ in headers}) < len(files):
        return []
    indices = {name: None for header in headers.values() for name in vars(header) if name.startswith(_INDEX)}
    parts = parts_of(key, headers, (*PART_TAGS, "StackID", *indices))
    stacks = {str(header.StackID) for header in headers.values()}
    if len(parts) == 1 and len(stacks) > 1 and not is_stack(headers):
        parts = [
            (
                f"{key}-StackID-{stack}",
                {f: h for f, h in headers.items() if str(h.StackID) == stack},
                f"StackID {stack}",
            )
            for stack in sorted(stacks)
        ]
    return [(name, frozenset(frames), words) for name, frames, words in parts] if len(parts) > 1 else []


def _header(groups: Sequence[pydicom.Dataset]) -> SimpleNamespace:
    """What a frame says, as a file of a single slice would; the first group that says a thing counts."""
    header = SimpleNamespace(**{name: _value(groups, place.split()) for name, place in _PLACES.items()})
    for number, index in enumerate(_value(groups, "FrameContentSequence DimensionIndexValues".split()) or (), start=1):
        setattr(header, f"{_INDEX}{number}", index)
    return header


def _value(groups: Sequence[pydicom.Dataset], place: Sequence[str]) -> object:
    *sequences, element = place
    for holder in groups:
        for name in sequences:
            holder = (getattr(holder, name, None) or [None])[0]
        if (value := getattr(holder, element, None)) is not None:
            return value
    return ""
