# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with 2-D datasets and their labels gets one sentence each; names are compared as they look."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matplotlib.path import Path as Outline
from PIL import Image

from swinumamba_monai.cli import main
from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.files.annotations import read_annotations, read_outlines
from swinumamba_monai.data.files.imagej_roi import read_rois
from swinumamba_monai.data.files.images import read_instances
from swinumamba_monai.data.files.shapes import Annotations, Shape, decode_runs, rasterize
from swinumamba_monai.data.files.yolo import read_yolo
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

SIZE = (10, 12)
TWO = {"background": 0, "tool": 1}


def cells(number: int = 0) -> np.ndarray:
    numbers = np.zeros(SIZE, np.uint8)
    numbers[1:4, 1 + number % 4 : 5], numbers[6:9, 2:9] = 1, 2
    return numbers


def save(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    pixels = np.full((*SIZE, 3), 9, np.uint8) if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def fill(source: Path, count: int = 5, labels: str = "labels") -> Path:
    """Images 0.png, 1.png, ... with maps of two cells."""
    for number in range(count):
        save(source / "images" / f"{number}.png")
        save(source / labels / f"{number}.png", cells(number))
    return source


def names(prepared: Path, part: str) -> list[str]:
    return sorted(Path(item["image"]).name for item in load_datalist(prepared, part, check=False))


def problems(source: Path, task: str = "microscopy", label_map: dict | None = None, **options) -> str:
    """The sentences with which a dataset is refused."""
    prepare = {"microscopy": prepare_microscopy, "endoscopy": prepare_endoscopy}[task]
    given = (PrepareOptions(**options),)
    if label_map is not None:
        (source.parent / "map.json").write_text(json.dumps(label_map))
        given += (source.parent / "map.json",)
    with pytest.raises(InputError) as error:
        prepare(source, source.parent / "out", *given)
    assert not (source.parent / "out").exists()
    return str(error.value)


def test_both_spellings_of_a_name(tmp_path):
    source = fill(tmp_path / "source")
    composed, apart = (unicodedata.normalize(form, "Zelle_ä") for form in ("NFC", "NFD"))
    assert composed != apart
    save(source / "images" / f"{apart}.png")
    save(source / "labels" / f"{composed}.png", cells())
    (source / "split.json").write_text(json.dumps({"train": ["0", "1"], "val": ["2"], "test": [apart]}))
    report = prepare_microscopy(source, tmp_path / "out")
    assert report.sizes["test"] == 1 and names(tmp_path / "out", "test") == [f"{apart}.png"]


def test_the_project_of_cellpose_is_never_opened(tmp_path):
    source = fill(tmp_path / "source")

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    save(source / "images" / "x.png")
    with (source / "labels" / "x_seg.npy").open("wb") as file:
        np.save(file, np.array({"masks": Trap()}, dtype=object), allow_pickle=True)
    sentence = problems(source)
    assert "x_seg.npy is a project of Cellpose's window" in sentence and "_cp_masks" in sentence
    (source / "labels" / "x_seg.npy").rename(source / "labels" / "x.npy")
    assert "x.npy is no plain array" in problems(source)
    (source / "labels" / "x.npy").write_bytes(pickle.dumps({"masks": Trap()}))
    assert "x.npy is no plain array" in problems(source)
    assert not (tmp_path / "sprung").exists()
    (source / "labels" / "x.npy").rename(source / "labels" / "x_seg.npy")
    save(source / "labels" / "x_cp_masks.png", cells())  # beside the masks the project does not matter
    report = prepare_microscopy(source, tmp_path / "out")
    assert sum(report.sizes.values()) == 6 and "1 .npy files (x_seg.npy)" in report.inputs.summary()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full(SIZE, 0.5, np.float32), "float32"),
        (np.zeros((3, *SIZE), np.uint8), "(3, 10, 12)"),
        (np.full(SIZE, -1), "no map of numbers"),
        (np.zeros((0, 4), np.uint8), "(0, 4)"),
        (np.full(SIZE, 1 << 40), "no map of numbers"),
    ],
    ids=["float", "three", "negative", "empty", "huge"],
)
def test_arrays_that_are_no_maps(array, words, tmp_path):
    source = fill(tmp_path / "source")
    save(source / "images" / "x.png")
    np.save(source / "labels" / "x.npy", array)
    assert "x.npy" in problems(source) and words in problems(source)


