# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What annotation tools export: GeoJSON of QuPath or labelme's JSON for one image, COCO and CVAT for many."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from swinumamba_monai.data.files.limits import MAX_PIXELS
from swinumamba_monai.data.files.shapes import NO_AREA, Annotations, Shape, as_box, as_ellipse, as_ring, decode_runs
from swinumamba_monai.errors import InputError, explained, shown

# Kinds of QuPath's objects that are taken, if there are any of them: regions around cells are no cells.
_OBJECT_TYPES = ("cell", "detection")
# What QuPath 0.2 calls them, as the id of a feature.
_OLD_TYPES = {"PathCellObject": "cell", "PathDetectionObject": "detection"}
_MALFORMED = (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError)
_MAX_FRAMES = 1_000_000


def read_outlines(path: Path) -> Annotations:
    """Read what is exported for one image: QuPath's FeatureCollection or list of features, or the file of labelme.

    Where there are cells or detections, annotations around them are passed over. The class of a shape is the name of
    its classification.

    Raises:
        InputError: the file is of another form, or has a point or a line.
    """
    problem = f"{path} has no outlines of QuPath (GeoJSON) or labelme that can be read"
    with explained(problem, "export again, as one of these or as COCO", *_MALFORMED):
        content = _read_json(path)
        if isinstance(content, dict) and "shapes" in content:
            return _labelme(content, path)
        single = isinstance(content, dict) and content.get("type") == "Feature"
        features = [content] if single else content["features"] if isinstance(content, dict) else content
        features = _with_children(features)
        kinds = {_type_of(feature) for feature in features}
        wanted = next((kind for kind in _OBJECT_TYPES if kind in kinds), None)
        shapes = [_feature(f, path) for f in features if wanted is None or _type_of(f) == wanted]
    return Annotations(path, shapes, names=tuple(dict.fromkeys(shape.name for shape in shapes)))


def _with_children(features: Iterable[dict]) -> list[dict]:
    """The features, and behind each those that QuPath puts inside it where it exports a hierarchy."""
    found, waiting = [], list(features)[::-1]
    while waiting:
        found.append(waiting.pop())
        properties = found[-1].get("properties") or {}
        waiting += (properties.get("childObjects") or properties.get("children") or [])[::-1]
    return found


def _type_of(feature: dict) -> str:
    properties = feature.get("properties") or {}
    old = _OLD_TYPES.get(str(feature.get("id")), "annotation")
    return properties.get("objectType", properties.get("object_type", old))  # before QuPath 0.4 the second


def _feature(feature: dict, path: Path) -> Shape:
    geometry = feature["geometry"]
    if geometry["type"] not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{path} {NO_AREA.format('shape', shown(geometry['type']))}")
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    if not all(polygons):
        raise ValueError("a shape without outlines")
    classification = (feature.get("properties") or {}).get("classification") or {}
    if isinstance(classification, dict):  # a class within another has several names
        classification = classification.get("name") or ": ".join(classification.get("names") or ())
    return Shape(str(classification), [[as_ring(ring) for ring in polygon] for polygon in polygons])


def _labelme(content: dict, path: Path) -> Annotations:
    """The shapes of labelme's JSON, the last drawn on top; those with one label and one ``group_id`` are one."""
    shapes = [_labelme_shape(entry, path) for entry in reversed(content["shapes"])]
    size = _size([int(content.get(side) or 0) for side in ("imageHeight", "imageWidth")])
    return Annotations(path, shapes, size, tuple(dict.fromkeys(shape.name for shape in shapes)), layered=True)


def _labelme_shape(entry: dict, path: Path) -> Shape:
    kind, points, label = entry.get("shape_type") or "polygon", entry["points"], str(entry["label"])
    group = None if entry.get("group_id") is None else int(entry["group_id"])
    if kind == "mask":
        (left, top), _ = points
        return Shape(label, masks=[(_decoded(entry["mask"]), (round(top), round(left)))], group=group)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = as_box(left, top, right, bottom)
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


