# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes as they come, through whole workflows: channels, ignored labels, sagittal slices, two runs in one folder."""

from __future__ import annotations

import json

import bundle_runs
import nibabel as nib
import numpy as np
import pytest
from bundle_runs import NETWORK, SHORT

from swinumamba_monai.data import PrepareOptions, prepare_abdomen_mri

AFFINE = np.diag([7.0, 6.0, 6.0, 1.0])


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two channels, NaN at the border, a label with two regions and voxels of which nothing is known."""
    folder = tmp_path_factory.mktemp("nnunet")
    for case in range(4):
        rng = np.random.default_rng(case)
        for channel in range(2):
            voxels = rng.random((5, 24, 20), dtype=np.float32)
            voxels[0, 0] = np.nan
            save(folder / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz", voxels)
        save(folder / "labelsTr" / f"case_{case}.nii.gz", rng.integers(0, 4, (5, 24, 20)).astype(np.uint8))
    labels = {"background": 0, "organ": [1, 2], "lesion": 2, "ignore": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    prepare_abdomen_mri(folder, folder / "out", PrepareOptions(nan=0))
    return folder


def test_from_training_to_inference(prepared, tmp_path):
    data = {"in_channels": 2, "num_classes": 3, "nan": 0, "axcodes": "IPR", "spacing": [6.0, 6.0]}
    options = {**SHORT, **data, "dataset_dir": str(prepared / "out"), "num_workers": 0}
    workflow = bundle_runs.run("abdomen_mri", "train", tmp_path, **options)
    assert np.isfinite(workflow.trainer.state.output[0]["loss"])
    report = {"output_dir": str(tmp_path / "report"), "nsd_tolerances": 3, "num_figures": 0}
    bundle_runs.run("abdomen_mri", "evaluate", tmp_path, **report, **options)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["tolerances"] == {"organ": 3, "lesion": 3}
    given = {**NETWORK, **data, "dataset_dir": str(prepared / "imagesTr"), "output_dir": str(tmp_path / "labels")}
    bundle_runs.run("abdomen_mri", "inference", tmp_path, **given)
    names = sorted(file.name for file in (tmp_path / "labels").iterdir())
    assert names == [f"case_{case}_classes.nii.gz" for case in range(4)]
    assert nib.load(tmp_path / "labels" / names[0]).shape == (5, 24, 20)


def test_a_second_run_into_the_same_folder_takes_the_same_images(trained_in, tmp_path):
    save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((5, 24, 20), dtype=np.float32))
    options = {**NETWORK, "dataset_dir": str(tmp_path), "output_dir": str(tmp_path), "save_entropy": True}
    for _ in range(2):
        bundle_runs.run("abdomen_mri", "inference", trained_in("abdomen_mri"), **options)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii.gz", "a_classes.nii.gz", "a_entropy.nii.gz"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"output_ext": ".foo"}, "set output_ext to .nii"),
        ({"axcodes": "XYZ"}, "such as PLS (axial)"),
        ({"axcodes": "PLR"}, "such as PLS (axial)"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_anything_is_computed(option, words, trained_in, tmp_path):
    save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((5, 24, 20), dtype=np.float32))
    options = {**NETWORK, "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), **option}
    assert words in bundle_runs.refusal("abdomen_mri", "inference", trained_in("abdomen_mri"), **options)
    assert not (tmp_path / "out").exists()
