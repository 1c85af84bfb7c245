# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Writing results: exact numbers, rows first, in the geometry of the image, and never half a file.

All are for ``SaveImaged(writer=..., resample=False)``. MONAI's PILWriter would clip numbers to 8 bits and swap rows and
columns, and writes a file where it will be read. An :class:`~swinumamba_monai.errors.InputError` of a writer comes out
of ``SaveImaged`` as a RuntimeError that ends with its sentence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from monai.config import NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import convert_to_numpy, get_equivalent_dtype
from PIL import Image

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data.files.nifti import FORMS_KEY
from swinumamba_monai.data.files.volume_writing import check_writable, write_volume
from swinumamba_monai.errors import InputError

LABEL_TILE = 256  # pixels of a side of the tiles in which a large map is written
MAX_CLASSIC = (1 << 32) - (1 << 25)  # bytes from which on a file is BigTIFF

MAX_8_BIT, MAX_16_BIT = np.iinfo(np.uint8).max, np.iinfo(np.uint16).max


@contextmanager
def _writing(filename: PathLike) -> Iterator[Path]:
    """:func:`~swinumamba_monai.atomic.replacing` with a sentence for a full disk."""
    try:
        with replacing(filename) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{filename} could not be written ({error.strerror or error}); nothing is left.") from error


class RowsFirstWriter(ImageWriter):
    """The common part of the writers of 2D results.

    Args:
        output_dtype: part of the interface of ``SaveImaged``; the content alone decides the type.
        scale: part of the interface of ``SaveImaged``; None, because numbers are not intensities.

    Raises:
        InputError: the content would have to be scaled or resampled, is not what the writer writes, or does not fit
            into a file of that type.
    """

    content: str
    suffixes: tuple[str, ...] = (".png", ".tif", ".tiff")

    def __init__(self, output_dtype: object = None, scale: int | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if scale is not None:
            raise InputError(f"{type(self).__name__} writes {self.content}, which cannot be scaled: leave 'scale' out.")

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        self.data_obj = self.pixels(convert_to_numpy(data_array))

    @abstractmethod
    def pixels(self, array: np.ndarray) -> np.ndarray:
        """What is written, rows first, of a result with its channels first."""

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = False, **options: object) -> None:
        """Results keep the grid they are on: there is nothing to take from the metadata."""
        if resample:
            raise InputError(
                f"{type(self).__name__} cannot resample {self.content}: give SaveImaged resample=False, and bring the "
                "prediction to the size of the image (Invertd) before."
            )

    @classmethod
    def check_suffix(cls, suffix: str) -> None:
        """Refuse the suffix of a file that the writer cannot write."""
        if suffix.lower() not in cls.suffixes:
            allowed = " or ".join(f"'{allowed}'" for allowed in dict.fromkeys(s[:4] for s in cls.suffixes))
            raise InputError(f"{cls.__name__} cannot write '{suffix}': set output_ext to {allowed}.")

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: object) -> None:
        super().write(filename, verbose=verbose)
        suffix = Path(filename).suffix.lower()
        self.check_suffix(suffix)
        if suffix == ".png" and self.data_obj.dtype == np.uint32:
            raise InputError(
                f"'{filename}' would need {self.content} up to {self.data_obj.max()}, more than the {MAX_16_BIT} of a "
                "PNG image: set output_ext to '.tif'."
            )
        with _writing(filename) as temporary:
            self.save(temporary)

    def save(self, path: Path) -> None:
        """Write ``data_obj`` as an image file."""
        if path.suffix.lower() in (".tif", ".tiff"):
            tifffile.imwrite(path, self.data_obj, photometric="minisblack", compression="zlib")
        else:
            Image.fromarray(self.data_obj).save(path)

    def whole_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """Whole numbers (H, W), not negative, from (1, H, W) or (H, W) of any type."""
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

    def pixels(self, array: np.ndarray) -> np.ndarray:
        ids = self.whole_numbers(array)
        return ids.astype(np.uint16 if ids.max() <= MAX_16_BIT else np.uint32)