def read_annotations(path: Path) -> dict[str, Annotations] | None:
    """Read a file for many images: COCO (``.json``), "CVAT for images 1.1" or "CVAT for video 1.1" (``.xml``).

    Args:
        path: the file.

    Returns:
        What it says of every image, by the name that it gives to it; None if the file is something else.

    Raises:
        InputError: the file cannot be read, or has shapes without an area.
    """
    with explained(f"{path} has annotations that cannot be read", "export it again", *_MALFORMED):
        return _coco(path) if path.suffix.lower() == ".json" else _cvat(path)


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        InputError: the file cannot be read, is no XML, or declares entities, which may unfold without end.
    """
    refusal = f"{path} declares entities, which may unfold without end and which no tool needs; remove them."

    class Builder(ElementTree.TreeBuilder):
        """Builds the tree of a file that declares nothing, in whatever encoding it would declare it."""

        def doctype(self, *_: object) -> None:
            raise InputError(refusal)

    kinds = (OSError, ValueError, ElementTree.ParseError)
    with explained(f"{path} is no XML that can be read", "export it again", *kinds):
        return ElementTree.parse(path, ElementTree.XMLParser(target=Builder())).getroot()


def _read_json(path: Path) -> object:
    with explained(f"{path} is no JSON that can be read", "export it again", OSError, ValueError, RecursionError):
        return json.loads(path.read_bytes())  # UTF-8 or 16, with a mark or without


def _coco(path: Path) -> dict[str, Annotations] | None:
    content = _read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        return None
    names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    # An id may be a number in one place and a text in another.
    shapes: dict[str, list[Shape]] = {str(image["id"]): [] for image in content["images"]}
    if len(shapes) < len(content["images"]):
        raise InputError(f"{path} gives one id to several images; export it again.")
    annotations = content["annotations"]
    for annotation in annotations.values() if isinstance(annotations, dict) else annotations:  # LIVECell has them by id
        of_image = shapes.get(str(annotation["image_id"]))
        if of_image is None:
            raise InputError(f"{path} has an annotation of image {shown(annotation['image_id'])}, which it lacks.")
        problem = f"{path} has an annotation, id {shown(annotation.get('id'))}, that cannot be read"
        with explained(problem, "correct or remove it", *_MALFORMED):
            of_image.append(_coco_shape(annotation, names, path))
    found = []
    for image in content["images"]:
        name, size = str(image["file_name"]), [int(image.get(side) or 0) for side in ("height", "width")]
        found.append(Annotations(path, shapes[str(image["id"])], _size(size), tuple(names.values()), image=name))
    return _by_image(found)


def _by_image(found: Sequence[Annotations]) -> dict[str, Annotations]:
    """Annotations by the names of their images, none of which comes twice."""
    by_name = {one.image: one for one in found}
    if twice := [one for one in found if by_name[one.image] is not one]:
        raise InputError(
            f"{twice[0].source} names {shown(twice[0].image)} twice; export it again with names of its own."
        )
    return by_name


def _size(sides: Sequence[int]) -> tuple[int, int] | None:
    """Height and width, if the file has both."""
    return tuple(sides) if all(sides) else None


def _coco_shape(annotation: dict, names: dict[int, str], path: Path) -> Shape:
    number, segmentation = int(annotation["category_id"]), annotation.get("segmentation")
    if not segmentation:
        shape = f"shape, id {shown(annotation.get('id'))},"
        raise InputError(f"{path} {NO_AREA.format(shape, 'box')}")
    if isinstance(segmentation, dict):
        height, width = (int(side) for side in segmentation["size"])
        mask = decode_runs(segmentation["counts"], height, width, "F", path)
        return Shape(names[number], masks=[(mask, (0, 0))], number=number)
    if not all(isinstance(flat, list) for flat in segmentation):
        raise ValueError("segmentation must be a list of outlines, [[x1, y1, x2, y2, ...]], or run lengths with a size")
    # One or two points, as tools leave them behind, have no area.
    polygons = [[as_ring(zip(flat[::2], flat[1::2], strict=True))] for flat in segmentation if len(flat) > 4]
    return Shape(names[number], polygons, number=number)


def _cvat(path: Path) -> dict[str, Annotations] | None:
    root = read_xml(path)
    if root.tag != "annotations":
        return None
    names = tuple(dict.fromkeys(name.text or "" for label in root.iter("label") for name in label.findall("name")))
    if root.find("track") is not None:
        return _cvat_tracks(root, names, path)
    found = []
    for image in root.iter("image"):
        name, size = image.attrib["name"], (int(image.attrib["height"]), int(image.attrib["width"]))
        found.append(Annotations(path, _cvat_shapes(image, path), size, names, image=name, layered=True))
    return _by_image(found)


def _cvat_tracks(root: ElementTree.Element, names: Sequence[str], path: Path) -> dict[str, Annotations]:
    """What tracks have in each frame; the frames are called as CVAT exports them, ``frame_000012``."""
    count = int(root.findtext("meta/task/size") or root.findtext("meta/job/size") or 0)
    if count > _MAX_FRAMES:
        raise InputError(f"{path} claims {count} frames, but {_MAX_FRAMES} is the limit; export a part of the video.")
    size = _size([int(root.findtext(f"meta//original_size/{side}") or 0) for side in ("height", "width")])
    frames: dict[int, list[ElementTree.Element]] = {number: [] for number in range(count)}
    for track in root.iter("track"):
        for element in track:
            if element.get("outside") != "1":
                element.set("label", track.get("label", ""))
                frames.setdefault(int(element.attrib["frame"]), []).append(element)
    named = {f"frame_{number:06d}": elements for number, elements in sorted(frames.items())}
    return {
        name: Annotations(path, _cvat_shapes(elements, path), size, names, image=name, layered=True)
        for name, elements in named.items()
    }


def _cvat_shapes(elements: Iterable[ElementTree.Element], path: Path) -> list[Shape]:
    """What lies on top comes first: later shapes and those of a higher z_order."""
    shapes = sorted(enumerate(elements), key=lambda item: (int(item[1].get("z_order", 0)), item[0]), reverse=True)
    return [shape for _, element in shapes if (shape := _cvat_shape(element, path)) is not None]


def _cvat_shape(element: ElementTree.Element, path: Path) -> Shape | None:
    """A shape of an image; None for a tag, which is of the whole image."""
    if element.tag == "tag":
        return None
    name, given, group = element.attrib.get("label", ""), element.attrib, int(element.get("group_id") or 0) or None
    if element.tag == "polygon":
        points = [[float(value) for value in point.split(",")] for point in given["points"].split(";")]
        return Shape(name, [[as_ring(points)]], group=group)
    if element.tag == "box":
        left, top, right, bottom = (float(given[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        middle = [(left + right) / 2, (top + bottom) / 2]
        return Shape(name, [[_turned(as_box(left, top, right, bottom), middle, given)]], group=group)
    if element.tag == "ellipse":
        middle, radii = ([float(given[name]) for name in names] for names in (("cx", "cy"), ("rx", "ry")))
        return Shape(name, [[_turned(as_ellipse(middle, radii), middle, given)]], group=group)
    if element.tag == "mask":
        runs = [int(count) for count in given["rle"].split(",")]
        mask = decode_runs(runs, int(given["height"]), int(given["width"]), "C", path)
        return Shape(name, masks=[(mask, (int(given["top"]), int(given["left"])))], group=group)
    raise InputError(f"{path} {NO_AREA.format('shape', shown(element.tag))}")


def _turned(ring: np.ndarray, middle: Sequence[float], given: Mapping[str, str]) -> np.ndarray:
    """An outline turned around its middle as its shape says, in degrees with the clock."""
    angle = np.deg2rad(float(given.get("rotation") or 0))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return as_ring((ring - middle) @ turn.T + middle)
