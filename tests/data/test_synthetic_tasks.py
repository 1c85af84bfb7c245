# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic volumes and frames are reproducible, pass their own checks, and have every class in its place."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from swinumamba_monai.data.datalist import load_class_names, load_datalist
from swinumamba_monai.data.files.label_map import ABDOMEN_CLASSES, ENDOSCOPY_CLASSES
from swinumamba_monai.data.synthetic.abdomen_mri import synthesize_abdomen_mri, synthesize_volume
from swinumamba_monai.data.synthetic.endoscopy import synthesize_frame
from swinumamba_monai.data.synthetic.folder import dataset_dir_or_synthetic
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import find_task

SMALL = {
    "abdomen_mri": {"image_size": (48, 64), "num_slices": 8},
    "endoscopy": {"image_size": (64, 96)},
}


@pytest.mark.parametrize("task", SMALL)
def test_datasets_are_whole_and_reproducible(tmp_path, task):
    def make(name, **changes):
        counts = {"num_train": 3, "num_validation": 1, "num_test": 1}
        folder = find_task(task).synthesize(tmp_path / name, **{**counts, **SMALL[task], **changes})
        return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    first = make("a")
    assert make("b") == first and len(first) == 11
    other = make("c", seed=1)
    assert all(other[name] != data for name, data in first.items())
    for section, count in (("training", 3), ("validation", 1), ("test", 1)):
        assert len(load_datalist(tmp_path / "a", section)) == count  # with every check of real data
    names = {"abdomen_mri": ABDOMEN_CLASSES, "endoscopy": ENDOSCOPY_CLASSES}[task]
    assert load_class_names(tmp_path / "a") == list(names)
    with pytest.raises(InputError, match="not possible"):
        make("d", image_size=(40, 300))
    with pytest.raises(InputError, match="not possible"):
        make("d", num_test=-1)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("task", SMALL)
def test_workflows_without_data_get_theirs(tmp_path, task, monkeypatch):
    synthesize = find_task(task).files.synthesize
    defaults = synthesize.__defaults__
    monkeypatch.setattr(synthesize, "__defaults__", (2, 1, 1, (64, 64), *(8,) * (len(defaults) - 5), 0))
    folder = dataset_dir_or_synthetic(None, str(tmp_path / "a"), task)
    assert len(load_datalist(folder, "training")) == 2


def test_a_body_has_its_organs_in_place():
    volume, classes, affine = synthesize_volume(np.random.default_rng(0), (128, 160), 24)
    assert volume.shape == classes.shape == (160, 128, 24)
    assert volume.dtype == np.int16 and classes.dtype == np.uint8
    assert set(np.unique(classes)) == set(range(14))
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    spacing = np.diag(affine)[:3]
    assert spacing[0] == spacing[1] and spacing[2] > 2 * spacing[0]  # thick slices
    centre = {name: ndimage.center_of_mass(classes == number) for number, name in enumerate(ABDOMEN_CLASSES)}
    assert centre["liver"][0] > centre["stomach"][0] and centre["right kidney"][0] > centre["left kidney"][0]
    assert centre["aorta"][1] < centre["stomach"][1] and centre["right kidney"][2] < centre["esophagus"][2]
    # Rician: without signal the magnitude of the noise is Rayleigh distributed, mean / std = sqrt(pi / (4 - pi)).
    air = volume[:6, :6].astype(float)
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.1)


def test_volumes_have_several_orientations(tmp_path):
    folder = synthesize_abdomen_mri(tmp_path / "a", 4, 1, 1, (48, 64), 8)
    volumes = [nib.load(file) for file in sorted((folder / "images").iterdir())]
    assert len({nib.aff2axcodes(volume.affine) for volume in volumes}) == 4
    for volume in volumes:
        label = nib.load(Path(volume.get_filename()).parents[1] / "labels" / Path(volume.get_filename()).name)
        np.testing.assert_array_equal(label.affine, volume.affine)
        assert label.shape == volume.shape


def test_frames_have_instruments_that_come_in_from_a_border():
    seen = set()
    for index in range(14):
        frame, classes = synthesize_frame(np.random.default_rng(index), (96, 160), first=index)
        assert frame.shape == (96, 160, 3) and frame.dtype == np.uint8 and classes.shape == (96, 160)
        assert index % 7 + 1 in classes
        present = set(np.unique(classes)) - {0}
        assert 1 <= len(present) <= 3
        seen |= present
        border = np.concatenate([classes[:, 0], classes[:, -1], classes[-1]])
        assert (border > 0).any() and not classes[0].all()
        tissue, metal = frame[classes == 0].astype(int), frame[classes > 0].astype(int)
        assert (tissue[:, 0] - tissue[:, 2]).mean() > 2 * (metal[:, 0] - metal[:, 2]).mean()  # red and gray
        assert 0.01 < (classes > 0).mean() < 0.5
    assert seen == set(range(1, 8))
