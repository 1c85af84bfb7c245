# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes are read with their geometry, from NIfTI and DICOM, and what cannot be used gets one sentence."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import volume_datasets
from dicom_files import write_slice
from monai.data import PydicomReader
from monai.transforms import LoadImage, SaveImage

from swinumamba_monai.data.files import volumes
from swinumamba_monai.data.files.volumes import VolumeReader, read_volume, read_volume_label
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.errors import InputError

AFFINE = np.array([[-1.5, 0, 0, 40], [0, 0, 2.0, -30], [0, 1.25, 0, 7], [0, 0, 0, 1]])  # LSA


save = partial(volume_datasets.save, affine=AFFINE)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 1000, (7, 6, 5)).astype(np.int16)


@pytest.mark.parametrize("name", ["a.nii", "a.b.nii.gz", "UPPER.NII.GZ"])
def test_nifti(tmp_path, voxels, name):
    read, affine = read_volume(save(tmp_path / name, voxels))
    np.testing.assert_array_equal(read, voxels)
    np.testing.assert_allclose(affine, AFFINE)
    assert read.dtype == np.int16
    squeezed, _ = read_volume(save(tmp_path / name, voxels[..., None]))
    np.testing.assert_array_equal(squeezed, voxels)
    assert volumes.volume_name(tmp_path / name) == name.split(".nii")[0].split(".NII")[0]


def test_the_reader_keeps_the_geometry_through_monai(tmp_path, voxels):
    path = save(tmp_path / "case.1.nii.gz", voxels)
    image = LoadImage(reader=VolumeReader, ensure_channel_first=True)(path)
    assert image.shape == (1, 7, 6, 5)
    np.testing.assert_allclose(image.affine, AFFINE)
    SaveImage(tmp_path / "out", output_postfix="seg", separate_folder=False, resample=False, print_log=False)(image)
    written = nib.load(tmp_path / "out" / "case.1_seg.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(written.dataobj), voxels)


def bad_files(folder):
    """Files that cannot be used, and the words that say why."""
    gzipped = save(folder / "whole.nii.gz", np.zeros((9, 9, 9), dtype=np.float32) + np.arange(9, dtype=np.float32))
    (folder / "half.nii.gz").write_bytes(gzipped.read_bytes()[:-40])
    (folder / "text.nii").write_text("no volume")
    save(folder / "series.nii", np.zeros((3, 4, 5, 2), dtype=np.int16))
    save(folder / "line.nii", np.zeros(3, dtype=np.int16))
    save(folder / "nan.nii", np.full((3, 4, 5), np.nan, dtype=np.float32))
    save(folder / "rgb.nii", np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
    (folder / "a.png").write_bytes(b"")
    return {
        "half.nii.gz": "cannot be decoded",
        "text.nii": "cannot be decoded",
        "series.nii": "4 dimensions (3, 4, 5, 2)",
        "line.nii": "1 dimensions",
        "nan.nii": "NaN",
        "rgb.nii": "one number per voxel",
        "a.png": "no volume that can be read",
        "no.nii": "does not exist",
    }


def test_bad_nifti_files_get_a_sentence(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(InputError) as error:
            read_volume(tmp_path / name)
        assert name in str(error.value) and words in str(error.value), str(error.value)
        assert "\n" not in str(error.value)


def test_labels_are_whole_numbers(tmp_path, voxels):
    labels, _ = read_volume_label(save(tmp_path / "a.nii", (voxels % 5).astype(np.float32) + 1e-5))
    np.testing.assert_array_equal(labels, voxels % 5)
    with pytest.raises(InputError, match="not whole numbers"):
        read_volume_label(save(tmp_path / "b.nii", voxels / np.float32(7)))


def test_volumes_for_inference(tmp_path, voxels):
    for name in ("b.nii.gz", "a.nii", "._c.nii"):
        save(tmp_path / name, voxels)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub").mkdir()
    assert [Path(item["image"]).name for item in load_volumes(tmp_path)] == ["a.nii", "b.nii.gz"]
    assert load_volumes(tmp_path / "a.nii") == [{"image": str(tmp_path / "a.nii")}]
    for path, words in (("sub", "no volume that can be read"), ("notes.txt", "no volume"), ("no", "does not exist")):
        with pytest.raises(InputError, match=words):
            load_volumes(tmp_path / path)


# DICOM


@pytest.fixture
def series(tmp_path):
    """Six slices of 4 rows and 5 columns, 4 mm apart, in files whose names and numbers are out of order."""
    folder = tmp_path / "1.2.840.77"
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 4000, (6, 4, 5))
    for depth in range(6):
        position = np.array([10, 20, 30]) + 4 * depth * np.array([0, 0.6, 0.8])
        write_slice(folder / f"im{(depth * 5) % 6}.dcm", pixels[depth], position, number=6 - depth)
    (folder / "readme.txt").write_text("not a slice")
    return folder, pixels


def test_series_are_put_in_order(series):
    folder, pixels = series
    voxels, affine = read_volume(folder)
    np.testing.assert_array_equal(voxels, np.transpose(pixels, (2, 1, 0)))
    # Where DICOM puts the pixel of column 3, row 2, slice 4, with the axes to the left and back turned to RAS+.
    position = np.array([10, 20, 30]) + 3 * 0.75 * np.array([1, 0, 0]) + 2 * 1.5 * np.array([0, 0.8, -0.6])
    position += 4 * 4 * np.array([0, 0.6, 0.8])
    np.testing.assert_allclose(affine @ [3, 2, 4, 1], [-position[0], -position[1], position[2], 1], atol=1e-9)


def test_series_have_the_geometry_that_monai_gives_them(series):
    folder, _ = series
    reader = PydicomReader(swap_ij=True)
    expected, meta = reader.get_data(reader.read(str(folder)))
    voxels, affine = read_volume(folder)
    # MONAI follows the instance numbers, which run the other way here.
    np.testing.assert_array_equal(voxels, expected[..., ::-1])
    turned = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]])
    np.testing.assert_allclose(affine, meta["affine"] @ turned, atol=1e-9)


