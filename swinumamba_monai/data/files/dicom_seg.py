# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM segmentations as label volumes: frames of segments with their positions, as dcmqi and highdicom write them."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
from monai.data.utils import orientation_ras_lps

from swinumamba_monai.data.files.dicom_frames import count_groups, element_of, groups_of
from swinumamba_monai.data.files.dicom_pixels import is_dicom_file, read_header
from swinumamba_monai.data.files.dicom_volume import slice_of
from swinumamba_monai.data.files.limits import MAX_VOXELS, check_unfolding
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.errors import InputError, explained, listed, log_once

logger = logging.getLogger(__name__)

_MODALITY, _CONTOURS = "SEG", "RTSTRUCT"
# What is said of such a file.
CONTOURS_ALONE = (
    "is a DICOM structure set (RTSTRUCT), whose contours are not read; convert it to NIfTI or to a DICOM segmentation, "
    "as 3D Slicer does."
)
_OFF_GRID = 0.05  # share of the distance of slices by which one may lie beside its place
_MAX_SLICES = 4096  # where most are without a frame, which takes no place in the file but some in memory


def find_segmentation(path: Path) -> Path | None:
    """The file of a segmentation: the file itself, or the only one in a folder and below; None where there is none.

    Raises:
        InputError: There are several, or nothing but contours.
    """
    files = [path] if path.is_file() else find_files(path) if path.is_dir() else []
    modalities = {file: _modality(file) for file in files if is_dicom_file(file)}
    found = [file for file, modality in modalities.items() if modality == _MODALITY]
    if len(found) > 1:
        raise InputError(f"{path} has {len(found)} DICOM segmentations, but a label is one; take the others out.")
    if modalities and set(modalities.values()) == {_CONTOURS}:
        raise InputError(f"{next(iter(modalities))} {CONTOURS_ALONE}")
    return found[0] if found else None


def has_contours(file: Path) -> bool:
    """Whether a file is a DICOM structure set, of radiotherapy."""
    return is_dicom_file(file) and _modality(file) == _CONTOURS


def _modality(file: Path) -> str:
    try:
        return str(read_header(file, ["Modality"]).get("Modality", ""))
    except Exception:  # pydicom has no common class for a broken file, which reading it says is one
        return ""


def named_segments(file: Path) -> dict[int, str]:
    """The names of the segments by their numbers; empty for a damaged file, of which reading it says more."""
    try:
        segments = read_header(file, ["SegmentSequence"]).get("SegmentSequence") or ()
        names = {int(segment.SegmentNumber): str(segment.get("SegmentLabel") or "") for segment in segments}
    except Exception:  # pydicom has no common class for a broken file
        return {}
    return {number: name for number, name in names.items() if name}


def read_segmentation(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers of the segments; slices without a frame are background, and the first of two segments counts.

    Args:
        file: a segmentation of the kinds BINARY (a bit or a byte a pixel), FRACTIONAL (half of the maximum or more is
            the segment) or LABELMAP, not compressed.

    Returns:
        The numbers (columns, rows, slices), int32, from the first slice with a frame to the last, and the affine (4, 4)
        to mm, RAS+.

    Raises:
        InputError: The file is damaged, claims too much, or its frames are no slices of one grid.
    """
    with explained(f"{file} is a DICOM segmentation that cannot be decoded", "convert it to NIfTI"):
        return _read(file)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    dataset = read_header(file)
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    bits, kind = int(dataset.BitsAllocated), str(dataset.get("SegmentationType", "BINARY"))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed or not syntax.is_little_endian or bits not in (1, 8, 16):
        raise InputError(f"{file} is a segmentation that is compressed, or of {bits} bits; store it as it is.")
    if rows * columns * count > MAX_VOXELS:
        raise InputError(f"{file} claims {rows * columns * count} pixels, but {MAX_VOXELS} is the limit; replace it.")
    check_unfolding(file, rows * columns * count)
    pixels = np.frombuffer(dataset.PixelData, f"<u{max(bits // 8, 1)}")
    pixels = np.unpackbits(pixels, bitorder="little") if bits == 1 else pixels
    pixels = pixels[: rows * columns * count].reshape(count, rows, columns)
    if count_groups(dataset) != count:
        raise ValueError(f"{count_groups(dataset)} descriptions of {count} frames")
    slices = [slice_of(file, dataset, plane, number, count) for number, plane in enumerate(pixels)]
    orientation, positions = (np.stack([getattr(one, of) for one in slices]) for of in ("orientation", "position"))
    if np.ptp(orientation, axis=0).max() > 1e-3:
        raise InputError(f"{file} has frames in several directions; convert it to NIfTI.")
    along_row, along_column = orientation[0, :3], orientation[0, 3:]
    normal = np.cross(along_row, along_column)
    depths = (positions - positions[0]) @ normal
    gaps = np.diff(np.unique(depths.round(3)))
    stated = element_of(groups_of(dataset, 0), "PixelMeasuresSequence SpacingBetweenSlices")
    step = float(stated or 0) or (float(gaps.min()) if gaps.size else slices[0].thickness or 1.0)
    places = (depths - depths.min()) / step
    numbers = np.rint(places).astype(int)
    if not step > 0 or np.abs(places - numbers).max() > _OFF_GRID or rows * columns * (numbers.max() + 1) > MAX_VOXELS:
        raise InputError(f"{file} has frames at uneven distances; convert it to NIfTI.")
    if numbers.max() >= max(count, _MAX_SLICES):
        raise InputError(f"{file} has {count} frames, but as far apart as {numbers.max() + 1} slices; replace it.")
    check_unfolding(file, 4 * rows * columns * int(numbers.max() + 1))  # slices without a frame are in no file
    ids = np.zeros((numbers.max() + 1, rows, columns), np.int32)
    least = int(dataset.get("MaximumFractionalValue") or 255) / 2 if kind == "FRACTIONAL" else 1
    lost: Counter[int] = Counter()
    for frame, (plane, place) in enumerate(zip(pixels, numbers)):
        part = plane.astype(np.int32)
        free = ids[place] == 0
        if kind != "LABELMAP":
            number = element_of(groups_of(dataset, frame), "SegmentIdentificationSequence ReferencedSegmentNumber")
            part = np.where(plane >= least, int(number), 0)
            lost[int(number)] += np.count_nonzero(part[~free])
        ids[place][free] = part[free]
    if overlaps := [f"{number} loses {count} voxels" for number, count in sorted(lost.items()) if count]:
        sentence = f"{file} has segments that overlap: {listed(overlaps)} to those before it"
        log_once(logger, logging.WARNING, sentence)
    affine = np.eye(4)
    rows_apart, columns_apart = slices[0].spacing
    affine[:3, :3] = np.stack([along_row * columns_apart, along_column * rows_apart, normal * step], axis=1)
    affine[:3, 3] = positions[depths.argmin()]
    return ids.T, orientation_ras_lps(affine)
