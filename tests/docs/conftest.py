# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A folder a task in which everything exists that the documentation's commands name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from doc_commands import ROOT
from PIL import Image
from short_runs import run_bundle

from swinumamba_monai.cli import main
from swinumamba_monai.tasks import TASKS, find_task


def _with_classes_up_to(highest: int, source: Path, folder: Path) -> None:
    """A copy of a dataset whose labels have no greater number."""
    shutil.copytree(source / "images", folder / "images")
    (folder / "labels").mkdir()
    for file in (source / "labels").iterdir():
        if file.suffix == ".png":
            Image.fromarray(np.minimum(np.asarray(Image.open(file)), highest)).save(folder / "labels" / file.name)
        else:
            label = nib.load(file)
            classes = np.minimum(np.asarray(label.dataobj), highest).astype(np.uint8)
            nib.save(nib.Nifti1Image(classes, label.affine), folder / "labels" / file.name)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Callable[[str, Path], None]:
    """Fills an empty folder with copies of the bundles, data, and what one training of the task left behind."""

    @cache
    def made(task: str) -> Path:
        place = tmp_path_factory.mktemp(task)
        _build(task, place)
        return place

    return lambda task, folder: shutil.copytree(made(task), folder, dirs_exist_ok=True, symlinks=True)


def _copy_small(source: str, target: str) -> None:
    """A copy, but of the weights that ship a link: they are 110 MB, and some sixty tests have a workplace."""
    (os.symlink if source.endswith(".safetensors") else shutil.copy2)(source, target)


def _build(task: str, place: Path) -> None:
    for name in TASKS:
        shutil.copytree(ROOT / "bundles" / name, place / "bundles" / name, copy_function=_copy_small)
    data = place / "my_data"
    find_task(task).synthesize(data, num_train=4, num_validation=2, num_test=2, **find_task(task).small_data)
    shutil.copytree(data, place / "DOWNLOADED")
    shutil.copytree(data, place / "DSB2018")
    if task == "abdomen_mri":
        _with_classes_up_to(4, data, place / "CHAOS")
    if task == "endoscopy":
        _with_classes_up_to(2, data, place / "ENDOVIS2015")
    image = next((data / "images").iterdir())
    suffix = "".join(image.suffixes)
    for name in ("my_new_images", "my_images", "FRAMES", "VOLUMES", "IMAGES", "unlabelled"):
        (place / name).mkdir()
        shutil.copy(image, place / name / f"a{suffix}")
    shutil.copy(image, place / f"my_image{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["prepare", task, "--source_dir", "my_data", "--output_dir", "prepared"]) == 0
        config, common = f"bundles/{task}/configs", ["--bundle_root", f"bundles/{task}", "--dataset_dir", "prepared"]
        run_bundle(["run", "pretraining", "--config_file", f"{config}/pretrain.json", *common])
        run_bundle(["run", "training", "--config_file", f"{config}/train.json", *common])
        files = f"['{config}/train.json','{config}/evaluate.json']"
        run_bundle(["run", "evaluating", "--config_file", files, *common, "--output_dir", "RUN_A"])
        shutil.copytree("RUN_A", "RUN_B")
        models = Path("bundles") / task / "models"
        (models / "checkpoint.pt").unlink()  # a training without --resume refuses a folder that has it
        (models / "pretraining_checkpoint.pt").unlink()
        shutil.copy(models / "pretrained_encoder.pt", "vssmtiny_dp01_ckpt_epoch_292.pth")
        shutil.copy(models / "pretrained_encoder.pt", models / "vssmtiny_dp01_ckpt_epoch_292.pth")
