# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""TIFF files as arrays: whole images, or planes of stacks."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC

from swinumamba_monai.data.files.limits import MAX_CHANNELS, check_size, check_unfolding
from swinumamba_monai.data.files.numbered import name_part
from swinumamba_monai.data.files.picture_kinds import ORIENTATION_TAG, UPRIGHT, turn, valid
from swinumamba_monai.errors import InputError

# Number of pages of a TIFF file, which should have one: links of its pages that form a circle would be followed on.
MAX_PAGES = 1000
_NARROWEST = 16  # number of columns up to which tall planes, of which there are many, are taken for channels
_PLANE_AXES = "YXSC"  # as tifffile names them: rows, columns, samples of a pixel, channels
_TIFF_COLOURS = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)
# What scanners of slides put beside the image, as tifffile calls it in files of these kinds.
_SLIDES, _BESIDE_SLIDE = ("svs", "ndpi", "philips", "qpi"), ("Thumbnail", "Label", "Macro", "Map")
_WHITE = 255
_CMYK = 1  # value of the tag InkSet for the inks CMYK, the default


def plane_names(file: Path) -> list[str]:
    """What the planes of a file are called, in their order, by :func:`name_part`; the file itself for a single one.

    The planes are all that is along axes other than rows, columns and channels: depth, time, positions. A damaged file
    is called by its own name.
    """
    with suppress(Exception), tifffile.TiffFile(file, _multifile=False) as opened:
        _check_pages(file, opened)
        (series,) = _full_size(opened)
        planes = math.prod(size for axis, size in zip(series.axes, series.shape) if axis not in _PLANE_AXES)
        if planes > 1:
            return [name_part(file, number) for number in range(planes)]
    return [str(file)]


def tiff_orientation(path: Path) -> int:
    """How a file says that it is to be turned, from 1 (not at all) to 8."""
    with tifffile.TiffFile(path, _multifile=False) as file:
        return valid(file.pages[0].tags.valueof(ORIENTATION_TAG))


def _check_pages(path: Path, file: tifffile.TiffFile) -> None:
    """Refuse what would take long to list."""
    with suppress(IndexError):
        file.pages[MAX_PAGES]
        raise InputError(f"{path} holds over {MAX_PAGES} separate images; save each as a file of its own.")
    # The description of an OME file may name any number of planes, which tifffile would list one by one.
    if any(int(size) > MAX_PAGES for size in re.findall(r'Size[ZTC]="(\d+)"', file.ome_metadata or "")):
        raise InputError(f"{path} says that it holds over {MAX_PAGES} planes; save each as a file of its own.")


