# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Downloaded datasets of every layout are checked, divided and described, and nothing is written when they are bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import names, save

from swinumamba_monai.cli import main
from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.files.images import read_instances
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.microscopy import prepare_microscopy

SHARED = Path(__file__).parents[3] / "shared" / "data" / "microscopy"


def save_pair(image, label, size=(6, 8), cells=2):
    """An image file and a label file with ``cells`` one-pixel cells."""
    instances = np.zeros(size, dtype=np.uint16)
    instances[0, ::2][:cells] = np.arange(1, cells + 1)
    save(image, np.full(size, 9, dtype=np.uint8))
    save(label, instances)


@pytest.fixture
def source(tmp_path):
    """Twenty pairs in two folders, half of them of another size."""
    folder = tmp_path / "source"
    for index in range(20):
        name, size = f"cell_{index:02d}", (6, 8) if index < 10 else (12, 8)
        save_pair(folder / "images" / f"{name}.png", folder / "labels" / f"{name}.png", size)
    return folder


def write_split(source, **split):
    (source / "split.json").write_text(json.dumps(split))


def test_division_without_a_split(source, tmp_path):
    done = []
    report = prepare_microscopy(source, tmp_path / "out", PrepareOptions(progress=lambda *counts: done.append(counts)))
    assert report.sizes == {"training": 14, "validation": 2, "test": 4} and report.instances == 40
    assert report.fingerprint["sizes"] == {"6x8": 8, "12x8": 8}  # without the test images
    assert report.problems == report.warnings == []
    assert done == [(count, 20) for count in range(1, 21)]
    sections = [names(tmp_path / "out", section) for section in ("training", "validation", "test")]
    assert sorted(name for section in sections for name in section) == [f"cell_{index:02d}" for index in range(20)]
    for section, per_size in zip(sections, (7, 1, 2), strict=True):
        assert sum(name < "cell_10" for name in section) == per_size  # both sizes in proportion
    prepare_microscopy(source, tmp_path / "out")  # the same again is no conflict
    with pytest.raises(InputError, match="other data"):
        prepare_microscopy(source, tmp_path / "out", PrepareOptions(seed=1))


def test_the_split_is_kept(source, tmp_path):
    train, test = [f"cell_{index:02d}" for index in range(10)], ["cell_15", "cell_12"]
    write_split(source, seed=1, train=train, test=test)
    report = prepare_microscopy(source, source, PrepareOptions(val_fraction=0.2))
    assert names(source, "test") == test
    assert (report.sizes["training"], report.sizes["validation"]) == (8, 2)
    assert sorted(names(source, "training") + names(source, "validation")) == train
    assert "8 images are in no section" in report.warnings[0]
    assert json.loads((source / "datalist.json").read_text())["source_dir"] == "."
    write_split(source, train=train[:3], val=train[3:5], test=test)
    prepare_microscopy(source, tmp_path / "out")
    assert names(tmp_path / "out", "validation") == train[3:5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"train": ["cell_00"], "test": ["cell_00"]}', "cell_00 twice"),
        (
            '{"train": ["cell_00"], "val": ["cell_01"], "validation": [], "test": ["cell_02"]}',
            "both val and validation",
        ),
        ('{"train": ["cell_00"]}', "needs the lists 'train' and 'test'"),
        ('{"train": ["cell_00", "cell_77"], "test": ["cell_01"]}', "names cell_77"),
        ('{"train": 3, "test": []}', "no lists of names"),
        ("{", "no lists of names"),
        ('{"train": ["cell_00", "cell_01"], "test": []}', "none for test"),
    ],
)
def test_bad_splits_are_refused(source, tmp_path, text, words):
    (source / "split.json").write_text(text)
    with pytest.raises(InputError) as error:
        prepare_microscopy(source, tmp_path / "out")
    assert "split.json" in str(error.value)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_problem_is_listed_and_nothing_written(source, tmp_path):
    (source / "labels" / "cell_00.png").unlink()
    (source / "images" / "cell_01.png").unlink()
    save(source / "labels" / "cell_02.png", np.zeros((5, 5), dtype=np.uint8))
    save(source / "labels" / "cell_03.png", np.full((6, 8, 3), (9, 0, 0), dtype=np.uint8))
    image = source / "images" / "cell_04.png"
    image.write_bytes(image.read_bytes()[:50])
    save(source / "labels" / "cell_05.png", np.zeros((6, 8), dtype=np.uint8))
    save(source / "images" / "cell_06.bmp", np.zeros((6, 8), dtype=np.uint8))
    (source / "images" / "cell_07.png").unlink()
    (source / "images" / "cell_07.png").symlink_to(tmp_path / "elsewhere.png")
    expected = {
        "cell_00.png has no label",
        "cell_01.png has no image",
        "cell_02.png has (5, 5) pixels",
        "cell_03.png has 3 channels",
        "cell_04.png cannot be decoded",
        "has the name of",
        "cell_07.png or its label is a link out of",
    }
    with pytest.raises(InputError) as error:
        prepare_microscopy(source, tmp_path / "out")
    first, *lines = str(error.value).splitlines()
    assert f"{source} has 7 problem(s)" in first
    assert all(sum(words in line for line in lines) == 1 for words in expected) and len(lines) == 7
    assert not (tmp_path / "out").exists()

    report = prepare_microscopy(source, tmp_path / "out", PrepareOptions(skip_bad=True))
    assert report.sizes["training"] + report.sizes["validation"] + report.sizes["test"] == 20 - 6
    assert sorted(report.problems) == sorted(lines)
    assert len(report.warnings) == 1 and "cell_05.png has no cell" in report.warnings[0]
    bad = {"cell_00", "cell_01", "cell_02", "cell_03", "cell_04", "cell_07"}
    assert not bad & {
        name for section in ("training", "validation", "test") for name in names(tmp_path / "out", section)
    }


