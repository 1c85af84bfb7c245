# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Outlines and run lengths of annotation tools as pixels: a pixel belongs to an outline that its middle lies in."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swinumamba_monai.data.files.limits import MAX_PIXELS
from swinumamba_monai.errors import InputError, shown

logger = logging.getLogger(__name__)

# Number of cuts of one part's outline with the rows of pixels; a jagged one around a large image has thousands.
MAX_CUTS = 1 << 26

_CORNERS = 360  # number of corners of an ellipse

NO_AREA = "has a {} of the kind '{}', which has no pixels; export polygons or masks."


@dataclass(frozen=True)
class Shape:
    """One thing that was marked in an image.

    Attributes:
        name: name of its class; empty where the tool has none.
        polygons: rings (N, 2) float64 of each of its parts, x and y in pixels from the upper left corner of the image;
            what lies in two rings of a part is a hole.
        masks: further parts, (h, w) bool, each with the row and column of its upper left pixel. Without a part a shape
            has no pixels.
        number: number of its class in the file, or None.
        group: number of the thing that it is a part of, beside others of its name, or None.
    """

    name: str = ""
    polygons: Sequence[Sequence[np.ndarray]] = ()
    masks: Sequence[tuple[np.ndarray, tuple[int, int]]] = ()
    number: int | None = None
    group: int | None = None


@dataclass(frozen=True)
class Annotations:
    """What a file says of one image.

    Attributes:
        source: the file.
        shapes: what was marked.
        size: height and width of the image in pixels, as the file has them, or None.
        names: names of all classes of the file, in its order.
        relative: whether the numbers of the polygons are parts of width and height and no pixels.
        image: name of the image in a file of many, or "".
        layered: whether the shapes come as they lie on each other, the topmost first; where a tool does not say how
            they lie the smaller ones are on top, because a region that was marked within another would be lost.
    """

    source: Path
    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None
    names: Sequence[str] = ()
    relative: bool = False
    image: str = ""
    layered: bool = False

    def __str__(self) -> str:
        """The file, and the image in it, for a sentence."""
        return f"{self.source} (of {shown(self.image)})" if self.image else str(self.source)


