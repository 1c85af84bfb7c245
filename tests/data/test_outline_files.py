# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Outlines of QuPath, ImageJ and labelme, a file for every image: read as they are drawn, or refused."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import fill, problems, save
from PIL import Image

from swinumamba_monai.data.files.annotations import read_outlines
from swinumamba_monai.data.files.imagej_roi import read_rois
from swinumamba_monai.data.files.shapes import rasterize
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.tasks.microscopy import prepare_microscopy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}', "kind 'Point'"),
        (
            '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}}]}',
            "no outlines of QuPath",
        ),
        ('{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [5, NaN]]]}}]}', "numbers"),
        (
            '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[99, 9], [90, 9], [95, 99]]]}}]}',
            "outside of",
        ),
        ("3", "no outlines of QuPath"),
    ],
)
def test_bad_geojson(content, words, tmp_path):
    source = fill(tmp_path / "source")
    save(source / "images" / "x.png")
    (source / "labels" / "x.geojson").write_text(content)
    sentence = problems(source)
    assert "x.geojson" in sentence and words in sentence and len(sentence.splitlines()) == 2


def roi_of(corner: float) -> bytes:
    """A polygon between pixels with three corners, the last of which has ``corner`` for its y."""
    header = bytearray(b"Iout\0\xe3" + bytes(58))
    struct.pack_into(">H", header, 16, 3)
    struct.pack_into(">h", header, 50, 128)
    return bytes(header) + bytes(12) + struct.pack(">6f", 1, 5, 5, 1, 1, corner)


def composite_of(corner: float) -> bytes:
    """A region of one piece, with ``corner`` for the y of its last corner."""
    path = (0, 1, 1, 1, 5, 1, 1, 5, corner, 4)
    header = bytearray(b"Iout\0\xe3\x01" + bytes(57))
    struct.pack_into(">i", header, 36, len(path))
    return bytes(header) + struct.pack(f">{len(path)}f", *path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK no zip", "no ROI file"),
        (b"Iout" + bytes(100), "0 points"),
        (b"Iout\0\xe3\x03" + bytes(100), "is a line"),
        (b"Iout\0\xe3\x01", "no ROI file"),
        (b"text" * 30, "no ROI of ImageJ"),
        (roi_of(float("nan")), "all of them numbers"),
        (roi_of(float("-inf")), "all of them numbers"),
        (composite_of(float("inf")), "all of them numbers"),
    ],
)
def test_bad_rois(content, words, tmp_path):
    for name in ("x.zip", "x.roi") if content[:4] != b"Iout" else ("x.roi",):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            read_rois(tmp_path / name)
        assert name in str(error.value)
    assert words in str(error.value) or words == "no ROI file"


def labelme(source: Path, *shapes: dict) -> None:
    for number in range(3):
        save(source / "images" / f"{number}.png")
        (source / "labels").mkdir(exist_ok=True)
        content = {"shapes": shapes, "imagePath": f"{number}.png", "imageHeight": 10, "imageWidth": 12}
        (source / "labels" / f"{number}.json").write_text(json.dumps(content))


def square(left: int, group: int | None, label: str = "cell") -> dict:
    points = [[left, 2], [left + 2, 2], [left + 2, 6], [left, 6]]
    return {"label": label, "points": points, "group_id": group, "shape_type": "polygon", "flags": {}}


def test_shapes_of_labelme(tmp_path):
    """A circle whose middle and edge are given; a mask as letters; two parts of one cell; one number in two classes."""
    mask = np.zeros((3, 4), bool)
    mask[1:, 1:] = True
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "PNG")
    text = base64.b64encode(png.getvalue()).decode()
    labelme(
        tmp_path / "source",
        {"label": "cell", "points": [[9, 7], [9, 9]], "shape_type": "circle"},
        {"label": "cell", "points": [[6, 1], [9, 3]], "shape_type": "mask", "mask": text, "group_id": None},
        square(0, 1),
        square(4, 1),
        square(10, 1, "other"),
    )
    report = prepare_microscopy(tmp_path / "source", tmp_path / "out")
    assert report.instances == 3 * 4
    made = np.asarray(Image.open(tmp_path / "out" / "labels" / "0.png"))
    rows, columns = np.mgrid[:10, :12] + 0.5
    circle = np.hypot(rows - 7, columns - 9) < 2
    circle[:6, 10:] = False  # where the last square lies over it
    np.testing.assert_array_equal(made == made[7, 9], circle)
    np.testing.assert_array_equal(np.argwhere(made == made[2, 7]), np.argwhere(mask) + np.array([1, 6]))
    assert made[3, 1] == made[3, 5] != made[3, 10] and (made == made[3, 1]).sum() == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": "no letters of base 64"}, "cannot|Error"),
        ({"mask": base64.b64encode(b"no PNG").decode()}, "no PNG"),
        ({"mask": None}, "TypeError"),
        ({"shape_type": "linestrip"}, "'linestrip'"),
        ({"shape_type": "circle", "points": [[1, 1], [1, None]]}, "Error"),
    ],
)
def test_bad_shapes_of_labelme(change, words, tmp_path):
    labelme(tmp_path / "source", {"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask", **change})
    with pytest.raises(InputError, match=words):
        read_outlines(tmp_path / "source" / "labels" / "0.json")


