# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Polygons as MONAI Label's plugins for CVAT and QuPath take them, and as the latter sends them back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from monai.config import PathLike

from swinumamba_monai.data.files.annotations import read_xml
from swinumamba_monai.data.files.shapes import Annotations, Shape, as_ring, rasterize
from swinumamba_monai.errors import InputError, explained, shown
from swinumamba_monai.inference.polygons import CELL


def elements(collection: Mapping) -> list[dict]:
    """The ``elements`` of an annotation of MONAI Label, of what :func:`~swinumamba_monai.inference.geojson` gives.

    Each has a ``label`` and ``contours``, lists of x, y; these have no holes, so they are the outer rings alone.
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
        names: names of the classes, whose case counts where it tells them apart; None where every polygon is a cell.

    Returns:
        (H, W) uint16, the number of a pixel's class or cell, 0 outside; where polygons overlap, that of the last.

    Raises:
        InputError: the file is damaged, has a polygon of another class, without corners or outside of the image, or
            more cells than the numbers reach.
    """
    known = {CELL: None} if names is None else {name: number for number, name in names.items()}
    numbers_of = {name.lower(): number for name, number in known.items()} | known
    shapes, numbers = [], []
    problem = f"{path} is no XML file of ASAP that can be read"
    with explained(problem, "send the polygons again", LookupError, TypeError, ValueError):
        for annotation in read_xml(Path(path)).iterfind("Annotations/Annotation"):
            name = annotation.attrib["Name"]
            if (found := name if name in numbers_of else name.lower()) not in numbers_of:
                raise InputError(f"{path} has a polygon of class '{shown(name)}'; the classes are {', '.join(known)}.")
            ring = as_ring([float(corner.attrib[axis]) for axis in "XY"] for corner in annotation.iter("Coordinate"))
            shapes.append(Shape(name, [[ring]]))
            numbers.append(numbers_of[found] or len(shapes))
    if names is None and len(shapes) > np.iinfo(np.uint16).max:
        raise InputError(f"{path} has {len(shapes)} cells, more than a 16-bit image can number.")
    whole = Annotations(Path(path), shapes[::-1], layered=True)  # the first of those given has a pixel
    painted = rasterize(whole, numbers[::-1], shape)
    return painted.astype(np.uint16)