@pytest.mark.parametrize("layout", ["two folders", "one folder"])
def test_neurips_layout(tmp_path, layout):
    source = tmp_path / "source"
    image_dir, label_dir = (source, source) if layout == "one folder" else (source / "images", source / "labels")
    for index in range(4):
        save_pair(image_dir / f"cell_{index}.bmp", label_dir / f"cell_{index}_label.tiff")
    report = prepare_microscopy(source, tmp_path / "out")
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (2, 1, 1)
    assert layout.replace("two folders", "folders") in report.layout
    for item in load_datalist(tmp_path / "out", "training"):
        assert item["label"] == str(label_dir / f"{Path(item['image']).stem}_label.tiff")


@pytest.fixture
def kaggle(tmp_path):
    """Four DSB-2018 images; the two masks of image ``c`` share a pixel."""
    source = tmp_path / "kaggle"
    for name in "abcd":
        save(source / name / "images" / f"{name}.png", np.full((4, 6, 4), 255, dtype=np.uint8))
        for number, window in enumerate((np.s_[:2, :3], np.s_[1:, 2:])):
            mask = np.zeros((4, 6), dtype=np.uint8)
            mask[window] = 255
            save(source / name / "masks" / f"mask{number}.png", mask)
    return source


def test_masks_become_instance_maps(kaggle, tmp_path):
    report = prepare_microscopy(kaggle, tmp_path / "out")
    assert report.sizes == {"training": 2, "validation": 1, "test": 1} and report.instances == 8
    assert "DSB-2018" in report.layout
    expected = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 2, 2, 2], [0, 0, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]]
    (item,) = load_datalist(tmp_path / "out", "test")
    np.testing.assert_array_equal(read_instances(item["label"]), expected)
    assert Path(item["label"]).parent == tmp_path / "out" / "labels"
    assert Path(item["image"]).parents[1].parent == kaggle
    prepare_microscopy(kaggle, tmp_path / "out")
    save(tmp_path / "taken" / "labels" / "a.png", np.zeros((4, 6), dtype=np.uint8))
    with pytest.raises(InputError, match=r"a\.png exists and is another label"):
        prepare_microscopy(kaggle, tmp_path / "taken")
    assert not (tmp_path / "taken" / "datalist.json").exists()


@pytest.mark.parametrize("mask", ["{}", "mask{}", "mask_{}", "{:03d}", "{name}_{}"])
@pytest.mark.parametrize("image", ["{}", "image{}", "image"])
def test_names_of_masks_that_agree_with_that_of_the_image(tmp_path, image, mask):
    """Each folder has an image and nine masks, of which one may have its name, or its number."""
    source = tmp_path / "source"
    for case in range(4):
        name = image.format(case)
        save(source / f"image{case}" / "images" / f"{name}.png", np.full((12, 12), 7, np.uint8))
        for number in range(9):
            cell = np.zeros((12, 12), np.uint8)
            row, column = divmod(number, 3)
            cell[4 * row : 4 * row + 3, 4 * column : 4 * column + 3] = 255
            save(source / f"image{case}" / "masks" / f"{mask.format(number, name=name)}.png", cell)
    report = prepare_microscopy(source, tmp_path / "out")
    assert sum(report.sizes.values()) == 4 and report.instances == 36
    for item in load_datalist(tmp_path / "out", "training"):
        numbers, sizes = np.unique(read_instances(item["label"]), return_counts=True)
        assert len(numbers) == 10 and set(sizes[1:]) == {9}


