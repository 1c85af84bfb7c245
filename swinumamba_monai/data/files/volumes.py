# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes as arrays with their geometry, from files and DICOM series, or one sentence that says why not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys, ensure_tuple

from swinumamba_monai.data.files import nifti
from swinumamba_monai.data.files.dicom_pixels import is_dicom_file
from swinumamba_monai.data.files.dicom_seg import find_segmentation, named_segments, read_segmentation
from swinumamba_monai.data.files.dicom_series import SERIES_SUFFIX, find_named, holds_volume, is_dicom_folder
from swinumamba_monai.data.files.dicom_volume import read_dicom_files
from swinumamba_monai.data.files.grids import SAME_PLACE, corners_apart, lean_of
from swinumamba_monai.data.files.itk import ITK_SUFFIXES, named_numbers, read_itk
from swinumamba_monai.data.files.limits import check_file
from swinumamba_monai.data.files.pixel_checks import MAX_VALUE
from swinumamba_monai.errors import InputError

DICOM_SUFFIX = ".dcm"  # end of the name of a file, which is a volume where it holds all slices
VOLUME_SUFFIXES = (*nifti.NIFTI_SUFFIXES, nifti.PAIR_SUFFIX, *nifti.FREESURFER_SUFFIXES, *ITK_SUFFIXES)
_MAX_LEAN = 0.7  # cosine of the angle between two axes, up to which a gantry may be tilted (30 degrees at most)
_MAX_SIDE = 100.0  # mm of the shortest side of a voxel: longer ones are in microns, and would fill any memory
_FLAT = 1e-6  # share of the volume of a voxel with right angles: with less the axes lie in one plane


def is_volume_file(path: Path) -> bool:
    """Whether the name is that of a file that can be read here, and not of a hidden one."""
    return path.name.lower().endswith(VOLUME_SUFFIXES) and not path.name.startswith(".")


def is_volume(path: Path) -> bool:
    """Whether a path is that of a file that can be read here and holds a volume, or of a folder with DICOM files."""
    return is_dicom_folder(path) if path.is_dir() else is_volume_file(path) or holds_volume(path)


def is_volume_name(path: Path) -> bool:
    """Whether a path is that of a file, of a folder, or of one of several series in a folder, by its name alone."""
    return path.is_dir() or is_volume_file(path) or path.suffix.lower() in (SERIES_SUFFIX, DICOM_SUFFIX)


def volume_path(name: PathLike) -> Path:
    """The path of a volume, without what a folder with a single DICOM series is called besides."""
    path = Path(name)
    return path.with_suffix("") if path.suffix == SERIES_SUFFIX and path.with_suffix("").is_dir() else path


def volume_files(name: PathLike) -> list[Path]:
    """The files that a volume is read from: itself, or those of the DICOM series called so."""
    path = Path(name)
    if path.is_file() and path.suffix.lower() == nifti.PAIR_SUFFIX:
        with suppress(InputError):
            return [path, nifti.voxels_beside(path)]
    return [path] if path.is_file() else list(find_named(path).files)


def label_files(name: PathLike) -> list[Path]:
    """The same for the label of a volume, which may be a DICOM segmentation in a folder."""
    return [found] if (found := find_segmentation(volume_path(name))) else volume_files(name)


def volume_name(path: Path) -> str:
    """The name of a volume without its suffix; the name of the folder for a DICOM series."""
    if path.suffix == SERIES_SUFFIX and not path.exists():
        return path.parent.name
    lower = path.name.lower()
    suffixes = sorted((*VOLUME_SUFFIXES, DICOM_SUFFIX), key=len, reverse=True)
    return next((path.name[: -len(suffix)] for suffix in suffixes if lower.endswith(suffix)), path.name)


