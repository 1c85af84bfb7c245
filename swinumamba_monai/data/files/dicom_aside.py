# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which DICOM files of a folder are set aside, each with the word for it: what is no slice of a volume in it."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from monai.utils import optional_import

from swinumamba_monai.data.files import dicom_parts
from swinumamba_monai.errors import shown

if TYPE_CHECKING:
    import pydicom

    from swinumamba_monai.data.files.dicom_parts import Headers

UID, _ = optional_import("pydicom.uid", name="UID")

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_IMAGES = ("SEG", "RTDOSE", "PR", "SR", "KO", "REG", "RTSTRUCT", "RTPLAN")  # modalities
_LOCALIZERS = {"LOCALIZER", "SCOUT"}


def copies_in(images: Headers) -> dict[Path, str]:
    """Files that are the same as one before, to the last byte, in the same folder."""
    copies: dict[Path, str] = {}
    first: dict[tuple[Path, str], list[Path]] = {}
    for file, header in images.items():
        alike = first.setdefault((file.parent, str(getattr(header, "SOPInstanceUID", ""))), [])
        if same := next((one for one in alike if filecmp.cmp(one, file, shallow=False)), None):
            copies[file] = f"a copy of {same.name}"
        else:
            alike.append(file)
    return copies


def no_scans(images: Headers) -> dict[Path, str]:
    """The secondary captures and localizers of a visit, with the word, if there is anything else in it."""
    aside: dict[Path, str] = {}
    captures = [f for f, h in images.items() if str(getattr(h, "SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)]
    localizers = [file for file, header in images.items() if _LOCALIZERS & set(dicom_parts.words_of(header))]
    for reason, found in (("secondary capture", captures), ("localizer", localizers)):
        kind = [file for file in found if file not in aside]
        if len(kind) < len(images) - len(aside):
            aside |= dict.fromkeys(kind, reason)
    return aside


def of_another_size(group: Headers) -> dict[Path, str]:
    """Single slices of a series whose others are a stack of one size, as a picture of it, with the word for them."""
    sizes = dicom_parts.by_size(group)
    alone = {file: header for part in sizes.values() if len(part) == 1 for file, header in part.items()}
    if len(alone) == len(group) or any(map(dicom_parts.holds_several, alone.values())):
        return {}
    return dict.fromkeys(alone, "a slice of another size")


def across_stacks(groups: Sequence[Headers]) -> dict[Path, str]:
    """Slices of the series of a visit that are in other directions than its stacks, with the word for them."""
    aside: dict[Path, str] = {}
    parallel = [dicom_parts.by_direction(group) for group in groups]
    ways = [[_stack_direction(part.values()) for part in parts] for parts in parallel]
    stacks = [way for of_group in ways for way in of_group if way is not None]
    for parts, of_group in zip(parallel, ways):
        crossed = len(parts) > 1 and all(way is None for way in of_group)  # a slice in each direction
        for part, way in zip(parts, of_group):
            if stacks and way is None and (crossed or not _lies_in(part.values(), stacks)):
                aside |= dict.fromkeys(part, "slices in other directions, like a localizer's")
    return aside


def why_no_image(header: pydicom.Dataset) -> str:
    """What a file without slices is, or ""; an AttributeError where it says nothing at all."""
    if getattr(header, "Rows", None) and str(getattr(header, "Modality", "")) not in _NO_IMAGES:
        return ""
    # A DICOMDIR says what it is before its elements alone.
    return shown(UID(header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID).name)


def _stack_direction(headers: Iterable[pydicom.Dataset]) -> np.ndarray | bool | None:
    """The orientation that several slices share, or None; False for a file that holds several itself."""
    headers = list(headers)
    if any(map(dicom_parts.holds_several, headers)):
        return False
    ways = [dicom_parts.direction_of(header) for header in headers]
    if len(ways) < 2 or any(way is None or not dicom_parts.is_parallel(way, ways[0]) for way in ways):
        return None
    return ways[0]


def _lies_in(headers: Iterable[pydicom.Dataset], stacks: Sequence[np.ndarray | bool]) -> bool:
    """Whether all slices have the orientation of a stack, and may be a part of it that was named otherwise."""
    ways = [dicom_parts.direction_of(header) for header in headers]
    return any(
        stack is not False and all(way is not None and dicom_parts.is_parallel(way, stack) for way in ways)
        for stack in stacks
    )
