# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What kind of picture a file is: how it begins decides, not how it is called."""

from __future__ import annotations

from pathlib import Path

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


def suffix_of(path: Path) -> str:
    """The suffix, in lower case, that suits what is in a picture file; its own where that begins like none of them."""
    with path.open("rb") as file:
        beginning = file.read(8)
    return next((suffix for mark, suffix in _BEGINNINGS.items() if beginning.startswith(mark)), path.suffix.lower())
