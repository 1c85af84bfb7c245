# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""JPEG files of more than 8 bits, which Pillow does not decode: 12 bits, and up to 16 without loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from swinumamba_monai.data.files.limits import check_size, check_unfolding
from swinumamba_monai.data.files.picture_kinds import ORIENTATION_TAG, UPRIGHT, turn, valid

# The markers of frames: of all kinds of coding, without those of tables (C4, C8 and CC).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LOSSLESS, _APP1 = 0xC3, 0xE1
_EXIF = b"Exif\0\0"
_COLOURS = (1, 3)  # numbers of a pixel: gray, or RGB as the decoder makes it


def decode_deep(path: Path) -> np.ndarray | None:
    """The pixels, (H, W) or (H, W, 3) uint16, upright, of a file of more than 8 bits; None for one that Pillow decodes.

    Raises:
        InputError: the file claims more than may be read. The decoder has errors of its own for damaged ones.
    """
    content = path.read_bytes()
    for marker, segment in _segments(content):
        if marker not in _FRAMES:
            continue
        bits, height, width, channels = segment[0], _number(segment[1:3]), _number(segment[3:5]), segment[5]
        if bits <= 8 or channels not in _COLOURS:
            return None
        check_size(path, height, width, channels)
        check_unfolding(path, height * width * channels * 2)
        decode = imagecodecs.ljpeg_decode if marker == _LOSSLESS else imagecodecs.jpeg_decode
        return turn(decode(content), jpeg_orientation(content))
    return None


def jpeg_orientation(content: bytes) -> int:
    """What the EXIF data of a file say of how it is to be turned, from 1 (not at all) to 8."""
    with suppress(Exception):  # damaged EXIF data, for which Pillow has many errors, says nothing
        for marker, segment in _segments(content):
            if marker == _APP1 and segment.startswith(_EXIF):
                exif = Image.Exif()
                exif.load(segment)
                return valid(exif.get(ORIENTATION_TAG))
    return UPRIGHT


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers before the picture, each with what stands behind its length."""
    place = 2
    while content[place : place + 1] == b"\xff" and len(content) >= place + 10:
        length = _number(content[place + 2 : place + 4])
        yield content[place + 1], content[place + 4 : place + 2 + length]
        place += 2 + length


def _number(two: bytes) -> int:
    return int.from_bytes(two, "big")