def test_sections_are_folders(tmp_path):
    source = tmp_path / "source"
    for part, count in (("train", 4), ("val", 2), ("Test", 3)):
        for number in range(count):  # the same names in each
            save(source / part / "images" / f"{number}.tif", np.zeros(SIZE, np.uint8))
            save(source / part / "masks" / f"{number}.tif", cells(number))
    report = prepare_microscopy(source, tmp_path / "out")
    assert report.sizes == {"training": 4, "validation": 2, "test": 3}
    for part, folder in (("training", "train"), ("validation", "val"), ("test", "Test")):
        assert {Path(i["image"]).parents[1].name for i in load_datalist(tmp_path / "out", part)} == {folder}


@pytest.mark.parametrize(
    ("image", "label", "name"),
    [
        ("train/{}_img.png", "train/{}_masks.png", "{}"),  # Cellpose's
        ("image {}.png", "mask {}.png", "{}"),
        ("{}.png", "{}_gt.png", "{}"),
        ("images/{}.png", "masks/{}_segmentation.png", "{}"),  # ISIC's names
        ("training_images/{}.png", "training_masks/{}.png", "{}"),
        ("JPEGImages/{}.png", "SegmentationClass/{}.png", "{}"),  # VOC, and CVAT's masks
        ("Original/{}.png", "Ground Truth/{}.png", "{}"),  # CVC-ClinicDB
        ("liver/01/image{}.png", "liver/01/mask{}.png", "liver_01_{}"),  # Dresden
        ("images/{}.ome.tif", "labels/{}.png", "{}"),
        ("{}.png", "{}_RoiSet.png", "{}"),
        ("{0}/images/{0}.png", "{0}/masks/{0}.png", "{}"),
        ("{0}/{0}.png", "{0}/masks/cells.png", "{}"),
        ("images/image_{}.png", "labels/label_{}.png", "{}"),
        ("rawimages/{}.png", "groundtruth/{}.png", "{}"),  # Kromp et al.
        ("train_img/{}.png", "train_lbl/{}.png", "{}"),
    ],
)
def test_names_of_other_datasets(image, label, name, tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        pixels = np.zeros(SIZE, np.uint8)
        save(source / image.format(f"{number:03d}"), pixels)
        save(source / label.format(f"{number:03d}"), cells(number))
    expected = [name.format(f"{number:03d}") for number in range(5)]
    split = {"train": expected[:3], "val": expected[3:4], "test": expected[4:]}
    (source / "split.json").write_text(json.dumps(split))
    report = prepare_microscopy(source, tmp_path / "out")
    assert report.sizes == {"training": 3, "validation": 1, "test": 1} and report.instances == 10


def test_sections_in_names_of_coco_files(tmp_path):
    source = tmp_path / "source"
    (source / "annotations").mkdir(parents=True)
    for part, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4))):
        images = [image for image in coco()["images"] if image["id"] in numbers]
        annotations = [item for item in coco()["annotations"] if item["image_id"] in numbers]
        content = coco(images=images, annotations=annotations)
        (source / "annotations" / f"contest_{part}2017.json").write_text(json.dumps(content))
        for number in numbers:
            save(source / "images" / f"{number}.png")
    report = prepare_microscopy(source, tmp_path / "out")
    assert report.sizes == {"training": 2, "validation": 1, "test": 2}


def test_a_bad_file_of_labels_does_not_stop_the_others(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / f"{number}.png")
    (source / "a.json").write_text(json.dumps(coco()))
    (source / "b.json").write_text("{")
    assert "b.json is no JSON" in problems(source)
    report = prepare_microscopy(source, tmp_path / "good", PrepareOptions(skip_bad=True))
    assert sum(report.sizes.values()) == 5 and len(report.problems) == 1
    (source / "a.json").unlink()
    assert "no known layout" in problems(source) and "b.json is no JSON" in problems(source)


