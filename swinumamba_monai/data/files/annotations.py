# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What annotation tools export: GeoJSON of QuPath or labelme's JSON for one image, COCO and CVAT for many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from swinumamba_monai.data.files.shapes import Annotations, Shape, decode_runs
from swinumamba_monai.errors import InputError, explained, shown

__all__ = ["read_annotations", "read_outlines"]

# Of QuPath's objects the ones that are taken, if there are any of them: regions around cells are no cells.
_OBJECT_TYPES = ("cell", "detection")
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError)
_NO_AREA = "has a {} of the kind '{}', which has no pixels; export polygons or masks."


def read_outlines(path: Path) -> Annotations:
    """Read what is exported for one image: QuPath's FeatureCollection or list of features, or the file of labelme.

    Where there are cells or detections, annotations around them are passed over. The class of a shape is the name of
    its classification.

    Raises:
        InputError: the file is of another form, or has a point or a line.
    """
    problem = f"{path} has no outlines of QuPath (GeoJSON) or labelme that can be read"
    with explained(problem, "export again", *_MALFORMED):
        content = _read_json(path)
        if isinstance(content, dict) and "shapes" in content:
            return _labelme(content, path)
        single = isinstance(content, dict) and content.get("type") == "Feature"
        features = [content] if single else content["features"] if isinstance(content, dict) else content
        kinds = {_type_of(feature) for feature in features}
        wanted = next((kind for kind in _OBJECT_TYPES if kind in kinds), None)
        shapes = [_feature(f, path) for f in features if wanted is None or _type_of(f) == wanted]
    return Annotations(path, shapes, names=tuple(dict.fromkeys(shape.name for shape in shapes)))


def _type_of(feature: dict) -> str:
    return (feature.get("properties") or {}).get("objectType", "annotation")


def _feature(feature: dict, path: Path) -> Shape:
    geometry = feature["geometry"]
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{path} {_NO_AREA.format('shape', shown(geometry['type']))}")
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    if not all(polygons):
        raise ValueError("a shape without outlines")
    classification = (feature.get("properties") or {}).get("classification") or {}
    name = classification if isinstance(classification, str) else classification.get("name", "")
    return Shape(str(name), [[_ring(ring) for ring in polygon] for polygon in polygons])


def _labelme(content: dict, path: Path) -> Annotations:
    """The polygons and rectangles of labelme, the last drawn on top."""
    shapes = []
    for shape in reversed(content["shapes"]):
        kind, points = shape.get("shape_type") or "polygon", shape["points"]
        if kind == "rectangle":
            (left, top), (right, bottom) = points
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        elif kind != "polygon":
            raise InputError(f"{path} {_NO_AREA.format('shape', shown(kind))}")
        shapes.append(Shape(str(shape["label"]), [[_ring(points)]] if len(points) > 2 else []))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    return Annotations(path, shapes, size, tuple(dict.fromkeys(shape.name for shape in shapes)))


def _ring(points: Iterable) -> np.ndarray:
    ring = np.array([point[:2] for point in points], dtype=np.float64)
    if ring.ndim != 2 or len(ring) < 3 or not np.isfinite(ring).all() or np.abs(ring).max() > 1 << 30:
        raise ValueError("an outline needs three points or more, all of them numbers")
    return ring


def read_annotations(path: Path) -> dict[str, Annotations] | None:
    """Read a file for many images: COCO (``.json``) or "CVAT for images 1.1" (``.xml``).

    Args:
        path: the file.

    Returns:
        What it says of every image, by the name that it gives to it; None if the file is something else.

    Raises:
        InputError: the file cannot be read, or has shapes without an area.
    """
    with explained(f"{path} has annotations that cannot be read", "export it again", *_MALFORMED):
        return _coco(path) if path.suffix.lower() == ".json" else _cvat(path)


def _read_json(path: Path) -> object:
    with explained(f"{path} is no JSON that can be read", "export it again", OSError, ValueError, RecursionError):
        return json.loads(path.read_bytes())  # UTF-8 or 16, with a mark or without


def _coco(path: Path) -> dict[str, Annotations] | None:
    content = _read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        return None
    names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    shapes: dict[int, list[Shape]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in shapes:
            raise InputError(f"{path} has an annotation of image {shown(annotation['image_id'])}, which it lacks.")
        problem = f"{path} has an annotation, id {shown(annotation.get('id'))}, that cannot be read"
        with explained(problem, "correct or remove it", *_MALFORMED):
            shapes[annotation["image_id"]].append(_coco_shape(annotation, names, path))
    return {
        str(image["file_name"]): Annotations(
            path, shapes[image["id"]], (int(image["height"]), int(image["width"])), tuple(names.values())
        )
        for image in content["images"]
    }


def _coco_shape(annotation: dict, names: dict[int, str], path: Path) -> Shape:
    number, segmentation = int(annotation["category_id"]), annotation.get("segmentation")
    if not segmentation:
        shape = f"shape, id {shown(annotation.get('id'))},"
        raise InputError(f"{path} {_NO_AREA.format(shape, 'box')}")
    if isinstance(segmentation, dict):
        height, width = (int(side) for side in segmentation["size"])
        mask = decode_runs(segmentation["counts"], height, width, "F", path)
        return Shape(names[number], mask=mask, number=number)
    # One or two points, as tools leave them behind, have no area.
    polygons = [[_ring(zip(flat[::2], flat[1::2], strict=True))] for flat in segmentation if len(flat) > 4]
    return Shape(names[number], polygons, number=number)


def _cvat(path: Path) -> dict[str, Annotations] | None:
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InputError(
            f"{path} declares entities, which may unfold without end and which CVAT does not; remove them."
        )
    with explained(f"{path} is no XML that can be read", "export it again", ElementTree.ParseError):
        root = ElementTree.fromstring(content)
    if root.tag != "annotations":
        return None
    if root.find("track") is not None:
        raise InputError(f"{path} has tracks of a video; export it as 'CVAT for images 1.1'.")
    names = tuple(dict.fromkeys(name.text or "" for label in root.iter("label") for name in label.findall("name")))
    result = {}
    for image in root.iter("image"):
        # What lies on top comes first: later shapes and those of a higher z_order.
        shapes = sorted(enumerate(image), key=lambda item: (int(item[1].get("z_order", 0)), item[0]), reverse=True)
        found = [shape for _, element in shapes if (shape := _cvat_shape(element, path)) is not None]
        size = int(image.attrib["height"]), int(image.attrib["width"])
        result[image.attrib["name"]] = Annotations(path, found, size, names)
    return result


def _cvat_shape(element: ElementTree.Element, path: Path) -> Shape | None:
    """A shape of an image; None for a tag, which is of the whole image."""
    if element.tag == "tag":
        return None
    name, given = element.attrib.get("label", ""), element.attrib
    if element.tag == "polygon":
        points = [[float(value) for value in point.split(",")] for point in given["points"].split(";")]
        return Shape(name, [[_ring(points)]])
    if element.tag == "box" and not float(given.get("rotation", 0)):
        left, top, right, bottom = (float(given[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(name, [[_ring([(left, top), (right, top), (right, bottom), (left, bottom)])]])
    if element.tag == "mask":
        runs = [int(count) for count in given["rle"].split(",")]
        mask = decode_runs(runs, int(given["height"]), int(given["width"]), "C", path)
        return Shape(name, mask=mask, corner=(int(given["top"]), int(given["left"])))
    raise InputError(f"{path} {_NO_AREA.format('shape', shown(element.tag))}")