def read_volume(path: PathLike, channels: int = 1, nan: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read one volume from a file or the folder of a DICOM series.

    Args:
        path: a file with one of ``VOLUME_SUFFIXES``; a folder with the slices of one series; or what
            :func:`~swinumamba_monai.data.files.dicom_series.list_series` calls one of several.
        channels: numbers that each voxel has.
        nan: number that takes the place of NaN; None refuses it.

    Returns:
        The voxels (X, Y, Z) in the order of the file, or (X, Y, Z, C) of several channels, and the affine (4, 4) from
        voxel indices to millimetres, RAS+. Scaling in the header is applied; without any, the data type is that of the
        file.

    Raises:
        InputError: The file is missing, damaged or of another format; has other dimensions or channels; has colours,
            NaN, infinite or immense voxels, or no usable geometry. For a series see
            :func:`~swinumamba_monai.data.files.dicom_volume.read_dicom_files`.
    """
    return _read(Path(path), channels, nan)[:2]


def _read(path: Path, channels: int, nan: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """:func:`read_volume`, and the forms of a NIfTI header."""
    forms = None
    lower = path.name.lower()
    is_series = path.is_dir() or (path.suffix == SERIES_SUFFIX and not path.exists())
    if not is_series:
        check_file(path)
    if is_series:
        series = find_named(path)
        voxels, affine = read_dicom_files(path, series.files, frames=series.frames)
    elif lower.endswith((*nifti.NIFTI_SUFFIXES, nifti.PAIR_SUFFIX, *nifti.FREESURFER_SUFFIXES)):
        voxels, affine, forms = nifti.read_nifti(path)
    elif lower.endswith(ITK_SUFFIXES):
        voxels, affine = read_itk(path)
    elif is_dicom_file(path):
        voxels, affine = read_dicom_files(path, [path])
    else:
        raise InputError(
            f"{path} is no volume that can be read here; use {', '.join(VOLUME_SUFFIXES)} or the folder of a DICOM "
            "series."
        )
    return *_check(_with_channels(voxels, channels, path), affine, path, nan), forms


def read_channels(
    image: PathLike | Sequence[PathLike], channels: int = 1, nan: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """:func:`read_volume` of one file with all channels, or of a file for each of them, which have one grid.

    The voxels, the affine, and the forms of the NIfTI header of the first file are returned, see
    :func:`~swinumamba_monai.data.files.nifti.read_nifti`.

    Raises:
        InputError: As for :func:`read_volume`; there are more or fewer files than channels, or they differ in size or
            place.
    """
    paths = [Path(path) for path in ensure_tuple(image)]
    if len(paths) == 1:
        return _read(paths[0], channels, nan)
    if len(paths) != channels:
        raise InputError(
            f"{paths[0]} is one of {len(paths)} volumes that are the channels of an image, but {channels} channels are "
            f"wanted; give --in_channels {len(paths)}."
        )
    parts = [_read(path, 1, nan) for path in paths]
    for path, (voxels, affine, _) in zip(paths, parts):
        if voxels.shape != parts[0][0].shape or corners_apart(affine, parts[0][1], voxels.shape) > SAME_PLACE:
            raise InputError(f"{path} has another size or place than {paths[0].name}; channels need one grid.")
    return np.stack([voxels for voxels, *_ in parts], axis=-1), *parts[0][1:]


def _with_channels(voxels: np.ndarray, channels: int, path: Path) -> np.ndarray:
    """The voxels with three dimensions, and one more for several channels."""
    shape = voxels.shape if voxels.ndim != 2 else (*voxels.shape, 1)  # a file of one slice
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 5 and shape[3] == 1:  # vectors have a time, of length 1, before their numbers
        shape = (*shape[:3], shape[4])
    wanted = "one 3D volume is needed" if channels == 1 else f"a 3D volume of {channels} channels is needed"
    if len(shape) != (3 if channels == 1 else 4) or (channels > 1 and shape[3] != channels):
        raise InputError(
            f"{path} has {len(shape)} dimensions {tuple(shape)}, but {wanted}; save each volume of a series as a file "
            "of its own, give --in_channels where they are channels, or make one number of the channels of a label."
        )
    return voxels.reshape(shape)


def _check(voxels: np.ndarray, affine: np.ndarray, path: Path, nan: float | None) -> tuple[np.ndarray, np.ndarray]:
    """What every volume must hold, whatever its format; both are returned, with ``nan`` in the place of NaN."""
    if voxels.dtype.kind not in "uif":
        raise InputError(f"{path} has voxels of type {voxels.dtype}; convert it to one number per voxel.")
    if voxels.dtype.kind == "f":
        if nan is not None:
            voxels = np.where(np.isnan(voxels), voxels.dtype.type(nan), voxels)
        if not np.isfinite(voxels).all():
            raise InputError(
                f"{path} has voxels that are NaN or infinite; replace them by numbers, or fill NaN of an image by "
                "--nan 0."
            )
        if max(abs(float(voxels.min())), abs(float(voxels.max()))) > MAX_VALUE:
            raise InputError(
                f"{path} has voxels beyond {MAX_VALUE:g}, beside which float32 tells no others apart; replace them by "
                "the number of the background where they mark what is missing."
            )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > _FLAT * np.prod(sizes)):
        raise InputError(f"{path} has no usable geometry (the affine is singular); correct its header.")
    if min(sizes) > _MAX_SIDE:
        sides = " x ".join(f"{side:g}" for side in sizes.round(3))
        raise InputError(f"{path} has voxels of {sides} mm; correct the spacing in its header, or the unit of it.")
    leaning = lean_of(affine)
    if leaning > _MAX_LEAN:
        raise InputError(
            f"{path} has axes that are {math.degrees(math.asin(min(leaning, 1))):.1f} degrees from right angles, more "
            "than any scanner tilts its slices; correct its header."
        )
    return voxels, affine


def read_volume_label(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a label volume: whole numbers, one for each class, or for each segment of a DICOM segmentation.

    Returns:
        The numbers (X, Y, Z), int32, and the affine (4, 4).

    Raises:
        InputError: As for :func:`read_volume`, and when a voxel is no whole number.
    """
    if (segmentation := find_segmentation(volume_path(path))) is not None:
        return read_segmentation(segmentation)
    voxels, affine = read_volume(path)
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        # A scl_slope leaves rounding errors in some label files, or makes 0.9999 of every number.
        if (np.abs(whole - voxels) > 1e-3 * np.maximum(np.abs(whole), 1)).any():
            raise InputError(
                f"{path} is no label volume: its voxels are not whole numbers; save the ids of the classes."
            )
        voxels = whole
    if voxels.min() < np.iinfo(np.int32).min or voxels.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path} is no label volume: its values reach {voxels.max()}; save the ids of the classes.")
    return voxels.astype(np.int32), affine