def test_test_images_without_labels_are_named(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "imagesTr" / f"x{number}_0000.png")
        save(source / "labelsTr" / f"x{number}.png", cells(number))
    save(source / "imagesTs" / "y_0000.png")
    report = prepare_microscopy(source, tmp_path / "prepared")
    assert sum(report.sizes.values()) == 5
    assert "1 images of the test section are not used: it has no labels." in report.warnings
    save(source / "imagesTr" / "x0_0001.png")
    assert "x0_0001.png is a further channel" in problems(source)


def test_folders_of_videos_stay_together_and_apart(tmp_path):
    source = tmp_path / "source"
    for video in range(5):
        for frame in range(6):
            save(source / "images" / f"patient{video}" / f"img ({frame}).png")
            save(source / "labels" / f"patient{video}" / f"img ({frame}).png", cells(frame))
    prepare_endoscopy(source, tmp_path / "out")
    folders = [
        {Path(item["image"]).parent.name for item in load_datalist(tmp_path / "out", part)}
        for part in ("training", "validation", "test")
    ]
    assert sum(len(part) for part in folders) == len(set.union(*folders)) == 5


def test_stacks_and_labels_of_another_depth(tmp_path):
    source = fill(tmp_path / "source")
    save(source / "images" / "z.tif", np.zeros((4, *SIZE), np.uint8), metadata={"axes": "ZYX"})
    save(source / "labels" / "z.tif", np.stack([cells()] * 3), metadata={"axes": "ZYX"})
    assert "z.tif is a stack of 4 planes, but its label has 3" in problems(source)
    (source / "labels" / "z.tif").unlink()
    save(source / "labels" / "z.png", cells())
    assert "z.tif is a stack of 4 planes, but its label has 1" in problems(source)


def test_an_image_that_is_turned_and_its_label_not(tmp_path):
    source = fill(tmp_path / "source")
    exif = Image.Exif()
    exif[274] = 3
    save(source / "images" / "x.png", np.zeros(SIZE, np.uint8), exif=exif)
    save(source / "labels" / "x.png", cells())
    assert "x.png is to be turned before it is seen (its orientation is 3)" in problems(source)
    save(source / "labels" / "x.png", cells(), exif=exif)
    prepare_microscopy(source, tmp_path / "out")
    item = next(
        item
        for part in ("training", "validation", "test")
        for item in load_datalist(tmp_path / "out", part)
        if item["image"].endswith("x.png")
    )
    np.testing.assert_array_equal(read_instances(item["label"]), cells()[::-1, ::-1])


def test_links_out_of_the_dataset(tmp_path):
    source = fill(tmp_path / "source")
    outside = save(tmp_path / "outside.tif", np.zeros((3, *SIZE), np.uint8), metadata={"axes": "ZYX"})
    (source / "images" / "x.tif").symlink_to(outside)
    save(source / "labels" / "x.tif", np.stack([cells()] * 3), metadata={"axes": "ZYX"})
    assert "x.tif or its label is a link out of" in problems(source)
    datalist = {"training": [{"image": "images/x#000001.tif", "label": "labels/0.png"}], "source_dir": "."}
    (source / "datalist.json").write_text(json.dumps(datalist))
    with pytest.raises(InputError, match="outside"):
        load_datalist(source, "training", check=False)
    (source / "images" / "loop").symlink_to(source / "images")
    (source / "images" / "x.tif").unlink()
    (source / "labels" / "x.tif").unlink()
    (source / "datalist.json").unlink()
    assert sum(prepare_microscopy(source, tmp_path / "out").sizes.values()) == 5


def test_the_same_twice_in_place(tmp_path):
    source = fill(tmp_path / "source", labels="masks")
    for number in range(5):
        (source / "masks" / f"{number}.png").unlink()
        (source / "masks" / f"{number}.geojson").write_text(json.dumps(geojson(cells(number))))
    for _ in range(2):
        assert prepare_microscopy(source, source).instances == 10
        assert len(list((source / "labels").iterdir())) == 5


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


