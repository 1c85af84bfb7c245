# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes of every layout are checked, divided and described; labels get the class numbers; originals stay."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from volume_datasets import AFFINE, LABELS, save

from swinumamba_monai.data.datalist import load_class_names, load_datalist
from swinumamba_monai.data.files.label_map import ABDOMEN_CLASSES, LabelMap, parse_label_map
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

SHARED = Path(__file__).parents[3] / "shared" / "data" / "abdomen_mri"


def save_pair(image, label, shape=(8, 9, 4), classes=(0, 1, 2), affine=AFFINE):
    """A volume, and a label volume that has each of the classes."""
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    save(image, voxels, affine)
    save(label, np.resize(np.array(classes, dtype=np.uint8), shape), affine)


@pytest.fixture
def source(tmp_path):
    """Six volumes in two folders, two of them in another orientation."""
    folder = tmp_path / "source"
    for index in range(6):
        turned = AFFINE if index % 3 else AFFINE[[1, 0, 2, 3]] * [[-1], [1], [1], [1]]
        name = f"case_{index}.nii.gz"
        save_pair(folder / "images" / name, folder / "labels" / name, affine=turned)
    return folder


def names(folder, section):
    return [Path(item["image"]).name.split(".")[0] for item in load_datalist(folder, section)]


def test_plain_folders(source, tmp_path):
    (source / "split.json").write_text(json.dumps({"train": ["case_0", "case_1", "case_2"], "test": ["case_5"]}))
    report = prepare_abdomen_mri(source, tmp_path / "out", PrepareOptions(val_fraction=0.3), LABELS)
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (2, 1, 1)
    assert "2 images are in no section" in report.warnings[0]
    assert names(tmp_path / "out", "test") == ["case_5"]
    assert load_class_names(tmp_path / "out") == list(LABELS.names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["datalist.json", "fingerprint.json"]
    items = load_datalist(tmp_path / "out", "training")
    assert all(Path(item[key]).is_relative_to(source) for item in items for key in item)
    prints = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert prints["task"] == "abdomen_mri" and prints["cases"] == 3
    assert set(prints["orientations"]) == {"RAS", "ALS"} and prints["spacing_median"] == [1.5, 1.5, 6.0]


def decathlon(folder, suffix, parts=("Tr",), first=1, labels=None):
    for part in parts:
        for index in range(first, first + 4):
            name = f"{part.lower()}_{index:04d}" if not suffix.startswith("amos") else f"amos_{index:04d}"
            channel = "_0000" if suffix == "nnunet" else ""
            save_pair(folder / f"images{part}" / f"{name}{channel}.nii.gz", folder / f"labels{part}" / f"{name}.nii.gz")
        first += 4
    (folder / "dataset.json").write_text(json.dumps({"labels": labels or {"0": "background", "1": "a", "2": "b"}}))


def test_nnunet_layout(tmp_path):
    decathlon(tmp_path / "source", "nnunet", ("Tr", "Ts"), labels={"background": 0, "liver": 1, "spleen": 2})
    report = prepare_abdomen_mri(tmp_path / "source", tmp_path / "out", PrepareOptions(val_fraction=0.25))
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (3, 1, 4)
    assert names(tmp_path / "out", "test") == [f"ts_000{number}_0000" for number in (5, 6, 7, 8)]
    assert load_class_names(tmp_path / "out") == ["background", "liver", "spleen"]
    for item in load_datalist(tmp_path / "out", "training"):
        assert Path(item["image"]).name.replace("_0000.nii", ".nii") == Path(item["label"]).name
    save_pair(tmp_path / "source/imagesTr/tr_0001_0001.nii.gz", tmp_path / "unused.nii.gz")
    with pytest.raises(InputError, match=r"tr_0001_0001\.nii\.gz is a further channel"):
        prepare_abdomen_mri(tmp_path / "source", tmp_path / "other")


def test_decathlon_layout(tmp_path):
    source = tmp_path / "source"
    decathlon(source, "msd")
    save(source / "imagesTs" / "x.nii.gz", np.zeros((8, 9, 4), dtype=np.int16))
    report = prepare_abdomen_mri(source, tmp_path / "out")
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (2, 1, 1)
    assert any("imagesTs is not used" in warning for warning in report.warnings)
    assert load_class_names(tmp_path / "out") == ["background", "a", "b"]


def test_amos_layout(tmp_path):
    """Numbers from 501 are MRI; the names in dataset.json give the paper's order, and the rest is background."""
    source = tmp_path / "source"
    organs = [*reversed(ABDOMEN_CLASSES[1:]), "bladder"]
    decathlon(source, "amos", ("Tr", "Va"), 499, {"0": "background", **{str(i): o for i, o in enumerate(organs, 1)}})
    for label in (source / "labelsTr").iterdir():
        save(label, np.resize(np.array([0, 1, 13, 14], dtype=np.uint8), (8, 9, 4)))
    report = prepare_abdomen_mri(source, tmp_path / "out", PrepareOptions(test_fraction=0.5))
    assert report.sizes["training"] == report.sizes["test"] == 1 and report.sizes["validation"] == 4
    assert any("2 CT volumes" in warning for warning in report.warnings)
    assert load_class_names(tmp_path / "out") == list(ABDOMEN_CLASSES)
    (item,) = load_datalist(tmp_path / "out", "training")
    assert Path(item["label"]).parent == tmp_path / "out" / "labels" and Path(item["image"]).is_relative_to(source)
    classes = np.asarray(nib.load(item["label"]).dataobj)
    np.testing.assert_array_equal(classes.ravel()[:4], [0, 13, 1, 0])  # left kidney is their 1 here, liver 13
    np.testing.assert_allclose(nib.load(item["label"]).affine, AFFINE)


def test_numbers_of_a_label_map_become_classes(source, tmp_path):
    labels = parse_label_map({"background": 0, "spleen": 2, "liver": 1}, "it")
    prepare_abdomen_mri(source, tmp_path / "out", label_map=labels)
    item = load_datalist(tmp_path / "out", "training")[0]
    original = source / "labels" / Path(item["label"]).name
    swapped = np.array([0, 2, 1])[np.asarray(nib.load(original).dataobj)]
    np.testing.assert_array_equal(np.asarray(nib.load(item["label"]).dataobj), swapped)
    with pytest.raises(InputError, match="is another label"):
        prepare_abdomen_mri(source, source, label_map=labels)
    assert load_decathlon_datalist(tmp_path / "out" / "datalist.json", data_list_key="test")


def test_every_problem_is_listed_and_nothing_written(source, tmp_path):
    shape = (8, 9, 4)
    images, labels = source / "images", source / "labels"
    save(labels / "case_0.nii.gz", np.full(shape, 7, dtype=np.uint8), nib.load(images / "case_0.nii.gz").affine)
    save(labels / "case_1.nii.gz", np.ones(shape, dtype=np.uint8), AFFINE + np.diag([0.1, 0, 0, 0]))
    save(images / "case_2.nii.gz", np.ones((*shape, 3), dtype=np.int16))
    save(labels / "case_3.nii.gz", np.ones((8, 9, 5), dtype=np.uint8))
    file = images / "case_4.nii.gz"
    file.write_bytes(file.read_bytes()[:100])
    save_pair(images / "thin.nii.gz", tmp_path / "unused.nii.gz")
    expected = {
        "case_0": "has the label ids 7, but the classes have 0, 1, 2",
        "case_1": "lies elsewhere than its image case_1.nii.gz: the affines differ, and corners are 0.70 mm apart",
        "case_2": "4 dimensions (8, 9, 4, 3)",
        "case_3": "(8, 9, 5) voxels",
        "case_4": "cannot be decoded",
        "thin": "has no label",
    }
    with pytest.raises(InputError) as error:
        prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    _, *lines = str(error.value).splitlines()
    assert len(lines) == 6
    for name, words in expected.items():
        assert sum(name in line and words in line for line in lines) == 1, lines
    assert not (tmp_path / "out").exists()


def test_small_differences_of_affines_are_rounding(source, tmp_path):
    for file in (source / "labels").iterdir():
        image = nib.load(file)
        save(file, np.asarray(image.dataobj), image.affine + 1e-4)
    assert prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS).problems == []


