# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Labels in files of CVAT and YOLO: every shape is painted where it says, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import SIZE, TWO, problems, save
from PIL import Image

from swinumamba_monai.data.files.annotations import read_annotations
from swinumamba_monai.data.files.shapes import rasterize
from swinumamba_monai.data.files.yolo import read_yolo
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy


def test_cvat_that_is_refused(tmp_path):
    for text, words in (
        ("<annotations><meta><task><size>9999999</size></task></meta><track/></annotations>", "9999999 frames"),
        ('<annotations><track label="a"><polygon frame="x" points=""/></track></annotations>', "cannot be read"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "declares entities"),
        ("<annotations><image", "no XML"),
        ("<annotations>" + 2 * '<image name="a" height="9" width="9"/>' + "</annotations>", "names a twice"),
        ('<annotations><image name="a" height="9" width="9"><polyline/></image></annotations>', "'polyline'"),
        ('<annotations><image name="a" height="x" width="9"/></annotations>', "cannot be read"),
    ):
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "a.xml").write_text(text, encoding=encoding)
            with pytest.raises(InputError, match=words):
                read_annotations(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<other/>")
    assert read_annotations(tmp_path / "a.xml") is None


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


def test_names_of_yolo_in_another_encoding_are_not_replaced_by_numbers(tmp_path):
    yolo(tmp_path, 0, "0 0.5 0.8 1 0.8 1 1 0.5 1")
    (tmp_path / "classes.txt").write_bytes("Häkchen".encode("latin-1"))
    with pytest.raises(InputError, match=r"classes\.txt has no names of classes .*UTF-8"):
        read_yolo(tmp_path / "labels" / "train" / "0.txt")


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
