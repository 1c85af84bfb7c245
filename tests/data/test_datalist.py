# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A datalist gives its files and no others, and bad files are found before the training."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from monai.data import load_decathlon_datalist
from PIL import Image

from swinumamba_monai.data.datalist import load_datalist, write_datalist
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.listing import load_images
from swinumamba_monai.data.prepare.inspection import check_pairs, inspect_cells, inspect_frames
from swinumamba_monai.errors import InputError


def save_pair(folder, name, size=(6, 8), cells=2):
    """An image and a label with ``cells`` one-pixel cells; the item that names them."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    label = np.zeros(size, dtype=np.uint16)
    label[0, ::2][:cells] = np.arange(1, cells + 1)
    Image.fromarray(np.full(size, 9, dtype=np.uint8)).save(folder / "images" / f"{name}.png")
    Image.fromarray(label).save(folder / "labels" / f"{name}.png")
    return {"image": f"images/{name}.png", "label": f"labels/{name}.png"}


@pytest.fixture
def dataset(tmp_path):
    """A dataset with 2 training, 1 validation and 1 test images."""
    names = {"training": "ba", "validation": "c", "test": "d"}
    sections = {section: [save_pair(tmp_path, name) for name in names[section]] for section in names}
    write_datalist(tmp_path, sections, "four images")
    return tmp_path


def test_what_is_written_is_loaded(dataset):
    items = load_datalist(dataset, "training")
    assert [Path(item["image"]).stem for item in items] == ["b", "a"]
    assert items[0]["label"] == str(dataset / "labels" / "b.png")
    assert len(load_datalist(str(dataset), "validation")) == len(load_datalist(dataset, "test")) == 1
    assert items == load_decathlon_datalist(dataset / "datalist.json", data_list_key="training")
    assert sorted(path.name for path in dataset.iterdir()) == ["datalist.json", "images", "labels"]


def test_images_and_labels_may_be_elsewhere(dataset, tmp_path):
    other = tmp_path / "prepared"
    (other / "made").mkdir(parents=True)
    (dataset / "labels" / "a.png").rename(other / "made" / "a.png")
    item = {"image": "images/a.png", "label": "made/a.png"}
    write_datalist(other, {"training": [item], "validation": [], "test": []}, "", str(dataset), label_dir=".")
    assert load_datalist(other, "training") == [
        {"image": str(dataset / "images" / "a.png"), "label": str(other / "made" / "a.png")}
    ]


def test_other_datalists_are_not_overwritten(dataset):
    sections = json.loads((dataset / "datalist.json").read_text())
    write_datalist(dataset, sections, "four images")
    with pytest.raises(InputError, match="other data"):
        write_datalist(dataset, {**sections, "test": []}, "four images")
    assert len(load_datalist(dataset, "test")) == 1


@pytest.mark.parametrize("bad", ["/etc/passwd", "../a.png", "images/../../a.png", "link.png", "linked/a.png"])
def test_paths_that_leave_the_folder_are_refused(dataset, tmp_path_factory, bad):
    outside = tmp_path_factory.mktemp("outside")
    save_pair(outside, "a")
    (dataset / "link.png").symlink_to(outside / "images" / "a.png")
    (dataset / "linked").symlink_to(outside / "images")
    for key in ("image", "label"):
        content = json.loads((dataset / "datalist.json").read_text())
        content["training"][1][key] = bad
        (dataset / "datalist.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="outside"):
            load_datalist(dataset, "training", check=False)


def test_links_inside_and_to_the_folder_are_fine(dataset, tmp_path):
    (dataset / "images" / "a.png").rename(dataset / "images" / "real.png")
    (dataset / "images" / "a.png").symlink_to("real.png")
    (tmp_path / "shortcut").symlink_to(dataset)
    items = load_datalist(tmp_path / "shortcut", "training")
    assert items[1]["image"] == str(dataset / "images" / "real.png")


def test_missing_datasets_and_sections_say_what_to_do(dataset, tmp_path):
    for folder in (tmp_path / "nowhere", dataset / "images"):
        with pytest.raises(InputError, match="python -m swinumamba_monai prepare TASK"):
            load_datalist(folder, "training")
    for may_be_empty in (False, True):
        with pytest.raises(InputError, match="training, validation, test"):
            load_datalist(dataset, "train", may_be_empty=may_be_empty)


def test_a_section_may_be_empty_where_that_is_said(tmp_path):
    write_datalist(tmp_path, {"training": [save_pair(tmp_path, "a")], "validation": [], "test": []}, "one image")
    assert load_datalist(tmp_path, "test", may_be_empty=True) == []
    with pytest.raises(InputError, match="has no 'test' images"):
        load_datalist(tmp_path, "test")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"training": [1]}', '{"training": [{"image": "a.png"}]}', '{"training": 3}']
)
def test_broken_datalists_are_refused(tmp_path, text):
    (tmp_path / "datalist.json").write_text(text)
    with pytest.raises(InputError, match=r"datalist\.json is not a datalist"):
        load_datalist(tmp_path, "training")


def test_check_pair_names_the_problem(tmp_path):
    item = save_pair(tmp_path, "a")
    image, label = tmp_path / item["image"], tmp_path / item["label"]
    assert inspect_cells(image, label).problem is None
    nan = np.zeros((6, 8), dtype=np.float32)
    nan[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", nan)
    Image.fromarray(np.full((6, 8, 3), (9, 0, 0), dtype=np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((8, 6), dtype=np.uint8)).save(tmp_path / "turned.png")
    (tmp_path / "half.png").write_bytes(image.read_bytes()[:40])
    for bad_image, words in (("nan.tif", "NaN"), ("half.png", "cannot be decoded"), ("no.png", "does not exist")):
        problem = inspect_cells(tmp_path / bad_image, label).problem
        assert words in problem and bad_image in problem
    for bad_label, words in (("rgb.png", "3 channels"), ("turned.png", "(8, 6)"), ("half.png", "cannot be decoded")):
        problem = inspect_cells(image, tmp_path / bad_label).problem
        assert words in problem and bad_label in problem


def test_bad_pairs_are_all_named_or_left_out(dataset, caplog):
    for name in "abc":
        (dataset / "images" / f"{name}.png").unlink()
    with pytest.raises(InputError) as error:
        load_datalist(dataset, "training")
    bad = [name for name in "abc" if f"{name}.png does not exist" in str(error.value)]
    assert len(bad) == str(error.value).count("does not exist") > 1
    with pytest.raises(InputError, match="nothing that can be used"):
        load_datalist(dataset, "training", skip_bad=True)
    assert len(load_datalist(dataset, "training", check=False)) == len(bad)
    (dataset / "images" / f"{bad[0]}.png").write_bytes((dataset / "images" / "d.png").read_bytes())
    with caplog.at_level(logging.INFO):
        items = load_datalist(dataset, "training", skip_bad=True)
    assert [Path(item["image"]).stem for item in items] == bad[:1] and len(items.bad) == len(bad) - 1
    assert f"1 taken from the training section of {dataset}; not taken: {len(bad) - 1} bad" in caplog.text
    with pytest.raises(InputError, match=f"{bad[1]}.png does not exist"):
        items.finish()


def test_odd_labels_are_only_logged(tmp_path, caplog):
    items = [save_pair(tmp_path, "full"), save_pair(tmp_path, "empty", cells=0), save_pair(tmp_path, "binary")]
    binary = np.zeros((6, 8), dtype=np.uint8)
    binary[[0, 3], [0, 5]] = 255
    Image.fromarray(binary).save(tmp_path / "labels" / "binary.png")
    items = [{key: str(tmp_path / path) for key, path in item.items()} for item in items]
    with caplog.at_level(logging.WARNING):
        assert check_pairs(items[:1], inspect_cells) == [None]
        assert not caplog.records
        check_pairs(items[:2], inspect_cells)
        assert "1 of 2" in caplog.text and "empty.png has no cell" in caplog.text
        check_pairs(items[2:], inspect_cells)
        assert "binary.png has one number for 2 pieces" in caplog.text


def classes() -> np.ndarray:
    """Two cells of class 1 and two of class 2."""
    label = np.zeros((64, 64), np.uint16)
    label[5:10, 5:10] = label[25:30, 5:10] = 1
    label[5:10, 40:45] = label[40:45, 40:45] = 2
    return label


def scattered() -> np.ndarray:
    """Five cells, the last in sixteen pieces."""
    label = np.zeros((64, 64), np.uint16)
    label[1, 1:60:16] = np.arange(1, 5)
    label[20::11, ::16] = 5
    return label


@pytest.mark.parametrize(
    ("label", "warning"),
    [
        (classes(), "2 numbers for 4 pieces, like a mask of classes"),
        (scattered(), "16 pieces of the number 5"),
        (np.where(classes() > 0, np.arange(64 * 64).reshape(64, 64), 255), "no 0, and 255 covers over half"),
        (np.full((8, 8), 7), "no 0, and 7 covers over half"),
        (np.pad(np.full((50, 50), 7), ((0, 10), (0, 10))), "one cell, 7, over half of the image"),
        (np.eye(64, dtype=int) * np.arange(1, 65), None),
        (np.eye(64, dtype=int), None),
        (np.arange(64 * 64).reshape(64, 64) // 8, None),
    ],
    ids=["classes", "scattered", "background 255", "background 7", "half", "diagonal cells", "diagonal", "no gaps"],
)
def test_maps_that_are_not_of_cells(tmp_path, label, warning):
    tifffile.imwrite(tmp_path / "label.tif", label.astype(np.uint16))
    tifffile.imwrite(tmp_path / "image.tif", np.zeros(label.shape, np.uint8))
    found = inspect_cells(tmp_path / "image.tif", tmp_path / "label.tif")
    assert found.problem is None
    assert found.num_instances == np.count_nonzero(np.unique(label))
    assert found.warning is None if warning is None else warning in found.warning


@pytest.mark.parametrize("inspect", [inspect_cells, lambda *pair: inspect_frames(*pair, LabelMap.of_names("ab"))])
def test_labels_in_a_jpeg_are_refused(tmp_path, inspect):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    assert "is a JPEG, which does not keep" in inspect(tmp_path / "a.jpg", tmp_path / "a.jpg").problem


def test_images_for_inference(dataset, tmp_path):
    assert load_images(dataset) == [{"image": str(dataset / "images" / "d.png")}]
    folder = dataset / "images"
    (folder / "notes.txt").write_text("")
    (folder / "._a.png").write_bytes(b"")
    (folder / "e.TIFF").write_bytes(b"")
    assert [Path(item["image"]).name for item in load_images(folder)] == ["a.png", "b.png", "c.png", "d.png", "e.TIFF"]
    assert load_images(folder / "a.png") == [{"image": str(folder / "a.png")}]
    (tmp_path / "bare").mkdir()
    for path in (tmp_path / "bare", folder / "notes.txt"):
        with pytest.raises(InputError, match="no image that can be read"):
            load_images(path)
    (tmp_path / "bare" / "day1").mkdir()
    (tmp_path / "bare" / "a.czi").write_bytes(b"")
    with pytest.raises(InputError, match=r"read here, but 1 \.czi files \(a\.czi\), 1 subfolders \(day1\); use"):
        load_images(tmp_path / "bare")
    with pytest.raises(InputError, match="does not exist"):
        load_images(tmp_path / "nowhere")


def test_the_number_of_classes_is_checked_first(dataset, tmp_path):
    folder = tmp_path / "classes"
    folder.mkdir()
    sections = {"training": [{"image": "a.png", "label": "b.png"}], "validation": [], "test": []}
    write_datalist(folder, sections, "", task="endoscopy", class_names=["background", "shaft", "tip"])
    assert len(load_datalist(folder, "training", check=False, num_classes=3)) == 1
    with pytest.raises(InputError, match=r"3 classes \(background, shaft, tip\).*give --num_classes 3"):
        load_datalist(folder, "training", num_classes=8)
    assert len(load_datalist(dataset, "training", num_classes=3)) == 2  # cells have no names of classes
