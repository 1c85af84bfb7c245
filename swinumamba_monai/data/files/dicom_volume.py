# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One DICOM series as a volume: its slices put in order by position, and refused when one is missing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from monai.data.utils import orientation_ras_lps

from swinumamba_monai.data.files.dicom_frames import Frame, count_groups, element_of, groups_of
from swinumamba_monai.data.files.dicom_parts import SPACING_TOLERANCE, uneven
from swinumamba_monai.data.files.dicom_pixels import read_pixels, rescale
from swinumamba_monai.data.files.limits import MAX_VOXELS
from swinumamba_monai.errors import InputError, explained, shown

if TYPE_CHECKING:
    import pydicom

_ONE_VOLUME = "give a folder with one volume, or with the one file of several, of which --series takes one"
_ASIDE = 0.5  # how many pixels a slice may lie beside its place
_UPRIGHT_TOLERANCE = 0.05  # error of the products of direction cosines, which some programs round to two digits
# Errors of direction cosines, and in mm: numbers are rounded in files.
_DIRECTION_TOLERANCE, _PIXEL_TOLERANCE = 1e-3, 1e-4


@dataclass(frozen=True)
class Slice:
    """One slice, in LPS axes and mm.

    Attributes:
        name: the file, and the number of the frame where it has several.
        pixels: (rows, columns).
        position: place of the centre of the first pixel (3), in mm.
        orientation: direction cosines along a row and along a column (6).
        spacing: distances of rows and of columns, in mm.
        thickness: thickness of the slice in mm, or None.
    """

    name: str
    pixels: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None


