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

from swinumamba_monai.data.files.numbered import file_and_number, numbered
from swinumamba_monai.data.files.orientation import ORIENTATION_TAG, UPRIGHT, exif_orientation, turn, valid
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
TIFF_SUFFIXES = (".tif", ".tiff")
_PLANE_AXES = "YXSC"  # as tifffile names them: rows, columns, samples of a pixel, channels
_TIFF_COLOURS = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)
IMAGE_SUFFIXES = (*_PILLOW_FILES, *TIFF_SUFFIXES)

# Pillow modes that are no plain gray or colour; every other mode is kept.
_PILLOW_CONVERSIONS = {"1": "L", "LA": "L", "P": "RGB", "PA": "RGB", "CMYK": "RGB"}


def read_image(path: PathLike) -> np.ndarray:
    """Read one 2D image from a PNG, JPEG, BMP or TIFF file.

    The alpha of a gray image is dropped, that of a colour image is the fourth channel. Palettes become RGB without
    alpha, one bit per pixel becomes 0 and 255. An image that EXIF or a TIFF tag says to be turned is turned. Nothing
    else is changed: no scaling, no inversion of TIFF files that store white as zero, no colours of ImageJ's channels.

    Args:
        path: the file; its suffix, in any case, is one of ``IMAGE_SUFFIXES``. A plane of a TIFF stack as
            :func:`image_names` calls it.

    Returns:
        (H, W) or (H, W, C) with 2 to 4 channels, rows first, in the data type of the file.

    Raises:
        InputError: The file is missing, of another format, damaged or truncated, is a stack of images, has more than
            ``MAX_PIXELS`` pixels or ``MAX_CHANNELS`` channels, or has NaN or infinite pixels.
    """
    return _read(path)


def _read(path: PathLike, indices: bool = False) -> np.ndarray:
    """:func:`read_image`; with ``indices`` the numbers of the palette's colours instead of the colours."""
    path, plane = file_and_number(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path} is not an image that can be read here; use one of {', '.join(IMAGE_SUFFIXES)}.")
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the path.")
    try:
        image = _decode_tiff(path, plane, indices) if suffix in TIFF_SUFFIXES else _decode_pillow(path, indices)
    except InputError:
        raise
    except Exception as error:  # there is no common class for what decoders raise on a broken file
        raise InputError(
            f"{path} cannot be decoded ({quoted(error)}); it is damaged, truncated or not a "
            f"{suffix} file, so replace it."
        ) from error
    if image.ndim not in (2, 3):
        raise InputError(f"{path} has {image.ndim} dimensions {image.shape}; save one image, (H, W) or (H, W, C).")
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


def image_names(file: Path) -> list[str]:
    """What the images in a file are called, in their order: the file itself, or a name for each plane of a stack.

    The planes of a TIFF file are all that is along axes other than rows, columns and channels: depth, time, positions.
    A damaged file is called by its own name, and refused when it is read.
    """
    if file.suffix.lower() in TIFF_SUFFIXES:
        with suppress(Exception), tifffile.TiffFile(file, _multifile=False) as opened:
            _check_pages(file, opened)
            series = opened.series[0]
            planes = math.prod(size for axis, size in zip(series.axes, series.shape) if axis not in _PLANE_AXES)
            if len(opened.series) == 1 and planes > 1:
                return [numbered(file, number) for number in range(planes)]
    return [str(file)]


