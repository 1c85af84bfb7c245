# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes in every kind of file: what is in it decides, not its name, and places are in mm."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from swinumamba_monai.data.files import itk
from swinumamba_monai.data.files.volume_listing import case_names, find_volumes
from swinumamba_monai.data.files.volume_writing import write_volume
from swinumamba_monai.data.files.volumes import VolumeReader, read_channels, read_volume
from swinumamba_monai.errors import InputError

AFFINE = np.array([[-1.5, 0, 0, 40], [0, 0, 2.0, -30], [0, 1.25, 0, 7], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 1000, (7, 6, 5)).astype(np.int16)


@pytest.mark.parametrize(("unit", "size"), [("mm", 1), ("unknown", 1), ("meter", 1e-3), ("micron", 1e3)])
def test_units_become_mm(unit, size, tmp_path):
    image = nib.Nifti1Image(VOXELS, np.diag([size, size, size, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii")[1], AFFINE, rtol=1e-6)  # float32 in the header


def test_microns_that_are_taken_for_mm_are_refused(tmp_path):
    """A volume of 7 mm would fill 1e10 pixels of 1.25 mm."""
    nib.save(nib.Nifti1Image(VOXELS, np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii has voxels of 1500 x 1250 x 2000 mm; correct the spacing"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("name", "is_gzipped"), [("a.nii.gz", False), ("a.nii", True), ("Up.Nii", False), ("UP.nII.Gz", True)]
)
def test_the_name_of_a_file_says_nothing_of_its_content(kind, name, is_gzipped, tmp_path):
    content = kind(VOXELS, AFFINE).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_gzipped else content)
    voxels, affine = read_volume(tmp_path / name)
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, AFFINE)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_freesurfer(name, tmp_path):
    nib.save(nib.MGHImage(VOXELS.astype(np.int32), AFFINE), tmp_path / name)
    voxels, affine = read_volume(tmp_path / name)
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)  # of its header


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "a.nhdr"])
def test_itk(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing([1.5, 1.25, 2.0])
    image.SetOrigin([-40, 30, 7])
    image.SetDirection([1, 0, 0, 0, 0, -1, 0, 1, 0])
    sitk.WriteImage(image, str(tmp_path / name))
    voxels, affine = read_volume(tmp_path / name)
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:30])
    with pytest.raises(InputError, match="cannot be decoded") as error:
        read_volume(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.mhd", "ElementDataFile = "),
        ("a.mha", "ElementDataFile = "),
        ("a.nhdr", "data file: "),
        ("a.nrrd", "datafile: "),
    ],
)
@pytest.mark.parametrize(
    "voxels", ["/etc/passwd", "../secret.raw", "linked.raw", "LIST", "v%03d.raw 1 5 1", "none.raw", ""]
)
def test_a_header_leads_nowhere_else(name, line, voxels, tmp_path, monkeypatch):
    """A header of a stranger must not have other files read as voxels."""
    monkeypatch.setattr(itk, "_has_sitk", True)  # what is refused is refused before it is asked
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(8))
    (folder / "linked.raw").symlink_to(tmp_path / "secret.raw")
    meta = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
    nrrd = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
    (folder / name).write_text((meta if "m" in name else nrrd) + line + voxels + "\n\n")
    with pytest.raises(InputError, match="not in one file beside it"):
        read_volume(folder / name)


@pytest.mark.parametrize("dimensions", ["NDims = 83", "NDims =3\nNDims : 83", "NDims = 3 3", "NDims = x"])
def test_more_dimensions_than_itk_has_memory_for(dimensions, tmp_path, monkeypatch):
    """ITK 5.4 writes over its memory, which ends the process."""
    monkeypatch.setattr(itk, "_has_sitk", True)
    header = f"ObjectType = Image\n{dimensions}\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + bytes(8))
    with pytest.raises(InputError, match="its header is damaged"):
        read_volume(tmp_path / "a.mha")


def test_without_simpleitk_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(itk, "_has_sitk", False)
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(InputError, match=r"a\.nrrd needs SimpleITK; install swinumamba-monai\[itk\]"):
        read_volume(tmp_path / "a.nrrd")


def test_slices_that_lean_are_read_as_they_are(tmp_path):
    leaning = AFFINE.copy()
    leaning[0, 2] = 0.7
    nib.save(nib.Nifti1Image(VOXELS, leaning), tmp_path / "a.nii")
    voxels, affine = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, leaning)