def names_of_numbers(path: PathLike) -> dict[int, str]:
    """What a label volume itself calls its numbers: the segments of 3D Slicer's ``.seg.nrrd``, and of DICOM; else none.

    There are none either in what cannot be read, of which :func:`read_volume_label` says more.
    """
    with suppress(InputError):
        if (segmentation := find_segmentation(volume_path(path))) is not None:
            return named_segments(segmentation)
    return named_numbers(Path(path)) if Path(path).is_file() else {}


class VolumeReader(ImageReader):
    """:func:`read_volume` for ``monai.transforms.LoadImage(d)``.

    Several paths are the channels of one image, on one grid.

    Args:
        channels: number of channels of an image.
        nan: see :func:`read_volume`.
    """

    def __init__(self, channels: int = 1, nan: float | None = None) -> None:
        self.channels = channels
        self.nan = nan

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every path is one that :func:`read_volume` takes, by its name."""
        return all(map(is_volume_name, self.read(filename)))

    def read(self, data: Sequence[PathLike] | PathLike) -> list[Path]:
        """The paths alone; decoding waits for :meth:`get_data`, whose sentences reach the user."""
        return [Path(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Decode what :meth:`read` returned.

        Returns:
            The volume (X, Y, Z), or (X, Y, Z, C) of several channels, and its metadata with the keys that MONAI's
            transforms and writers use, and both forms of a NIfTI header.

        Raises:
            InputError: As for :func:`read_channels`.
        """
        voxels, affine, forms = self.decode(img)
        if voxels.dtype.byteorder == ">":
            voxels = voxels.astype(voxels.dtype.newbyteorder("="))
        meta = {
            ImageMetaKey.FILENAME_OR_OBJ: str(img[0]),
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(voxels.shape[:3]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if voxels.ndim == 4 else float("nan"),
            MetaKeys.SPACE: SpaceKeys.RAS,
        }
        return voxels, meta if forms is None else {**meta, nifti.FORMS_KEY: forms}

    def decode(self, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Voxels, affine, and both forms of a NIfTI header, of the files of one volume."""
        return read_channels(paths, self.channels, self.nan)


class VolumeLabelReader(VolumeReader):
    """:func:`read_volume_label` for ``monai.transforms.LoadImage(d)``: training reads a label just as the checks do."""

    def decode(self, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, None]:
        (path,) = paths
        return *read_volume_label(path), None