def stated_orientation(path: Path) -> int:
    """How an image file says that it is to be turned, from 1 (not at all) to 8; 1 for one that cannot be opened."""
    with suppress(Exception):
        if path.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(path, _multifile=False) as file:
                return valid(file.pages[0].tags.valueof(ORIENTATION_TAG))
        with _PILLOW_FILES[path.suffix.lower()](path) as file:
            return exif_orientation(file, path)
    return UPRIGHT


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
    image = _read(path, indices=True)
    if Path(path).suffix.lower() in (".jpg", ".jpeg"):  # 144 cells come back as 852
        other = "; prepare takes black and white ones with --mask_threshold 128" if kind == "mask" else ""
        raise InputError(
            f"{path} is a JPEG, which does not keep {numbers}; take the {kind} it was made of, as {form}{other}."
        )
    if image.ndim == 3 and image.shape[2] > 2 and (image[..., 1:3] == image[..., :1]).all():
        image = image[..., 0]  # gray, stored in three channels, perhaps with alpha
    if image.ndim != 2:
        raise InputError(
            f"{path} has {image.shape[-1]} channels that differ (a colour picture), but this {kind} needs one channel "
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


def _check_size(path: Path, height: int, width: int, channels: int, max_pixels: int | None = None) -> None:
    """Refuse what the header claims before any memory is reserved for it."""
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if height * width > limit:
        raise InputError(f"{path} claims {height} x {width} pixels, but {limit} is the limit; cut it into parts.")
    if channels > MAX_CHANNELS:
        raise InputError(f"{path} has {channels} channels, but {MAX_CHANNELS} is the limit; keep those that matter.")


def check_unfolding(path: Path, claimed_bytes: int) -> None:
    """Refuse a file that claims more than a picture of its size unfolds to, before the memory is taken."""
    if claimed_bytes > max(MAX_UNFOLDED_BYTES, MAX_UNFOLDING * path.stat().st_size):
        raise InputError(f"{path} claims {claimed_bytes} bytes of pixels, which no file of its size holds; replace it.")


def _decode_pillow(path: Path, indices: bool) -> np.ndarray:
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
            image = image[..., 0] if image.shape[2:] == (2,) else image
            return turn(image, exif_orientation(file, path))
        mode = "P" if indices and file.mode == "P" else _PILLOW_CONVERSIONS.get(file.mode, file.mode)
        image = np.array(file.convert(mode))
        if depth in (2, 4) and file.mode == "L":  # Pillow stretches these to 0 to 255, and class 1 would be 85 or 17
            image //= 255 // (2**depth - 1)
        return turn(image, exif_orientation(file, path))


def _png_bit_depth(path: Path) -> int:
    """The bit depth in the header, at the place that the PNG standard gives it (Pillow does not say)."""
    with path.open("rb") as file:
        return file.read(25)[24]


def _check_pages(path: Path, file: tifffile.TiffFile) -> None:
    """Refuse what would take long to list."""
    with suppress(IndexError):
        file.pages[MAX_PAGES]
        raise InputError(f"{path} holds over {MAX_PAGES} separate images; save each as a file of its own.")
    # The description of an OME file may name any number of planes, which tifffile would list one by one.
    if any(int(size) > MAX_PAGES for size in re.findall(r'Size[ZTC]="(\d+)"', file.ome_metadata or "")):
        raise InputError(f"{path} says that it holds over {MAX_PAGES} planes; save each as a file of its own.")


def _decode_tiff(path: Path, plane: int | None, indices: bool) -> np.ndarray:
    with tifffile.TiffFile(path, _multifile=False) as file:  # its metadata may name other files, which are not opened
        tiff = TiffPlane(path, file, plane)
        return tiff.as_seen(_plane(tiff.series, tiff.shape, tiff.own, plane or 0), indices)


class TiffPlane:
    """One 2D image of a TIFF file, before any pixel is decoded.

    Args:
        path: of the file.
        file: the file, opened.
        plane: the number of the plane of a stack; None where the file has one image.
        max_pixels: that the image may have; None for ``MAX_PIXELS``.

    Attributes:
        series: what tifffile calls the image with its stack; of a pyramid the level in full size comes first.
        page: the page that says how all of them are stored.
        shape: the sizes of all axes with more than one entry, rows and columns.
        own: which of them are the image's: rows, columns, channels.
        axes: the same as tifffile's letters.
        upright: whether it is stored as it is to be seen.

    Raises:
        InputError: as for :func:`read_image`.
    """

    def __init__(
        self, path: Path, file: tifffile.TiffFile, plane: int | None = None, max_pixels: int | None = None
    ) -> None:
        _check_pages(path, file)
        if len(file.series) != 1:
            raise InputError(f"{path} holds {len(file.series)} separate images; save each as a file of its own.")
        self.series = series = file.series[0]
        self.page = page = series.keyframe
        # tifffile names every axis with a letter: S are samples of a pixel, C channels, Z, T, Q, ... stacks.
        shown = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "YX"]
        axes, self.shape = "".join(axis for axis, _ in shown), tuple(size for _, size in shown)
        self.own = [place for place, axis in enumerate(axes) if axis in _PLANE_AXES]
        self.axes = "".join(axes[place] for place in self.own)
        planes = math.prod(self.shape) // max(1, math.prod(self.own_shape))
        if self.axes not in ("YX", "YXS", "YXC", "SYX", "CYX") or (plane is None and planes > 1):
            raise InputError(
                f"{path} is a stack with axes {series.axes} and shape {series.shape}, but one 2D image is needed; save "
                "each plane as a file of its own."
            )
        if plane is not None and plane >= planes:
            raise InputError(f"{path} has {planes} planes, but none with the number {plane}.")
        sizes = dict(zip(self.axes, self.own_shape))
        _check_size(path, sizes["Y"], sizes["X"], sizes.get("S", 1) * sizes.get("C", 1), max_pixels)
        _check_size(path, page.tilelength, page.tilewidth, 1)
        check_unfolding(path, math.prod(self.shape) * page.dtype.itemsize if page.dtype else 0)
        if (parts := math.prod(page.chunked)) > len(page.dataoffsets):
            raise InputError(f"{path} has {len(page.dataoffsets)} of its {parts} strips or tiles; it is damaged.")
        as_rgb = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG  # tifffile does it
        if page.photometric not in _TIFF_COLOURS and not as_rgb:
            raise InputError(f"{path} has colours of the kind {page.photometric!r}; convert it to gray or RGB.")
        self._orientation = valid(page.tags.valueof(ORIENTATION_TAG))
        self.upright = self._orientation == UPRIGHT

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The sizes of the image's own axes, in the order of ``axes``."""
        return tuple(self.shape[place] for place in self.own)

    def as_seen(self, pixels: np.ndarray, indices: bool = False, rows: int | None = None) -> np.ndarray:
        """Decoded pixels, or some of their rows, as :func:`read_image` gives them.

        Args:
            pixels: what is stored, in the order of ``axes``.
            indices: whether the numbers of a palette's colours stay.
            rows: how many there are; None for all.
        """
        page = self.page
        shape = [rows if axis == "Y" and rows is not None else size for axis, size in zip(self.axes, self.own_shape)]
        image = pixels.reshape(shape)
        alpha = page.extrasamples and page.extrasamples[0] != EXTRASAMPLE.UNSPECIFIED
        image = np.moveaxis(image, 0, -1) if self.axes in ("SYX", "CYX") else image
        image = image[..., 0] if image.shape[2:] == (2,) and alpha else image
        # The palette of a file with several channels is the colour that ImageJ shows the first in.
        if page.photometric == PHOTOMETRIC.PALETTE and image.ndim == 2 and not indices:
            image = (page.colormap.T[image] >> 8).astype(np.uint8)  # palettes always have 16 bits
        return np.ascontiguousarray(turn(image, self._orientation))


