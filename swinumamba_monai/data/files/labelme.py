# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What labelme saves for an image: polygons, rectangles, circles and masks, some of which may be one thing together."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from swinumamba_monai.data.files.limits import MAX_PIXELS
from swinumamba_monai.data.files.shapes import NO_AREA, Annotations, Shape, as_ellipse, as_ring
from swinumamba_monai.errors import InputError, shown

__all__ = ["read_labelme"]


def read_labelme(content: dict, path: Path) -> Annotations:
    """The shapes of labelme's JSON, the last drawn on top; those with one label and one ``group_id`` are one.

    Args:
        content: parsed JSON of the file.
        path: path of the file, for sentences.

    Raises:
        InputError: a shape has no area. Malformed ones raise ValueError, KeyError or TypeError.
    """
    shapes = [_shape(entry, path) for entry in reversed(content["shapes"])]
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    return Annotations(path, shapes, size, tuple(dict.fromkeys(shape.name for shape in shapes)))


def _shape(entry: dict, path: Path) -> Shape:
    kind, points, label = entry.get("shape_type") or "polygon", entry["points"], str(entry["label"])
    group = None if entry.get("group_id") is None else int(entry["group_id"])
    if kind == "mask":
        (left, top), _ = points
        return Shape(label, masks=[(_decoded(entry["mask"]), (round(top), round(left)))], group=group)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == "circle":  # its middle, and a point of it
        middle, edge = np.array(points, dtype=np.float64)
        points = as_ellipse(middle, [np.linalg.norm(edge - middle)] * 2)
    elif kind != "polygon":
        raise InputError(f"{path} {NO_AREA.format('shape', shown(kind))}")
    return Shape(label, [[as_ring(points)]] if len(points) > 2 else [], group=group)


def _decoded(text: str) -> np.ndarray:
    """A mask (h, w) bool, a PNG image in the letters of base 64."""
    try:
        with PngImageFile(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"a mask of {image.width} x {image.height} pixels")
            mask = np.asarray(image)
    except (OSError, SyntaxError) as error:  # what Pillow raises for a damaged file
        raise ValueError(f"a mask that is no PNG: {error}") from error
    if mask.ndim != 2:
        raise ValueError("a mask in colour")
    return mask > 0
