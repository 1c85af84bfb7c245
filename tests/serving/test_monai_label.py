# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The three bundles on a real MONAI Label server, driven over HTTP.

The server needs an environment of its own: ``make test-label`` sets it up and names its Python.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image

from swinumamba_monai.data import SYNTHESIZERS, read_image
from swinumamba_monai.pretrained import save_half_precision

PYTHON = os.environ.get("SWINUMAMBA_LABEL_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="SWINUMAMBA_LABEL_PYTHON names no environment with MONAI Label; `make test-label` does"
)

ROOT = Path(__file__).parents[2]
NETWORK = {"feature_size": 8, "depths": [1, 1, 1, 1], "decoder_depths": [1, 1, 1], "d_state": 2}
SHORT = {"max_epochs": 1, "iterations_per_epoch": 2, "batch_size": 2, "num_workers": 0, "roi_size": [64, 64]}
SMALL = {
    "abdomen_mri": {"image_size": (48, 64), "num_slices": 4},
    "endoscopy": {"image_size": (64, 96)},
    "microscopy": {"image_size": (64, 80)},
}
LABELS = {
    "abdomen_mri": {"liver": 1, "left kidney": 13},
    "endoscopy": {"large needle driver": 1, "drop-in ultrasound probe": 7},
    "microscopy": {"cell": 1},
}


def run(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def predict(bundle: Path, images: Path, out: Path, *options: str) -> None:
    """What the command line makes of the images."""
    config = str(bundle / "configs" / "inference.json")
    run(
        "monai.bundle", "run", "inference", "--config_file", config, "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(out), *options,
    )  # fmt: skip


def make_bundle(task: str, folder: Path, data: Path) -> Path:
    """A copy of a bundle with a small network at the top of its configs, trained for two iterations."""
    bundle = folder / task
    shutil.copytree(ROOT / "bundles" / task, bundle, ignore=shutil.ignore_patterns("models", "eval", "synthetic"))
    for name, options in (("train", SHORT), ("inference", {"roi_size": [64, 64], "num_workers": 0})):
        path = bundle / "configs" / f"{name}.json"
        config = {**json.loads(path.read_text()), **options}
        config["network_def"].update(NETWORK)
        if task == "abdomen_mri":
            config["spacing"] = [6.0, 7.0]
        path.write_text(json.dumps(config))
    config = str(bundle / "configs" / "train.json")
    run(
        "monai.bundle", "run", "training", "--config_file", config, "--bundle_root", str(bundle),
        "--dataset_dir", str(data), "--ckpt_dir", str(folder / "trained"),
    )  # fmt: skip
    (bundle / "models").mkdir()
    shutil.copy(folder / "trained" / "model.pt", bundle / "models")
    return bundle


def make_studies(task: str, studies: Path, data: Path) -> None:
    """Images of every kind that users have."""
    studies.mkdir()
    source = Path(json.loads((data / "datalist.json").read_text())["test"][0]["image"])
    if task == "abdomen_mri":
        volume = nib.load(data / source)
        for axcodes in ("RAS", "LPS", "PIR", "SAL"):
            turn = nib.orientations.ornt_transform(
                nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axcodes)
            )
            nib.save(volume.as_reoriented(turn), studies / f"{axcodes}.nii.gz")
        return
    frame = Image.fromarray(read_image(data / source)).convert("RGB")
    frame.save(studies / "rgb.png")
    frame.convert("RGBA").save(studies / "rgba.png")
    frame.convert("L").save(studies / "gray.png")
    frame.save(studies / "photo.jpg")
    if task == "microscopy":
        frame.save(studies / "scan.tif")


class Server:
    """``python -m swinumamba_monai serve`` on a free port, as a context."""

    def __init__(self, bundle: Path, studies: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        self.command = [PYTHON, "-m", "swinumamba_monai", "serve", str(bundle), "--studies", str(studies)]
        self.command += ["--port", str(port)]

    def __enter__(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment, cwd=self.log.parent)
        for _ in range(240):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.info = requests.get(f"{self.url}/info/", timeout=30).json()
                return self
            except requests.ConnectionError:
                time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-3000:])

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def call(self, method: str, path: str, **options: object) -> requests.Response:
        answer = requests.request(method, f"{self.url}{path}", timeout=240, **options)
        assert answer.status_code == 200, f"{answer.text}\n{self.log.read_text()[-4000:]}"
        return answer


@pytest.mark.parametrize("task", list(SMALL))
def test_server_gives_what_the_command_line_gives_and_learns(task, tmp_path) -> None:
    data = SYNTHESIZERS[task](tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL[task])
    bundle = make_bundle(task, tmp_path, data)
    if task == "microscopy":  # as it ships
        model = bundle / "models" / "model.pt"
        save_half_precision(model, model.with_suffix(".safetensors"))
        model.unlink()
    studies, expected = tmp_path / "studies", tmp_path / "expected"
    make_studies(task, studies, data)
    images = sorted(studies.iterdir())
    for number, image in enumerate(images):
        predict(bundle, image, expected / str(number))

    def infer(image: Path) -> bytes:
        name = image.name.split(".")[0]
        return server.call("POST", f"/infer/{task}?image={name}&output=image").content

    with Server(bundle, studies, tmp_path / "server.log") as server:
        labels = server.info["models"][task]["labels"]
        assert LABELS[task].items() <= labels.items() and "background" not in labels
        for number, image in enumerate(images):
            (file,) = [path for path in (expected / str(number)).iterdir() if "overlay" not in path.name]
            answer = tmp_path / f"answer{''.join(file.suffixes)}"
            answer.write_bytes(infer(image))
            if task == "abdomen_mri":
                a, b = nib.load(answer), nib.load(file)
                np.testing.assert_array_equal(a.affine, nib.load(image).affine)
                np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
            else:
                np.testing.assert_array_equal(read_image(answer), read_image(file))
        before = (bundle / "models" / "model.pt").read_bytes()
        truths = json.loads((data / "datalist.json").read_text())["test"][0]["label"]
        for image in images[:2]:
            label = data / truths
            if task == "abdomen_mri":
                label = tmp_path / f"label_{image.name}"
                nib.save(nib.Nifti1Image(np.ones(nib.load(image).shape, np.uint8), nib.load(image).affine), label)
            with label.open("rb") as file:
                name = image.name.split(".")[0]
                server.call("PUT", f"/datastore/label?image={name}&tag=final", files={"label": (label.name, file)})
        for _ in range(2):  # a second training does not trip over the first
            server.call("POST", f"/train/{task}?run_sync=true", json={"max_epochs": 1, "device": "cpu"})
        assert (bundle / "models" / "model.pt").read_bytes() != before
        predict(bundle, images[0], tmp_path / "after")
        (file,) = [path for path in (tmp_path / "after").iterdir() if "overlay" not in path.name]
        answer.write_bytes(infer(images[0]))
        if task == "abdomen_mri":
            np.testing.assert_array_equal(np.asarray(nib.load(answer).dataobj), np.asarray(nib.load(file).dataobj))
        else:
            np.testing.assert_array_equal(read_image(answer), read_image(file))