def coco(**changes) -> dict:
    segmentation = [[1, 1, 5, 1, 5, 4, 1, 4]]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "height": 10, "width": 12} for number in range(5)],
        "categories": [{"id": 3, "name": "grasper"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 3, "segmentation": segmentation} for number in range(5)
        ],
    }
    return {**content, **changes}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": coco()["images"][:4]}, "an annotation of image 4"),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 3, "segmentation": [], "bbox": [1, 1, 2, 2]}]},
            "box",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 4, "segmentation": [[1, 1, 2, 2, 3, 1]]}]},
            "KeyError",
        ),
        (
            {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": {"size": [10, 12], "counts": [5, 9]}}]},
            "runs of 14 pixels",
        ),
        (  # github.com/cvat-ai/cvat/issues/6014
            {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": [5, 9, 106]}]},
            "must be a list of outlines",
        ),
        (
            {
                "annotations": [
                    {"image_id": 0, "category_id": 3, "segmentation": {"size": [1 << 20, 1 << 20], "counts": [1]}}
                ]
            },
            "no lengths",
        ),
    ],
)
def test_bad_coco(change, words, tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "images" / f"{number}.png")
    (source / "instances.json").write_text(json.dumps(coco(**change)))
    assert words in problems(source)


def test_coco_names_and_sizes(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "train" / f"{number}.png")
        save(source / "other" / f"{number}.png")
    content = coco()
    for image in content["images"]:
        image["file_name"] = f"train\\{image['id']}.png"
    content["images"][4]["height"] = 11
    (source / "annotations.json").write_text(json.dumps(content))
    sentence = problems(source, "endoscopy")
    assert "is for an image of (11, 12) pixels, but its image has (10, 12)" in sentence
    assert sentence.count("has no label") == 5 and "other" in sentence  # not the images of the other folder
    content["images"][4] |= {"height": 10, "file_name": "nowhere.png"}
    (source / "annotations.json").write_text(json.dumps(content))
    assert "names nowhere.png, of which there are 0" in problems(source, "endoscopy")


def test_classes_of_outlines(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "images" / f"{number}.png")
    (source / "instances.json").write_text(json.dumps(coco()))
    assert "a shape of 'grasper', which is no class" in problems(source, "endoscopy", TWO)
    prepare_endoscopy(source, tmp_path / "named")
    assert json.loads((tmp_path / "named" / "datalist.json").read_text())["labels"]["1"] == "grasper"
    (tmp_path / "map.json").write_text(json.dumps({"background": [0, 3], "tool": 1}))  # its number is background here
    with pytest.raises(InputError, match="nothing but background"):
        prepare_endoscopy(source, tmp_path / "out", None, tmp_path / "map.json")


