# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in the studies folder and what is asked for: served, or named as what it is."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import requests
from label_server import Server, make_bundle, make_data, needs_server
from PIL import Image

from swinumamba_monai.data import read_image

pytestmark = needs_server

ASAP = """<ASAP_Annotations><Annotations><Annotation Name="cell"><Coordinates>
<Coordinate X="1" Y="1"/><Coordinate X="9" Y="1"/><Coordinate X="9" Y="9"/></Coordinates></Annotation></Annotations>
</ASAP_Annotations>"""


def test_every_picture_is_served_and_every_label_fits(tmp_path) -> None:
    data = make_data("microscopy", tmp_path)
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

        truth = read_image(data / pair["label"]).astype(np.uint16)
        save(server, "a", truth)
        save(server, "b", truth)
        labels = studies / "labels" / "final"
        saved = (labels / "a.png").read_bytes()
        other_class = ASAP.replace("cell", "nosuch").encode()
        for name, content, problem in (
            ("label.png", png(truth[:40, :40]), "the label has (40, 40) pixels but its image"),
            ("label.png", saved[: len(saved) // 2], "the label cannot be decoded"),
            ("label.txt", b"cell", "the label is not an image"),
            ("label.XML", other_class, "the label has a polygon of class 'nosuch'"),
        ):
            answer = put(server, "a", name, content)
            sentence = answer.json()["detail"]
            assert answer.status_code == 400 and sentence.startswith("Not saved: ") and problem in sentence, sentence
            assert {path.name for path in labels.iterdir()} == {"a.png", "b.png"}
            assert (labels / "a.png").read_bytes() == saved
        assert put(server, "b", "label.XML", ASAP.encode()).status_code == 200
        assert {path.name for path in labels.iterdir()} == {"a.png", "b.XML"}
        server.call("DELETE", "/datastore/label?id=b&tag=final")  # and the first does not come back
        assert server.call("GET", "/datastore/").json()["label_tags"] == {"final": 1}
        assert put(server, "b", "label.XML", ASAP.encode()).status_code == 200
        server.call("PUT", "/datastore/image?image=b", files={"file": ("b.jpeg", (studies / "b.jpeg").read_bytes())})
        assert server.call("GET", "/datastore/").json()["label_tags"] == {"final": 2}

        (labels / "a.png").write_bytes(png(truth[:40, :40]))  # not by the server
        before = (bundle / "models" / "model.pt").read_bytes()
        answer = requests.post(f"{server.url}/train/microscopy?run_sync=true", json={"max_epochs": 1}, timeout=240)
        sentence = answer.json()["detail"]
        assert answer.status_code == 400 and sentence.startswith("1 of 2 saved labels cannot be trained on: "), sentence
        assert "(40, 40) pixels but its image" in sentence and (bundle / "models" / "model.pt").read_bytes() == before

        save(server, "a", truth)
        server.train("microscopy", True)
        time.sleep(1)
    assert "synthetic dataset" not in log.read_text()


def save(server: Server, image: str, label: np.ndarray) -> None:
    answer = put(server, image, "label.png", png(label))
    assert answer.status_code == 200, answer.text


def put(server: Server, image: str, name: str, content: bytes) -> requests.Response:
    files = {"label": (name, content)}
    return requests.put(f"{server.url}/datastore/label?image={image}&tag=final", files=files, timeout=60)


def png(label: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(label).save(content, "PNG")
    return content.getvalue()