def test_a_series_goes_through_monai(series, tmp_path):
    folder, _ = series
    assert load_volumes(folder) == load_volumes(tmp_path) == [{"image": f"{folder}.dicom"}]
    image = LoadImage(reader=VolumeReader, ensure_channel_first=True)(load_volumes(folder)[0]["image"])
    assert LoadImage(reader=VolumeReader)(folder).shape == (5, 4, 6)
    SaveImage(tmp_path / "out", output_postfix="seg", separate_folder=False, resample=False, print_log=False)(image)
    assert (tmp_path / "out" / "1.2.840.77_seg.nii.gz").is_file()


def test_rescaling_is_applied(tmp_path):
    write_slice(tmp_path / "a.dcm", np.full((2, 2), 10), (0, 0, 0), 1, RescaleSlope=2, RescaleIntercept=-5)
    voxels, affine = read_volume(tmp_path)
    assert voxels.shape == (2, 2, 1) and (voxels == 15).all()
    np.testing.assert_allclose(np.linalg.norm(affine[:3, 2]), 4)  # one slice: its thickness


def test_a_missing_slice_is_named(series):
    folder, _ = series
    (folder / f"im{(2 * 5) % 6}.dcm").unlink()
    with pytest.raises(InputError, match=r"misses slices: im\d\.dcm and im\d\.dcm are 8\.00 mm apart, the oth"):
        read_volume(folder)


def test_an_unreadable_slice_is_named(series):
    folder, _ = series
    file = folder / "im3.dcm"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"im3\.dcm is a slice that cannot be decoded"):
        read_volume(folder)
    file.write_bytes(b"junk")
    with pytest.raises(InputError, match=r"im3\.dcm is a slice that cannot be decoded"):
        read_volume(folder)


@pytest.mark.parametrize(
    ("position", "attributes", "words"),
    [
        ((10, 20, 30), {}, "lie at one position"),
        ((10, 34.4, 49.2), {"SeriesInstanceUID": "1.9"}, "slices of 2 series"),
        ((10, 34.4, 49.2), {"PixelSpacing": [1, 1]}, "slices of 2 pixel spacings"),
    ],
)
def test_slices_that_do_not_belong_together_are_refused(series, position, attributes, words):
    folder, _ = series
    write_slice(folder / "more.dcm", np.zeros((4, 5)), position, 7, **attributes)
    with pytest.raises(InputError, match=words):
        read_volume(folder)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="no DICOM file"):
        read_volume(tmp_path / "bare")
    monkeypatch.setattr("swinumamba_monai.data.files.dicom_series.has_pydicom", False)
    with pytest.raises(InputError, match=r"install swinumamba-monai\[dicom\]"):
        read_volume(tmp_path)
