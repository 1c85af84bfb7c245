# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with folders and names of 2-D datasets gets one sentence; names are compared as they look."""

from __future__ import annotations

import json
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import SIZE, cells, fill, problems, save
from PIL import Image

from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.files.images import read_instances
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy


def names(prepared: Path, part: str) -> list[str]:
    return sorted(Path(item["image"]).name for item in load_datalist(prepared, part, check=False))


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


def test_the_organs_of_the_dresden_dataset_are_no_one_class(tmp_path):
    for organ in ("liver", "small_intestine"):
        for patient in range(3):
            folder = tmp_path / "in" / "data" / organ / f"0{patient}"
            save(folder / "image00.png")
            save(folder / "mask00.png", (cells() > 0).astype(np.uint8) * 255)
    for given in (tmp_path / "in", tmp_path / "in" / "data"):
        assert f"give the folder of one, such as {tmp_path / 'in' / 'data' / 'liver'}." in problems(given, "endoscopy")
    report = prepare_endoscopy(tmp_path / "in" / "data" / "liver", tmp_path / "out")
    assert report.sizes == {"training": 1, "validation": 1, "test": 1}


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


def test_an_image_that_is_turned_and_the_masks_of_its_cells_not(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    for name in "ab":
        for number in (1, 2):
            save(tmp_path / "in" / name / "masks" / f"{number}.png", (cells() == number).astype(np.uint8) * 255)
        save(tmp_path / "in" / name / "images" / f"{name}.png", np.zeros(SIZE, np.uint8), exif=exif)
    assert "a.png is to be turned before it is seen" in problems(tmp_path / "in")


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
    (source / "labels" / "x.png").unlink()
    np.save(source / "labels" / "x.npy", cells())
    (source / "labels" / "y.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5")
    save(source / "images" / "y.png", np.zeros(SIZE, np.uint8), exif=exif)
    for name in ("x.png", "y.png"):  # whoever drew them may have seen the image as it is stored
        assert f"{name} is to be turned before it is seen" in problems(source)
    for name in ("images/y.png", "labels/y.txt", "labels/x.npy"):
        (source / name).unlink()
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
    source = fill(tmp_path / "source", labels="masks/{}.png")
    for number in range(5):
        (source / "masks" / f"{number}.png").unlink()
        (source / "masks" / f"{number}.geojson").write_text(json.dumps(geojson(cells(number))))
    for _ in range(2):
        assert prepare_microscopy(source, source).instances == 10
        assert len(list((source / "labels").iterdir())) == 5


def test_texts_beside_images_are_no_labels(tmp_path):
    for number in range(3):
        save(tmp_path / "source" / f"{number}.png")
        save(tmp_path / "source" / f"{number}_masks.png", cells(number))
        (tmp_path / "source" / f"{number}.txt").write_text("notes")
    assert sum(prepare_microscopy(tmp_path / "source", tmp_path / "out").sizes.values()) == 3
