# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One DICOM series as a volume: its slices put in order by position, and refused when one is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from monai.utils import optional_import

from swinumamba_monai.data.files.images import check_unfolding
from swinumamba_monai.errors import InputError, quoted

if TYPE_CHECKING:
    import pydicom

dcmread, _has_pydicom = optional_import("pydicom", name="dcmread")
read_file_meta_info, _ = optional_import("pydicom.filereader", name="read_file_meta_info")

# How much the distances of neighbouring slices may differ, relative to their median: positions are rounded in files.
_SPACING_TOLERANCE = 0.05
MAX_VOXELS = 1 << 31
_MAX_SAMPLES, _MAX_BITS = 4, 64  # of a pixel
_DIRECTION_TOLERANCE, _PIXEL_TOLERANCE = 1e-3, 1e-4  # of direction cosines, and of mm: numbers are rounded in files
# The one syntax whose whole file is compressed, so that reading its header reads all of it, and how large such a file
# may be: it unfolds to at most a thousand times as much.
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAX_DEFLATED_BYTES = 1 << 21
# What is used of a header: a value is decoded when it is asked for, and may fail then.
_ATTRIBUTES = (
    "SeriesInstanceUID Rows Columns PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness "
    "RescaleSlope RescaleIntercept"
).split()
# DICOM's patient axes are left, posterior, superior; NIfTI's are right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_dicom_series(folder: Path) -> bool:
    """Whether a folder holds at least one DICOM file (by suffix, or by the mark at byte 128)."""
    return folder.is_dir() and any(_is_dicom(file) for file in folder.iterdir())