def _full_size(file: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The images of a file, without smaller copies of them, as pyramids and cameras have them, and their masks."""
    return [
        series
        for series in file.series
        if not (series.keyframe.is_reduced or series.keyframe.is_mask)
        and not (series.kind in _SLIDES and series.name in _BESIDE_SLIDE)
    ]


class TiffPlane:
    """One 2D image of a TIFF file, before any pixel is decoded.

    Args:
        path: path of the file.
        file: the file, opened.
        plane: the number of the plane of a stack; None where the file has one image.
        max_pixels: largest number of pixels that the image may have; None for ``MAX_PIXELS``.
        max_channels: largest number of channels that it may have.

    Attributes:
        page: the page that says how all of them are stored.
        axes: the image's own axes, rows, columns, channels, as tifffile's letters.
        own_shape: their sizes.
        upright: whether it is stored as it is to be seen.

    Raises:
        InputError: as for :func:`~swinumamba_monai.data.files.images.read_image`.
    """

    def __init__(
        self,
        path: Path,
        file: tifffile.TiffFile,
        plane: int | None = None,
        max_pixels: int | None = None,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        _check_pages(path, file)
        found = _full_size(file)
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} separate images; save each as a file of its own.")
        self._path = path
        self._series, self.page = series, page = found[0], found[0].keyframe
        if series.kind == "philips":  # tiles without tissue are left out
            page.nodata = _WHITE
        # tifffile names every axis with a letter: S are samples of a pixel, C channels, Z, T, Q, ... stacks.
        shown = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "YX"]
        self._shape = tuple(size for _, size in shown)
        self.axes = "".join(axis for axis, _ in shown if axis in _PLANE_AXES)
        self.own_shape = tuple(size for axis, size in shown if axis in _PLANE_AXES)
        planes = math.prod(self._shape) // max(1, math.prod(self.own_shape))
        if self.axes not in ("YX", "YXS", "YXC", "SYX", "CYX") or (plane is None and planes > 1):
            raise InputError(
                f"{path} is a stack with axes {series.axes} and shape {series.shape}, but one 2D image is needed; save "
                "each plane as a file of its own."
            )
        if plane is not None and plane >= planes:
            raise InputError(f"{path} has {planes} planes, but none with the number {plane}.")
        sizes = dict(zip(self.axes, self.own_shape))
        if sizes["X"] <= _NARROWEST < min(planes, sizes["Y"]) / 2:
            raise InputError(
                f"{path} is a stack of {planes} planes of {sizes['Y']} x {sizes['X']} pixels, as if its channels came "
                "last; save it with the channels first, as ImageJ or OME do, or as RGB."
            )
        channels = sizes.get("S", 1) * sizes.get("C", 1)
        check_size(path, sizes["Y"], sizes["X"], channels, max_pixels, max_channels)
        check_size(path, page.tilelength, page.tilewidth, 1)
        check_unfolding(path, math.prod(self._shape) * page.dtype.itemsize if page.dtype else 0)
        if (parts := math.prod(page.chunked)) > len(page.dataoffsets):
            raise InputError(f"{path} has {len(page.dataoffsets)} of its {parts} strips or tiles; it is damaged.")
        as_rgb = page.photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG  # tifffile does it
        self._is_cmyk = (
            page.photometric == PHOTOMETRIC.SEPARATED
            and page.tags.valueof("InkSet", _CMYK) == _CMYK
            and (sizes.get("S"), page.bitspersample) == (4, 8)
        )
        if page.photometric not in _TIFF_COLOURS and not as_rgb and not self._is_cmyk:
            raise InputError(f"{path} has colours of the kind {page.photometric!r}; convert it to gray or RGB.")
        # Pixels that ImageJ or tifffile wrote are values whatever the screen shows, even inverted.
        self._has_values = bool(file.is_imagej) or file.pages[0].software.startswith("tifffile")
        stack = {place: size for place, (axis, size) in enumerate(shown) if axis not in _PLANE_AXES}
        self._position = dict(zip(stack, np.unravel_index(plane or 0, list(stack.values())) if stack else ()))
        self._orientation = valid(page.tags.valueof(ORIENTATION_TAG))
        self.upright = self._orientation == UPRIGHT

    def decode(self) -> np.ndarray:
        """What is stored, in the order of ``axes``; where every page has one plane, only its pages are decoded."""
        if (pages := self.pages()) and self._position:
            return np.stack([page.asarray() for page in pages])
        return self._series.asarray().reshape(self._shape)[self._place(len(self._shape))]

    def pages(self) -> list[tifffile.TiffPage]:
        """The pages of the plane, each a channel or all; none where a page has several planes.

        Raises:
            InputError: one is missing.
        """
        pages, shape = self._series.pages, self._shape
        leading = next((n for n in range(len(shape)) if math.prod(shape[:n]) == len(pages)), None)
        if leading is None or max(self._position, default=-1) >= leading:
            return []
        numbers = np.arange(len(pages)).reshape(shape[:leading])[self._place(leading)]
        found = [pages[number] for number in numbers.ravel().tolist()]
        if None in found:
            raise InputError(
                f"{self._path} lacks a plane that its description names, as if it was not recorded to its end; save "
                "the planes that it has as a file of their own."
            )
        return found

    def _place(self, axes: int) -> tuple[int | slice, ...]:
        """The index of the plane along so many of the first axes."""
        return tuple(self._position.get(axis, slice(None)) for axis in range(axes))

    def as_seen(self, pixels: np.ndarray, indices: bool = False, rows: int | None = None) -> np.ndarray:
        """Decoded pixels, or some of their rows, as :func:`~swinumamba_monai.data.files.images.read_image` gives them.

        Args:
            pixels: the stored numbers, in the order of ``axes``.
            indices: whether the numbers of a palette's colours stay.
            rows: how many there are; None for all.
        """
        page = self.page
        shape = [rows if axis == "Y" and rows is not None else size for axis, size in zip(self.axes, self.own_shape)]
        image = pixels.reshape(shape)
        is_bit = image.dtype == bool
        if page.photometric == PHOTOMETRIC.MINISWHITE and (is_bit or not indices) and not self._has_values:
            if is_bit:  # bright is bright
                image = ~image
            elif image.dtype.kind == "u":
                image = ((1 << page.bitspersample) - 1 - image).astype(image.dtype)
        alpha = page.extrasamples and page.extrasamples[0] != EXTRASAMPLE.UNSPECIFIED
        image = np.moveaxis(image, 0, -1) if self.axes in ("SYX", "CYX") else image
        image = image[..., 0] if image.shape[2:] == (2,) and alpha else image
        if self._is_cmyk:
            image = np.asarray(Image.fromarray(np.ascontiguousarray(image), "CMYK").convert("RGB"))
        # The palette of a file with several channels is the colour that ImageJ shows the first in.
        if page.photometric == PHOTOMETRIC.PALETTE and image.ndim == 2:
            image = image.astype(np.uint8) if is_bit else image
            if not indices:  # palettes have 16 bits, but some programs write 8
                bits = 0 if 0 < page.colormap.max() < 256 else 8
                image = (page.colormap.T[image] >> bits).astype(np.uint8)
        return np.ascontiguousarray(turn(image, self._orientation))