def test_nan_is_filled_only_when_asked(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"NaN or infinite.*--nan 0"):
        read_volume(tmp_path / "a.nii.gz")
    filled, _ = read_volume(tmp_path / "a.nii.gz", nan=-7)
    assert filled[0, 0, 0] == -7 and filled.dtype == np.float32
    np.testing.assert_array_equal(filled.ravel()[1:], voxels.ravel()[1:])
    voxels[0, 0, 0] = np.inf
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="infinite"):
        read_volume(tmp_path / "b.nii.gz", nan=0)


def save_channels(folder, case, count=2, affine=AFFINE):
    files = [folder / f"{case}_{number:04d}.nii.gz" for number in range(count)]
    for number, file in enumerate(files):
        nib.save(nib.Nifti1Image(VOXELS + number, affine), file)
    return files


def test_channels_in_files_of_their_own_and_in_one(tmp_path):
    files = save_channels(tmp_path, "case")
    expected = np.stack([VOXELS, VOXELS + 1], axis=-1)
    nib.save(nib.Nifti1Image(expected, AFFINE), tmp_path / "whole.nii.gz")
    for image in (files, tmp_path / "whole.nii.gz"):
        voxels, *_ = read_channels(image, channels=2)
        np.testing.assert_array_equal(voxels, expected)
        loaded = LoadImage(reader=VolumeReader(channels=2), ensure_channel_first=True)(image)
        assert loaded.shape == (2, 7, 6, 5)
        np.testing.assert_array_equal(loaded, np.moveaxis(expected, -1, 0))
    with pytest.raises(InputError, match=r"4 dimensions .*--in_channels"):
        read_volume(tmp_path / "whole.nii.gz")
    with pytest.raises(InputError, match=r"one of 2 volumes.*--in_channels 2"):
        read_channels(files, channels=3)
    elsewhere = AFFINE.copy()
    elsewhere[0, 3] += 0.1
    (moved,) = save_channels(tmp_path, "moved", 1, elsewhere)
    with pytest.raises(InputError, match=r"moved_0000\.nii\.gz has another size or place than case_0000"):
        read_channels([files[0], moved], channels=2)


def test_channels_are_found_by_their_names(tmp_path):
    for case in ("a", "b"):
        save_channels(tmp_path, case)
    single = [str(tmp_path / f"{case}_000{number}.nii.gz") for case in "ab" for number in (0, 1)]
    assert find_volumes(tmp_path) == single
    assert find_volumes(tmp_path, channels=2) == [tuple(single[:2]), tuple(single[2:])]
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="b has the channels 0000, but 0000 to 0001 are needed"):
        find_volumes(tmp_path, channels=2)


def test_names_of_cases():
    assert case_names(["a/x_0000", "a/y_0000", "a/y_0001"]) == {
        "a/x_0000": "a/x",
        "a/y_0000": "a/y_0000",  # two cases with numbers
        "a/y_0001": "a/y_0001",
    }
    assert case_names(["x", "x_0000"]) == {"x": "x", "x_0000": "x_0000"}


def test_results_of_an_earlier_run_are_not_its_images(tmp_path, caplog):
    (tmp_path / "out").mkdir()
    for name in ("a.nii.gz", "b_0000.nii.gz", "a_classes.nii.gz", "out/a_entropy.nii.gz", "b_probabilities.nii.gz"):
        nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / name)
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "c_classes.nii.gz")  # of no image here
    assert find_volumes(tmp_path) == [str(tmp_path / f"{name}.nii.gz") for name in ("a", "b_0000", "c_classes")]
    assert "3 results of earlier runs are not taken: a_classes.nii.gz" in caplog.text


def test_more_slices_than_a_nifti_file_can_hold(tmp_path):
    with pytest.raises(InputError, match="has at most 32767 along an axis"):
        write_volume(tmp_path / "a.nii.gz", np.zeros((1, 1, 32768), np.uint8), np.eye(4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("kind", [".tif", ".hdf", ".png"])
def test_what_is_in_a_file_of_itk_does_not_choose_the_decoder(tmp_path, suffix, kind):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.Image([4, 4], sitk.sitkUInt8), str(tmp_path / f"a{kind}"))
    path = tmp_path / f"a{suffix}"
    path.write_bytes((tmp_path / f"a{kind}").read_bytes() + b"\nNDims = 2\nElementDataFile = LOCAL\n")
    with pytest.raises(InputError, match="cannot be decoded"):
        read_volume(path)