def test_cvat_that_is_refused(tmp_path):
    for text, words in (
        ("<annotations><meta><task><size>9999999</size></task></meta><track/></annotations>", "9999999 frames"),
        ('<annotations><track label="a"><polygon frame="x" points=""/></track></annotations>', "cannot be read"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "declares entities"),
        ("<annotations><image", "no XML"),
        ('<annotations><image name="a" height="9" width="9"><polyline/></image></annotations>', "'polyline'"),
        ('<annotations><image name="a" height="x" width="9"/></annotations>', "cannot be read"),
    ):
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "a.xml").write_text(text, encoding=encoding)
            with pytest.raises(InputError, match=words):
                read_annotations(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<other/>")
    assert read_annotations(tmp_path / "a.xml") is None


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


TRACKS = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><name>v</name><size>6</size><mode>interpolation</mode><start_frame>0</start_frame>
<labels><label><name>grasper</name></label><label><name>hook</name></label></labels>
<original_size><width>12</width><height>10</height></original_size></task></meta>
<track id="0" label="grasper" source="manual">
<polygon frame="0" keyframe="1" outside="0" points="1.00,1.00;5.00,1.00;5.00,4.00;1.00,4.00" z_order="0"></polygon>
<polygon frame="1" keyframe="0" outside="0" points="2.00,1.00;6.00,1.00;6.00,4.00;2.00,4.00" z_order="0"></polygon>
<polygon frame="2" keyframe="1" outside="1" points="2.00,1.00;6.00,1.00;6.00,4.00;2.00,4.00" z_order="0"></polygon>
</track>
<track id="1" label="hook" source="manual">
<box frame="1" keyframe="1" outside="0" xtl="5" ytl="2" xbr="9" ybr="5" z_order="1"></box>
<mask frame="3" keyframe="1" outside="0" rle="1, 2, 1" left="4" top="5" width="2" height="2" z_order="0"></mask>
</track></annotations>"""


def test_masks_of_cvat(tmp_path):
    """CVAT's "Segmentation mask 1.1": colours, which labelmap.txt names; the pictures of objects are not taken."""
    source = tmp_path / "source"
    truth = np.zeros(SIZE, np.uint8)
    truth[1:4, 1:5], truth[6:9, 2:9] = 1, 2
    colours = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    for number in range(3):
        save(source / "JPEGImages" / f"{number}.png")
        for folder in ("SegmentationClass", "SegmentationObject"):
            save(source / folder / f"{number}.png", colours[truth])
    lines = "# label:color_rgb:parts:actions\ngrasper:250,50,83::\nbackground:0,0,0::\nhook:51,221,255::\n"
    (source / "labelmap.txt").write_text(lines)
    prepare_endoscopy(source, tmp_path / "made")
    assert list(json.loads((tmp_path / "made" / "datalist.json").read_text())["labels"].values()) == [
        "background", "grasper", "hook",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "made" / "labels" / "0.png")), truth)
    # Six numbers, all of them different, and no background with ids: these are colours.
    (tmp_path / "map.json").write_text('{"grasper": [250, 50, 83], "hook": [51, 221, 255]}')
    prepare_endoscopy(source, tmp_path / "named", None, tmp_path / "map.json")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "named" / "labels" / "0.png")), truth)
    for text in ("grasper", "grasper:red::", "a:1,2,3::\nb:1,2,3::", "a:1,2::"):
        (source / "labelmap.txt").write_text(text)
        assert "labelmap.txt" in problems(source, "endoscopy")


def test_annotations_by_their_ids(tmp_path):
    """LIVECell's COCO file has an object of them, and no list."""
    source = tmp_path / "source"
    for number in range(5):
        save(source / "images" / f"{number}.png")
    content = coco()
    content["annotations"] = {str(annotation["id"]): annotation for annotation in content["annotations"]}
    (source / "instances.json").write_text(json.dumps(content))
    assert prepare_microscopy(source, tmp_path / "out").instances == 5


def test_tracks_of_cvat(tmp_path):
    """Of six frames, of which the last was not exported; a shape is gone where it is outside."""
    source = tmp_path / "source"
    for number in range(5):
        save(source / "images" / f"frame_{number:06d}.PNG")
    (source / "annotations.xml").write_text(TRACKS)
    report = prepare_endoscopy(source, tmp_path / "made")
    assert sum(report.sizes.values()) == 5
    assert json.loads((tmp_path / "made" / "datalist.json").read_text())["labels"] == {
        "0": "background", "1": "grasper", "2": "hook",
    }  # fmt: skip
    expected = np.zeros((5, *SIZE), np.uint8)
    expected[0, 1:4, 1:5], expected[1, 1:4, 2:6], expected[1, 2:5, 5:9] = 1, 1, 2
    expected[3, 5, 5] = expected[3, 6, 4] = 2
    for number, truth in enumerate(expected):
        made = np.asarray(Image.open(tmp_path / "made" / "labels" / f"frame_{number:06d}.png"))
        np.testing.assert_array_equal(made, truth)
    (source / "images" / "frame_000001.PNG").unlink()
    assert "names frame_000001, of which there are 0" in problems(source, "endoscopy")


def test_cvat_for_images_of_a_video_has_names_without_suffix(tmp_path):
    source = tmp_path / "source"
    images, labels = "", "<meta><task><labels><label><name>hook</name></label></labels></task></meta>"
    for number in range(3):
        save(source / "images" / f"frame_{number:06d}.png")
        box = '<box label="hook" xtl="5" ytl="2" xbr="9" ybr="5"/>'
        images += f'<image id="{number}" name="frame_{number:06d}" width="12" height="10">{box}</image>'
    (source / "annotations.xml").write_text(f"<annotations>{labels}{images}</annotations>")
    assert sum(prepare_endoscopy(source, tmp_path / "made").sizes.values()) == 3


