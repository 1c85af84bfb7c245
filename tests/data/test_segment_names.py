# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Segments of 3D Slicer and of DICOM, which are numbered as they were drawn: what they are called counts."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import test_dicom_seg
from test_dicom import PIXELS, write_series

from swinumamba_monai.data.datalist import SECTIONS, load_class_names, load_datalist
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.files.volumes import names_of_numbers, read_volume_label
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

sitk = pytest.importorskip("SimpleITK")

LABELS = LabelMap.of_names(["background", "liver", "spleen"])
CLASSES = np.random.default_rng(1).integers(0, 3, (8, 9, 4)).astype(np.uint8)
DRAWN = {"a": ("liver", "spleen"), "b": ("Spleen", "LIVER"), "c": ("liver", "spleen"), "d": ("spleen", "liver")}


def write_segments(path: Path, classes: np.ndarray, names: tuple[str, ...], **others: str) -> None:
    """The classes numbered in the order of the names, with the header that 3D Slicer writes."""
    numbers = np.zeros_like(classes)
    for number, name in enumerate(names, start=1):
        of_class = LABELS.names.index(name.lower()) if name.lower() in LABELS.names else number
        numbers[classes == of_class] = number
    image = sitk.GetImageFromArray(numbers.T)
    for number, name in enumerate(names, start=1):
        keys = {"ID": f"Segment_{number}", "Name": name, "LabelValue": str(number), "Layer": "0"}
        for key, value in {**keys, **others}.items():
            image.SetMetaData(f"Segment{number - 1}_{key}", value)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def slicer(source: Path, drawn=DRAWN) -> Path:
    for name, segments in drawn.items():
        (source / "images").mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(0).integers(0, 99, CLASSES.shape).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 1, 1])), source / "images" / f"{name}.nii.gz")
        write_segments(source / "labels" / f"{name}.seg.nrrd", CLASSES, segments)
    return source


def labels_in(prepared: Path) -> list[np.ndarray]:
    return [read_volume_label(item["label"])[0] for part in SECTIONS for item in load_datalist(prepared, part)]


@pytest.mark.parametrize("given", [LABELS, None])
def test_segments_of_slicer_are_the_classes_that_they_are_called(given, tmp_path):
    report = prepare_abdomen_mri(slicer(tmp_path / "in"), tmp_path / "out", label_map=given)
    (warning,) = report.warnings
    assert warning.startswith("2 labels number their segments otherwise") and "b.seg.nrrd: 1 Spleen, 2 LIVER" in warning
    assert load_class_names(tmp_path / "out") == list(LABELS.names)
    labels = labels_in(tmp_path / "out")
    assert len(labels) == 4
    for label in labels:
        np.testing.assert_array_equal(label, CLASSES)


def test_segments_of_dicom_too(tmp_path, monkeypatch):
    for name in "abcd":
        (tmp_path / "in" / "images" / name).mkdir(parents=True)
        write_series(tmp_path / "in" / "images" / name)
        swapped = name in "bd"
        order = ("background", "spleen", "liver") if swapped else LABELS.names
        monkeypatch.setattr(test_dicom_seg, "LABELS", LabelMap.of_names(order))
        truth = test_dicom_seg.TRUTH
        test_dicom_seg.write_seg(
            tmp_path / "in" / "labels" / f"{name}.dcm", np.where(truth > 0, 3 - truth, 0) if swapped else truth
        )
    prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=LABELS)
    for label in labels_in(tmp_path / "out"):
        assert label.T.shape == PIXELS.shape
        np.testing.assert_array_equal(label.T, test_dicom_seg.TRUTH)


def test_names_that_are_no_classes_are_taken_by_their_numbers_and_said(tmp_path):
    drawn = dict.fromkeys("abcd", ("Leber", "Segment_2"))
    report = prepare_abdomen_mri(slicer(tmp_path / "in", drawn), tmp_path / "out", label_map=LABELS)
    assert any("by their numbers: 'Leber' for liver, 'Segment_2' for spleen." in said for said in report.warnings)
    for label in labels_in(tmp_path / "out"):
        np.testing.assert_array_equal(label, CLASSES)


def test_a_label_of_which_only_some_names_are_classes_of_other_numbers_is_refused(tmp_path):
    with pytest.raises(InputError) as error:
        prepare_abdomen_mri(
            slicer(tmp_path / "in", {**DRAWN, "b": ("spleen", "Leber")}), tmp_path / "out", label_map=LABELS
        )
    (_, line) = str(error.value).splitlines()
    assert "b.seg.nrrd calls its number 1 'spleen'" in line and "Leber in it is no class" in line
    assert not (tmp_path / "out").exists()


def test_headers_whose_segments_have_no_number(tmp_path):
    """As before version 4.11; and a name that is no text of UTF-8 or a number that is none."""
    write_segments(tmp_path / "a.seg.nrrd", CLASSES, ("liver",), LabelValue="")
    assert names_of_numbers(tmp_path / "a.seg.nrrd") == {}
    write_segments(tmp_path / "b.seg.nrrd", CLASSES, ("liver",), LabelValue="one")
    assert names_of_numbers(tmp_path / "b.seg.nrrd") == {}
    assert names_of_numbers(tmp_path / "missing.seg.nrrd") == {}
    (tmp_path / "empty.dcm").write_bytes(b"")
    assert names_of_numbers(tmp_path / "empty.dcm") == {}
