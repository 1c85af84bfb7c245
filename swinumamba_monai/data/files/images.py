# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Image files as arrays: every channel and every bit of the file, or one sentence that says why not."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
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

from swinumamba_monai.data.files.limits import (
    MAX_CHANNELS,
    MAX_DEFLATE,
    MOST_CHANNELS,
    check_file,
    check_size,
    check_unfolding,
)
from swinumamba_monai.data.files.numbered import file_and_number
from swinumamba_monai.data.files.picture_kinds import (
    IMAGE_SUFFIXES,
    JPEG_SUFFIXES,
    TIFF_SUFFIXES,
    UPRIGHT,
    exif_orientation,
    jpeg_orientation,
    jpeg_segments,
    suffix_of,
    turn,
)
from swinumamba_monai.data.files.pixel_checks import check_opaque, check_pixels, check_steps
from swinumamba_monai.data.files.tiff import TiffPlane, plane_names, tiff_orientation
from swinumamba_monai.errors import InputError, explained

MAX_NUMBER = 1 << 24  # whole numbers beyond it are not all exact in float32
MAX_SCANS = 100  # number of scans of a progressive JPEG, which is decoded as often; encoders make about ten

# The plugin classes, not PIL.Image.open: that one has a lower limit of its own, which is a process-wide setting.
_PILLOW_FILES = {".png": PngImageFile, **dict.fromkeys(JPEG_SUFFIXES, JpegImageFile), ".bmp": BmpImageFile}

# The markers of a JPEG's frames: of all kinds of coding, without those of tables (C4, C8 and CC).
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LOSSLESS = 0xC3

# Pillow modes that are no plain gray or colour; every other mode is kept.
_PILLOW_CONVERSIONS = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "CMYK": "RGB"}


