# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Writing results: exact numbers, rows first, in the geometry of the image, and never half a file.

All are for ``SaveImaged(writer=..., resample=False)``. MONAI's PILWriter would clip numbers to 8 bits and swap rows and
columns, and writes a file where it will be read. An :class:`~swinumamba_monai.errors.InputError` of a writer comes out
of ``SaveImaged`` as a RuntimeError that ends with its sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import tifffile
from monai.config import NdarrayOrTensor, PathLike
from monai.data import ImageWriter, NibabelWriter
from monai.utils import convert_to_numpy
from PIL import Image

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError

MAX_8_BIT, MAX_16_BIT = np.iinfo(np.uint8).max, np.iinfo(np.uint16).max


@contextmanager
def _writing(filename: PathLike) -> Iterator[Path]:
    """:func:`~swinumamba_monai.atomic.replacing` with a sentence for a full disk."""
    try:
        with replacing(filename) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(
            f"{filename} could not be written ({error.strerror or error}); nothing is left of it."
        ) from error


class RowsFirstWriter(ImageWriter):
    """What the writers of 2D results share.

    Args:
        output_dtype: part of the interface of ``SaveImaged``; the content alone decides the type.
        scale: must be None, numbers are not intensities.

    Raises:
        InputError: when numbers would have to be scaled or resampled, and for another file type.
    """

    content: str
    suffixes: tuple[str, ...]

    def __init__(self, output_dtype: object = None, scale: int | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if scale is not None:
            raise InputError(
                f"{type(self).__name__} writes {self.content}, which cannot be scaled: leave 'scale' of SaveImaged out."
            )

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = False, **options: object) -> None:
        """Results keep the grid they are on: there is nothing to take from the metadata.

        Args:
            meta_dict: ignored.
            resample: must be False.
        """
        if resample:
            raise InputError(
                f"{type(self).__name__} cannot resample {self.content}: give SaveImaged resample=False, and bring the "
                "prediction to the size of the image (Invertd) before."
            )

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: object) -> None:
        """Write the file.

        Args:
            filename: ends in one of ``suffixes``.
            verbose: log the file name.
        """
        super().write(filename, verbose=verbose)
        suffix = Path(filename).suffix.lower()
        if suffix not in self.suffixes:
            allowed = " or ".join(f"'{allowed}'" for allowed in dict.fromkeys(s[:4] for s in self.suffixes))
            raise InputError(f"{type(self).__name__} cannot write '{filename}': set output_ext to {allowed}.")
        self._check(filename, suffix)
        with _writing(filename) as temporary:
            self._save(temporary, suffix)

    def _check(self, filename: PathLike, suffix: str) -> None:
        """Refuse what does not fit into a file of this type."""

    def _save(self, path: Path, suffix: str) -> None:
        if suffix in (".tif", ".tiff"):
            tifffile.imwrite(path, self.data_obj, photometric="minisblack", compression="zlib")
        else:
            Image.fromarray(self.data_obj).save(path)

    def _whole_numbers(self, data_array: NdarrayOrTensor) -> np.ndarray:
        """Whole numbers (H, W), not negative, from (1, H, W) or (H, W) of any type."""
        numbers = convert_to_numpy(data_array)
        if numbers.ndim == 3 and numbers.shape[0] == 1:
            numbers = numbers[0]
        name = type(self).__name__
        if numbers.ndim != 2:
            raise InputError(f"{name} writes (1, H, W) {self.content}, but got an array of shape {numbers.shape}.")
        if numbers.min() < 0 or (numbers.dtype.kind == "f" and (numbers != np.rint(numbers)).any()):
            raise InputError(f"{name} writes {self.content}, but got negative or fractional numbers.")
        return numbers


class InstanceWriter(RowsFirstWriter):
    """Write instance ids, (1, H, W) or (H, W), as a 16-bit PNG or TIFF image in (H, W) order.

    A TIFF file is zlib-compressed and becomes 32-bit when there are more than 65535 cells.
    """

    content = "cell ids"
    suffixes = (".png", ".tif", ".tiff")

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        ids = self._whole_numbers(data_array)
        self.data_obj = ids.astype(np.uint16 if ids.max() <= MAX_16_BIT else np.uint32)

    def _check(self, filename: PathLike, suffix: str) -> None:
        if suffix == ".png" and self.data_obj.dtype != np.uint16:
            raise InputError(
                f"'{filename}' would need cell ids up to {self.data_obj.max()}, more than the {MAX_16_BIT} of a PNG "
                "image: set output_ext to '.tif'."
            )


class ClassWriter(RowsFirstWriter):
    """Write class numbers, (1, H, W) or (H, W), as an 8-bit gray PNG or TIFF image in (H, W) order."""

    content = "class numbers"
    suffixes = (".png", ".tif", ".tiff")

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        classes = self._whole_numbers(data_array)
        if classes.max() > MAX_8_BIT:
            raise InputError(f"ClassWriter writes class numbers up to {MAX_8_BIT}, but got {classes.max():g}.")
        self.data_obj = classes.astype(np.uint8)


class PictureWriter(RowsFirstWriter):
    """Write a picture, (3, H, W) uint8, as an RGB image."""

    content = "pictures"
    suffixes = (".png", ".jpg", ".jpeg")

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        picture = convert_to_numpy(data_array)
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise InputError(f"PictureWriter writes (3, H, W) pictures, but got an array of shape {picture.shape}.")
        self.data_obj = np.ascontiguousarray(np.moveaxis(picture, 0, -1)).astype(np.uint8)


class MapWriter(RowsFirstWriter):
    """Write maps of any numbers, (C, H, W), as a float32 TIFF image with a page per channel."""

    content = "maps"
    suffixes = (".tif", ".tiff")

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        maps = convert_to_numpy(data_array).astype(np.float32)
        self.data_obj = maps[0] if maps.ndim == 3 and maps.shape[0] == 1 else maps


class VolumeWriter(NibabelWriter):
    """MONAI's NIfTI writer, with units, with the affine as sform and qform, and never half a file.

    A volume of one slice stays a volume.
    """

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        """Take a volume (C, X, Y, Z); several channels become the last axis of the file."""
        volume = convert_to_numpy(data_array)
        self.data_obj = volume[0] if volume.shape[0] == 1 else np.moveaxis(volume, 0, -1)

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = False, **options: object) -> None:
        """Take the affine of the data as it is.

        MONAI 1.6 resamples even from a grid to the same, and takes the volume for a 2D image: that fails where the
        first two axes are not left-right and front-back, as in a coronal volume.

        Args:
            meta_dict: with "affine".
            resample: must be False.

        Raises:
            InputError: ``resample`` is True.
        """
        if resample:
            raise InputError("VolumeWriter does not resample: give SaveImaged resample=False.")
        _, self.affine, _ = self.get_meta_info(meta_dict)
        if self.output_dtype is None:
            self.output_dtype = self.data_obj.dtype

    @classmethod
    def create_backend_obj(cls, *args: object, **kwargs: object) -> nib.nifti1.Nifti1Image:
        image = super().create_backend_obj(*args, **kwargs)
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1)  # some programs look at it alone
        image.header.set_xyzt_units("mm")
        return image

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: object) -> None:
        """Write the file.

        Args:
            filename: ends in .nii or .nii.gz.
            verbose: log the file name.
        """
        with _writing(filename) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)
