# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in the studies folder and what is asked for: served, or named as what it is."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
import requests
from label_server import PYTHON, SMALL, Server, make_bundle
from PIL import Image

from swinumamba_monai.data import read_image
from swinumamba_monai.tasks import find_task

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="SWINUMAMBA_LABEL_PYTHON names no environment with MONAI Label; `make test-label` does"
)


def test_every_picture_is_served_and_every_label_fits(tmp_path) -> None:
    data = find_task("microscopy").synthesize(
        tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL["microscopy"]
    )
    bundle, studies, log = make_bundle("microscopy", tmp_path, data), tmp_path / "studies", tmp_path / "server.log"
    (studies / "more").mkdir(parents=True)
    pair = json.loads((data / "datalist.json").read_text())["test"][0]
    frame = Image.fromarray(read_image(data / pair["image"])).convert("RGB")
    for name in ("a.bmp", "b.jpeg", "c.tiff", "D.PNG", "twice.jpg", "twice.png"):
        frame.save(studies / name)
    (studies / "notes.txt").touch()

    with Server(bundle, studies, log) as server:
        objects = server.call("GET", "/datastore/?output=all").json()["objects"]
        assert {name + entry["image"]["ext"] for name, entry in objects.items()} == {
            "a.bmp", "b.jpeg", "c.tiff", "D.PNG", "twice.jpg",
        }  # fmt: skip
        left = [line for line in log.read_text().splitlines() if "Not served of" in line]
        assert len(left) == 1 and "more, notes.txt, twice.png." in left[0]
        assert server.infer("microscopy", studies / "D.PNG", tmp_path / "D.png").stat().st_size

        for address in ("/train/other", "/batch/infer/other", "/scoring/other"):
            answer = requests.post(f"{server.url}{address}", json={}, timeout=60)
            assert answer.status_code == 400 and "of that name" in answer.json()["detail"], answer.text

        save(server, "a", read_image(data / pair["label"]).astype(np.uint16)[:40, :40])
        save(server, "b", read_image(data / pair["label"]).astype(np.uint16))
        before = (bundle / "models" / "model.pt").read_bytes()
        answer = requests.post(f"{server.url}/train/microscopy?run_sync=true", json={"max_epochs": 1}, timeout=240)
        sentence = answer.json()["detail"]
        assert answer.status_code == 400 and sentence.startswith("1 of 2 saved labels cannot be trained on: "), sentence
        assert "(40, 40) pixels but its image" in sentence and (bundle / "models" / "model.pt").read_bytes() == before

        save(server, "a", read_image(data / pair["label"]).astype(np.uint16))
        server.train("microscopy", True)
        time.sleep(1)
    assert "synthetic dataset" not in log.read_text()


def save(server: Server, image: str, label: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(label).save(content, "PNG")
    files = {"label": ("label.png", content.getvalue())}
    server.call("PUT", f"/datastore/label?image={image}&tag=final", files=files)
