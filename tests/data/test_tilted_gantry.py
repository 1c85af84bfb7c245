# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Slices that lean, as a tilted gantry makes them: 37 of them, 7.7 mm apart, against a ball whose place is known."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_slice
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage

from swinumamba_monai.data import VolumeReader
from swinumamba_monai.data.files.grids import put_upright, spacing_of
from swinumamba_monai.data.files.volumes import read_volume
from swinumamba_monai.data.sampling.transforms import SliceOrientationd, SliceSpacingd
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import RestoreVolumed
from swinumamba_monai.metrics import DiceNSDMetric
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

pydicom = pytest.importorskip("pydicom")

COUNT, DISTANCE, TILT = 37, 7.7, np.radians(18.5)
ROWS, COLUMNS, PIXEL = 60, 72, (3.0, 2.5)  # mm of a row and of a column
# The table goes along z; the gantry leans towards y. In DICOM's axes, left, posterior, superior.
ALONG_COLUMN = np.array([0, np.cos(TILT), -np.sin(TILT)])
STEP = np.array([0, 0, DISTANCE / np.cos(TILT)])
FIRST = np.array([-90.0, -70, 20])
CENTRE, RADIUS = FIRST + 18 * STEP + 29 * 3.0 * ALONG_COLUMN + [36 * 2.5, 0, 0], 60.0


def ball(places):
    """How deep places (..., 3) in DICOM's axes lie in a ball, in mm and at least 0."""
    return np.maximum(RADIUS - np.linalg.norm(places - CENTRE, axis=-1), 0)


def places_of(affine, shape):
    """Where the voxels of a grid lie, (X, Y, Z, 3), in DICOM's axes."""
    indices = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)], axis=-1)
    return (indices @ np.asarray(affine).T)[..., :3] * [-1, -1, 1]


def write_tilted(folder, aside=lambda number: 0.0):
    """The ball as a DICOM series, in units of a hundredth of mm."""
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    for number in range(COUNT):
        corner = FIRST + number * STEP + [aside(number), 0, 0]
        places = corner + rows[..., None] * PIXEL[0] * ALONG_COLUMN + columns[..., None] * PIXEL[1] * np.eye(3)[0]
        attributes = {
            "ImageOrientationPatient": [1, 0, 0, *ALONG_COLUMN.round(6).tolist()],
            "PixelSpacing": list(PIXEL),
            "GantryDetectorTilt": 18.5,
        }
        pixels = np.rint(100 * ball(places)).astype(np.uint16)
        write_slice(folder / f"{number}.dcm", pixels, corner.round(5), number, **attributes)
    return folder


def test_all_slices_are_read_where_they_lie(tmp_path):
    voxels, affine = read_volume(write_tilted(tmp_path / "a"))
    assert voxels.shape == (COLUMNS, ROWS, COUNT)
    np.testing.assert_allclose(spacing_of(affine), (2.5, 3.0, DISTANCE), atol=1e-4)
    np.testing.assert_allclose(affine[:3, 2], STEP, atol=1e-4)
    np.testing.assert_allclose(voxels / 100, ball(places_of(affine, voxels.shape)), atol=0.02)


def pipeline(axcodes="PLS", spacing=(1.25, 1.5), mode="bilinear"):
    return Compose([SliceOrientationd("image", axcodes), SliceSpacingd("image", spacing, mode)])


@pytest.mark.parametrize(
    ("axcodes", "count", "apart"), [("PLS", 37, DISTANCE), ("ILA", ROWS, 3 * np.cos(TILT)), ("IPR", COLUMNS, 2.5)]
)
def test_the_network_sees_these_slices_and_the_result_lies_on_them(tmp_path, axcodes, count, apart):
    image = LoadImage(reader=VolumeReader(), ensure_channel_first=True)(write_tilted(tmp_path / "a"))
    transforms = pipeline(axcodes)
    seen = transforms({"image": image})["image"]
    assert seen.shape[-1] == count
    steps = seen.affine[:3, :3].numpy()
    normal = np.cross(steps[:, 0], steps[:, 1])
    assert abs(steps[:, 0] @ steps[:, 1]) < 1e-6  # a picture at right angles
    np.testing.assert_allclose(np.linalg.norm(steps[:, :2], axis=0), (1.25, 1.5), atol=1e-6)
    np.testing.assert_allclose(abs(normal @ steps[:, 2]) / np.linalg.norm(normal), apart, atol=1e-4)
    places = places_of(seen.affine, seen.shape[1:])
    inside = ball(places) > 3  # from the border on the picture is continued where the file has no voxels
    np.testing.assert_allclose(seen[0].numpy()[inside] / 100, ball(places)[inside], atol=2)

    deep = (torch.from_numpy(ball(places)) - 20).float()
    pred = MetaTensor(torch.stack([torch.zeros_like(deep), deep]), meta=seen.meta)
    result = RestoreVolumed("pred", transforms)({"image": seen, "pred": pred})["pred"]
    expected = ball(places_of(image.affine, image.shape[1:])) - 20
    assert result.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine)
    sure = np.abs(expected) > 1
    np.testing.assert_array_equal(result[0].numpy()[sure], expected[sure] > 0)


