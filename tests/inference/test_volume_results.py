# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Results of volumes lie where every program puts the image, are called as the case, and can be written as asked."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, SaveImage, SaveImaged

from swinumamba_monai.data.files import itk
from swinumamba_monai.data.files.volumes import VolumeReader, read_volume
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import ClassWriter, VolumeWriter, entropy_map, keep_folders
from swinumamba_monai.inference.folders import result_names
from swinumamba_monai.inference.restore import RestoreVolumed

VOXELS = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
SFORM = np.array([[-1.5, 0, 0, 40], [0, 2.0, 0, -30], [0, 0, 1.25, 7], [0, 0, 0, 1]])
QFORM = SFORM.copy()
QFORM[0, 3] += 39  # mm away
SMALL = np.diag([1e-3, 1e-3, 1e-3, 1])


def save_as_it_came(path: Path, folder: Path, extension: str = ".nii.gz") -> Path:
    """Read a volume as the bundle does and write it, under its own name."""
    image = LoadImage(reader=VolumeReader, ensure_channel_first=True)(path)
    save = SaveImage(
        folder, "", extension, writer=VolumeWriter, resample=False, separate_folder=False, output_dtype=np.uint8
    )
    save(image)
    return folder / f"{path.name.split('.')[0]}{extension}"


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 1), (0, 1), (4, 0), (0, 3)])
@pytest.mark.parametrize("unit", ["mm", "meter"])
def test_both_forms_and_codes_stay_as_they_were(sform, qform, unit, tmp_path):
    size = SMALL if unit == "meter" else np.eye(4)
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_xyzt_units(unit)
    image.set_sform(size @ SFORM, sform)
    image.set_qform(size @ QFORM, qform)
    nib.save(image, tmp_path / "a.nii")
    written = nib.load(save_as_it_came(tmp_path / "a.nii", tmp_path / "out"))
    for get in ("get_sform", "get_qform"):
        expected, code = getattr(nib.load(tmp_path / "a.nii"), get)(coded=True)
        form, written_code = getattr(written, get)(coded=True)
        assert written_code == code
        if code:
            np.testing.assert_array_equal(form, expected)
    assert written.header.get_xyzt_units()[0] == unit
    assert written.header.get_zooms() == nib.load(tmp_path / "a.nii").header.get_zooms()
    np.testing.assert_array_equal(np.asarray(written.dataobj), VOXELS)


def test_forms_of_another_grid_are_not_taken(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, SFORM), tmp_path / "a.nii")
    image = LoadImage(reader=VolumeReader, ensure_channel_first=True)(tmp_path / "a.nii")
    image.affine = torch.as_tensor(QFORM)
    SaveImage(tmp_path, "", ".nii.gz", writer=VolumeWriter, resample=False, separate_folder=False)(image)
    written = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(written.get_sform(), QFORM)
    np.testing.assert_array_equal(written.get_qform(), QFORM)


@pytest.mark.parametrize("extension", [".nii", ".mgz", ".nrrd", ".mha"])
def test_every_kind_of_file_is_read_as_it_was_written(extension, tmp_path):
    if extension in (".nrrd", ".mha"):
        pytest.importorskip("SimpleITK")
    nib.save(nib.Nifti1Image(VOXELS, SFORM), tmp_path / "a.nii.gz")
    written = save_as_it_came(tmp_path / "a.nii.gz", tmp_path / "out", extension)
    voxels, affine = read_volume(written)
    np.testing.assert_array_equal(voxels, VOXELS)
    assert voxels.dtype == np.uint8
    np.testing.assert_allclose(affine, SFORM, atol=1e-5)
    maps = MetaTensor(torch.rand(2, 3, 4, 5), meta={"affine": SFORM, "filename_or_obj": "b.nii"})
    SaveImage(tmp_path, "", extension, writer=VolumeWriter, resample=False, separate_folder=False)(maps)
    voxels, _ = read_volume(tmp_path / f"b{extension}", channels=2)
    np.testing.assert_array_equal(voxels, np.moveaxis(maps.numpy(), 0, -1))


def saver(extension, writer=VolumeWriter, folder="out"):
    options = {"output_dir": folder, "output_postfix": "classes", "output_ext": extension, "writer": writer}
    return SaveImaged("pred", resample=False, separate_folder=False, print_log=False, **options)


def test_what_cannot_be_written_is_refused_before_anything_is_computed(monkeypatch):
    items = [{"image": "/in/a.nii.gz"}]
    for transform, words in ((saver(".foo"), "set output_ext to .nii"), (saver(".nii.gz", ClassWriter), "output_ext")):
        with pytest.raises(InputError, match=words):
            keep_folders(Compose([transform]), items)
    monkeypatch.setattr(itk, "_has_sitk", False)
    with pytest.raises(InputError, match=r"\.nrrd needs SimpleITK"):
        keep_folders(Compose([saver(".nrrd")]), items)
    keep_folders(Compose([saver(".nii.gz"), saver(".MGZ")]), items)


def test_results_have_the_name_of_the_case(tmp_path):
    folder = tmp_path / "in"
    (folder / "1.2.3").mkdir(parents=True)
    (folder / "1.2.4").mkdir()
    images = ["sub/a_0000.nii.gz", "sub/b_0000.NII.GZ", "sub/b_0001.nii.gz", "1.2.3", "1.2.4", "1.2.5.dicom"]
    images = [str(folder / image) for image in images]
    items = [{"image": [images[0], str(folder / "sub/a_0001.nii.gz")]}, *({"image": image} for image in images[1:])]
    save = saver(".nii.gz", folder=tmp_path / "out")
    keep_folders(Compose([save]), items)
    for image, name in zip(images, ["sub/a", "sub/b_0000", "sub/b_0001", "1.2.3", "1.2.4", "1.2.5"]):
        result = save({"pred": MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": image})})
        assert result
        assert (tmp_path / "out" / f"{name}_classes.nii.gz").is_file(), name
    with pytest.raises(InputError, match="would give one result"):
        result_names(["/in/a.nii", "/in/a.nii.gz"])


def test_entropy_is_that_of_the_saved_probabilities():
    logits = torch.randn(3, 4, 5, 6) * 3
    image = MetaTensor(torch.zeros(1, 4, 5, 6), meta={"original_affine": np.eye(4)})
    restore = RestoreVolumed("pred", Compose([]), probabilities_key="probabilities", entropy_key="entropy")
    # half of the grid's resolution, as after resampling
    restore._invert = lambda maps, image: torch.nn.functional.avg_pool3d(maps, 2)
    result = restore({"pred": logits, "image": image})
    p = result["probabilities"].numpy()
    np.testing.assert_allclose(result["entropy"][0], -(p * np.log(p)).sum(0) / np.log(3), atol=1e-6)
    assert not torch.allclose(result["entropy"], torch.nn.functional.avg_pool3d(entropy_map(logits), 2), atol=1e-2)
