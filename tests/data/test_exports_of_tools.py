# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Folders as QuPath, Cellpose, ilastik, CVAT and EndoVis 2018 leave them, and what is said of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import save
from PIL import Image

from swinumamba_monai.data.datalist import SECTIONS, load_class_names, load_datalist
from swinumamba_monai.data.files.images import read_classes, read_instances
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

SIZE = (20, 24)
NAMES = ("a", "b", "c", "d")
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [0, 255, 0], [7, 0, 255]], np.uint8)


def numbers(name: str) -> np.ndarray:
    """Three regions, two of which touch, at another place for every name."""
    labels = np.zeros(SIZE, np.uint8)
    shift = NAMES.index(name)
    labels[2:9, 2 + shift : 11 + shift] = 1
    labels[9:12, 3:9] = 2
    labels[14:19, 12 + shift : 20] = 3
    return labels


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def labels_in(prepared: Path, read) -> dict[str, np.ndarray]:
    items = [item for part in SECTIONS for item in load_datalist(prepared, part)]
    return {Path(item["image"]).name: read(item["label"]) for item in items}


def same(labels: dict[str, np.ndarray]) -> None:
    """Every image, whose name begins with one of ``NAMES``, has its own label, number by number."""
    assert len(labels) == len(NAMES)
    for name, label in labels.items():
        np.testing.assert_array_equal(label, numbers(name[0]))


TILE = "{} [x=0,y=0,w=24,h=20]"


@pytest.mark.parametrize(
    ("image", "label"),
    [
        (f"{TILE}.jpg", f"{TILE}.png"),  # QuPath's tiles, where both have suffixes of their own, and one
        (f"{TILE}.tif", f"{TILE}-labelled.tif"),
        ("{}.png", "{}_Object Identities.png"),  # ilastik's
        ("images/{}.png", "labels/{}_Simple Segmentation.png"),
    ],
)
def test_names_that_tools_give(image, label, tmp_path):
    for name in NAMES:
        save(tmp_path / "in" / image.format(name), picture())
        save(tmp_path / "in" / label.format(name), numbers(name))
    prepare_microscopy(tmp_path / "in", tmp_path / "out")
    same(labels_in(tmp_path / "out", read_instances))


@pytest.mark.parametrize("folder", ["", "tiles/"])
def test_tiles_of_a_slide_stay_in_one_section(folder, tmp_path):
    for slide in ("one", "two", "three", "four"):
        for left in (0, 24, 48, 72):
            tile = f"{folder}{{}}/{slide} [d=2.5,x={left},y=0,w=24,h=20].png"
            save(tmp_path / "in" / tile.format("images"), picture())
            save(tmp_path / "in" / tile.format("labels"), numbers("a"))
    prepare_microscopy(tmp_path / "in", tmp_path / "out")
    slides = [
        {Path(item["image"]).name.split()[0] for item in load_datalist(tmp_path / "out", part)} for part in SECTIONS
    ]
    assert [len(of_section) for of_section in slides] == [2, 1, 1] and len(set().union(*slides)) == 4


def test_a_png_beside_a_jpeg_is_an_image_where_a_name_says_what_the_label_is(tmp_path):
    for name in NAMES:
        save(tmp_path / "in" / f"{name}.jpg", picture())
        save(tmp_path / "in" / f"{name}.png", picture())
        save(tmp_path / "in" / f"{name}_masks.png", numbers(name))
    with pytest.raises(InputError, match=r"a.png has the name of .*a.jpg; rename one"):
        prepare_microscopy(tmp_path / "in", tmp_path / "out")


def test_what_cellpose_saves_with_its_word_for_masks_behind_it(tmp_path):
    others = ("_flows_cp_masks.tif", "_dP_cp_masks.tif", "_outlines_cp_masks.png", "_cp_output_cp_masks.png")
    for name in NAMES:
        save(tmp_path / "in" / f"{name}.png", picture())
        save(tmp_path / "in" / f"{name}_cp_masks.png", numbers(name))
        for end in others:
            save(tmp_path / "in" / f"{name}{end}", picture())
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    same(labels_in(tmp_path / "out", read_instances))
    assert {reason: len(names) for reason, names in report.inputs.not_taken.items()} == {
        ".tif files": 8,
        ".png files": 8,
    }


def cvat(folder: Path, edge: tuple[int, int, int] | None = None) -> None:
    """Its "Segmentation mask 1.1": all is of one class, and each object has a colour."""
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "default.txt").write_text("\n".join(NAMES))
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nnucleus:9,9,8::\n")
    for name in NAMES:
        save(folder / "JPEGImages" / f"{name}.png", picture())
        objects = COLOURS[numbers(name)]
        if edge is not None:
            objects[-1] = edge
        save(folder / "SegmentationObject" / f"{name}.png", objects)
        save(folder / "SegmentationClass" / f"{name}.png", (numbers(name) > 0)[..., None] * np.array([9, 9, 8], "u1"))


@pytest.mark.parametrize("edge", [None, (224, 224, 192)])
def test_objects_of_cvat_are_cells(edge, tmp_path):
    cvat(tmp_path / "in", edge)
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert report.instances == 12 and not report.warnings
    for name, label in labels_in(tmp_path / "out", read_instances).items():
        pairs = set(zip(label.ravel().tolist(), numbers(name[0]).ravel().tolist()))
        assert len(pairs) == 4 and (0, 0) in pairs


