# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One bad file does not stop the others: every workflow of strangers' files refuses it first, or goes on without."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import NETWORK, OF_BUNDLE, PRETRAIN, SHORT, refusal
from PIL import Image
from result_tables import read_rows

from swinumamba_monai.data import load_datalist

TASKS = {"abdomen_mri": ".nii.gz", "endoscopy": ".png", "microscopy": ".png"}


def save(path: Path) -> None:
    if path.suffix == ".gz":
        nib.save(nib.Nifti1Image(np.zeros((64, 64, 2), np.int16), np.diag([6.0, 7.0, 8.0, 1.0])), path)
    else:
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)


@pytest.mark.parametrize("bundle", TASKS)
def test_inference(bundle, trained_in, tmp_path):
    images, suffix = tmp_path / "images", TASKS[bundle]
    images.mkdir()
    for name in ("a", "b", "c"):
        save(images / f"{name}{suffix}")
    (images / f"b{suffix}").write_text("no image")
    options = {
        "dataset_dir": str(images),
        "output_dir": str(tmp_path / "out"),
        "ckpt_path": str(trained_in(bundle) / "models" / "model.pt"),
        **NETWORK,
    }
    sentence = refusal(bundle, "inference", tmp_path, **options)
    assert f"b{suffix}" in sentence and "skip_bad" in sentence
    assert not (tmp_path / "out").exists(), "nothing is predicted before it is known that all can be"
    sentence = refusal(bundle, "inference", tmp_path, skip_bad="True", **options)  # as a run of the command line ends
    assert "all but 1 are done" in sentence and f"b{suffix}" in sentence.splitlines()[-1]
    written = sorted(path.name.split("_")[0] for path in (tmp_path / "out").iterdir())
    assert set(written) == {"a", "c"}


@pytest.mark.parametrize("bundle", TASKS)
def test_evaluation(bundle, trained_in, dataset_of, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(dataset_of(bundle), data)
    options = {"dataset_dir": str(data), "ckpt_dir": str(trained_in(bundle) / "models"), "num_figures": 0, **SHORT}
    bad, good = (Path(item["image"]) for item in load_datalist(data, "test"))
    bad.write_text("no image")
    options["output_dir"] = str(tmp_path / "out")
    sentence = refusal(bundle, "evaluate", tmp_path, **options)
    assert bad.name in sentence and "skip_bad" in sentence
    sentence = refusal(bundle, "evaluate", tmp_path, skip_bad=True, **options)
    assert "all but 1 are done" in sentence and bad.name in sentence.splitlines()[-1]
    assert [Path(row["name"]).name for row in read_rows(tmp_path / "out" / "metrics.csv")] == [good.name]


@pytest.mark.parametrize("bundle", TASKS)
def test_pretraining(bundle, tmp_path):
    images, suffix = tmp_path / "images", TASKS[bundle]
    images.mkdir()
    for name in "abcd":
        save(images / f"{name}{suffix}")
    for name in "bd":
        (images / f"{name}{suffix}").write_text("no image")
    options = {"dataset_dir": str(images), "ckpt_dir": str(tmp_path / "ckpt"), **PRETRAIN, **OF_BUNDLE[bundle]}
    sentence = refusal(bundle, "pretrain", tmp_path, **options)
    assert "2 problem" in sentence and f"b{suffix}" in sentence and f"d{suffix}" in sentence
    assert not (tmp_path / "ckpt").exists(), "nothing is trained before it is known that all can be read"
    sentence = refusal(bundle, "pretrain", tmp_path, skip_bad="True", **options)
    assert [f"{name}{suffix}" in sentence for name in "abcd"] == [False, True, False, True]
    assert "all but 2 are done" in sentence and (tmp_path / "ckpt" / "pretrained_encoder.pt").is_file()