def yolo(source: Path, number: int, text: str) -> None:
    save(source / "images" / "train" / f"{number}.png")
    (source / "labels" / "train").mkdir(parents=True, exist_ok=True)
    (source / "labels" / "train" / f"{number}.txt").write_text(text)


def test_labels_of_yolo(tmp_path):
    """Parts of the width, 12, and the height, 10; the second image has nothing."""
    source = tmp_path / "source"
    for number in range(4):
        yolo(
            source, number, "" if number == 1 else "1 0.25 0.2 0.75 0.2 0.75 0.5 0.25 0.5\n0 0.5 0.8 1 0.8 1 1 0.5 1\n"
        )
    (source / "data.yaml").write_text("train: images/train\nnames:\n  0: grasper\n  1: hook\n")
    prepare_endoscopy(source, tmp_path / "made")
    expected = np.zeros(SIZE, np.uint8)
    expected[2:5, 3:9], expected[8:, 6:] = 2, 1
    for number in range(4):
        made = np.asarray(Image.open(tmp_path / "made" / "labels" / f"{number}.png"))
        np.testing.assert_array_equal(made, 0 * expected if number == 1 else expected)
    report = prepare_microscopy(source, tmp_path / "cells")
    assert report.instances == 6
    (source / "data.yaml").unlink()
    (source / "labels" / "classes.txt").write_text("tweezers\nscissors\n")
    prepare_endoscopy(source, tmp_path / "other")
    labels = json.loads((tmp_path / "other" / "datalist.json").read_text())["labels"]
    assert labels == {"0": "background", "1": "tweezers", "2": "scissors"}
    (source / "labels" / "classes.txt").unlink()
    assert "a shape of 'class 1', which is no class of the label map" in problems(source, "endoscopy", TWO)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 0.2 0.2", "has a box of 'class 0'"),
        ("0 0.5 0.5 0.2 0.2 0.1", "no outlines of YOLO"),
        ("0 50 50 20 20 10 10", "parts of width and height"),
        ("0 nan 0.5 0.2 0.2 0.1 0.1", "no outlines of YOLO"),
        ("some notes", "no outlines of YOLO"),
        ("99999999999999999999999999999999999 0 0 1 0 1 1\n\xff", "no outlines of YOLO"),
    ],
)
def test_bad_yolo(text, words, tmp_path):
    source = tmp_path / "source"
    for number in range(4):
        yolo(source, number, "0 0.5 0.8 1 0.8 1 1 0.5 1")
    (source / "labels" / "train" / "3.txt").write_bytes(text.encode("latin-1"))
    assert words in problems(source) and "3.txt" in problems(source)


@pytest.mark.parametrize("names", ["{", "5", "[[a, b]]", "&a [*a]", "{x: y}"])
def test_bad_names_of_yolo(names, tmp_path):
    yolo(tmp_path, 0, "0 0.5 0.8 1 0.8 1 1 0.5 1")
    (tmp_path / "data.yaml").write_text(f"names: {names}")
    with pytest.raises(InputError, match=r"data\.yaml has no names of classes"):
        read_yolo(tmp_path / "labels" / "train" / "0.txt")


def test_texts_beside_images_are_no_labels(tmp_path):
    for number in range(3):
        save(tmp_path / "source" / f"{number}.png")
        save(tmp_path / "source" / f"{number}_masks.png", cells(number))
        (tmp_path / "source" / f"{number}.txt").write_text("notes")
    assert sum(prepare_microscopy(tmp_path / "source", tmp_path / "out").sizes.values()) == 3


def test_what_lies_on_top_in_cvat_has_the_pixels(tmp_path):
    def box(label: str, z_order: int) -> str:
        return f'<box label="{label}" xtl="1" ytl="1" xbr="4" ybr="3" z_order="{z_order}"/>'

    for first, second, top in ((0, 0, "b"), (1, 0, "a"), (0, 1, "b")):
        shapes = box("a", first) + box("b", second)
        (tmp_path / "a.xml").write_text(
            f'<annotations><image name="i" height="5" width="6">{shapes}</image></annotations>'
        )
        annotations = read_annotations(tmp_path / "a.xml")["i"]
        painted = rasterize(annotations, [1 if shape.name == top else 2 for shape in annotations.shapes], (5, 6))
        assert set(np.unique(painted)) == {0, 1} and painted.sum() == 6


