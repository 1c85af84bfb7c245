# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Polygons as MONAI Label's plugins for CVAT and QuPath take them, and as the latter sends them back."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree

import numpy as np
from monai.config import PathLike
from skimage.draw import polygon

from swinumamba_monai.errors import InputError, quoted
from swinumamba_monai.inference.polygons import CELL

__all__ = ["elements", "read_asap"]


def elements(collection: Mapping) -> list[dict]:
    """The ``elements`` of an annotation of MONAI Label.

    Args:
        collection: result of :func:`~swinumamba_monai.inference.geojson`.

    Returns:
        for each feature its ``label`` and ``contours``, lists of x, y. These have no holes, so they are the outer
        rings alone.
    """
    found = []
    for feature in collection["features"]:
        geometry = feature["geometry"]
        polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        label = feature["properties"]["classification"]["name"]
        found.append({"label": label, "contours": [rings[0][:-1] for rings in polygons]})
    return found


def read_asap(path: PathLike, shape: tuple[int, int], names: Mapping[int, str] | None = None) -> np.ndarray:
    """The pixels inside the polygons of an XML file of ASAP, which QuPath's *Submit Label* sends.

    Args:
        path: the file.
        shape: rows and columns of the image.
        names: names of the classes, in upper or lower case; None where every polygon is a cell.

    Returns:
        (H, W) uint16, the number of a pixel's class or cell, 0 outside; where polygons overlap, that of the last.

    Raises:
        InputError: the file is damaged, has a polygon of another class or without corners, or more cells than the
            numbers reach.
    """
    try:
        polygons = []
        for annotation in ElementTree.parse(path).getroot().iterfind("Annotations/Annotation"):
            corners = [[float(corner.attrib[axis]) for axis in "YX"] for corner in annotation.iter("Coordinate")]
            polygons.append((annotation.attrib["Name"], np.array(corners).reshape(-1, 2)))
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no XML file of ASAP that can be read ({quoted(error)}).") from error
    numbers_of = {CELL: None} if names is None else {name.lower(): number for number, name in names.items()}
    numbers = np.zeros(shape, np.uint16)
    if names is None and len(polygons) > np.iinfo(numbers.dtype).max:
        raise InputError(f"{path} has {len(polygons)} cells, more than a 16-bit image can number.")
    for count, (name, corners) in enumerate(polygons, start=1):
        if name.lower() not in numbers_of:
            raise InputError(f"{path} has a polygon of class '{name}'; the classes are {', '.join(numbers_of)}.")
        if not corners.size or not np.isfinite(corners).all():
            raise InputError(f"{path} has a polygon of class '{name}' without corners, or with one that is no place.")
        rows, columns = corners.T - 0.5  # to where the middle of the first pixel is 0, and not 0.5
        numbers[polygon(rows, columns, shape)] = numbers_of[name.lower()] or count
    return numbers
