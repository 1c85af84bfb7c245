# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A MONAI Label server of a small bundle, and what clients send it."""

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
import pytest
import requests
from PIL import Image

from swinumamba_monai.data import read_image
from swinumamba_monai.tasks import find_task

PYTHON = os.environ.get("SWINUMAMBA_LABEL_PYTHON")
ROOT = Path(__file__).parents[2]
NETWORK = {"feature_size": 8, "depths": [1, 1, 1, 1], "decoder_depths": [1, 1, 1], "d_state": 2}
SHORT = {"max_epochs": 1, "iterations_per_epoch": 2, "batch_size": 2, "num_workers": 0, "roi_size": [64, 64]}
needs_server = pytest.mark.skipif(
    not PYTHON, reason="SWINUMAMBA_LABEL_PYTHON names no environment with MONAI Label; `make test-label` does"
)
# The function that MONAI Label's plugin for CVAT puts on Nuclio, on the image that CVAT sends it.
CVAT = """
import base64, logging, sys
from argparse import Namespace
import detector
context = Namespace(logger=logging.getLogger(), user_data=Namespace(), Response=lambda body, **options: print(body))
detector.init_context(context)
with open(sys.argv[1], "rb") as file:
    detector.handler(context, Namespace(body={"image": base64.b64encode(file.read())}))
"""


def run(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def make_data(task: str, folder: Path) -> Path:
    """A small synthetic dataset below a folder."""
    counts = {"num_train": 3, "num_validation": 2, "num_test": 1}
    return find_task(task).synthesize(folder / "data", **counts, **find_task(task).small_data)


def make_served(task: str, folder: Path) -> tuple[Path, Path, Path]:
    """A small synthetic dataset in a folder, a bundle trained on it, and studies: images of it."""
    data = make_data(task, folder)
    bundle, studies = make_bundle(task, folder, data), folder / "studies"
    make_studies(task, studies, data)
    return data, bundle, studies


def make_bundle(task: str, folder: Path, data: Path) -> Path:
    """A copy of a bundle with a small network at the top of its configs, trained for two iterations.

    With another seed than the server trains with, so that what starts afresh there is another network.
    """
    bundle = folder / task
    shutil.copytree(ROOT / "bundles" / task, bundle, ignore=shutil.ignore_patterns("models", "eval", "synthetic"))
    for name, options in (("train", SHORT), ("inference", {"roi_size": [64, 64], "num_workers": 0})):
        path = bundle / "configs" / f"{name}.json"
        config = {**json.loads(path.read_text()), **options}
        config["network_def"].update(NETWORK)
        if task == "abdomen_mri":
            config["spacing"] = [6.0, 7.0]
        if task == "microscopy":  # two iterations teach no flows, but of three classes each is somewhere
            config["target"] = "classes"
        path.write_text(json.dumps(config))
    config = str(bundle / "configs" / "train.json")
    run(
        "monai.bundle", "run", "training", "--config_file", config, "--bundle_root", str(bundle),
        "--dataset_dir", str(data), "--ckpt_dir", str(folder / "trained"), "--seed", "1",
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

    def infer(self, task: str, image: Path, answer: Path) -> Path:
        answer.write_bytes(self.call("POST", f"/infer/{task}?image={stem(image)}&output=image").content)
        return answer

    def memory(self, kind: str) -> int:
        """Bytes of the process, as Linux calls them."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith(f"{kind}:")).split()[1])

    def save_label(self, image: Path, name: str, content: bytes) -> None:
        self.call("PUT", f"/datastore/label?image={stem(image)}&tag=final", files={"label": (name, content)})

    def train(self, task: str, pretrained: bool) -> None:
        """In the background, as the clients do."""
        options = {"max_epochs": 1, "device": "cpu", "pretrained": pretrained}
        self.call("POST", f"/train/{task}", json=options)
        for _ in range(480):
            status = self.call("GET", "/train/").json()
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                break
            time.sleep(0.5)
        assert status["status"] == "DONE", status

    def predict_all(self, options: dict) -> None:
        """In the background, to the end, be it a good one or not."""
        self.call("POST", "/batch/infer/microscopy", json=options)
        for _ in range(240):
            if self.call("GET", "/batch/infer").json()["status"] not in ("SUBMITTED", "RUNNING"):
                return
            time.sleep(0.5)
        raise TimeoutError

    def ask_by_cvat(self, task: str, image: Path) -> list[dict]:
        plugin = Path(PYTHON).parents[1] / "monailabel" / "plugins" / "cvat"
        environment = {**os.environ, "PYTHONPATH": str(plugin), "MONAI_LABEL_SERVER": self.url}
        environment["MONAI_LABEL_MODEL"] = task
        done = subprocess.run(
            [PYTHON, "-c", CVAT, str(image)], capture_output=True, text=True, env=environment, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def ask_by_qupath(self, task: str, image: Path, upload: bool) -> bytes:
        """As MONAI Label's extension for QuPath asks: about an image that the server has, or with the file."""
        region = {"level": 0, "location": [0, 0], "size": [0, 0], "tile_size": [1024, 1024], "params": {}}
        if not upload:
            return self.call("POST", f"/infer/wsi/{task}?output=asap&image={stem(image)}", json=region).content
        files, fields = {"file": (image.name, image.read_bytes())}, {"wsi": json.dumps(region)}
        return self.call("POST", f"/infer/wsi_v2/{task}?output=asap", files=files, data=fields).content


def stem(image: Path) -> str:
    return image.name.split(".")[0]