def test_masks_of_black_and_white(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "images" / f"{number}.png")
        save(source / "masks" / f"{number}.png", (cells(number) > 0).astype(np.uint8) * 255)
    (tmp_path / "map.json").write_text(json.dumps(TWO))
    report = prepare_endoscopy(source, tmp_path / "named", None, tmp_path / "map.json")
    assert "masks of 0 and 255: 255 is taken for tool." in report.warnings
    three = {"background": 0, "a": 1, "b": 2}
    assert "has the label ids 255" in problems(source, "endoscopy", three)
    save(source / "masks" / "4.png", np.linspace(0, 255, 120).reshape(SIZE).astype(np.uint8))
    assert "soft edges" in problems(source, "endoscopy", TWO) and "mask_threshold 128" in problems(
        source, "endoscopy", TWO
    )
    assert "mask_threshold parts one class" in problems(source, "endoscopy", three, mask_threshold=128)
    (source / "masks" / "4.png").unlink()
    save(source / "masks" / "4.jpg", np.zeros(SIZE, np.uint8))
    assert "4.jpg is a JPEG" in problems(source, "endoscopy", TWO)
    assert "mask_threshold" in problems(source, "endoscopy", TWO)
    report = prepare_endoscopy(source, tmp_path / "out", PrepareOptions(mask_threshold=128), tmp_path / "map.json")
    assert sum(report.sizes.values()) == 5
    with pytest.raises(InputError, match="labels here number the cells"):
        prepare_microscopy(source, tmp_path / "cells", PrepareOptions(mask_threshold=128))


def test_colours(tmp_path):
    source = fill(tmp_path / "source")
    colours = {"grasper": [255, 0, 0], "hook": [0, 255, 0]}
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    for number in range(5):
        save(source / "labels" / f"{number}.png", palette[cells(number)])
    assert "channels that differ (a colour picture)" in problems(source, "endoscopy", TWO)
    missing = problems(source, "endoscopy", {"grasper": [255, 0, 0]})
    assert "1 colours that the label map lacks ([0, 255, 0])" in missing
    assert "is no colour of one class" in problems(source, "endoscopy", {"a": [255, 0, 0], "b": [255, 0, 0]})
    assert "is no colour" in problems(source, "endoscopy", {"a": [[255, 0, 0], [1, 2]], "b": [0, 255, 0]})
    for labels in (colours, {"Background": [0, 0, 0], **colours}, {**colours, "hook": [[0, 255, 0], [1, 2, 3]]}):
        (tmp_path / "map.json").write_text(json.dumps(labels))
        out = tmp_path / f"out{len(json.dumps(labels))}"
        prepare_endoscopy(source, out, None, tmp_path / "map.json")
        for item in load_datalist(out, "test"):
            number = int(Path(item["image"]).stem)
            np.testing.assert_array_equal(read_instances(item["label"]), cells(number))
    save(source / "labels" / "0.jpg", palette[cells(0)])
    (source / "labels" / "0.png").unlink()
    assert "0.jpg is no mask of exact colours" in problems(source, "endoscopy", colours)