def read_dicom_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the slices of one series.

    The order of the files and of their instance numbers does not matter: slices are sorted by the position along
    their normal. Rescale slope and intercept are applied.

    Args:
        folder: with the files of one series, one slice each; what is no DICOM file is passed over.

    Returns:
        The voxels (columns, rows, slices) and the affine (4, 4) to millimetres, RAS+. Without rescaling the data type
        is that of the files, else float32.

    Raises:
        InputError: pydicom is not installed; a file cannot be read; slices are of several series, sizes or
            orientations, lack their position, share one, or leave a gap; a slice is in colour; there are more than
            ``MAX_VOXELS`` voxels.
    """
    files = sorted(file for file in folder.iterdir() if _is_dicom(file))
    if not files:
        raise InputError(f"{folder} has no DICOM file; give a NIfTI file or the folder of a DICOM series.")
    if not _has_pydicom:
        raise InputError(f"{folder} holds DICOM files, which need pydicom; install swinumamba-monai[dicom].")
    slices = [_read_slice(file, MAX_VOXELS // len(files)) for file in files]
    for attribute, plural, tolerance in (
        ("SeriesInstanceUID", "series", None),
        ("Rows", "heights", None),
        ("Columns", "widths", None),
        ("PixelSpacing", "pixel spacings", _PIXEL_TOLERANCE),
        ("ImageOrientationPatient", "orientations", _DIRECTION_TOLERANCE),
    ):
        different: list[object] = []
        for value in (getattr(dataset, attribute, None) for dataset, _ in slices):
            if not any(_is_same(value, other, tolerance) for other in different):
                different.append(value)
        if len(different) > 1:
            raise InputError(f"{folder} has slices of {len(different)} {plural}; give a folder with one series of one.")
    order, axes, step = _geometry(folder, files, [dataset for dataset, _ in slices])
    voxels = np.stack([slices[index][1].T for index in order], axis=-1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([axes[0], axes[1], step], axis=1)
    affine[:3, 3] = np.asarray(slices[order[0]][0].ImagePositionPatient, dtype=np.float64)
    return voxels, _LPS_TO_RAS @ affine


def _is_same(a: object, b: object, tolerance: float | None) -> bool:
    """Whether two values of an attribute are one: numbers as numbers, for 1 and 1.000 are two texts."""
    if tolerance is None or a is None or b is None:
        return str(a) == str(b)
    try:
        a, b = (np.asarray(value, dtype=np.float64) for value in (a, b))
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=tolerance))
    except (TypeError, ValueError):
        return str(a) == str(b)


def _is_dicom(file: Path) -> bool:
    if not file.is_file() or file.name.startswith(".") or file.name.upper() == "DICOMDIR":
        return False
    if file.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return True
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _read_slice(file: Path, max_pixels: int) -> tuple[pydicom.Dataset, np.ndarray]:
    """The header and the pixels (rows, columns) of one file; what the header claims is checked before it is read."""
    try:
        syntax = getattr(read_file_meta_info(file), "TransferSyntaxUID", None)
        if syntax == _DEFLATED and file.stat().st_size > _MAX_DEFLATED_BYTES:
            raise InputError(f"{file} is a deflated file of over {_MAX_DEFLATED_BYTES} bytes; store it uncompressed.")
        dataset = dcmread(file)
        for attribute in _ATTRIBUTES:
            getattr(dataset, attribute, None)
        claimed = int(dataset.Rows) * int(dataset.Columns) * int(getattr(dataset, "NumberOfFrames", None) or 1)
        if claimed > max_pixels:
            raise InputError(f"{file} claims {claimed} pixels, but {max_pixels} is the limit here; replace it.")
        samples, bits = int(getattr(dataset, "SamplesPerPixel", 1)), int(dataset.BitsAllocated)
        if not (0 < samples <= _MAX_SAMPLES and 0 < bits <= _MAX_BITS):
            raise InputError(f"{file} claims {samples} samples of {bits} bits in a pixel; replace it.")
        check_unfolding(file, claimed * samples * -(-bits // 8))
        pixels = dataset.pixel_array
    except InputError:
        raise
    except Exception as error:  # pydicom and its decoders have no common class for a broken file
        raise InputError(
            f"{file} is a slice that cannot be decoded ({quoted(error)}); replace it, or convert the series to NIfTI."
        ) from error
    if pixels.ndim != 2:
        raise InputError(
            f"{file} holds {pixels.shape} pixels, but a gray slice is needed; convert the series to NIfTI."
        )
    try:
        slope, intercept = float(getattr(dataset, "RescaleSlope", 1)), float(getattr(dataset, "RescaleIntercept", 0))
        if not np.isfinite([slope, intercept]).all():
            raise ValueError("not finite")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{file} has a rescale slope or intercept that is no number ({quoted(error)}); replace it."
        ) from error
    if (slope, intercept) != (1, 0):
        pixels = pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return dataset, pixels


def _geometry(
    folder: Path, files: list[Path], datasets: list[pydicom.Dataset]
) -> tuple[list[int], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The order of the slices, the steps of a column and of a row, and the step of a slice, in mm and LPS axes."""
    try:
        orientation = np.asarray(datasets[0].ImageOrientationPatient, dtype=np.float64)
        row_spacing, column_spacing = (float(value) for value in datasets[0].PixelSpacing)
        positions = np.stack([np.asarray(d.ImagePositionPatient, dtype=np.float64) for d in datasets])
        if orientation.shape != (6,) or positions.shape[1:] != (3,):
            raise ValueError("not as many numbers as they have")
        if not all(np.isfinite(v).all() for v in (orientation, positions, row_spacing, column_spacing)):
            raise ValueError("numbers that are not finite")
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{folder} has a slice without position, orientation or spacing ({quoted(error)}); correct its header."
        ) from error
    along_row, along_column = orientation[:3], orientation[3:]
    axes = (along_row * column_spacing, along_column * row_spacing)
    normal = np.cross(along_row, along_column)
    depths = positions @ normal
    order = np.argsort(depths, kind="stable").tolist()
    if len(order) == 1:
        try:
            thickness = float(getattr(datasets[0], "SliceThickness", None) or 1.0)
            if not 0 < thickness < np.inf:
                raise ValueError("no length")
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{files[0]} has a slice thickness that is no number ({quoted(error)}); correct it."
            ) from error
        return order, axes, normal * thickness
    gaps = np.diff(depths[order])
    typical = float(np.median(gaps))
    if gaps.min() <= 1e-3 * max(typical, 1e-3):
        index = int(gaps.argmin())
        raise InputError(
            f"{files[order[index]]} and {files[order[index + 1]]} lie at one position; give a folder with one volume."
        )
    if np.abs(gaps - typical).max() > _SPACING_TOLERANCE * typical:
        index = int(np.abs(gaps - typical).argmax())
        raise InputError(
            f"{folder} misses slices: {files[order[index]].name} and {files[order[index + 1]].name} are "
            f"{gaps[index]:.2f} mm apart, the others {typical:.2f} mm; complete the series."
        )
    return order, axes, (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