def test_masks_may_be_prepared_in_place(kaggle):
    for _ in range(2):
        prepare_microscopy(kaggle, kaggle)
    assert len(load_datalist(kaggle, "training")) == 2


def test_bad_masks_are_listed(kaggle, tmp_path):
    save(kaggle / "a" / "masks" / "mask1.png", np.zeros((4, 5), dtype=np.uint8))
    save(kaggle / "b" / "images" / "second.png", np.zeros((4, 6), dtype=np.uint8))
    for file in (kaggle / "c" / "masks").iterdir():
        file.unlink()
    with pytest.raises(InputError) as error:
        prepare_microscopy(kaggle, tmp_path / "out")
    for words in ("mask1.png is (4, 5)", "b has 2 images and 2 masks", "c has 1 images and 0 masks"):
        assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unusable_arguments_are_refused(source, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no known layout"):
        prepare_microscopy(tmp_path / "bare", tmp_path / "out")
    (tmp_path / "bare" / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=r"0 images and 0 masks were found, and besides 1 \.gif files \(a\.gif\)\)"):
        prepare_microscopy(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(InputError, match="not a folder"):
        prepare_microscopy(tmp_path / "nowhere", tmp_path / "out")
    for fractions in ({"val_fraction": 0.0}, {"test_fraction": 1.0}):
        with pytest.raises(InputError, match="between 0 and 1"):
            prepare_microscopy(source, tmp_path / "out", PrepareOptions(**fractions))
    for threshold in (0, -1, float("nan")):  # of which every pixel would be, or none
        with pytest.raises(InputError, match="mask_threshold must be a number above 0"):
            PrepareOptions(mask_threshold=threshold)
    with pytest.raises(InputError, match="no label_grid 'images'; choose from file, image"):
        PrepareOptions(label_grid="images")
    for index in range(2, 20):
        (source / "images" / f"cell_{index:02d}.png").unlink()
        (source / "labels" / f"cell_{index:02d}.png").unlink()
    with pytest.raises(InputError, match="2 usable images leave none for training"):
        prepare_microscopy(source, tmp_path / "out")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
def test_real_data(tmp_path):
    report = prepare_microscopy(SHARED, tmp_path / "dsb")
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (478, 53, 133)
    assert report.instances == 28986  # SOURCES.md of the data
    assert report.problems == []
    sample = prepare_microscopy(SHARED / "neurips22_sample", tmp_path / "neurips")
    assert sample.instances == 6 + 44 + 187


def test_what_is_odd_about_many_labels_is_one_line(tmp_path, capsys, caplog):
    """Masks of black and white, of which each is like one of classes, and outlines that lie under others."""
    for number in range(9):
        mask = np.zeros((9, 9), np.uint8)
        mask[: number % 3 * 2 + 3 : 2, 1] = 255
        save(tmp_path / "masks" / f"images/{number}.png", np.full((9, 9), 9, np.uint8))
        save(tmp_path / "masks" / f"labels/{number}.png", mask)
        save(tmp_path / "outlines" / f"images/{number}.png", np.full((9, 9), 9, np.uint8))
        square = {"type": "Polygon", "coordinates": [[[1, 1], [4, 1], [4, 4], [1, 4]]]}
        features = [{"type": "Feature", "geometry": square}] * 2
        (tmp_path / "outlines" / "labels").mkdir(exist_ok=True)
        (tmp_path / "outlines" / "labels" / f"{number}.geojson").write_text(json.dumps(features))
    for name, first in (
        ("masks", "0.png has one number for 2 pieces"),
        ("outlines", "0.geojson has 1 shapes that lie"),
    ):
        folder = str(tmp_path / name)
        assert main(["prepare", "microscopy", "--source_dir", folder, "--output_dir", f"{folder}/out"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
        assert first in line and "So it is with 8 others: " in line and line.endswith("and 5 more.")
    assert "lie under others" not in caplog.text