def as_ring(points: Iterable) -> np.ndarray:
    """The corners of an outline (N, 2) float64; a ValueError where there are less than three, or other than numbers."""
    ring = np.array([point[:2] for point in points], dtype=np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all() or np.abs(ring).max() > 1 << 30:
        raise ValueError("an outline needs three points or more, all of them numbers")
    return ring


def as_box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The outline of a rectangle, as :func:`as_ring`, of its sides in pixels."""
    return as_ring([(left, top), (right, top), (right, bottom), (left, bottom)])


def as_ellipse(middle: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """The outline of an ellipse, as :func:`as_ring`, of its middle (x, y) and its radii along x and y in pixels."""
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    return as_ring(np.asarray(middle) + np.asarray(radii) * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def numbers_of(shapes: Iterable[Shape]) -> list[int]:
    """A number for every shape, from 1 on, and the same for those with one name and one group."""
    things: dict[object, int] = {}
    keys = ((shape.name, shape.group) if shape.group is not None else position for position, shape in enumerate(shapes))
    return [things.setdefault(key, len(things) + 1) for key in keys]


def rasterize(
    annotations: Annotations, numbers: Sequence[int], size: tuple[int, int], odd: list[str] | None = None
) -> np.ndarray:
    """Put a number into the pixels of every shape; a pixel of two shapes is of that on top.

    Args:
        annotations: the shapes.
        numbers: one for each of them.
        size: height and width of the image in pixels.
        odd: gets a sentence on shapes without a pixel: those smaller than one, and those that lie under others; None
            puts it into the log.

    Returns:
        (H, W) int32, 0 where there is no shape.

    Raises:
        InputError: the file was made for an image of another size, or a shape lies outside of the image.
    """
    if annotations.size is not None and annotations.size != size:
        raise InputError(f"{annotations} is for an image of {annotations.size} pixels, but its image has {size}.")
    scale = np.array(size[::-1] if annotations.relative else (1, 1))
    result = np.zeros(size, np.int32)
    empty = hidden = 0
    said: list[str] = []
    shapes = list(enumerate(zip(annotations.shapes, numbers, strict=True), start=1))
    for position, (shape, number) in shapes if annotations.layered else sorted(shapes, key=_area):
        parts = [*shape.masks, *(_fill([ring * scale for ring in rings], size) for rings in shape.polygons)]
        if not parts:
            empty += 1
            continue
        windows = [_within(mask, corner, size) for mask, corner in parts]
        if not any(mask.size for mask, _ in windows):
            name = f" ({shown(shape.name)})" if shape.name else ""
            raise InputError(
                f"{annotations} has a shape, number {position}{name}, outside of its image of {size} pixels; check "
                "that it belongs to this image at this size."
            )
        for mask, window in windows:
            result[window][mask & (result[window] == 0)] = number
        if not any(mask.any() for mask, _ in windows):
            empty += 1
        elif not any((result[window][mask] == number).any() for mask, window in windows):
            hidden += 1
    if empty:
        said.append(f"{annotations} has {empty} shapes that are smaller than a pixel; they are not used.")
    if hidden:
        said.append(f"{annotations} has {hidden} shapes that lie under others and have no pixel left.")
    if odd is not None:
        odd += said
    elif said:
        logger.warning("%s", " ".join(said))
    return result


def _area(item: tuple[int, tuple[Shape, int]]) -> float:
    """The area of a shape in the unit of its file, holes included, by which shapes are sorted."""
    _, (shape, _) = item
    area = float(sum(np.count_nonzero(mask) for mask, _ in shape.masks))
    for rings in shape.polygons:
        (x, y), (next_x, next_y) = rings[0].T, np.roll(rings[0], -1, axis=0).T
        area += abs(float(np.sum(x * next_y - next_x * y))) / 2
    return area


def _within(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The part of a mask that lies in an image, and where it does."""
    window, own = [], []
    for start, length, end in zip(corner, mask.shape, size):
        first = min(max(start, 0), end)
        last = max(min(start + length, end), first)
        window.append(slice(first, last))
        own.append(slice(first - start, last - start) if last > first else slice(0, 0))
    return mask[tuple(own)], tuple(window)


def _fill(rings: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels of an image whose middles lie in an odd number of rings, cut out, and the place of the first.

    Every edge is cut with the middle lines of the rows; from each cut on, to the right, inside and outside change. That
    takes as long as the outline is high, unlike scikit-image's test of every pixel against every corner.
    """
    starts, ends = np.concatenate(rings), np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    left, top = np.clip(np.floor(starts.min(0)), 0, size[::-1]).astype(np.int64)
    right, bottom = np.clip(np.floor(starts.max(0)) + 1, 0, size[::-1]).astype(np.int64)
    (x0, y0), (x1, y1) = starts.T, ends.T
    first, last = (
        np.clip(np.ceil(y - 0.5), top, bottom).astype(np.int64) for y in (np.minimum(y0, y1), np.maximum(y0, y1))
    )
    cuts = last - first
    if cuts.sum() > MAX_CUTS:
        raise InputError(
            f"An outline of {len(starts)} points is cut {cuts.sum()} times by rows of pixels; simplify it."
        )
    edge = np.repeat(np.arange(len(starts)), cuts)
    row = np.arange(edge.size) - np.repeat(np.cumsum(cuts) - cuts, cuts) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    column = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64)
    changes = np.zeros((bottom - top, right - left + 1), np.uint8)
    np.add.at(changes, (row - top, column - left), 1)  # 256 is 0 again, and as even
    inside = np.cumsum(changes, axis=1, dtype=np.uint8)[:, :-1] % 2 == 1
    return inside, (int(top), int(left))


def decode_runs(counts: str | Sequence[int], height: int, width: int, order: str, source: object) -> np.ndarray:
    """The mask of a run-length code that begins with how many pixels are not in it.

    Args:
        counts: lengths, or COCO's text of them.
        height, width: size of the mask in pixels.
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
