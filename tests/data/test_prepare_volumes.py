# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Datasets of volumes as people have them: channels, folds, links, and labels that lie otherwise."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice
from scipy.spatial.transform import Rotation
from volume_datasets import AFFINE, LABELS, SHAPE, classes, noise, save

from swinumamba_monai.cli import main
from swinumamba_monai.data.datalist import has_ignored, load_class_names, load_datalist
from swinumamba_monai.data.files import grids
from swinumamba_monai.data.files.label_map import IGNORED, LabelMap
from swinumamba_monai.data.files.volumes import read_volume, read_volume_label
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import find_task
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri


def nnunet(folder, cases=5, channels=1, labels=None, numbers=(0, 1, 2), **about):
    for case in range(cases):
        for channel in range(channels):
            save(
                folder / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz", noise(*SHAPE, seed=channel) + 1000 * channel
            )
        save(folder / "labelsTr" / f"case_{case}.nii.gz", classes(numbers))
    about["labels"] = labels or {"background": 0, "liver": 1, "spleen": 2}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


# Channels


def test_channels_of_nnunet(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    source = nnunet(tmp_path / "source", channels=2)
    main(["prepare", "abdomen_mri", "--source_dir", str(source), "--output_dir", str(tmp_path / "out")])
    assert "--num_classes 3 --in_channels 2" in capsys.readouterr().out
    assert "5 taken" in caplog.text and "not taken: none" in caplog.text
    (item, *_) = load_datalist(tmp_path / "out", "training", channels=2)
    assert [Path(image).name[-12:] for image in item["image"]] == ["_0000.nii.gz", "_0001.nii.gz"]
    with pytest.raises(InputError, match=r"give --in_channels 2"):
        load_datalist(tmp_path / "out", "training")
    prints = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert [channel["median"] // 1000 for channel in prints["intensities"]] == [0, 1]
    (source / "imagesTr" / "case_1_0001.nii.gz").rename(source / "imagesTr" / "case_1_0002.nii.gz")
    with pytest.raises(InputError, match=r"1 problem.*\n.*case_1_0000\.nii\.gz has the further channels 0002, but"):
        prepare_abdomen_mri(source, tmp_path / "other")
    (source / "imagesTr" / "case_1_0002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case_1_0000\.nii\.gz has no further channel, but others have 2"):
        prepare_abdomen_mri(source, tmp_path / "other")


def test_channels_of_the_decathlon(tmp_path):
    source = tmp_path / "source"
    for case in range(5):
        save(source / "imagesTr" / f"p_{case}.nii.gz", noise(*SHAPE, 2))
        save(source / "labelsTr" / f"p_{case}.nii.gz", classes())
    about = {"labels": {"0": "background", "1": "a", "2": "b"}, "modality": {"0": "T2", "1": "ADC"}}
    (source / "dataset.json").write_text(json.dumps(about))
    prepare_abdomen_mri(source, tmp_path / "out")
    assert len(load_datalist(tmp_path / "out", "training", channels=2)) == 3
    (source / "dataset.json").write_text(json.dumps({**about, "modality": {"0": "T2"}}))
    with pytest.raises(InputError, match=r"4 dimensions \(8, 9, 4, 2\)"):
        prepare_abdomen_mri(source, tmp_path / "other")


# Labels


def test_ignored_voxels_are_no_class(tmp_path):
    source = nnunet(tmp_path / "source", labels={"background": 0, "liver": 1, "ignore": 2})
    report = prepare_abdomen_mri(source, tmp_path / "out")
    assert load_class_names(tmp_path / "out") == ["background", "liver"] and has_ignored(tmp_path / "out")
    assert list(report.fingerprint["classes"]) == ["background", "liver"]
    (item, *_) = load_datalist(tmp_path / "out", "training", num_classes=2)
    np.testing.assert_array_equal(read_volume_label(item["label"])[0], np.array([0, 1, IGNORED])[classes()])
    prepare_abdomen_mri(nnunet(tmp_path / "whole"), tmp_path / "plain")
    assert not has_ignored(tmp_path / "plain")


def test_255_is_a_wrong_number_where_nothing_is_ignored(tmp_path):
    source = nnunet(tmp_path / "source", numbers=(0, 1, IGNORED))
    with pytest.raises(InputError, match="label ids 255"):
        prepare_abdomen_mri(source, tmp_path / "out")


def test_labels_that_are_stored_otherwise_are_turned(tmp_path):
    """As dcm2niix stores them: rows from the other end, at the same place."""
    source = tmp_path / "source"
    for case in range(4):
        save(source / "images" / f"{case}.nii.gz", noise(*SHAPE))
        flipped = AFFINE @ [[1, 0, 0, 0], [0, -1, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1]]
        save(source / "labels" / f"{case}.nii.gz", classes()[:, ::-1], flipped)
    folder = source / "images" / "series"
    folder.mkdir()
    label = classes(shape=(24, 16, 4))  # columns, rows, slices
    for number in range(4):
        write_slice(folder / f"{number}.dcm", noise(16, 24), number * 4 * np.array([0, 0.6, 0.8]), number)
    _, affine = read_volume(folder)
    turned = np.transpose(label[:, ::-1], (2, 0, 1))
    to_series = np.array([[0, 1, 0, 0], [0, 0, -1, 15], [1, 0, 0, 0], [0, 0, 0, 1]])
    save(source / "labels" / "series.nii.gz", turned, affine @ to_series)
    report = prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    assert any("5 labels lie otherwise" in warning for warning in report.warnings)
    items = [
        item for section in ("training", "validation", "test") for item in load_datalist(tmp_path / "out", section)
    ]
    assert len(items) == 5
    for item in items:
        ids, label_affine = read_volume_label(item["label"])
        is_series = item["image"].endswith("series")
        np.testing.assert_array_equal(ids, label if is_series else classes())
        np.testing.assert_allclose(label_affine, affine if is_series else AFFINE, atol=1e-5)


def test_labels_are_turned_at_45_degrees_too():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", 45, degrees=True).as_matrix()
    for order in permutations(range(3)):
        turn = np.array([[axis, -1] for axis in order])
        stored = nib.orientations.apply_orientation(classes(), turn)
        other = affine @ nib.orientations.inv_ornt_aff(turn, classes().shape)
        labels, _ = grids.reoriented(stored, other.astype(np.float32), affine)  # as NIfTI keeps it
        np.testing.assert_array_equal(labels, classes())


def test_labels_with_another_header_only_when_asked(tmp_path):
    source = tmp_path / "source"
    for case in range(4):
        save(source / "images" / f"{case}.nii.gz", noise(*SHAPE))
        save(source / "labels" / f"{case}.nii.gz", classes(), np.eye(4))
    with pytest.raises(InputError, match="lies elsewhere than its image"):
        prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    (tmp_path / "map.json").write_text(json.dumps({"background": 0, "liver": 1, "spleen": 2}))
    arguments = ["--output_dir", str(tmp_path / "out"), "--label_map", str(tmp_path / "map.json")]
    main(["prepare", "abdomen_mri", "--source_dir", str(source), *arguments, "--label_grid", "image"])
    for item in load_datalist(tmp_path / "out", "training"):
        ids, affine = read_volume_label(item["label"])
        np.testing.assert_array_equal(ids, classes())
        np.testing.assert_array_equal(affine, AFFINE)
    with pytest.raises(InputError, match="label_grid is for volumes, which microscopy does not have"):
        find_task("microscopy").prepare(source, tmp_path / "cells", PrepareOptions(label_grid="image"))
    with pytest.raises(InputError, match="in_channels is for volumes"):
        find_task("microscopy").prepare(source, tmp_path / "cells", PrepareOptions(in_channels=3))


def test_nan_is_filled_in_every_step(tmp_path):
    source = nnunet(tmp_path / "source")
    voxels = noise(*SHAPE).astype(np.float32)
    voxels[0] = np.nan
    save(source / "imagesTr" / "case_0_0000.nii.gz", voxels)
    with pytest.raises(InputError, match="NaN"):
        prepare_abdomen_mri(source, tmp_path / "out")
    prepare_abdomen_mri(source, tmp_path / "out", PrepareOptions(nan=0))
    sections = ("training", "validation", "test")
    assert sum(len(load_datalist(tmp_path / "out", section, nan=0)) for section in sections) == 5
    with pytest.raises(InputError, match="NaN"):
        [load_datalist(tmp_path / "out", section) for section in sections]


# Sections and places


def stems(folder, section):
    return {Path(item["label"]).name.split(".")[0] for item in load_datalist(folder, section)}


def test_folds_of_nnunet(tmp_path):
    source = nnunet(tmp_path / "source")
    names = [f"case_{number}" for number in range(5)]
    folds = [{"train": names[:number] + names[number + 1 :], "val": [names[number]]} for number in range(5)]
    (source / "splits_final.json").write_text(json.dumps(folds))
    report = prepare_abdomen_mri(source, tmp_path / "out", PrepareOptions(fold=3))
    assert stems(tmp_path / "out", "training") == set(names) - {"case_3"}
    assert stems(tmp_path / "out", "validation") == stems(tmp_path / "out", "test") == {"case_3"}
    assert any("fold 3 has no test images" in warning for warning in report.warnings)
    save(source / "imagesTs" / "new_0000.nii.gz", noise(*SHAPE))
    save(source / "labelsTs" / "new.nii.gz", classes())
    prepare_abdomen_mri(source, tmp_path / "tested", PrepareOptions(fold=0))
    assert stems(tmp_path / "tested", "test") == {"new"}
    with pytest.raises(InputError, match="the folds 0 to 4, but no fold 5"):
        prepare_abdomen_mri(source, tmp_path / "other", PrepareOptions(fold=5))


def test_a_list_of_folds_is_chosen_from(tmp_path):
    source = nnunet(tmp_path / "source")
    fold = {"train": ["case_0", "case_1"], "val": ["case_2"], "test": ["case_3"]}
    (source / "split.json").write_text(json.dumps([fold]))
    with pytest.raises(InputError, match=r"split\.json is a list of 1 folds; choose one with --fold 0"):
        prepare_abdomen_mri(source, tmp_path / "out")
    prepare_abdomen_mri(source, tmp_path / "out", PrepareOptions(fold=0))
    assert stems(tmp_path / "out", "test") == {"case_3"}
    (source / "split.json").write_text(json.dumps(["case_0", "case_1"]))
    with pytest.raises(InputError, match=r"split\.json needs the lists 'train' and 'test'"):
        prepare_abdomen_mri(source, tmp_path / "other")


def test_a_division_that_is_not_used_is_said(tmp_path):
    source = nnunet(tmp_path / "source")
    for name in ("splits_final.json", "splits.json"):
        (source / name).write_text(json.dumps([{"train": ["case_0", "case_1"], "val": ["case_2"]}]))
    *_, named, folds = prepare_abdomen_mri(source, tmp_path / "out").warnings
    assert named.startswith("splits.json is not read; call it split.json") and "--fold 0 takes" in folds
    chosen = prepare_abdomen_mri(source, tmp_path / "b", PrepareOptions(fold=0)).warnings
    assert chosen and not any("is not" in text for text in chosen)


def test_links_keep_their_names(tmp_path):
    """As stores of data lay them out: every file is a link to one that is called by its hash."""
    real = nnunet(tmp_path / "real")
    source, store = tmp_path / "source", tmp_path / "store"
    store.mkdir()
    for number, file in enumerate(sorted(real.rglob("*.nii.gz"))):
        file.rename(store / f"{number:x}.nii.gz")
        link = source / file.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(store / f"{number:x}.nii.gz")
    (source / "dataset.json").write_text((real / "dataset.json").read_text())
    prepare_abdomen_mri(source, tmp_path / "out")
    assert {name[:5] for name in stems(tmp_path / "out", "training")} == {"case_"}
    datalist = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert datalist["linked_dir"] == str(store)
    del datalist["linked_dir"]  # what is not stated is not followed
    (tmp_path / "out" / "datalist.json").write_text(json.dumps(datalist))
    with pytest.raises(InputError, match="outside of"):
        load_datalist(tmp_path / "out", "training")
    (tmp_path / "shortcut").symlink_to(real.with_name("source"))
    prepare_abdomen_mri(tmp_path / "shortcut", tmp_path / "again")


# Plans and dimensions


def test_sagittal_volumes_get_the_spacing_of_their_slices(tmp_path):
    source = tmp_path / "source"
    for case in range(5):
        for part, voxels in (("images", noise(4, 9, 8)), ("labels", classes(shape=(4, 9, 8)))):
            save(source / part / f"{case}.nii.gz", voxels, np.diag([7.0, 1.25, 1.5, 1.0]))
    report = prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    assert report.fingerprint["proposal"]["axcodes"] == "IPR"
    assert any("--axcodes IPR --spacing [1.5,1.25] in every command" in warning for warning in report.warnings)


def test_thick_slices_in_another_direction_than_most_are_named(tmp_path):
    source = tmp_path / "source"
    for case in range(5):
        sides = [6.0, 1.5, 1.5] if case == 3 else [1.5, 1.5, 6.0]
        for part, voxels in (("images", noise(*SHAPE)), ("labels", classes())):
            save(source / part / f"{case}.nii.gz", voxels, np.diag([*sides, 1.0]))
    report = prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    assert [
        w for w in report.warnings if "1 volumes are stacks of thick" in w and f"{source / 'images' / '3.nii.gz'}" in w
    ]


def test_channels_in_a_fourth_dimension_of_plain_folders(tmp_path, capsys):
    source, voxels = tmp_path / "source", np.zeros((12, 10, 3, 2), np.float32)
    voxels[..., 1] = 7
    for folder, content in (("images", voxels), ("labels", (voxels[..., 0] == 0).astype(np.uint8))):
        (source / folder).mkdir(parents=True)
        for number in range(4):
            nib.save(nib.Nifti1Image(content, np.diag([1.0, 1, 5, 1])), source / folder / f"{number}.nii.gz")
    (tmp_path / "map.json").write_text('{"background": 0, "liver": 1}')
    command = ["prepare", "abdomen_mri", "--source_dir", str(source), "--label_map", str(tmp_path / "map.json")]
    assert main([*command, "--output_dir", str(tmp_path / "none")]) == 1
    assert "give --in_channels" in capsys.readouterr().err
    assert main([*command, "--output_dir", str(tmp_path / "two"), "--in_channels", "2"]) == 0
    assert "--num_classes 2 --in_channels 2" in capsys.readouterr().out
    intensities = json.loads((tmp_path / "two" / "fingerprint.json").read_text())["intensities"]
    assert [channel["mean"] for channel in intensities] == [0, 7]
    assert main([*command, "--output_dir", str(tmp_path / "three"), "--in_channels", "3"]) == 1


# Labels beside their images


def test_a_folder_for_each_case(tmp_path):
    source = tmp_path / "source"
    for case in range(4):
        save(source / f"p{case}" / "T2.nii.gz", noise(*SHAPE))
        save(source / f"p{case}" / "Segmentation-label.nii.gz", classes())
    series = source / "p4" / "scan"
    series.mkdir(parents=True)
    for number in range(4):
        write_slice(series / f"{number}.dcm", noise(16, 24), number * 4 * np.array([0, 0.6, 0.8]), number)
    save(source / "p4" / "seg.nii.gz", classes(shape=(24, 16, 4)), read_volume(series)[1])
    (source / ".git").mkdir()
    (source / "notes").mkdir()
    report = prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    assert sum(report.sizes.values()) == 5 and report.layout.startswith("a folder for each case")
    names = [Path(item["label"]).parent.name for part in ("training", "validation", "test")
             for item in load_datalist(tmp_path / "out", part)]  # fmt: skip
    assert sorted(names) == ["p0", "p1", "p2", "p3", "p4"]
    save(source / "p1" / "T1.nii.gz", noise(*SHAPE))
    (source / "p2" / "Segmentation-label.nii.gz").unlink()
    with pytest.raises(InputError) as error:
        prepare_abdomen_mri(source, tmp_path / "other", label_map=LABELS)
    assert "p1 has 2 images and 1 labels" in str(error.value) and "p2 has 1 images and 0 labels" in str(error.value)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}.nii.gz", "{}-label.nii.gz"),
        ("{}.nii.gz", "{}_masks.nii.gz"),
        ("{}.nii.gz", "{}-Seg.nii.gz"),
        ("sub-{0}/anat/sub-{0}_T2w.nii.gz", "derivatives/manual/sub-{0}/anat/sub-{0}_T2w_dseg.nii.gz"),
    ],
)
def test_labels_with_the_name_of_their_image(image, label, tmp_path):
    for case in "abcd":
        save(tmp_path / image.format(case), noise(*SHAPE, seed=ord(case)))
        save(tmp_path / label.format(case), (classes() * (ord(case) % 2 + 1)) % 3)
    for _ in range(2):  # the second time beside what the first has written
        prepare_abdomen_mri(tmp_path, tmp_path / "out", label_map=LabelMap(("background", "x"), ((0, 2), (1,))))
    prepare_abdomen_mri(tmp_path, tmp_path, label_map=LabelMap(("background", "x"), ((0, 2), (1,))))
    prepare_abdomen_mri(tmp_path, tmp_path, label_map=LabelMap(("background", "x"), ((0, 2), (1,))))
    items = [item for part in ("training", "validation", "test") for item in load_datalist(tmp_path, part)]
    assert len(items) == 4
    for item in items:
        case = Path(item["image"]).name.removeprefix("sub-")[0]
        np.testing.assert_array_equal(read_volume(item["image"])[0], noise(*SHAPE, seed=ord(case)))
        expected = (classes() * (ord(case) % 2 + 1)) % 3 == 1
        np.testing.assert_array_equal(read_volume_label(item["label"])[0], expected)
