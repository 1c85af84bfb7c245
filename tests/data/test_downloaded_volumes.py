# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""CHAOS and TotalSegmentator as they are downloaded: labels in pieces become volumes of classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_slice
from PIL import Image
from volume_datasets import SHAPE, classes, noise, save

from swinumamba_monai.data.datalist import load_class_names, load_datalist
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.files.volumes import read_volume, read_volume_label
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri


def chaos(folder, patients=5):
    gray = np.array([0, 63, 126, 189, 252], np.uint8)
    for patient in range(1, patients + 1):
        for sequence, phases in (("T2SPIR", [""]), ("T1DUAL", ["InPhase", "OutPhase"])):
            place = folder / "Train_Sets" / "MR" / str(patient) / sequence
            (place / "Ground").mkdir(parents=True)
            for number in range(3):
                label = gray[np.random.default_rng(number).integers(0, 5, (16, 24))]
                Image.fromarray(label).save(place / "Ground" / f"IMG-{number:05d}.png")
                for phase in phases:
                    (place / "DICOM_anon" / phase).mkdir(parents=True, exist_ok=True)
                    # from the feet upwards, and the numbers of the files from the head downwards
                    position = (2 - number) * 4 * np.array([0, 0.6, 0.8])
                    write_slice(place / "DICOM_anon" / phase / f"IMG-{number:05d}.dcm", noise(16, 24), position, number)
    return folder


@pytest.mark.parametrize(("series", "part"), [(None, "T2SPIR"), ("InPhase", "T1DUAL/DICOM_anon/InPhase")])
def test_chaos(series, part, tmp_path):
    report = prepare_abdomen_mri(chaos(tmp_path / "chaos"), tmp_path / "out", PrepareOptions(series=series))
    assert sum(report.sizes.values()) == 5
    assert any("alone is used" in warning for warning in report.warnings)
    assert load_class_names(tmp_path / "out") == ["background", "liver", "right kidney", "left kidney", "spleen"]
    (item, *_) = load_datalist(tmp_path / "out", "training")
    assert part in item["image"] and Path(item["label"]).name.startswith("chaos_")
    ids, affine = read_volume_label(item["label"])
    np.testing.assert_allclose(affine, read_volume(item["image"])[1], atol=1e-5)
    for number in range(3):
        np.testing.assert_array_equal(ids[..., 2 - number].T, np.random.default_rng(number).integers(0, 5, (16, 24)))


def test_chaos_whose_numbers_were_padded_in_one_place_alone(tmp_path):
    """Slice 10 comes after slice 9, however both are written."""
    for patient in range(1, 4):
        place = tmp_path / "MR" / str(patient) / "T2SPIR"
        for folder in ("Ground", "DICOM_anon"):
            (place / folder).mkdir(parents=True)
        for number in range(8, 12):
            label = np.full((16, 24), 63 * (number - 7), np.uint8)
            Image.fromarray(label).save(place / "Ground" / f"IMG-{number:05d}.png")
            position = number * 4 * np.array([0, 0.6, 0.8])
            write_slice(place / "DICOM_anon" / f"IMG-{number}.dcm", noise(16, 24), position, number)
    prepare_abdomen_mri(tmp_path, tmp_path / "out")
    (item, *_) = load_datalist(tmp_path / "out", "training")
    assert read_volume_label(item["label"])[0][0, 0].tolist() == [1, 2, 3, 4]


def test_chaos_with_classes_of_ones_own(tmp_path):
    labels = LabelMap(("background", "kidneys"), ((0,), (1,)))
    with pytest.raises(InputError, match="has kidneys, which is no structure of this dataset"):
        prepare_abdomen_mri(chaos(tmp_path / "chaos"), tmp_path / "out", label_map=labels)
    labels = LabelMap.of_names(["background", "spleen", "Liver"])
    prepare_abdomen_mri(tmp_path / "chaos", tmp_path / "out", label_map=labels)
    (item, *_) = load_datalist(tmp_path / "out", "training")
    expected = np.array([0, 2, 0, 0, 1])[np.random.default_rng(2).integers(0, 5, (16, 24))]
    np.testing.assert_array_equal(read_volume_label(item["label"])[0][..., 0].T, expected)


def test_totalsegmentator(tmp_path):
    source = tmp_path / "Totalsegmentator_dataset"
    for number in range(5):
        subject = source / f"s{number:04d}"
        save(subject / ("mri.nii.gz" if number % 2 else "ct.nii.gz"), noise(*SHAPE))
        for index, structure in enumerate(("aorta", "liver", "kidney_right"), start=1):
            save(subject / "segmentations" / f"{structure}.nii.gz", (classes(range(4)) == index).astype(np.uint8))
    rows = [f"s{number:04d};{part}" for number, part in enumerate(("train", "train", "train", "val", "test"))]
    (source / "meta.csv").write_text("\n".join(["image_id;split", *rows]), encoding="utf-8-sig")
    report = prepare_abdomen_mri(source, tmp_path / "out")
    assert tuple(report.sizes.values()) == (3, 1, 1)
    assert load_class_names(tmp_path / "out") == ["background", "aorta", "kidney_right", "liver"]
    prepare_abdomen_mri(source, tmp_path / "two", label_map=LabelMap.of_names(["background", "Liver", "Right kidney"]))
    (item,) = load_datalist(tmp_path / "two", "test")
    np.testing.assert_array_equal(read_volume_label(item["label"])[0], np.array([0, 0, 1, 2])[classes(range(4))])
    with pytest.raises(InputError, match="Totalsegmentator_dataset has them: give that folder"):
        prepare_abdomen_mri(tmp_path, tmp_path / "other")
    shutil.rmtree(source / "s0001" / "segmentations")
    save(source / "s0002" / "segmentations" / "liver.nii.gz", np.zeros(SHAPE, np.uint8), np.eye(4))
    report = prepare_abdomen_mri(source, tmp_path / "other", PrepareOptions(skip_bad=True))
    assert sum(report.sizes.values()) == 3
    assert report.warnings == []
    assert [problem.removeprefix(str(source)) for problem in report.problems] == [
        "/s0001/mri.nii.gz has no segmentations beside it.", "/s0002 has masks on several grids; replace liver.nii.gz.",
    ]  # fmt: skip


def test_totalsegmentator_where_something_is_to_be_chosen(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / f"s{number}" / "ct.nii.gz", noise(*SHAPE))
        save(source / f"s{number}" / "segmentations" / "liver.nii.gz", classes((0, 1)))
    save(source / "s3" / "mri.nii.gz", noise(*SHAPE))
    (source / "meta.csv").write_text("image_id,split\ns0,train\ns1,val\ns2,test", encoding="utf-8")
    both, split = prepare_abdomen_mri(source, tmp_path / "out").warnings
    assert "of 1 subjects" in both and "mri.nii.gz is taken, and not ct.nii.gz" in both
    assert "meta.csv has no columns image_id and split" in split
    (source / "meta.csv").write_bytes("image_id;split;institute\ns0;train;Zürich".encode("latin-1"))
    with pytest.raises(InputError, match=r"meta\.csv cannot be read .*save it in UTF-8"):
        prepare_abdomen_mri(source, tmp_path / "other")
