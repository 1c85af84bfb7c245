# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes as arrays with their geometry, from NIfTI files and DICOM series, or one sentence that says why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, ensure_tuple

from swinumamba_monai.data.files.dicom import MAX_VOXELS, is_dicom_series, read_dicom_series
from swinumamba_monai.data.files.images import MAX_DEFLATE
from swinumamba_monai.errors import InputError, quoted

VOLUME_SUFFIXES = (".nii", ".nii.gz")
_MAX_OFFSET = 1 << 24  # bytes

_SERIES_SUFFIX = ".dicom"


def is_volume_file(path: Path) -> bool:
    """Whether the name is that of a NIfTI file, and not of a hidden one."""
    return path.name.lower().endswith(VOLUME_SUFFIXES) and not path.name.startswith(".")


def is_volume(path: Path) -> bool:
    """Whether a path is that of a NIfTI file, or of a folder with a DICOM series."""
    return is_dicom_series(path) if path.is_dir() else is_volume_file(path)


def list_volumes(folder: Path) -> list[Path]:
    """The NIfTI files of a folder and its folders with a DICOM series each, by name."""
    return sorted(filter(is_volume, folder.iterdir()))


def series_name(folder: Path) -> str:
    """What the series in a folder is called: the folder with ``.dicom``, because writers cut names at the last dot.

    It is a text, because MONAI's ``LoadImage`` makes one of whatever a reader is to open.
    """
    return f"{folder}{_SERIES_SUFFIX}"


def volume_path(name: PathLike) -> Path:
    """The file, or the folder of the DICOM series that :func:`series_name` calls so."""
    path = Path(name)
    return path.with_suffix("") if path.suffix == _SERIES_SUFFIX and not path.exists() else path


def volume_name(path: Path) -> str:
    """The name of a volume without ``.nii.gz`` or ``.nii``; the name of the folder for a DICOM series."""
    lower = path.name.lower()
    return next((path.name[: -len(suffix)] for suffix in VOLUME_SUFFIXES[::-1] if lower.endswith(suffix)), path.name)


def read_volume(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read one volume from a NIfTI file or the folder of a DICOM series.

    Args:
        path: ``.nii``, ``.nii.gz``, or a folder with the slices of one series.

    Returns:
        The voxels (X, Y, Z) in the order of the file, and the affine (4, 4) from voxel indices to millimetres, RAS+.
        Scaling in the header is applied; without any, the data type is that of the file.

    Raises:
        InputError: The file is missing, damaged or of another format; is no 3D volume; has colours, NaN or infinite
            voxels, or no usable geometry. For a series see :func:`.dicom.read_dicom_series`.
    """
    path = Path(path)
    if path.is_dir():
        return check_volume(*read_dicom_series(path), path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        raise InputError(
            f"{path} is no volume that can be read here; use .nii, .nii.gz or the folder of a DICOM series."
        )
    try:
        image = nib.load(path)
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
    except Exception as error:  # nibabel and gzip have no common class for a broken file
        raise _undecodable(path, error) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise InputError(
            f"{path} has {len(shape)} dimensions {tuple(shape)}, but one 3D volume is needed; save each volume of a "
            "series or each channel as a file of its own."
        )
    if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
        raise InputError(f"{path} has the size {tuple(shape)}, but 1 to {MAX_VOXELS} voxels can be read.")
    if image.get_data_dtype().fields or image.get_data_dtype().kind not in "uif":
        raise InputError(f"{path} has voxels of type {image.get_data_dtype()}; convert it to one number per voxel.")
    # Where the voxels begin is in the header too; what lies before them are notes, which are short.
    offset = int(getattr(image.dataobj, "offset", 0))
    if offset > _MAX_OFFSET:
        raise InputError(f"{path} says that its voxels begin at byte {offset}; its header is damaged, so replace it.")
    claimed = offset + math.prod(shape) * image.get_data_dtype().itemsize
    if claimed > path.stat().st_size * (MAX_DEFLATE if path.suffix.lower() == ".gz" else 1):
        raise InputError(f"{path} claims {claimed} bytes of voxels, which no file of its size holds; replace it.")
    try:
        voxels = np.asanyarray(image.dataobj).reshape(shape)
    except Exception as error:
        raise _undecodable(path, error) from error
    return check_volume(voxels, affine, path)


def check_volume(voxels: np.ndarray, affine: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What every volume must hold, whatever its format; the arguments are returned."""
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise InputError(f"{path} has voxels that are NaN or infinite; replace them by numbers.")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"{path} has no usable geometry (the affine is singular); correct its header.")
    return voxels, affine


def read_volume_label(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a label volume: whole numbers, one for each class.

    Returns:
        The numbers (X, Y, Z), int32, and the affine (4, 4).

    Raises:
        InputError: As for :func:`read_volume`, and when a voxel is no whole number.
    """
    voxels, affine = read_volume(path)
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        if np.abs(whole - voxels).max() > 1e-3:  # scl_slope leaves rounding errors in some label files
            raise InputError(
                f"{path} is no label volume: its voxels are not whole numbers; save the ids of the classes."
            )
        voxels = whole
    if voxels.min() < np.iinfo(np.int32).min or voxels.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path} is no label volume: its values reach {voxels.max()}; save the ids of the classes.")
    return voxels.astype(np.int32), affine


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """The distance of neighbouring voxels along each array axis, in mm."""
    return tuple(float(round(value, 5)) for value in np.linalg.norm(affine[:3, :3], axis=0))


class VolumeReader(ImageReader):
    """:func:`read_volume` for ``monai.transforms.LoadImage(d)``: NIfTI files and folders of DICOM series.

    A folder may have ``.dicom`` after its name, see :func:`series_name`.
    """

    decode = staticmethod(read_volume)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every path is a NIfTI file or a folder."""
        return all(path.is_dir() or is_volume_file(path) for path in self.read(filename))

    def read(self, data: Sequence[PathLike] | PathLike) -> list[Path]:
        """The paths alone; decoding waits for :meth:`get_data`, whose sentences reach the user."""
        return [volume_path(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Decode what :meth:`read` returned.

        Returns:
            The volume (X, Y, Z), and its metadata with the keys that MONAI's transforms and writers use.

        Raises:
            InputError: As for :func:`read_volume`, and for more than one path.
        """
        if len(img) != 1:
            raise InputError(f"{len(img)} volumes were given as one image; give one path per image.")
        (path,) = img
        voxels, affine = self.decode(path)
        if voxels.dtype.byteorder == ">":
            voxels = voxels.astype(voxels.dtype.newbyteorder("="))
        return voxels, {
            ImageMetaKey.FILENAME_OR_OBJ: str(path),
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(voxels.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
            MetaKeys.SPACE: SpaceKeys.RAS,
        }


class VolumeLabelReader(VolumeReader):
    """:func:`read_volume_label` for ``monai.transforms.LoadImage(d)``: training reads a label just as the checks do."""

    decode = staticmethod(read_volume_label)


def _undecodable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be decoded ({quoted(error)}); it is damaged, truncated or no NIfTI file, so replace it."
    )