def read_image(path: PathLike, indices: bool = False, max_channels: int = MAX_CHANNELS) -> np.ndarray:
    """Read one 2D image from a PNG, JPEG, BMP or TIFF file.

    The alpha of a gray image is dropped, that of a colour image is the fourth channel. Palettes become RGB without
    alpha, one bit per pixel becomes 0 and 255. An image that EXIF or a TIFF tag says to be turned is turned, and one
    that stores white as zero is turned over, but for ImageJ's, whose values are not those of the screen. Nothing else
    is changed: no scaling, no colours of ImageJ's channels.

    Args:
        path: the file; its suffix, in any case, is one of ``IMAGE_SUFFIXES``; what is in it
            decides how it is read. A plane of a TIFF stack as :func:`image_names` calls it.
        indices: whether the numbers of a palette's colours are read instead of the colours.
        max_channels: largest number of channels that a TIFF file may have.

    Returns:
        (H, W) or (H, W, C) with 2 to ``max_channels`` channels, rows first, in the data type of the file.

    Raises:
        InputError: The file is missing, of another format, damaged or truncated, is a stack of images, has more than
            ``MAX_PIXELS`` pixels or ``max_channels`` channels, or has pixels that are NaN, infinite, or too large or
            too near to each other for float32.
    """
    path, plane = file_and_number(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{path} is not an image that can be read here; use one of {', '.join(IMAGE_SUFFIXES)}.")
    check_file(path)
    advice = f"it is damaged, truncated or not a {path.suffix.lower()} file, so replace it"
    with explained(f"{path} cannot be decoded", advice):
        suffix = suffix_of(path)
        if suffix in TIFF_SUFFIXES:
            with tifffile.TiffFile(path, _multifile=False) as file:  # its metadata may name others, which stay closed
                tiff = TiffPlane(path, file, plane, max_channels=max_channels)
                image = tiff.as_seen(tiff.decode(), indices)
        else:
            image = _decode_pillow(path, suffix, indices)
    image = check_pixels(image, path)
    return image if indices else check_steps(image, path)  # numbers are counted before they become float32


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an image, and not of a hidden one (macOS puts a ``._a.png`` next to ``a.png``)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def image_names(file: Path) -> list[str]:
    """What the images in a file are called, in their order: the file itself, or a name for each plane of a stack.

    The planes of a TIFF file are those of :func:`~swinumamba_monai.data.files.tiff.plane_names`.
    """
    is_tiff = file.is_file() and suffix_of(file) in TIFF_SUFFIXES
    return plane_names(file) if is_tiff else [str(file)]


def stated_orientation(path: Path) -> int:
    """How an image file says that it is to be turned, from 1 (not at all) to 8; 1 for one that cannot be opened."""
    with suppress(Exception):
        check_file(path)
        suffix = suffix_of(path)
        if suffix in TIFF_SUFFIXES:
            return tiff_orientation(path)
        if suffix in JPEG_SUFFIXES:  # also of those that Pillow does not open
            return jpeg_orientation(path.read_bytes())
        with _PILLOW_FILES[suffix](path) as file:
            return exif_orientation(file, path)
    return UPRIGHT


def read_instances(path: PathLike) -> np.ndarray:
    """Read an instance map, (H, W) int32: 0 is background, every cell has its own positive number.

    Raises:
        InputError: as for :func:`read_image`, and when the file has colours or numbers that are no cell numbers.
    """
    return _read_numbers(path, "instance map", "cell numbers", np.int32, "16-bit gray PNG or TIFF")


def read_classes(path: PathLike) -> np.ndarray:
    """Read a mask whose pixels are class numbers, (H, W) int32, as :func:`read_instances` reads those of cells."""
    return _read_numbers(path, "mask", "class numbers", np.uint16, "8-bit gray PNG")


def _read_numbers(path: PathLike, kind: str, numbers: str, dtype: type, form: str) -> np.ndarray:
    """Read an image (H, W) of whole numbers that ``dtype`` holds; errors say what such a file is and how to save it."""
    image = read_image(path, indices=True)
    if suffix_of(file_and_number(path)[0]) in JPEG_SUFFIXES:  # 144 cells come back as 852
        other = "; prepare takes black and white ones with --mask_threshold 128" if kind == "mask" else ""
        raise InputError(
            f"{path} is a JPEG, which does not keep {numbers}; take the {kind} it was made of, as {form}{other}."
        )
    image = without_copies(check_opaque(image, path))
    if image.ndim != 2:
        colours = ", or prepare with a --label_map of their colours" if kind == "mask" else ""
        raise InputError(
            f"{path} has {image.shape[-1]} channels that differ (a colour picture), but this {kind} needs one channel "
            f"of {numbers}; save it as {form}{colours}."
        )
    largest = np.iinfo(dtype).max
    if image.min() < 0 or image.max() > largest or (image.dtype.kind == "f" and (image % 1).any()):
        raise InputError(
            f"{path} is no {kind}: its values, from {image.min()} to {image.max()}, are not all whole numbers between "
            f"0 and {largest}; save {numbers}, with 0 for the background."
        )
    return image.astype(np.int32)


def number_of_black(path: Path) -> int | None:
    """The number that is black in the palette of a PNG file in which 0 is another colour; None for any other file."""
    file, _ = file_and_number(path)
    if suffix_of(file) != ".png":
        return None
    with PngImageFile(file) as picture:
        palette = bytes(picture.palette.palette) if picture.mode == "P" and picture.palette else b""
    colours = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    black = np.flatnonzero(~colours.any(axis=1))
    return int(black[0]) if black.size and black[0] > 0 else None


def without_copies(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) as (H, W) where it is gray stored in three channels, perhaps with alpha; else the image."""
    is_gray = image.ndim == 3 and image.shape[2] > 2 and (image[..., 1:3] == image[..., :1]).all()
    return image[..., 0] if is_gray else image


class ImageFileReader(ImageReader):
    """:func:`read_image` for ``monai.transforms.LoadImage(d)``.

    Unlike ``PILReader`` it keeps the rows first, and it reads 16-bit colour and TIFF. Several files given as one item
    become the channels of one image.
    """

    decode = staticmethod(read_image)
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every name is that of a file with one of ``suffixes``, or of a part of one."""
        return all(file_and_number(name)[0].suffix.lower() in self.suffixes for name in ensure_tuple(filename))

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


class MultiplexFileReader(ImageFileReader):
    """The same for images with up to ``MOST_CHANNELS`` channels, of which one is to be named that is looked at."""

    decode = staticmethod(partial(read_image, max_channels=MOST_CHANNELS))


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


def _decode_pillow(path: Path, suffix: str, indices: bool) -> np.ndarray:
    if suffix in JPEG_SUFFIXES and (deep := _decode_deep(path)) is not None:
        return deep
    if suffix == ".png":
        with PngImageFile(path) as file:
            file.verify()  # the check sums of its chunks, which Pillow passes over where it decodes
    with _PILLOW_FILES[suffix](path) as file:
        check_size(path, file.height, file.width, len(file.getbands()))
        if (pictures := getattr(file, "n_frames", 1)) > 1:
            raise InputError(f"{path} is an animation of {pictures} pictures; save each as a file of its own.")
        depth = _png_bit_depth(path) if isinstance(file, PngImageFile) else 8
        check_unfolding(path, file.height * file.width * len(file.getbands()) * (1 if depth <= 8 else 2))
        if isinstance(file, JpegImageFile) and path.read_bytes().count(b"\xff\xda") > MAX_SCANS:
            raise InputError(f"{path} is a progressive JPEG of over {MAX_SCANS} scans; save it in another format.")
        if file.height * file.width // 8 > path.stat().st_size * MAX_DEFLATE:
            raise InputError(
                f"{path} claims {file.height} x {file.width} pixels, which no file of its size holds; replace it."
            )
        if depth == 16:  # Pillow keeps 8 bits of a 16-bit colour
            image = imagecodecs.png_decode(path.read_bytes())
            image = image[..., 0] if image.shape[2:] == (2,) else image
            image = image[..., :3] if file.mode == "RGB" else image  # a colour that is transparent is no channel
            return turn(image, exif_orientation(file, path))
        mode = "P" if indices and file.mode == "P" else _PILLOW_CONVERSIONS.get(file.mode, file.mode)
        image = np.array(file.convert(mode))
        if depth in (2, 4) and file.mode == "L":  # Pillow stretches these to 0 to 255, and class 1 would be 85 or 17
            image //= 255 // (2**depth - 1)
        return turn(image, exif_orientation(file, path))


def _decode_deep(path: Path) -> np.ndarray | None:
    """The pixels of a JPEG of 12 bits, or up to 16 without loss, (H, W) or (H, W, 3) uint16; None for any other."""
    content = path.read_bytes()
    for marker, segment in jpeg_segments(content):
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">B2HB", segment)
            if bits <= 8 or channels not in (1, 3):
                return None
            check_size(path, height, width, channels)
            check_unfolding(path, height * width * channels * 2)
            decode = imagecodecs.ljpeg_decode if marker == _LOSSLESS else imagecodecs.jpeg_decode
            return turn(decode(content), jpeg_orientation(content))
    return None


def _png_bit_depth(path: Path) -> int:
    """The bit depth in the header, at the place that the PNG standard gives it (Pillow does not say)."""
    with path.open("rb") as file:
        return file.read(25)[24]