def test_prepare_takes_a_threshold_from_the_command_line(tmp_path, capsys):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "images" / f"{number}.png")
        save(source / "masks" / f"{number}.jpg", (cells(number) > 0).astype(np.uint8) * 255)
    arguments = ["prepare", "endoscopy", "--source_dir", str(source), "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "--mask_threshold 128" in capsys.readouterr().err
    assert main([*arguments, "--mask_threshold", "128"]) == 0
    assert "--num_classes 2" in capsys.readouterr().out


def test_overlaps_and_runs():
    square = np.array([(0, 0), (4, 0), (4, 4), (0, 4)], float)
    shapes = [
        Shape("a", [[square]]),
        Shape("b", [[square + 2]]),
        Shape("c", masks=[(np.ones((2, 2), bool), (-1, -1))]),
    ]
    painted = rasterize(Annotations(Path("x"), shapes), [1, 2, 3], (6, 6))
    assert (painted[:4, :4] == 1).all() and (painted == 2).sum() == 12 and (painted == 3).sum() == 0
    assert decode_runs([1, 2, 1], 2, 2, "F", "x").tolist() == [[False, True], [True, False]]
    assert decode_runs([1, 2], 2, 2, "C", "x").tolist() == [[False, True], [True, False]]
    with pytest.raises(InputError, match="no lengths"):
        decode_runs([5, -1], 2, 2, "F", "x")


@pytest.mark.parametrize("corners", [3, 7, 40])
def test_a_pixel_belongs_to_the_outline_that_its_middle_lies_in(corners):
    random = np.random.default_rng(corners)
    middles = np.argwhere(np.ones((30, 40)))[:, ::-1] + 0.5
    for _ in range(20):
        radius, angles = (
            random.uniform(3, 22, corners),
            (np.arange(corners) + random.random(corners) / 2) * 2 * np.pi / corners,
        )
        ring = random.uniform(0, 30, 2) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        painted = rasterize(
            Annotations(Path("x"), [Shape("", [[ring]]), Shape("", masks=[(np.ones((30, 40), bool), (0, 0))])]),
            [1, 2],
            (30, 40),
        )
        inside = Outline(np.concatenate([ring, ring[:1]])).contains_points(middles).reshape(30, 40)
        np.testing.assert_array_equal(painted == 1, inside)


def test_a_jagged_outline_of_a_slide_takes_no_minutes():
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    ring = 1000 + (900 + 5 * np.sin(5000 * angles))[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    start = time.process_time()
    painted = rasterize(Annotations(Path("x"), [Shape("", [[ring]])]), [1], (2000, 2000))
    assert time.process_time() - start < 5  # each of four million pixels against each corner is a quarter of an hour
    assert painted.sum() == pytest.approx(np.pi * 900**2, rel=0.01)


def test_shapes_smaller_than_a_pixel_are_said(caplog):
    sliver = np.array([(3.6, 1.0), (3.8, 1.0), (3.7, 4.0)])
    shapes = [Shape("", [[sliver]]), Shape("", [[sliver * 0 + 3]]), Shape("", masks=[(np.ones((1, 1), bool), (0, 0))])]
    painted = rasterize(Annotations(Path("x.json"), shapes), [1, 2, 3], (6, 6))
    assert painted.sum() == 3 and "x.json has 2 shapes that are smaller than a pixel" in caplog.text


def test_geojson_there_and_back(tmp_path):
    random = np.random.default_rng(0)
    for _ in range(20):
        numbers = random.choice([0, 0, 1, 2, 3], (9, 13))
        (tmp_path / "a.geojson").write_text(json.dumps(geojson(numbers)))
        annotations = read_outlines(tmp_path / "a.geojson")
        present = np.unique(numbers[numbers > 0]).tolist()
        np.testing.assert_array_equal(rasterize(annotations, present, numbers.shape), numbers)


def test_annotations_without_an_area_and_bad_ones_are_named(tmp_path, caplog):
    """Tools leave polygons of two points behind; of one annotation of thousands the id is said."""
    triangle = [1, 1, 5, 1, 5, 5]
    annotation = {"id": 17, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 4, 4], triangle]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 6}],
        "annotations": [annotation, {**annotation, "id": 18, "segmentation": [[2, 2, 4, 4]]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    annotations = read_annotations(path)["a.png"]
    painted = rasterize(annotations, [1, 2], (6, 6))
    assert set(np.unique(painted)) == {0, 1} and "has 1 shapes that are smaller than a pixel" in caplog.text
    for change, words in (({"category_id": 7}, "id 17, that cannot be read"), ({"segmentation": []}, "id 17, of the")):
        path.write_text(json.dumps({**content, "annotations": [{**annotation, **change}]}))
        with pytest.raises(InputError, match=words):
            read_annotations(path)


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
