# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Image files as arrays: every channel and every bit of the file, or one sentence that says why not."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ImageMetaKey, MetaKeys, ensure_tuple
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from swinumamba_monai.errors import InputError, quoted

# Larger files are taken for decompression bombs: a few kilobytes can claim terabytes of pixels.
MAX_PIXELS = 1 << 29
MAX_CHANNELS = 4
MAX_NUMBER = 1 << 24  # whole numbers beyond it are not all exact in float32
# How much deflate, the method of PNG and gzip, can shrink: no file holds more, whatever its header claims. The methods
# of JPEG and BMP do not reach that.
MAX_DEFLATE = 1032
# What a picture may unfold to in memory: bytes that every file may, and how many times its own size a larger one.
# Labels of a few cells shrink a thousand times, but not to more than this; photographs do not shrink fifty times.
MAX_UNFOLDED_BYTES, MAX_UNFOLDING = 1 << 30, 50
MAX_SCANS = 100  # of a progressive JPEG, which is decoded as often; encoders make about ten
MAX_PAGES = 1000  # of a TIFF file, which should have one: links of its pages that form a circle would be followed on

# The plugin classes, not PIL.Image.open: that one has a lower limit of its own, which is a process-wide setting.
_PILLOW_FILES = {".png": PngImageFile, ".jpg": JpegImageFile, ".jpeg": JpegImageFile, ".bmp": BmpImageFile}
_TIFF_SUFFIXES = (".tif", ".tiff")
_TIFF_COLOURS = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)
IMAGE_SUFFIXES = (*_PILLOW_FILES, *_TIFF_SUFFIXES)

# Pillow modes that are no plain gray or colour; every other mode is kept.
_PILLOW_CONVERSIONS = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "CMYK": "RGB"}


