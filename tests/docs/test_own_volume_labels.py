# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the tables of folders and labels of volumes in docs/own_data.md is made, and read again as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from doc_tables import rows
from own_volumes import AFFINE, FILES, LABEL, SHAPE, VOXELS, pydicom, save, series
from PIL import Image

from swinumamba_monai.data.datalist import has_ignored, load_class_names, load_datalist, load_regions
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.files.volumes import read_channels, read_volume_label
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

LABELS = LabelMap.of_names(["background", "liver", "spleen"])


def make(path: Path, case: int) -> None:
    """What the name of a file in the tables stands for, another one for every case."""
    name = path.name
    if name.endswith(".dcm"):
        series(path.parent)
    elif name.endswith(".png"):
        for number in range(SHAPE[2]):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((63 * (LABEL[..., number].T > 0)).astype(np.uint8)).save(path.parent / f"{number}.png")
    else:
        is_label = any(word in f"{path.parent.name}/{name}" for word in ("label", "segment", "seg."))
        save(path, np.minimum(LABEL, 1) if "segment" in path.parent.name else LABEL if is_label else VOXELS + case)


@pytest.mark.parametrize("row", rows("Folders of volumes"))
def test_folders(row, tmp_path):
    paths = re.findall(r"`([^`]+)`", row)
    for case in range(1, 5):
        for path in paths:
            place = path.replace("/1/", f"/{case}/").replace("s0001", f"s000{case}")
            make(tmp_path / "in" / re.sub(r"(^|/)a(?=[_./])", rf"\1a{case}", place), case)
    own = LabelMap.of_names(["background", "liver"]) if "Ground" in row or "segmentations" in row else LABELS
    report = prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=own)
    assert sum(report.sizes.values()) == 4
    channels = row.count("imagesTr") or 1
    (item, *_) = load_datalist(tmp_path / "out", "training", channels=channels)
    ids, affine = read_volume_label(item["label"])
    np.testing.assert_array_equal(ids, LABEL if own is LABELS else LABEL > 0)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert read_channels(item["image"], channels)[0].shape[:3] == SHAPE


def label_as(voxels: np.ndarray, affine: np.ndarray, folder: Path, **options) -> None:
    for case in range(4):
        save(folder / "images" / f"{case}.nii.gz")
        save(folder / "labels" / f"{case}.nii.gz", voxels, affine)
    prepare_abdomen_mri(folder, folder / "out", PrepareOptions(**options), LABELS)
    (item, *_) = load_datalist(folder / "out", "training")
    np.testing.assert_array_equal(read_volume_label(item["label"])[0], LABEL)


def ignored(folder: Path) -> None:
    for case in range(4):
        save(folder / "images" / f"{case}.nii.gz")
        save(folder / "labels" / f"{case}.nii.gz", LABEL + (LABEL == 2))
    (folder / "map.json").write_text(json.dumps({"background": 0, "liver": 1, "ignore": 3}))
    prepare_abdomen_mri(folder, folder / "out", label_map=folder / "map.json")
    assert has_ignored(folder / "out")


def regions(folder: Path) -> None:
    for case in range(4):
        save(folder / "images" / f"{case}.nii.gz")
        save(folder / "labels" / f"{case}.nii.gz", LABEL)
    labels = {"background": 0, "tumor": [1, 2], "core": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    prepare_abdomen_mri(folder, folder / "out")
    assert load_class_names(folder / "out") == ["background", "tumor", "tumor + core"]
    assert load_regions(folder / "out") == {"tumor": [1, 2], "core": [2]}


def part_of_grid(folder: Path) -> None:
    """Written by SimpleITK, whose axes are the other way round; the voxels around it are background."""
    sitk = pytest.importorskip("SimpleITK")
    for name in "abc":
        save(folder / "source" / "images" / f"{name}.nii.gz")
        (folder / "source" / "labels").mkdir(exist_ok=True)
        part = np.zeros((3, 4, 2), np.uint8)
        part[1:, :2], part[0, 3, 1] = 1, 2
        image = sitk.GetImageFromArray(part.T)
        corner = AFFINE @ [2, 1, 3, 1]
        image.SetSpacing((1.5, 2.0, 1.25))
        image.SetOrigin((-corner[0], -corner[1], corner[2]))
        sitk.WriteImage(image, str(folder / "source" / "labels" / f"{name}.seg.nrrd"))
    prepare_abdomen_mri(folder / "source", folder / "out", label_map=LABELS)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:5, 1:5, 3:5] = part
    made, affine = read_volume_label(folder / "out" / "labels" / "a.nii.gz")
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_allclose(affine, AFFINE)
    larger = np.zeros((9, 9, 9), np.uint8)  # with background beyond the image
    larger[3:6, 2:6, 4:6] = part
    image = sitk.GetImageFromArray(larger.T)
    corner = AFFINE @ [-1, -1, -1, 1]
    image.SetSpacing((1.5, 2.0, 1.25))
    image.SetOrigin((-corner[0], -corner[1], corner[2]))
    sitk.WriteImage(image, str(folder / "source" / "labels" / "a.seg.nrrd"))
    prepare_abdomen_mri(folder / "source", folder / "again", label_map=LABELS)
    np.testing.assert_array_equal(read_volume_label(folder / "again" / "labels" / "a.nii.gz")[0], expected)
    image.SetOrigin((-corner[0] + 0.4, -corner[1], corner[2]))  # between voxels
    sitk.WriteImage(image, str(folder / "source" / "labels" / "b.seg.nrrd"))
    image.SetOrigin((-corner[0] - 6, -corner[1], corner[2]))  # labels beyond the image
    sitk.WriteImage(image, str(folder / "source" / "labels" / "c.seg.nrrd"))
    with pytest.raises(InputError) as error:
        prepare_abdomen_mri(folder / "source", folder / "other", label_map=LABELS)
    assert str(error.value).count("both need one size") == 2