def read_dicom_files(
    place: Path,
    files: Sequence[Path],
    planes: Sequence[np.ndarray] | None = None,
    frames: Collection[Frame] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read the slices of one series.

    The order of the files and of their instance numbers does not matter: slices are sorted by the position along
    their normal. A file may hold one slice, all of them as frames (enhanced DICOM), or a Siemens mosaic of them.
    Rescale slope and intercept are applied; for the meaning of the pixels see
    :func:`~swinumamba_monai.data.files.dicom_pixels.read_pixels`.

    Args:
        place: the folder or file that sentences name.
        files: the files of the series, one at least.
        planes: (rows, columns) in the place of the pixels, in the order of the files: a label of each slice.
        frames: frames of the volume that is wanted, of files that hold several; None for all.

    Returns:
        The voxels (columns, rows, slices) and the affine (4, 4) to millimetres, RAS+. Without rescaling the data type
        is that of the files, else float32.

    Raises:
        InputError: A file cannot be read; slices are of several sizes or orientations, lack their position, share one,
            or lie at uneven distances; a slice is in colour; there are more than ``MAX_VOXELS`` voxels.
    """
    slices = [
        one
        for file in files
        for number, one in enumerate(_read_slices(file, MAX_VOXELS // len(files)))
        if frames is None or (file, number) in frames
    ]
    if planes is not None:
        slices = [replace(one, pixels=plane) for one, plane in zip(slices, planes, strict=True)]
    for plural, tolerance, values in (
        ("heights", 0, [one.pixels.shape[0] for one in slices]),
        ("widths", 0, [one.pixels.shape[1] for one in slices]),
        ("pixel spacings", _PIXEL_TOLERANCE, [one.spacing for one in slices]),
        ("orientations", _DIRECTION_TOLERANCE, [one.orientation for one in slices]),
    ):
        different: list[object] = []
        for value in values:
            if not any(np.allclose(value, other, rtol=0, atol=tolerance) for other in different):
                different.append(value)
        if len(different) > 1:
            raise InputError(f"{place} has slices of {len(different)} {plural}; {_ONE_VOLUME}.")
    order, axes, step = _geometry(place, slices)
    voxels = np.stack([slices[index].pixels.T for index in order], axis=-1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([axes[0], axes[1], step], axis=1)
    affine[:3, 3] = slices[order[0]].position
    return voxels, orientation_ras_lps(affine)


def _read_slices(file: Path, max_pixels: int) -> list[Slice]:
    """The slices of one file."""
    dataset, frames = read_pixels(file, max_pixels)
    with explained(f"{file} has a slice without position, orientation or spacing", "correct its header"):
        if "MOSAIC" in (getattr(dataset, "ImageType", None) or ()):
            return _cut_mosaic(file, dataset, frames[0])
        if len(frames) > 1 and count_groups(dataset) != len(frames):
            raise InputError(f"{file} has {len(frames)} frames without a position for each; convert it to NIfTI.")
        return [slice_of(file, dataset, pixels, number, len(frames)) for number, pixels in enumerate(frames)]


def slice_of(file: Path, dataset: pydicom.Dataset, pixels: np.ndarray, number: int, frames: int) -> Slice:
    """One frame with what the header says of it: for itself, for all frames, or for a file of a single one.

    Args:
        file: path of the file.
        dataset: its header.
        pixels: numbers of the frame as they are stored, (rows, columns).
        number: number of the frame, from 0 on.
        frames: number of all frames.

    Raises:
        ValueError: it lacks a position, an orientation or a spacing, or they are none.
    """
    groups = groups_of(dataset, number)

    def value(sequence: str, attribute: str) -> object:
        found = element_of(groups, f"{sequence} {attribute}")
        return getattr(dataset, attribute, None) if found is None else found

    slope, intercept = (value("PixelValueTransformationSequence", f"Rescale{name}") for name in ("Slope", "Intercept"))
    pixels = rescale(pixels, dataset, slope, intercept, file)
    thickness = value("PixelMeasuresSequence", "SliceThickness")
    return Slice(
        name=f"{file}" if frames == 1 else f"{file} (frame {number + 1})",
        pixels=pixels,
        position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=_directions(value("PlaneOrientationSequence", "ImageOrientationPatient")),
        spacing=tuple(_numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2).tolist()),
        thickness=float(thickness) if thickness else None,
    )


def _numbers(value: object, count: int) -> np.ndarray:
    """So many finite numbers, float64; a ValueError where there are others."""
    numbers = np.asarray(value, dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"not {count} finite numbers")
    return numbers


def _directions(value: object) -> np.ndarray:
    """The directions along a row and along a column (6); a ValueError where they are none, as zeros are."""
    numbers = _numbers(value, 6)
    sides = numbers.reshape(2, 3)
    if np.abs(sides @ sides.T - np.eye(2)).max() > _UPRIGHT_TOLERANCE:
        raise ValueError(f"an orientation of {shown(numbers.tolist())}, which are no two directions at a right angle")
    return numbers


def _cut_mosaic(file: Path, dataset: pydicom.Dataset, pixels: np.ndarray) -> list[Slice]:
    """The slices of a Siemens mosaic, a picture of all slices in rows; where they lie is in a private header alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls this module of it experimental
        from nibabel.nicom.dicomwrappers import MosaicWrapper
    problem = f"{file} is a Siemens MOSAIC, all slices in one picture, and its header does not say how to cut it"
    with explained(problem, "convert it to NIfTI, for example by dcm2niix"):
        wrapper = MosaicWrapper(dataset)
        rows, columns, count = (int(size) for size in wrapper.image_shape)
        normal = _numbers(wrapper.slice_normal, 3)
        first = _numbers(wrapper.image_position, 3)
        distance = float(wrapper.voxel_sizes[2])
        tiles = math.isqrt(count - 1) + 1
        if pixels.shape != (tiles * rows, tiles * columns) or not 0 < distance < np.inf:
            raise ValueError(f"{count} slices in {pixels.shape} pixels")
    pixels = rescale(
        pixels, dataset, getattr(dataset, "RescaleSlope", None), getattr(dataset, "RescaleIntercept", None), file
    )
    orientation, spacing = _numbers(dataset.ImageOrientationPatient, 6), _numbers(dataset.PixelSpacing, 2)
    planes = pixels.reshape(tiles, rows, tiles, columns).swapaxes(1, 2).reshape(-1, rows, columns)[:count]
    places = (first + number * distance * normal for number in range(count))
    return [
        Slice(f"{file} (slice {number})", plane, place, orientation, tuple(spacing.tolist()), distance)
        for number, (plane, place) in enumerate(zip(planes, places), start=1)
    ]


def _geometry(place: Path, slices: Sequence[Slice]) -> tuple[list[int], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The order of the slices, the steps of a column and of a row, and the step of a slice, in mm and LPS axes."""
    along_row, along_column = slices[0].orientation[:3], slices[0].orientation[3:]
    row_spacing, column_spacing = slices[0].spacing
    axes = (along_row * column_spacing, along_column * row_spacing)
    normal = np.cross(along_row, along_column)
    positions = np.stack([one.position for one in slices])
    depths = positions @ normal
    order = np.argsort(depths, kind="stable").tolist()
    if len(order) == 1:
        thickness = 1.0 if slices[0].thickness is None else slices[0].thickness
        if not 0 < thickness < np.inf:
            raise InputError(f"{slices[0].name} has a slice thickness that is no length ({thickness:g}); correct it.")
        return order, axes, normal * thickness
    gaps = np.diff(depths[order])
    typical = float(np.median(gaps))
    index = int(gaps.argmin())
    if gaps[index] <= 1e-3 * max(typical, 1e-3):
        first, second = slices[order[index]].name, slices[order[index + 1]].name
        raise InputError(
            f"{first} and {second} lie at one position; {_ONE_VOLUME}, or NIfTI: dcm2niix writes a file for each "
            "volume of a series."
        )
    if uneven(gaps):
        raise InputError(_why_uneven(place, [Path(slices[index].name).name for index in order], gaps, typical))
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    aside = positions[order] - positions[order[0]] - np.arange(len(order))[:, None] * step
    index = int(np.linalg.norm(aside, axis=1).argmax())
    if np.linalg.norm(aside[index]) > max(_ASIDE * min(slices[0].spacing), 2 * SPACING_TOLERANCE * typical):
        raise InputError(
            f"{slices[order[index]].name} lies {np.linalg.norm(aside[index]):.2f} mm beside the line through the other "
            "slices, but the slices of a volume are over each other or lean evenly; give a folder with one volume."
        )
    return order, axes, step


def _why_uneven(place: Path, names: Sequence[str], gaps: np.ndarray, typical: float) -> str:
    """The sentence for uneven distances: slices are missing where all are multiples of one."""
    steps = np.round(gaps / typical)
    index = int(np.abs(gaps - typical).argmax())
    if steps.min() >= 1 and np.abs(gaps - steps * typical).max() <= SPACING_TOLERANCE * typical:
        return (
            f"{place} misses slices: {names[index]} and {names[index + 1]} are {gaps[index]:.2f} mm apart, the others "
            f"{typical:.2f} mm; complete the series, or resample it to even slices if none is missing."
        )
    return (
        f"{place} has slices at uneven distances, from {gaps.min():.2f} to {gaps.max():.2f} mm, but a volume has one "
        "distance; resample it to even slices, as dcm2niix does (its file with _Eq), and give that file."
    )