class ClassWriter(RowsFirstWriter):
    """Write class numbers, (1, H, W) or (H, W), as an 8-bit gray PNG or TIFF image in (H, W) order."""

    content = "class numbers"

    def pixels(self, array: np.ndarray) -> np.ndarray:
        classes = self.whole_numbers(array)
        if classes.max() > MAX_8_BIT:
            raise InputError(f"ClassWriter writes class numbers up to {MAX_8_BIT}, but got {classes.max():g}.")
        return classes.astype(np.uint8)


class PictureWriter(RowsFirstWriter):
    """Write a picture, (3, H, W) uint8, as an RGB image."""

    content = "pictures"
    suffixes = (".png", ".jpg", ".jpeg")

    def pixels(self, array: np.ndarray) -> np.ndarray:
        if array.ndim != 3 or array.shape[0] != 3:
            raise InputError(f"PictureWriter writes (3, H, W) pictures, but got an array of shape {array.shape}.")
        return np.ascontiguousarray(np.moveaxis(array, 0, -1)).astype(np.uint8)


class MapWriter(RowsFirstWriter):
    """Write maps of any numbers, (C, H, W), as a float32 TIFF image with a page per channel."""

    content = "maps"
    suffixes = (".tif", ".tiff")

    def pixels(self, array: np.ndarray) -> np.ndarray:
        maps = array.astype(np.float32)
        return maps[0] if maps.ndim == 3 and maps.shape[0] == 1 else maps


def write_label_rows(path: PathLike, shape: tuple[int, int], rows: Iterable[np.ndarray]) -> None:
    """Write a map of numbers that is never in memory as a whole, as a 32-bit TIFF file in tiles, zlib-compressed.

    Args:
        path: ``.tif`` file to write, whole or not at all.
        shape: rows and columns of the map.
        rows: parts (h, W) of it from the first row on, each but the last of whole tiles; perhaps some of no row.
    """

    def tiles() -> Iterator[np.ndarray]:
        for part in rows:
            for top in range(0, len(part), LABEL_TILE):
                for left in range(0, shape[1], LABEL_TILE):
                    piece = part[top : top + LABEL_TILE, left : left + LABEL_TILE]
                    tile = np.zeros((LABEL_TILE, LABEL_TILE), np.uint32)
                    tile[: piece.shape[0], : piece.shape[1]] = piece
                    yield tile

    with _writing(path) as temporary:
        tifffile.imwrite(
            temporary,
            tiles(),
            shape=shape,
            dtype=np.uint32,
            tile=(LABEL_TILE, LABEL_TILE),
            photometric="minisblack",
            compression="zlib",
            bigtiff=4 * shape[0] * shape[1] > MAX_CLASSIC,
            maxworkers=1,
        )


class VolumeWriter(ImageWriter):
    """Write a volume where its voxels lie, as the kind of file that its name says, and never half of it.

    A volume (C, X, Y, Z) of one channel becomes (X, Y, Z), also where it has one slice; several channels become the
    last axis of the file. A NIfTI file gets both forms of the NIfTI file that the image came from, with their codes.

    Attributes:
        output_dtype: data type of the file; None for that of the data.

    Raises:
        InputError: the volume would have to be resampled, or the file cannot be written.
    """

    check_suffix = staticmethod(check_writable)
    output_dtype: object = None

    def set_data_array(self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, **kwargs: object) -> None:
        volume = convert_to_numpy(data_array)
        self.data_obj = volume[0] if volume.shape[0] == 1 else np.moveaxis(volume, 0, -1)

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = False, **options: object) -> None:
        # MONAI 1.6 resamples even from a grid to the same, and takes the volume for a 2D image: that fails where the
        # first two axes are not left-right and front-back, as in a coronal volume.
        if resample:
            raise InputError("VolumeWriter does not resample: give SaveImaged resample=False.")
        _, affine, _ = self.get_meta_info(meta_dict)
        self.affine = np.eye(4) if affine is None else np.asarray(convert_to_numpy(affine), dtype=np.float64)
        forms = (meta_dict or {}).get(FORMS_KEY)
        self.forms = None if forms is None else convert_to_numpy(forms)

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: object) -> None:
        super().write(filename, verbose=verbose)
        check_writable(str(filename))
        dtype = (
            self.data_obj.dtype if self.output_dtype is None else get_equivalent_dtype(self.output_dtype, np.ndarray)
        )
        with _writing(filename) as temporary:
            write_volume(temporary, self.data_obj.astype(dtype, copy=False), self.affine, self.forms)
