# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Some rows of a TIFF image that is too large to be read whole: its tiles or strips are decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from monai.config import PathLike
from tifffile import COMPRESSION

from swinumamba_monai.data.files.limits import MAX_CHANNELS
from swinumamba_monai.data.files.numbered import file_and_number
from swinumamba_monai.data.files.picture_kinds import TIFF_SUFFIXES, suffix_of
from swinumamba_monai.data.files.pixel_checks import check_pixels
from swinumamba_monai.data.files.tiff import TiffPlane
from swinumamba_monai.errors import explained

# Number of pixels of an image that is never in memory as a whole; that its file can hold them is asked elsewhere.
MAX_LARGE_PIXELS = 1 << 36
MAX_PART = 1 << 28  # bytes of a tile or strip, which is decoded as a whole
_JPEGS = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY)


def open_rows(path: PathLike, max_channels: int = MAX_CHANNELS) -> TiffRows | None:
    """An image file, or a plane of a TIFF stack, for reading rows; None where that cannot be done.

    Why not :func:`~swinumamba_monai.data.files.images.read_image` may say.
    """
    file, plane = file_and_number(path)
    if not file.is_file() or suffix_of(file) not in TIFF_SUFFIXES:
        return None
    try:
        rows = TiffRows(file, plane, max_channels)
    except Exception:  # whatever a damaged file makes tifffile raise
        return None
    if rows.readable:
        return rows
    rows.close()
    return None


class TiffRows:
    """A TIFF image of which rows are read, each as :func:`~swinumamba_monai.data.files.images.read_image` gives it.

    Args:
        path: the file.
        plane: the number of the plane of a stack; None where the file has one image.
        max_channels: largest number of channels that it may have.

    Attributes:
        readable: whether rows can be read without most of the image: it is upright, and in tiles, in strips of a few
            rows, or not compressed.

    Raises:
        InputError: as for :func:`~swinumamba_monai.data.files.images.read_image`.
    """

    def __init__(self, path: Path, plane: int | None = None, max_channels: int = MAX_CHANNELS) -> None:
        self.path = path
        self._file = tifffile.TiffFile(path, _multifile=False)
        try:
            self._tiff = tiff = TiffPlane(path, self._file, plane, MAX_LARGE_PIXELS, max_channels)
            self._pages = tiff.pages()
            sizes = dict(zip(tiff.axes, tiff.own_shape))
            self.height, self.width = sizes["Y"], sizes["X"]
            part = np.prod(tiff.page.chunks) * tiff.page.dtype.itemsize
            self.readable = (
                tiff.upright
                and sum(page.size for page in self._pages) == np.prod(tiff.own_shape)
                and tiff.page.shaped[1] == 1
                and (part <= MAX_PART or all(page.is_memmappable for page in self._pages))
            )
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TiffRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows of the image, (stop - start, W) or (stop - start, W, C), in the data type of the file.

        Args:
            start: the first.
            stop: the one behind the last.

        Raises:
            InputError: a tile or strip is damaged, or holds NaN or infinite pixels.
        """
        problem = f"{self.path} cannot be decoded between the rows {start} and {stop}"
        with explained(problem, "it is damaged or truncated, so replace it"):
            pages = [self._read_page(page, start, stop) for page in self._pages]
            pixels = self._tiff.as_seen(pages[0] if len(pages) == 1 else np.stack(pages), rows=stop - start)
        return check_pixels(pixels, self.path)

    def bands(self, height: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows, ``height`` at a time, with the number of the first."""
        for start in range(0, self.height, height):
            yield start, self.read(start, min(start + height, self.height))

    def _read_page(self, page: tifffile.TiffPage | tifffile.TiffFrame, start: int, stop: int) -> np.ndarray:
        """Rows of a page, (planar samples, rows, columns, samples of a pixel)."""
        form, file = page.keyframe, self._file.filehandle
        samples, _, height, width, together = form.shaped
        if page.is_memmappable:
            dtype = form.dtype.newbyteorder(form.parent.byteorder)
            whole = file.memmap_array(dtype, (samples, height, width, together), page.dataoffsets[0])
            return whole[:, start:stop].astype(form.dtype)
        tall, wide = (form.tilelength, form.tilewidth) if form.is_tiled else (form.rowsperstrip, width)
        across, down = -(-width // wide), -(-height // tall)
        rows = np.full((samples, stop - start, width, together), form.nodata, form.dtype)
        options = {"jpegtables": page.jpegtables, "jpegheader": form.jpegheader} if form.compression in _JPEGS else {}
        for sample in range(samples):
            for number in range(start // tall * across, -(-stop // tall) * across):
                index = sample * down * across + number
                if not (size := page.databytecounts[index]):  # a tile that the file leaves out is empty
                    continue
                file.seek(page.dataoffsets[index])
                if len(encoded := file.read(size)) < size:
                    raise EOFError("the file ends before its tiles")
                part, (_, _, top, left, _), _ = form.decode(encoded, index, **options)
                part = part[0, max(start - top, 0) : stop - top, : width - left]  # tiles reach over the edges
                first = max(top - start, 0)
                rows[sample, first : first + part.shape[0], left : left + part.shape[1]] = part
        return rows
