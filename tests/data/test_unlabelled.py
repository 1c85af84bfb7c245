# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which images a pretraining sees: none that a later test is made on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from swinumamba_monai.data import load_volumes, synthesize_microscopy
from swinumamba_monai.data.files.images import ImageFileReader
from swinumamba_monai.data.sampling.unlabelled import load_unlabelled
from swinumamba_monai.errors import InputError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cells"
    return synthesize_microscopy(folder, num_train=3, num_validation=2, num_test=2, image_size=(64, 64))


def folder_of(count: int, folder: Path) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def names(items: list[dict[str, str]]) -> list[str]:
    assert all(item.keys() == {"image"} and Path(item["image"]).exists() for item in items)
    return [Path(item["image"]).name for item in items]


@pytest.mark.parametrize("section", ["training", "validation"])
def test_section_of_a_prepared_dataset(section, prepared):
    expected = json.loads((prepared / "datalist.json").read_text())[section]
    assert names(load_unlabelled(prepared, section)) == [Path(item["image"]).name for item in expected]


def test_labels_need_not_be_there(prepared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    shutil.rmtree(copy / "labels")
    assert names(load_unlabelled(copy, "training")) == names(load_unlabelled(prepared, "training"))


def test_extra_images(prepared, tmp_path):
    extra = folder_of(2, tmp_path / "extra")
    own = names(load_unlabelled(prepared, "training"))
    assert names(load_unlabelled(prepared, "training", extra)) == [*own, "00.png", "01.png"]
    assert names(load_unlabelled(prepared, "validation", extra)) == names(load_unlabelled(prepared, "validation"))


def test_extra_images_leave_out_what_is_held_out(prepared):
    """A challenge's folder of all images holds the validation and test images too."""
    assert load_unlabelled(prepared, "training", prepared / "images") == load_unlabelled(prepared, "training")


def test_what_is_held_out_must_be_readable(prepared, tmp_path):
    """Else images of a section that cannot be read would be trained on."""
    content = json.loads((prepared / "datalist.json").read_text())
    (copy := tmp_path / "copy").mkdir()
    for section, words in (([{"image": "images/a.txt", "label": ""}], "no image"), ([{"image": "a.png"}], "KeyError")):
        (copy / "datalist.json").write_text(json.dumps({**content, "source_dir": str(prepared), "test": section}))
        with pytest.raises(InputError, match=words):
            load_unlabelled(copy, "training", prepared / "images")
    (copy / "datalist.json").write_text(json.dumps({**content, "source_dir": str(prepared), "test": []}))
    assert len(load_unlabelled(copy, "training", prepared / "images")) == 3 + 2


def test_extra_prepared_dataset(prepared, tmp_path):
    other = synthesize_microscopy(
        tmp_path / "other", num_train=2, num_validation=1, num_test=1, image_size=(64, 64), seed=1
    )
    expected = load_unlabelled(prepared, "training") + load_unlabelled(other, "training")
    assert load_unlabelled(prepared, "training", other) == expected


@pytest.mark.parametrize("count, held_out", [(10, ["00.png"]), (21, ["00.png", "10.png", "20.png"])])
def test_folder_is_split(count, held_out, tmp_path):
    folder = folder_of(count, tmp_path / "images")
    training, validation = (names(load_unlabelled(folder, section)) for section in ("training", "validation"))
    assert validation == held_out
    assert sorted(training + validation) == [f"{i:02d}.png" for i in range(count)]
    assert names(load_unlabelled(folder, "training", folder)) == training
    with pytest.raises(InputError, match="no section 'test'; choose from training, validation"):
        load_unlabelled(folder, "test")


def test_few_images_are_trained_and_validated_on(tmp_path, caplog):
    folder = folder_of(3, tmp_path / "images")
    assert load_unlabelled(folder, "training") == load_unlabelled(folder, "validation")
    assert caplog.text.count("only 3 images to pretrain on") == 1


@pytest.mark.parametrize("where", ["dataset_dir", "extra_image_dir"])
def test_no_images(where, prepared, tmp_path):
    folders = (tmp_path, None) if where == "dataset_dir" else (prepared, tmp_path)
    with pytest.raises(InputError, match="has no image"):
        load_unlabelled(folders[0], "training", folders[1])


def test_volumes(tmp_path):
    """Files and DICOM series, whose names for inference no reader of files knows."""
    folder = tmp_path / "volumes"
    (folder / "1.2.3").mkdir(parents=True)
    (folder / "1.2.3" / "a.dcm").write_bytes(bytes(128) + b"DICM")
    for number in range(10):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), folder / f"{number}.nii.gz")
    training, validation = (load_unlabelled(folder, s, list_folder=load_volumes) for s in ("training", "validation"))
    assert names(validation) == ["0.nii.gz", "9.nii.gz"] and len(training) == 9
    assert "1.2.3" in names(training) and all(Path(item["image"]).exists() for item in training)


def test_bad_images_are_left_out_of_both_sections(tmp_path, prepared):
    """Before the division, so that no section is emptied by them."""
    folder = folder_of(12, tmp_path / "images")
    for name in ("00.png", "05.png"):
        (folder / name).write_text("no image")
    with pytest.raises(InputError, match=r"2 problem.*\n.*00.png.*\n.*05.png"):
        load_unlabelled(folder, "training", reader=ImageFileReader)
    options = {"reader": ImageFileReader, "skip_bad": True}
    training, validation = (load_unlabelled(folder, section, **options) for section in ("training", "validation"))
    assert names(validation) == ["01.png"]
    assert names(training) == [f"{i:02d}.png" for i in (2, 3, 4, 6, 7, 8, 9, 10, 11)]
    with pytest.raises(InputError, match="all but 2 are done"):
        training.finish(validation)
    extra = load_unlabelled(prepared, "training", folder, **options)
    assert len(extra) == 3 + 10 and len(extra.bad) == 2