def segmentation(folder: Path) -> None:
    """A frame of dcmqi's that pydicom brings, and an image of that slice and one more."""
    dataset = pydicom.dcmread(FILES / "liver_1frame.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[1:]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    way = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64)
    row, column = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    thickness = float(shared.PixelMeasuresSequence[0].SliceThickness)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = way[:3] * column, way[3:] * row
    affine[:3, 2] = np.cross(way[:3], way[3:]) * thickness
    affine[:3, 3] = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    shape = (dataset.Columns, dataset.Rows, 2)
    for name in "abc":
        save(folder / "in" / "images" / f"{name}.nii.gz", np.ones(shape, np.int16), np.diag([-1, -1, 1, 1]) @ affine)
        place = folder / "in" / "labels" / (f"{name}.dcm" if name < "c" else f"{name}/1/2.dcm")
        place.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(place)
    prepare_abdomen_mri(folder / "in", folder / "out", label_map=LabelMap.of_names(["background", "liver"]))
    for name in "abc":
        made, _ = read_volume_label(folder / "out" / "labels" / f"{name}.nii.gz")
        np.testing.assert_array_equal(made[..., 0], dataset.pixel_array.T)
        assert made[..., 0].any() and not made[..., 1].any()


def named(folder: Path) -> None:
    """Half of the labels number the segments otherwise; their names make the classes."""
    sitk = pytest.importorskip("SimpleITK")
    for case in range(4):
        save(folder / "in" / "images" / f"{case}.nii.gz")
        (folder / "in" / "labels").mkdir(exist_ok=True)
        image = sitk.GetImageFromArray((LABEL if case % 2 else np.where(LABEL, 3 - LABEL, 0).astype(np.uint8)).T)
        image.SetSpacing((1.5, 2.0, 1.25))
        image.SetOrigin((-40, 30, 7))
        for number, name in enumerate(("liver", "spleen") if case % 2 else ("spleen", "liver")):
            image.SetMetaData(f"Segment{number}_Name", name)
            image.SetMetaData(f"Segment{number}_LabelValue", str(number + 1))
        sitk.WriteImage(image, str(folder / "in" / "labels" / f"{case}.seg.nrrd"))
    prepare_abdomen_mri(folder / "in", folder / "out", label_map=LABELS)
    for part in ("training", "validation", "test"):
        for item in load_datalist(folder / "out", part):
            np.testing.assert_array_equal(read_volume_label(item["label"])[0], LABEL)
    prepare_abdomen_mri(folder / "in", folder / "own")
    assert load_class_names(folder / "own") == ["background", "spleen", "liver"]


LABEL_ROWS: dict[str, Callable[[Path], None]] = {
    "a class number a voxel": partial(label_as, LABEL * np.float32(0.9999), AFFINE),
    "on the grid of the image in another orientation": partial(
        label_as, LABEL[::-1], AFFINE @ [[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    ),
    "on a part of the image's grid": part_of_grid,
    "a DICOM segmentation, `labels/a.dcm`, or in a folder": segmentation,
    "segments with names, of 3D Slicer or DICOM": named,
    "on the grid of the image but for the header": partial(label_as, LABEL, np.eye(4), label_grid="image"),
    '`"ignore": 3` in `dataset.json` or the label map': ignored,
    '`"tumor": [1, 2]`, `"core": 2` with `regions_class_order`': regions,
}


@pytest.mark.parametrize("row", rows("Labels of volumes"))
def test_labels(row, tmp_path):
    LABEL_ROWS[row](tmp_path)
