# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What kind of picture a file is, by how it begins and not how it is called, and how it is to be turned to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

TIFF_SUFFIXES = (".tif", ".tiff")
JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (".png", *JPEG_SUFFIXES, ".bmp", *TIFF_SUFFIXES)

_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",  # of over 4 GB
    b"MM\0+": ".tif",
}

ORIENTATION_TAG = 274  # number of the tag in EXIF and in TIFF
UPRIGHT = 1
# Marks of the chunks of a PNG that may say it; the last two are ImageMagick's.
_PNG_MARKS = (b"eXIf", b"adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")

_APP1, _EXIF = 0xE1, b"Exif\0\0"  # marker of a JPEG's segment that may say it, and how that begins

# Whether rows and columns change places, and the steps along both after that.
_TURNS = {2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1)}
_TURNS |= {5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1)}


def suffix_of(path: Path) -> str:
    """The suffix, in lower case, that suits what is in a picture file; its own where that begins like none of them."""
    with path.open("rb") as file:
        beginning = file.read(8)
    return next((suffix for mark, suffix in _BEGINNINGS.items() if beginning.startswith(mark)), path.suffix.lower())


def exif_orientation(file: ImageFile, path: Path) -> int:
    """What the EXIF data of a picture that Pillow has opened says; 1, which is upright, where there is none to be read.

    PNG may have the data behind its pixels, which Pillow decodes to get there, so ``path`` is looked through before.
    """
    if isinstance(file, PngImageFile) and not any(mark in path.read_bytes() for mark in _PNG_MARKS):
        return UPRIGHT
    with suppress(Exception):  # damaged EXIF data, for which Pillow has many errors, says nothing
        return valid(file.getexif().get(ORIENTATION_TAG))
    return UPRIGHT


def jpeg_orientation(content: bytes) -> int:
    """The same for the bytes of a JPEG, also of one that Pillow does not open."""
    with suppress(Exception):  # damaged EXIF data, for which Pillow has many errors, says nothing
        for marker, segment in jpeg_segments(content):
            if marker == _APP1 and segment.startswith(_EXIF):
                exif = Image.Exif()
                exif.load(segment)
                return valid(exif.get(ORIENTATION_TAG))
    return UPRIGHT


def jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers before the picture, each with what stands behind its length."""
    place = 2
    while content[place : place + 1] == b"\xff" and len(content) >= place + 10:
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        yield content[place + 1], content[place + 4 : place + 2 + length]
        place += 2 + length


def valid(orientation: object) -> int:
    """An orientation as files have it, or 1 for anything that is none."""
    return orientation if isinstance(orientation, int) and orientation in _TURNS else UPRIGHT


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and flip pixels (H, W) or (H, W, C) as they are to be seen, by the number 1 to 8 of EXIF and TIFF."""
    if orientation == UPRIGHT:
        return image
    swap, rows, columns = _TURNS[orientation]
    image = np.swapaxes(image, 0, 1) if swap else image
    return np.ascontiguousarray(image[::rows, ::columns])