def read_image(path: PathLike) -> np.ndarray:
    """Read one 2D image from a PNG, JPEG, BMP or TIFF file.

    The alpha of a gray image is dropped, that of a colour image is the fourth channel. Palettes become RGB, one bit
    per pixel becomes 0 and 255. Nothing else is changed: no scaling, no rotation by EXIF, no inversion of TIFF files
    that store white as zero.

    Args:
        path: the file; its suffix, in any case, is one of ``IMAGE_SUFFIXES``.

    Returns:
        (H, W) or (H, W, C) with 2 to 4 channels, rows first, in the data type of the file.

    Raises:
        InputError: The file is missing, of another format, damaged or truncated, is a stack of images, has more than
            ``MAX_PIXELS`` pixels or ``MAX_CHANNELS`` channels, or has NaN or infinite pixels.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path} is not an image that can be read here; use one of {', '.join(IMAGE_SUFFIXES)}.")
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        image = _decode_tiff(path) if suffix in _TIFF_SUFFIXES else _decode_pillow(path)
    except InputError:
        raise
    except Exception as error:  # there is no common class for what decoders raise on a broken file
        raise InputError(
            f"{path} cannot be decoded ({quoted(error)}); it is damaged, truncated or not a "
            f"{suffix} file, so replace it."
        ) from error
    return check_pixels(image, path)


def check_pixels(image: np.ndarray, source: object) -> np.ndarray:
    """What every image must hold, wherever it comes from; it is returned, with 0 and 255 for booleans.

    Args:
        image: array of any shape.
        source: where it comes from, as the sentence names it.

    Raises:
        InputError: There is no pixel, or pixels are no finite numbers.
    """
    if image.size == 0:
        raise InputError(f"{source} has {image.shape} pixels, which is none; it is damaged.")
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype.kind not in "uif":
        raise InputError(f"{source} has pixels of type {image.dtype}; convert it to integers or floats.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError(f"{source} has pixels that are NaN or infinite; replace them by numbers.")
    return image


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an image, and not of a hidden one (macOS puts a ``._a.png`` next to ``a.png``)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_image_files(folder: Path) -> list[Path]:
    """The image files of a folder, by name."""
    return sorted(filter(is_image_file, folder.iterdir()))


def read_instances(path: PathLike) -> np.ndarray:
    """Read an instance map: 0 is background, every cell has its own positive number.

    Args:
        path: the file, as for :func:`read_image`.

    Returns:
        (H, W) int32.

    Raises:
        InputError: As for :func:`read_image`, and when the file has colours or numbers that are no cell numbers.
    """
    return _read_numbers(path, "instance map", "cell numbers", np.int32, "16-bit gray PNG or TIFF")


def read_classes(path: PathLike) -> np.ndarray:
    """Read a mask whose pixels are class numbers.

    Args:
        path: the file, as for :func:`read_image`.

    Returns:
        (H, W) int32.

    Raises:
        InputError: As for :func:`read_image`, and when the file has colours or numbers that are no class numbers.
    """
    return _read_numbers(path, "mask", "class numbers", np.uint16, "8-bit gray PNG")


def _read_numbers(path: PathLike, kind: str, numbers: str, dtype: type, form: str) -> np.ndarray:
    """Read an image (H, W) of whole numbers that ``dtype`` holds; errors say what such a file is and how to save it."""
    image = read_image(path)
    if Path(path).suffix.lower() in (".jpg", ".jpeg"):  # 144 cells come back as 852
        raise InputError(f"{path} is a JPEG, which does not keep {numbers}; take the {kind} it was made of, as {form}.")
    if image.ndim != 2:
        raise InputError(
            f"{path} has {image.shape[-1]} channels (a colour or palette picture), but this {kind} needs one channel "
            f"of {numbers}; save it as {form}."
        )
    largest = np.iinfo(dtype).max
    if image.min() < 0 or image.max() > largest or (image.dtype.kind == "f" and (image % 1).any()):
        raise InputError(
            f"{path} is no {kind}: its values, from {image.min()} to {image.max()}, are not all whole numbers between "
            f"0 and {largest}; save {numbers}, with 0 for the background."
        )
    return image.astype(np.int32)


class ImageFileReader(ImageReader):
    """:func:`read_image` for ``monai.transforms.LoadImage(d)``.

    Unlike ``PILReader`` it keeps the rows first, and it reads 16-bit colour and TIFF. Several files given as one item
    become the channels of one image.
    """

    decode = staticmethod(read_image)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every file has a suffix in ``IMAGE_SUFFIXES``."""
        return all(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike) -> list[Path]:
        """The paths alone; decoding waits for :meth:`get_data`.

        When ``read`` raises, ``LoadImage`` goes on to its default readers, and ``PILReader`` opens many files that
        are refused here (and transposes them). What ``get_data`` raises reaches the user.
        """
        return [Path(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict]:
        """Decode what :meth:`read` returned.

        Returns:
            The image, (H, W) or (H, W, C), and its metadata with the keys that MONAI's transforms use.

        Raises:
            InputError: As for :func:`read_image`, and when several files differ in size.
        """
        images = [self.decode(path) for path in img]
        for path, image in zip(img, images, strict=True):
            if image.shape[:2] != images[0].shape[:2]:
                raise InputError(
                    f"{path} has {image.shape[:2]} pixels and {img[0]} has {images[0].shape[:2]}; the channels of one "
                    "image must be of one size."
                )
        image = images[0] if len(images) == 1 else np.dstack(images)
        return image, {**self.metadata(image), ImageMetaKey.FILENAME_OR_OBJ: str(img[0])}

    @staticmethod
    def metadata(image: np.ndarray) -> dict:
        """What MONAI's transforms want to know of an image (H, W) or (H, W, C); pixels have no size in mm."""
        return {
            MetaKeys.AFFINE: np.eye(4),
            MetaKeys.ORIGINAL_AFFINE: np.eye(4),
            MetaKeys.SPATIAL_SHAPE: np.asarray(image.shape[:2]),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if image.ndim == 3 else float("nan"),
        }


class ClassFileReader(ImageFileReader):
    """:func:`read_classes` for ``monai.transforms.LoadImage(d)``: training reads a mask just as the checks do."""

    decode = staticmethod(read_classes)


class InstanceFileReader(ImageFileReader):
    """:func:`read_instances` for ``monai.transforms.LoadImage(d)``, with large cell numbers made small.

    MONAI's transforms make float32 of a label, which holds every whole number up to ``MAX_NUMBER`` only: of larger ones
    several would become one. Where there are any, the cells are numbered anew from 1 on.
    """

    @staticmethod
    def decode(path: PathLike) -> np.ndarray:
        """The instance map (H, W), int32."""
        instances = read_instances(path)
        if instances.max() <= MAX_NUMBER:
            return instances
        numbers, places = np.unique(instances, return_inverse=True)
        return (places.reshape(instances.shape) + (numbers[0] != 0)).astype(np.int32)


def _check_size(path: Path, height: int, width: int, channels: int) -> None:
    """Refuse what the header claims before any memory is reserved for it."""
    if height * width > MAX_PIXELS:
        raise InputError(f"{path} claims {height} x {width} pixels, but {MAX_PIXELS} is the limit; cut it into parts.")
    if channels > MAX_CHANNELS:
        raise InputError(f"{path} has {channels} channels, but {MAX_CHANNELS} is the limit; keep those that matter.")


def check_unfolding(path: Path, claimed_bytes: int) -> None:
    """Refuse a file that claims more than a picture of its size unfolds to, before the memory is taken."""
    if claimed_bytes > max(MAX_UNFOLDED_BYTES, MAX_UNFOLDING * path.stat().st_size):
        raise InputError(f"{path} claims {claimed_bytes} bytes of pixels, which no file of its size holds; replace it.")


def _decode_pillow(path: Path) -> np.ndarray:
    with _PILLOW_FILES[path.suffix.lower()](path) as file:
        _check_size(path, file.height, file.width, len(file.getbands()))
        depth = _png_bit_depth(path) if isinstance(file, PngImageFile) else 8
        check_unfolding(path, file.height * file.width * len(file.getbands()) * (1 if depth <= 8 else 2))
        if isinstance(file, JpegImageFile) and path.read_bytes().count(b"\xff\xda") > MAX_SCANS:
            raise InputError(
                f"{path} is a progressive JPEG of over {MAX_SCANS} scans; save it as another kind of file."
            )
        if file.height * file.width // 8 > path.stat().st_size * MAX_DEFLATE:
            raise InputError(
                f"{path} claims {file.height} x {file.width} pixels, which no file of its size holds; replace it."
            )
        if depth == 16:  # Pillow keeps 8 bits of a 16-bit colour
            image = imagecodecs.png_decode(path.read_bytes())
            return image[..., 0] if image.shape[2:] == (2,) else image
        image = np.array(file.convert(_PILLOW_CONVERSIONS.get(file.mode, file.mode)))
        if depth in (2, 4) and file.mode == "L":  # Pillow stretches these to 0 to 255, and class 1 would be 85 or 17
            image //= 255 // (2**depth - 1)
        return image


def _png_bit_depth(path: Path) -> int:
    """The bit depth in the header, at the place that the PNG standard gives it (Pillow does not say)."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _decode_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path, _multifile=False) as file:  # its metadata may name other files, which are not opened
        with suppress(IndexError):
            file.pages[MAX_PAGES]
            raise InputError(f"{path} holds over {MAX_PAGES} separate images; save each as a file of its own.")
        # The description of an OME file may name any number of planes, which tifffile would list one by one.
        if any(int(size) > MAX_PAGES for size in re.findall(r'Size[ZTC]="(\d+)"', file.ome_metadata or "")):
            raise InputError(f"{path} says that it holds over {MAX_PAGES} planes; save each as a file of its own.")
        if len(file.series) != 1:
            raise InputError(f"{path} holds {len(file.series)} separate images; save each as a file of its own.")
        series, page = file.series[0], file.series[0].keyframe
        # tifffile names every axis with a letter: S are samples of a pixel, C channels, Z, T, Q, ... stacks.
        sizes = {axis: size for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "YX"}
        axes = "".join(sizes)
        if axes not in ("YX", "YXS", "YXC", "SYX", "CYX"):
            raise InputError(
                f"{path} is a stack with axes {series.axes} and shape {series.shape}, but one 2D image is needed; save "
                "each plane as a file of its own."
            )
        _check_size(path, sizes["Y"], sizes["X"], sizes.get("S", 1) * sizes.get("C", 1))
        _check_size(path, page.tilelength, page.tilewidth, 1)
        check_unfolding(path, math.prod(sizes.values()) * page.dtype.itemsize if page.dtype else 0)
        if (parts := math.prod(page.chunked)) > len(page.dataoffsets):
            raise InputError(f"{path} has {len(page.dataoffsets)} of its {parts} strips or tiles; it is damaged.")
        as_rgb = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG  # tifffile does it
        if page.photometric not in _TIFF_COLOURS and not as_rgb:
            raise InputError(f"{path} has colours of the kind {page.photometric!r}; convert it to gray or RGB.")
        image = series.asarray().reshape(tuple(sizes.values()))
        if page.photometric == PHOTOMETRIC.PALETTE:
            return (page.colormap.T[image] >> 8).astype(np.uint8)  # palettes always have 16 bits
        if axes in ("SYX", "CYX"):
            image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        alpha = page.extrasamples and page.extrasamples[0] != EXTRASAMPLE.UNSPECIFIED
        return image[..., 0] if image.shape[2:] == (2,) and alpha else image
