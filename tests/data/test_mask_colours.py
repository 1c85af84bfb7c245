# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Masks in black and white, with soft edges and in colours are classes where that is certain, else one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import SIZE, TWO, cells, fill, problems, save, white
from PIL import Image

from swinumamba_monai.cli import main
from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.files.images import read_classes, read_instances
from swinumamba_monai.data.files.label_map import ENDOSCOPY_CLASSES, IGNORED, read_label_map
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.data.prepare.label_forms import class_ids_of
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy


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


def test_masks_of_black_and_white(tmp_path):
    source = fill(tmp_path / "source", labels="masks/{}.png", label=white)
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
    assert "has colours, so it takes no mask_threshold" in problems(
        source, "endoscopy", {"grasper": [255, 0, 0]}, mask_threshold=128
    )
    save(source / "labels" / "0.jpg", palette[cells(0)])
    (source / "labels" / "0.png").unlink()
    assert "0.jpg is no mask of exact colours" in problems(source, "endoscopy", colours)


def test_prepare_takes_a_threshold_from_the_command_line(tmp_path, capsys):
    source = fill(tmp_path / "source", labels="masks/{}.jpg", label=white)
    arguments = ["prepare", "endoscopy", "--source_dir", str(source), "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "--mask_threshold 128" in capsys.readouterr().err
    assert main([*arguments, "--mask_threshold", "128"]) == 0
    assert "--num_classes 2" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [[0, 1, 255], [0, 255]])
def test_255_that_is_to_be_ignored_is_neither_white_nor_a_soft_edge(numbers, tmp_path):
    mask = np.array([numbers * 4] * 6, np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    (tmp_path / "map.json").write_text('{"background": 0, "grasper": 1, "ignore": 255}')
    labels = read_label_map(tmp_path / "map.json")
    assert np.array_equal(class_ids_of(tmp_path / "a.png", mask.shape, labels), mask)
    classes = labels.to_classes(mask, "a.png")
    assert [int(classes[0, index]) for index in range(len(numbers))] == [*numbers[:-1], IGNORED]


@pytest.mark.parametrize("task", ["endoscopy", "microscopy"])
def test_shapes_in_the_transparency_of_a_mask_are_not_passed_over(task, tmp_path):
    """White everywhere, and seen where the shapes are: read as white, all of the picture would be one of them."""
    rgb = np.full((*SIZE, 3), 255, np.uint8)
    source = fill(tmp_path / "source", labels="masks/{}.png", label=lambda number: np.dstack([rgb, white(number)]))
    assert problems(source, task).count("has transparent pixels that are not black") == 5
    for number in range(5):
        save(source / "masks" / f"{number}.png", np.dstack([white(number) // 255] * 3 + [white(number)]))
    prepare_endoscopy(source, tmp_path / "made")
    (label,) = [item["label"] for item in load_datalist(tmp_path / "made", "test", check=False)]
    np.testing.assert_array_equal(read_classes(label), cells(int(Path(label).stem)) > 0)


@pytest.mark.parametrize(("change", "is_said"), [(str, False), (str.upper, False), (lambda name: f"my {name}", True)])
def test_other_classes_than_the_bundles_but_as_many_are_said(change, is_said, tmp_path, capsys):
    """The bundle's metadata would give them its names where the record of the training is lost."""
    names = ["background", *map(change, ENDOSCOPY_CLASSES[1:])]
    fill(tmp_path / "source")
    (tmp_path / "map.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    given = ["--source_dir", str(tmp_path / "source"), "--output_dir", str(tmp_path / "made")]
    assert main(["prepare", "endoscopy", *given, "--label_map", str(tmp_path / "map.json")]) == 0
    assert ("predict calls them by the bundle's names" in capsys.readouterr().out) == is_said