def test_odd_volumes_are_used_with_a_warning(source, tmp_path):
    save_pair(source / "images" / "thin.nii.gz", source / "labels" / "thin.nii.gz", shape=(8, 9, 1))
    empty = source / "labels" / "case_1.nii.gz"
    save(empty, np.zeros((8, 9, 4), dtype=np.uint8))
    report = prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    assert any("thin.nii.gz has one slice only" in warning for warning in report.warnings)
    assert any("case_1.nii.gz has background only" in warning for warning in report.warnings)
    assert report.sizes["training"] + report.sizes["validation"] + report.sizes["test"] == 7


def test_labels_without_any_class_are_refused(source, tmp_path):
    for file in (source / "labels").iterdir():
        save(file, np.zeros((8, 9, 4), dtype=np.uint8), nib.load(file).affine)
    with pytest.raises(InputError, match="nothing but background"):
        prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)


def test_numbers_without_a_map_are_the_organs_of_the_paper(source, tmp_path):
    report = prepare_abdomen_mri(source, tmp_path / "out")
    assert any("1 is taken for liver" in warning for warning in report.warnings)
    assert any("no training image has spleen" in warning for warning in report.warnings)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no known layout"):
        prepare_abdomen_mri(tmp_path / "bare", tmp_path / "out")
    (source / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json cannot be read"):
        prepare_abdomen_mri(source, tmp_path / "other")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
def test_real_data(tmp_path):
    labels = LabelMap.of_names(["background", "liver", "right kidney", "left kidney", "spleen"])
    report = prepare_abdomen_mri(SHARED, tmp_path / "chaos", label_map=labels)
    assert (report.sizes["training"], report.sizes["validation"], report.sizes["test"]) == (10, 1, 3)
    assert report.problems == report.warnings == []
    assert report.fingerprint["spacing_median"] == pytest.approx([1.25, 1.25, 7.7], abs=1e-3)  # SOURCES.md