def _plane(series: tifffile.TiffPageSeries, shape: tuple[int, ...], own: list[int], number: int) -> np.ndarray:
    """One plane, with the axes ``own`` of ``shape``; where every page has one plane, only its pages are decoded."""
    stack = [place for place in range(len(shape)) if place not in own]
    if not stack:
        return series.asarray().reshape(shape)
    if pages := pages_of_plane(series, shape, own, number):
        return np.stack([page.asarray() for page in pages])
    position = dict(zip(stack, np.unravel_index(number, [shape[place] for place in stack])))
    return series.asarray().reshape(shape)[tuple(position.get(place, slice(None)) for place in range(len(shape)))]


def pages_of_plane(
    series: tifffile.TiffPageSeries, shape: tuple[int, ...], own: list[int], number: int
) -> list[tifffile.TiffPage]:
    """The pages of one plane, each a channel or all channels; none where a page has several planes or is missing."""
    stack = [place for place in range(len(shape)) if place not in own]
    position = dict(zip(stack, np.unravel_index(number, [shape[place] for place in stack]) if stack else ()))
    leading = next((n for n in range(len(shape)) if math.prod(shape[:n]) == len(series.pages)), None)
    if leading is None or max(stack, default=-1) >= leading:
        return []
    numbers = np.arange(len(series.pages)).reshape(shape[:leading])
    numbers = numbers[tuple(position.get(place, slice(None)) for place in range(leading))]
    pages = [series.pages[number] for number in numbers.ravel().tolist()]
    return [] if None in pages else pages  # an OME file may say that it has pages that it lacks
