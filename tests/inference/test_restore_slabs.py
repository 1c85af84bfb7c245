# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes are resampled a few slices at a time, and come out as if they had been resampled whole."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from swinumamba_monai.data import VolumeReader
from swinumamba_monai.data.sampling import transforms
from swinumamba_monai.data.sampling.transforms import SliceSpacingd
from swinumamba_monai.inference import RestoreVolumed, restore

ROTATED = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([0.7, 0.9, 3.0]), [5.0, -30.0, 12.0]
)
GRIDS = {
    "as it is": np.diag([0.7, 0.9, 3.0, 1.0]),
    "other way round": np.array([[-0.7, 0, 0, 9], [0, 0.9, 0, 1], [0, 0, -3.0, 40], [0, 0, 0, 1]]),
    "coronal": np.array([[0.7, 0, 0, 0], [0, 0, 3.0, 0], [0, -0.9, 0, 0], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 3.0, 0], [-0.9, 0, 0, 0], [0, 0.7, 0, 0], [0, 0, 0, 1]]),
    "rotated": ROTATED,
}


@pytest.fixture(params=GRIDS.values(), ids=GRIDS)
def case(request, tmp_path):
    """A volume and its preprocessing."""
    voxels = np.random.default_rng(0).normal(size=(13, 12, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, request.param), tmp_path / "a.nii")
    preprocessing = Compose(
        [
            LoadImaged("image", reader=VolumeReader),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="PLS", labels=None),
            SliceSpacingd("image", spacing=[1.1, 0.6]),
        ]
    )
    return preprocessing, {"image": str(tmp_path / "a.nii")}


def process(case) -> dict:
    preprocessing, item = case
    item = preprocessing(item)
    image = item["image"]
    random = torch.Generator().manual_seed(0)
    item["pred"] = torch.randn((4, *image.shape[1:]), generator=random)
    return RestoreVolumed("pred", preprocessing, probabilities_key="probabilities", entropy_key="entropy")(item)


@pytest.mark.parametrize("voxels", [1, 400])
def test_slabs_are_as_the_whole(case, monkeypatch, voxels):
    whole = process(case)
    monkeypatch.setattr(transforms, "MAX_SLAB", voxels)
    monkeypatch.setattr(restore, "MAX_SLAB", voxels)
    slabs = process(case)
    torch.testing.assert_close(slabs["image"].affine, whole["image"].affine, rtol=0, atol=1e-9)  # float64
    assert slabs["image"].applied_operations[-1]["orig_size"] == whole["image"].applied_operations[-1]["orig_size"]
    for key in ("image", "entropy", "probabilities"):
        assert slabs[key].shape == whole[key].shape
        # float64 weights of the neighbouring slice that are zero but for rounding, then float32
        torch.testing.assert_close(slabs[key].as_tensor(), whole[key].as_tensor(), rtol=1e-6, atol=1e-6)
    assert slabs["pred"].shape == (1, 13, 12, 11) and slabs["pred"].dtype == torch.uint8
    assert (slabs["pred"] != whole["pred"]).float().mean() < 1e-3  # two classes as likely as each other
    assert slabs["pred"].affine.equal(whole["pred"].affine)
