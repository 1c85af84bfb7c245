# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Outlines and run lengths of annotation tools as pixels: a pixel belongs to an outline that its middle lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.draw import polygon

from swinumamba_monai.data.files.images import MAX_PIXELS
from swinumamba_monai.errors import InputError, shown

__all__ = ["Annotations", "Shape", "decode_runs", "paint"]


@dataclass(frozen=True)
class Shape:
    """One thing that was marked in an image.

    Attributes:
        name: of its class; empty where the tool has none.
        polygons: for each of its parts the rings (N, 2) float64, x and y in pixels from the upper left corner of the
            image; what lies in two rings of a part is a hole.
        mask: (h, w) bool, in place of polygons.
        corner: row and column of the upper left pixel of ``mask``.
        number: of its class in the file, or None.
    """

    name: str = ""
    polygons: Sequence[Sequence[np.ndarray]] = ()
    mask: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)
    number: int | None = None


@dataclass(frozen=True)
class Annotations:
    """What a file says of one image.

    Attributes:
        source: the file.
        shapes: what was marked, in the order in which they take their pixels.
        size: height and width of the image in pixels, as the file has them, or None.
        names: of all classes of the file, in its order.
    """

    source: Path
    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None
    names: Sequence[str] = ()


def paint(annotations: Annotations, numbers: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Put a number into the pixels of every shape; a pixel of two shapes stays with the first.

    Args:
        annotations: the shapes.
        numbers: one for each of them.
        size: height and width of the image in pixels.

    Returns:
        (H, W) int32, 0 where there is no shape.

    Raises:
        InputError: the file was made for an image of another size, or a shape lies outside of the image.
    """
    source = annotations.source
    if annotations.size is not None and annotations.size != size:
        raise InputError(f"{source} is for an image of {annotations.size} pixels, but its image has {size}.")
    result = np.zeros(size, np.int32)
    for position, (shape, number) in enumerate(zip(annotations.shapes, numbers, strict=True), start=1):
        parts = [(shape.mask, shape.corner)] if shape.mask is not None else map(_fill, shape.polygons)
        touched = False
        for mask, (top, left) in parts:
            rows, columns = np.nonzero(mask)
            rows, columns = rows + top, columns + left
            inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
            rows, columns = rows[inside], columns[inside]
            touched = touched or rows.size > 0
            free = result[rows, columns] == 0
            result[rows[free], columns[free]] = number
        if not touched:
            name = f" ({shown(shape.name)})" if shape.name else ""
            raise InputError(
                f"{source} has a shape, number {position}{name}, without a pixel of its image of {size} pixels; check "
                "that it belongs to this image at this size."
            )
    return result


def _fill(rings: Sequence[np.ndarray]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels between the rings of one part, and the place of the first."""
    points = np.concatenate(rings)
    left, top = np.floor(points.min(0)).astype(np.int64)
    width, height = np.ceil(points.max(0)).astype(np.int64) - (left, top) + 1
    if width * height > MAX_PIXELS:
        raise InputError(f"An outline of {height} x {width} pixels is larger than any image; correct it.")
    mask = np.zeros((height, width), bool)
    for ring in rings:  # even-odd: what a hole covers is left out
        x, y = ring.T - 0.5
        mask ^= _inside(y - top, x - left, mask.shape)
    return mask, (int(top), int(left))


def _inside(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[polygon(rows, columns, shape)] = True
    return mask


def decode_runs(counts: str | Sequence[int], height: int, width: int, order: str, source: object) -> np.ndarray:
    """The mask of a run-length code that begins with how many pixels are not in it.

    Args:
        counts: lengths, or COCO's text of them.
        height, width: of the mask in pixels.
        order: "F" for runs down the columns, as in COCO; "C" for runs along the rows, as in CVAT.
        source: the file, for the sentence.

    Returns:
        (height, width) bool.

    Raises:
        InputError: the lengths are not those of a mask of this size.
    """
    runs = np.asarray(_from_text(counts) if isinstance(counts, str) else counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or (runs < 0).any() or not 0 < height * width <= MAX_PIXELS:
        raise InputError(
            f"{source} has a mask of {height} x {width} pixels whose runs are no lengths; export it again."
        )
    total = int(runs.sum(dtype=np.int64))
    if total > height * width or (order == "F" and total != height * width):
        raise InputError(f"{source} has runs of {total} pixels for a mask of {height} x {width}; export it again.")
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return np.pad(flat, (0, height * width - total)).reshape((height, width), order=order)


def _from_text(text: str) -> list[int]:
    """The lengths in COCO's text: six bits a letter, five of them a part of a number; differences from the third on."""
    counts: list[int] = []
    number = bits = 0
    for letter in text:
        code = ord(letter) - 48
        number |= (code & 0x1F) << bits
        bits += 5
        if code & 0x20:
            continue
        if code & 0x10:
            number -= 1 << bits
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = bits = 0
    return counts