def test_classes_of_several_exports_of_cvat_are_one(tmp_path):
    for job in ("job_1", "job_2"):
        cvat(tmp_path / "in" / job)
    prepare_endoscopy(tmp_path / "in", tmp_path / "out")
    assert load_class_names(tmp_path / "out") == ["background", "nucleus"]
    labels = [read_classes(item["label"]) for part in SECTIONS for item in load_datalist(tmp_path / "out", part)]
    assert len(labels) == 8 and all(label.max() == 1 for label in labels)
    other = tmp_path / "in" / "job_2" / "labelmap.txt"
    other.write_text(other.read_text().replace("nucleus", "cell"))
    with pytest.raises(InputError, match=r"job_2/labelmap.txt has other classes or colours than .*job_1"):
        prepare_endoscopy(tmp_path / "in", tmp_path / "other")


def endovis(folder: Path) -> Path:
    for place, name in enumerate(NAMES):
        for view in ("left_frames", "right_frames"):
            save(folder / f"seq_{place // 2}" / view / f"{name}.png", picture())
        save(folder / f"seq_{place // 2}" / "labels" / f"{name}.png", COLOURS[numbers(name)])
    legend = zip(("background-tissue", "shaft", "wrist", "clasper"), COLOURS.tolist())
    entries = [{"name": name, "color": colour, "classid": place} for place, (name, colour) in enumerate(legend)]
    (folder / "labels.json").write_text(json.dumps(entries))
    return folder


def test_endovis_of_2018(tmp_path):
    source = endovis(tmp_path / "in")
    prepare_endoscopy(source, tmp_path / "out", label_map=source / "labels.json")
    assert load_class_names(tmp_path / "out") == ["background", "shaft", "wrist", "clasper"]
    same(labels_in(tmp_path / "out", read_classes))
    legend = json.loads((source / "labels.json").read_text())
    (source / "labels.json").write_text(json.dumps([*legend, {"name": "needle", "color": [250, 50, 83]}]))
    with pytest.raises(InputError, match="which is no colour of one class"):
        prepare_endoscopy(source, tmp_path / "other", label_map=source / "labels.json")
    (source / "labels.json").write_text(json.dumps([{"name": "needle"}]))
    with pytest.raises(InputError, match="is no label map"):
        prepare_endoscopy(source, tmp_path / "other", label_map=source / "labels.json")


@pytest.mark.parametrize("black", [0, 2])
def test_a_palette_whose_black_is_another_number_than_0_is_said(black, tmp_path):
    """As GIMP and Pillow make palettes of colours: in any order."""
    order = [black, *(number for number in range(3) if number != black)]
    palette = np.zeros((3, 3), np.uint8)
    palette[order] = COLOURS[:3]
    for name in NAMES:
        save(tmp_path / "in" / "images" / f"{name}.png", picture())
        mask = Image.fromarray(np.array(order, np.uint8)[numbers(name) % 3]).convert("P")
        mask.putpalette(palette.ravel().tolist())
        (tmp_path / "in" / "labels").mkdir(exist_ok=True)
        mask.save(tmp_path / "in" / "labels" / f"{name}.png")
    labels = LabelMap.of_names(["background", "grasper", "hook"])
    report = prepare_endoscopy(tmp_path / "in", tmp_path / "out", label_map=labels)
    said = [warning for warning in report.warnings if "whose black is number 2, and 0 is another colour" in warning]
    assert len(said) == (4 if black else 0)


def test_files_that_fit_no_image_and_videos_are_named(tmp_path):
    for name in NAMES:
        save(tmp_path / "in" / "images" / f"{name}.png", picture())
        (tmp_path / "in" / "labels").mkdir(exist_ok=True)
        (tmp_path / "in" / "labels" / f"RoiSet_{name}.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"4 files that may be labels, .* \(RoiSet_a.zip, "):
        prepare_microscopy(tmp_path / "in", tmp_path / "out")
    for name in NAMES:
        (tmp_path / "in" / "images" / f"{name}.png").unlink()
        save(tmp_path / "in" / "labels" / f"{name}.png", numbers(name))
    (tmp_path / "in" / "images" / "a.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="save the frames that have labels as images"):
        prepare_endoscopy(tmp_path / "in", tmp_path / "out")


def test_planes_that_may_be_channels(tmp_path):
    for name in NAMES:
        planes, place = np.moveaxis(picture(), -1, 0), tmp_path / "in" / "images" / f"{name}.tif"
        save(place, planes, photometric="minisblack", metadata=None)
        save(tmp_path / "in" / "labels" / f"{name}.tif", numbers(name))
    with pytest.raises(InputError, match=r"a stack of 3 planes, .* or, if they are channels, save them as such"):
        prepare_microscopy(tmp_path / "in", tmp_path / "out")


def test_a_region_that_was_annotated_around_cells_is_no_cell_and_said(tmp_path):
    """QuPath's annotations, all of one kind: the region comes first, and took the pixels of all cells."""
    for name in NAMES:
        save(tmp_path / "in" / "images" / f"{name}.png", picture())
        content = geojson(numbers(name))
        region = {"type": "Polygon", "coordinates": [[[0, 1], [22, 1], [22, 20], [0, 20], [0, 1]]]}
        around = {"type": "Feature", "geometry": region, "properties": {"objectType": "annotation", "name": "ROI"}}
        content["features"].insert(0, around)
        (tmp_path / "in" / "labels").mkdir(exist_ok=True)
        (tmp_path / "in" / "labels" / f"{name}.geojson").write_text(json.dumps(content))
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert report.instances == 16
    assert sum("around 3 others, like a region that was marked" in warning for warning in report.warnings) == 4
    for name, label in labels_in(tmp_path / "out", read_instances).items():
        cells = numbers(name[0])
        pairs = set(zip(label[cells > 0].tolist(), cells[cells > 0].tolist()))
        assert len(pairs) == 3, "each is the cell that it was"
