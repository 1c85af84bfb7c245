# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Regions of Aperio ImageScope, an XML file for each image, as MoNuSeg and MoNuSAC have them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from swinumamba_monai.data.files.annotations import read_xml
from swinumamba_monai.data.files.shapes import NO_AREA, Annotations, Shape, as_box, as_ellipse, as_ring
from swinumamba_monai.errors import InputError, explained, shown

_ROOT, _BEGINNING = b"<Annotations", 4096  # CVAT's has no capital; bytes of a file that are looked through for it
# Kinds of regions by their attribute Type; further ones are arrows, rulers and the like.
_FREEHAND, _RECTANGLE, _ELLIPSE = "0", "1", "2"
_FREE_TEXT = "Description"  # the attribute that every layer has by itself, with a text of the user as its value


def is_aperio(path: Path) -> bool:
    """Whether an XML file begins as ImageScope's do, in UTF-8 or 16."""
    with path.open("rb") as file:
        return _ROOT in file.read(_BEGINNING).replace(b"\0", b"")


def read_aperio(path: Path) -> Annotations:
    """Read the regions of one image: freehand ones, rectangles and ellipses.

    The class of a region is the name of its layer, or, where that has none, of the layer's attribute, as in MoNuSAC.

    Raises:
        InputError: the file is damaged, has no region, or one without an area or that is cut out of another.
    """
    problem = f"{path} has regions of Aperio ImageScope that cannot be read"
    with explained(problem, "export it again", KeyError, ValueError, OverflowError):
        layers = list(read_xml(path).iter("Annotation"))
        shapes = [_shape(region, _class_of(layer), path) for layer in layers for region in layer.iter("Region")]
    if not shapes:
        raise InputError(f"{path} has no region of Aperio ImageScope; export it again, or leave the image out.")
    return Annotations(path, shapes, names=tuple(dict.fromkeys(shape.name for shape in shapes)))


def _class_of(layer: ElementTree.Element) -> str:
    attribute = layer.find("Attributes/Attribute")
    given = {} if attribute is None else attribute.attrib
    name = given.get("Name", "")
    return layer.get("Name") or (given.get("Value", "") if name == _FREE_TEXT else name)


def _shape(region: ElementTree.Element, name: str, path: Path) -> Shape:
    kind = region.get("Type", _FREEHAND)
    if kind not in (_FREEHAND, _RECTANGLE, _ELLIPSE):
        raise InputError(f"{path} {NO_AREA.format('region', f'Type {shown(kind)}')}")
    if region.get("NegativeROA", "0") != "0":
        raise InputError(f"{path} has a negative region, which is cut out of others; this is not read, so remove it.")
    points = [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
    if points and (kind == _ELLIPSE or (kind == _RECTANGLE and len(points) == 2)):  # two corners, or all four
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        points = as_box(*low, *high) if kind == _RECTANGLE else as_ellipse((low + high) / 2, (high - low) / 2)
    return Shape(name, [[as_ring(points)]] if len(points) > 2 else [])  # a click leaves one point, without an area