def test_detections_of_an_older_qupath(tmp_path):
    """It says ``object_type``; the region around the detections is no cell."""
    ring = [[0, 0], [12, 0], [12, 10], [0, 10]]
    features = [{"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"object_type": "annotation"}}]
    for left in (1, 7):
        ring = square(left, None)["points"]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"geometry": geometry, "properties": {"object_type": "detection"}})
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    assert len(read_outlines(tmp_path / "a.geojson").shapes) == 2


@pytest.mark.parametrize("place", ["childObjects", "children"])
def test_what_qupath_puts_inside_of_others(place, tmp_path):
    """A hierarchy: a region, in it a cell with a class of two names, and in that another."""
    shapes = [{"geometry": {"type": "Polygon", "coordinates": [square(left, None)["points"]]}} for left in (1, 5, 9)]
    inner = {**shapes[2], "properties": {"objectType": "cell", "classification": {"name": "Stroma"}}}
    outer = {"objectType": "cell", "classification": {"names": ["Tumor", "Positive"]}, place: [inner]}
    region = {**shapes[0], "properties": {"objectType": "annotation", place: [{**shapes[1], "properties": outer}]}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [region]}))
    assert [shape.name for shape in read_outlines(tmp_path / "a.geojson").shapes] == ["Tumor: Positive", "Stroma"]


def test_detections_of_the_oldest_qupath(tmp_path):
    """It says what an object is where its id should be."""
    geometry = {"type": "Polygon", "coordinates": [square(1, None)["points"]]}
    features = [{"id": f"Path{kind}Object", "geometry": geometry} for kind in ("Annotation", "Detection", "Detection")]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    assert len(read_outlines(tmp_path / "a.geojson").shapes) == 2


def test_geojson_there_and_back(tmp_path):
    random = np.random.default_rng(0)
    for _ in range(20):
        numbers = random.choice([0, 0, 1, 2, 3], (9, 13))
        (tmp_path / "a.geojson").write_text(json.dumps(geojson(numbers)))
        annotations = read_outlines(tmp_path / "a.geojson")
        present = np.unique(numbers[numbers > 0]).tolist()
        np.testing.assert_array_equal(rasterize(annotations, present, numbers.shape), numbers)


def test_geojson_of_other_programs(tmp_path):
    """Properties may be null, as the standard has it."""
    ring = [[1, 1], [5, 1], [5, 5], [1, 1]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": None}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert [shape.name for shape in read_outlines(tmp_path / "a.geojson").shapes] == [""]


def test_labelme(tmp_path):
    shapes = [
        {"label": "under", "points": [[0, 0], [4, 0], [4, 4], [0, 4]], "shape_type": "polygon"},
        {"label": "over", "points": [[2, 2], [6, 6]], "shape_type": "rectangle"},
        {"label": "left behind", "points": [[2, 2], [6, 6]], "shape_type": "polygon"},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"shapes": shapes, "imageHeight": 6, "imageWidth": 6}))
    annotations = read_outlines(path)
    numbers = [{"under": 1, "over": 2, "left behind": 3}[shape.name] for shape in annotations.shapes]
    expected = np.zeros((6, 6), int)
    expected[:4, :4], expected[2:, 2:] = 1, 2  # the later shape lies on top
    np.testing.assert_array_equal(rasterize(annotations, numbers, (6, 6)), expected)
    with pytest.raises(InputError, match="is for an image of"):
        rasterize(annotations, numbers, (6, 7))
    path.write_text(json.dumps({"shapes": [{"label": "x", "points": [[1, 1]], "shape_type": "point"}]}))
    with pytest.raises(InputError, match="kind 'point', which has no pixels"):
        read_outlines(path)
    path.write_text(json.dumps({"shapes": [{"label": "x"}]}))
    with pytest.raises(InputError, match="no outlines of QuPath"):
        read_outlines(path)