def test_slices_at_a_time_are_the_same(tmp_path, monkeypatch):
    image = LoadImage(reader=VolumeReader(), ensure_channel_first=True)(write_tilted(tmp_path / "a"))
    whole = pipeline()({"image": image})["image"]
    monkeypatch.setattr("swinumamba_monai.data.sampling.transforms.MAX_SLAB", 100_000)
    torch.testing.assert_close(pipeline()({"image": image})["image"].as_tensor(), whole.as_tensor())


def test_labels_are_prepared_on_the_leaning_grid(tmp_path):
    for name in "abc":
        voxels, affine = read_volume(write_tilted(tmp_path / "in" / "images" / name))
        label = (voxels > 2000).astype(np.uint8)
        (tmp_path / "in" / "labels").mkdir(exist_ok=True)
        turned = nib.as_closest_canonical(nib.Nifti1Image(label, affine))  # as dcm2niix stores it
        nib.save(turned, tmp_path / "in" / "labels" / f"{name}.nii.gz")
    names = tmp_path / "names.json"
    names.write_text('{"background": 0, "ball": 1}')
    result = prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=names)
    assert result.fingerprint["proposal"]["axcodes"] == "PLS" and sum(result.sizes.values()) == 3
    made, made_affine = read_volume(tmp_path / "out" / "labels" / "a.nii.gz")
    np.testing.assert_array_equal(made, label)
    np.testing.assert_allclose(made_affine, affine, atol=1e-4)
    zooms = nib.load(tmp_path / "out" / "labels" / "a.nii.gz").header.get_zooms()
    np.testing.assert_allclose(zooms, (2.5, 3.0, DISTANCE), atol=1e-4)
    assert json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]


def test_surfaces_are_measured_where_they_lie(tmp_path):
    """Of two balls, one 5 mm smaller: as on a grid at right angles with the same slices."""
    leaning = read_volume(write_tilted(tmp_path / "a"))[1]
    upright = leaning.copy()
    normal = np.cross(leaning[:3, 0], leaning[:3, 1])
    upright[:3, 2] = normal / np.linalg.norm(normal) * DISTANCE
    upright[:3, 3] += 18 * (leaning - upright)[:3, 2]  # one slice in common
    scores = []
    for affine in (leaning, upright):
        depth = ball(places_of(affine, (COLUMNS, ROWS, COUNT)))
        pair = [MetaTensor(torch.from_numpy(depth > at)[None].float(), affine=affine) for at in (5, 10)]
        row = [DiceNSDMetric(["ball"], tolerance, in_mm=True)(pair[:1], pair[1:])[0, 3] for tolerance in (1, 3, 5, 7)]
        scores.append([float(score) for score in row])
    assert max(scores[1]) - min(scores[1]) > 0.3
    np.testing.assert_allclose(*scores, atol=0.03)


def test_voxels_put_upright_are_as_far_apart_as_they_are(tmp_path):
    affine = read_volume(write_tilted(tmp_path / "a"))[1]
    voxels = np.random.default_rng(3).integers(0, (COLUMNS, ROWS, COUNT), (40, 3))
    labels = np.zeros((COLUMNS, ROWS, COUNT), np.int32)
    labels[tuple(voxels.T)] = np.arange(1, 41)
    upright, sizes = put_upright(labels, affine)
    np.testing.assert_allclose(sizes, (2.5, 3.0, DISTANCE), atol=1e-4)
    assert np.count_nonzero(upright) == np.count_nonzero(labels)
    found = np.array([np.argwhere(upright == number)[0] for number in range(1, 41)]) * sizes
    truth = voxels @ affine[:3, :3].T
    apart = [np.linalg.norm(places[:, None] - places, axis=-1) for places in (found, truth)]
    assert np.abs(apart[0] - apart[1]).max() <= 3.0 + 1e-3  # half a pixel at either end
    stored = np.linalg.norm((voxels[:, None] - voxels) * sizes, axis=-1)
    assert np.abs(stored - apart[1]).max() > 20
    assert put_upright(labels, np.diag([2.0, 3, 4, 1]))[0] is labels


def test_a_slice_beside_the_others_is_no_tilt(tmp_path):
    write_tilted(tmp_path / "a", aside=lambda number: 20 * (number == 7))
    with pytest.raises(InputError, match=r"7\.dcm lies 20\.00 mm beside the line through the other slices"):
        read_volume(tmp_path / "a")


def test_axes_at_half_a_right_angle_are_damaged(tmp_path):
    affine = np.diag([1.0, 1, 1, 1])
    affine[0, 2] = 1.5
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), affine), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"56\.3 degrees from right angles"):
        read_volume(tmp_path / "a.nii")
