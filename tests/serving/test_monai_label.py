# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The three bundles on a real MONAI Label server, driven over HTTP.

The server needs an environment of its own: ``make test-label`` sets it up and names its Python.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import requests
from PIL import Image

from swinumamba_monai.data import read_image
from swinumamba_monai.inference import geojson
from swinumamba_monai.inference.polygons import class_names
from swinumamba_monai.serving.annotations import elements
from swinumamba_monai.tasks import find_task
from swinumamba_monai.weight_files import read_weights, save_half_precision

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


def predict(bundle: Path, images: Path, out: Path) -> Path:
    """The file that the command line makes of an image."""
    config = str(bundle / "configs" / "inference.json")
    run(
        "monai.bundle", "run", "inference", "--config_file", config, "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(out),
    )  # fmt: skip
    (file,) = [path for path in out.iterdir() if "overlay" not in path.name]
    return file


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


def assert_same(answer: Path, file: Path) -> None:
    if file.suffix == ".gz":
        a, b = nib.load(answer), nib.load(file)
        np.testing.assert_array_equal(a.affine, b.affine)
        np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    else:
        np.testing.assert_array_equal(read_image(answer), read_image(file))


def plain_polygons(collection: dict) -> list[tuple[str, list[list[int]]]]:
    """The label and the corners of every polygon of a GeoJSON."""
    return [(element["label"], contour) for element in elements(collection) for contour in element["contours"]]


def asap_polygons(content: bytes) -> list[tuple[str, list[list[int]]]]:
    return [
        (annotation.get("Name"), [[int(c.get("X")), int(c.get("Y"))] for c in annotation.iter("Coordinate")])
        for annotation in ElementTree.fromstring(content).iter("Annotation")
    ]


def ask(server: Server, method: str, path: str, **options: object) -> int:
    return requests.request(method, f"{server.url}{path}", timeout=120, **options).status_code


def ask_with_origins(server: Server, *origins: str) -> int:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    connection.putrequest("GET", "/info/")
    for origin in origins:
        connection.putheader("Origin", origin)
    connection.endheaders()
    return connection.getresponse().status


JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
UNNAMED = (
    '--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\nx\r\n'
    '--b\r\nContent-Disposition: form-data; name="wsi"\r\n\r\n{}\r\n--b--\r\n'
)


def test_a_client_cannot_get_in(tmp_path, tmp_path_factory, monkeypatch) -> None:
    """Requests as an attacker makes them: no code runs, nothing is read or written outside of the studies."""
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(temporary))
    data = find_task("microscopy").synthesize(
        tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL["microscopy"]
    )
    bundle, studies, trap = make_bundle("microscopy", tmp_path, data), tmp_path / "studies", tmp_path / "trap"
    make_studies("microscopy", studies, data)
    outside = tmp_path / "outside.png"
    shutil.copy(studies / "rgb.png", outside)
    (studies / "linked.png").symlink_to(outside)
    (studies / "labels" / "linked").mkdir(parents=True)
    (studies / "labels" / "linked" / "photo.png").symlink_to(outside)
    before = outside.read_bytes(), {path.name for path in tmp_path.iterdir()} | {"server.log"}
    label = (data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]).read_bytes()
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    with Server(bundle, studies, tmp_path / "server.log") as server:
        server.save_label(studies / "rgb.png", "rgb.png", label)
        server.save_label(studies / "gray.png", "gray.png", label)
        plain = {"max_epochs": 1, "device": "cpu", "pretrained": True}
        for crafted in (
            {"device": f"cpu') if {code} else torch.device('cpu"},
            {"device": f"${code}"},
            {"max_epochs": f"${code}"},
            {"max_epochs": "@network"},
            {"max_epochs": "%/etc/passwd"},
            {"max_epochs": True},
            {"val_split": f"${code}"},
            {"run_id": f"${code}"},
            {"tracking": str(tmp_path / "tracking.json")},
            {"tracking": "mlflow", "tracking_uri": f"file://{trap}"},
            {"tracking_experiment_name": f"${code}"},
            {"model_filename": str(outside)},
            {"model_filename": "../../outside.pt"},
            {"gpus": "0;touch"},
            {"bundle_path": str(tmp_path)},
            {"multi_gpu": f"${code}"},
            {"train#trainer#max_epochs": 1},
            {"name": [f"${code}"]},
        ):
            assert ask(server, "POST", "/train/microscopy?run_sync=true", json={**plain, **crafted}) == 400, crafted
            assert ask(server, "POST", "/train/", json={"microscopy": {**plain, **crafted}}) == 400, crafted
            if "val_split" not in crafted:
                params = {"params": json.dumps(crafted)}
                assert ask(server, "POST", "/infer/microscopy?image=rgb", data=params) in (400, 200), crafted
        for image in (str(outside), "../outside", "..", "label", "$HOME", "no_such_image"):
            for path in (f"/infer/microscopy?output=image&image={image}", f"/infer/wsi/microscopy?image={image}"):
                assert ask(server, "POST", path, json={}) in (400, 404), path
            assert ask(server, "GET", f"/datastore/image?image={image}") in (400, 404)
            assert ask(server, "DELETE", f"/datastore/image?id={image}") in (400, 404, 500)
        for crafted in ({"image": str(outside)}, {"label_tag": "../../out", "save_label": True}, {"session": {}}):
            body = {"params": json.dumps(crafted)}
            assert ask(server, "POST", "/infer/microscopy?image=rgb&output=image", data=body) == 400, crafted
            assert ask(server, "POST", "/infer/wsi/microscopy?image=rgb", json={"params": crafted}) == 400, crafted
            assert ask(server, "POST", "/batch/infer/microscopy", json=crafted) == 400, crafted
        for query in ("image=rgb&tag=../..", "image=rgb&tag=/tmp/x", "image=../rgb&tag=final", "image=rgb&tag=$x"):
            files = {"label": ("label.png", label)}
            assert ask(server, "PUT", f"/datastore/label?{query}", files=files) == 400, query
        files = {"file": ("new.png", label)}
        assert ask(server, "PUT", "/datastore/image?image=../new", files=files) == 400
        for name in ("..", "a/..", "$x.png", "a\\..", "x" * 300 + ".png", "a." + "x" * 300):
            files = {"file": (name, label)}
            assert ask(server, "PUT", "/datastore/image", files=files) == 400, name
            assert ask(server, "POST", "/infer/microscopy", files=files) == 400, name
            assert ask(server, "PUT", "/datastore/label?image=rgb&tag=final", files={"label": (name, label)}) == 400, (
                name
            )
            assert ask(server, "PUT", "/session/", files={"files": (name, label)}) == 400, name
        assert (
            ask(server, "PUT", "/datastore/image", files={"file": ("C:\\me\\sent.png", label)}) == 200
        )  # as Windows does
        for name in ("linked", "labels", "datastore_v2", "datastore_v2.json", ".lock"):
            for method, path in (("PUT", f"/datastore/image?image={name}"), ("DELETE", f"/datastore/image?id={name}")):
                assert ask(server, method, path, files={"file": ("new", b"no image")}) == 403, path
        assert ask(server, "PUT", "/datastore/label?image=photo&tag=linked", files={"label": ("a.png", label)}) == 403
        assert ask(server, "PUT", "/datastore/label?image=linked&tag=final", files={"label": ("a.png", label)}) == 200
        server.predict_all({"label_tag": "linked", "device": "cpu"})  # in a process of its own
        for name in ("main.py", "logs", "model", "results"):  # as files are called where the server runs
            assert ask(server, "PUT", f"/datastore/image?image={name}", files={"file": ("a.png", label)}) == 200
            assert ask(server, "POST", f"/infer/microscopy?image={name}&output=image") == 200, name
            assert ask(server, "DELETE", f"/datastore/image?id={name}") == 200
            assert ask(server, "POST", f"/infer/microscopy?image={name}&output=image") == 404, name
        for number in ("NaN", "1e999", "-Infinity", "9" * 5000, '"\\ud800"'):
            info = {"info": f'{{"a": [{number}]}}'}
            assert ask(server, "PUT", "/datastore/image/info?image=rgb", data=info) == 400, number
        assert ask(server, "GET", "/datastore/?output=all") == 200
        assert ask(server, "PUT", "/session/?uncompress=true", files={"files": ("x.tar", b"")}) == 400
        for number in (10**57, -(10**57), 2**63):
            assert ask(server, "GET", f"/logs/?lines={number}") == 400, number
        assert ask(server, "GET", "/logs/?lines=5") == 200
        assert ask(server, "GET", "/logs/gpu") == 404  # NVIDIA's program may not be there
        for method, path in (("PUT", "/model/microscopy"), ("DELETE", "/model/microscopy"), ("GET", "/proxy/dicom/a")):
            assert ask(server, method, path) in (404, 405), path

        several = server.call("PUT", "/session/", files=[("files", (name, label)) for name in "ab"]).json()[
            "session_id"
        ]
        one = server.call("PUT", "/session/", files={"files": ("a.png", label)}).json()["session_id"]
        assert server.call("GET", f"/session/{one}?image=true").content == label
        assert ask(server, "POST", "/train/microscopy", data=b"[" + b"1," * 3_000_000, headers=JSON) == 413
        refused = [
            ("POST", "/infer/nosuch?image=rgb", {}),
            ("POST", "/infer/microscopy", {"files": {"file": ("a.png", b"no image")}}),
            ("POST", "/infer/microscopy?image=rgb", {"files": {"label": ("a.bin", b"0")}}),
            ("POST", "/infer/wsi/microscopy?image=rgb", {"data": '{"level": 1e999}', "headers": JSON}),
            ("POST", "/infer/wsi_v2/microscopy?image=rgb", {"files": {"wsi": (None, "nojson")}}),
            ("POST", "/infer/wsi_v2/microscopy?image=rgb", {"files": {"wsi": (None, "[" * 100_000)}}),
            ("POST", "/infer/wsi_v2/microscopy?image=rgb", {"files": {"wsi": (None, '{"level": NaN}')}}),
            ("POST", "/infer/wsi_v2/microscopy?image=main.py", {"files": {"file": ("", b""), "wsi": (None, "{}")}}),
            ("POST", "/infer/wsi_v2/microscopy?image=main.py", {"data": UNNAMED, "headers": MULTIPART}),
            ("POST", "/infer/microscopy?session_id=nosuch", {}),
            ("POST", "/infer/microscopy", {}),
            ("POST", "/infer/microscopy?image=rgb&output=dicom_seg", {}),
            ("POST", "/infer/microscopy?image=rgb", {"data": {"params": '{"device": "mps"}'}}),
            ("PUT", "/datastore/image/info?image=rgb", {"data": {"info": '{"strategy": 5}'}}),
            ("PUT", "/datastore/image", {"files": {"file": ("b.png", label)}, "data": {"params": '{"strategy": 5}'}}),
            ("GET", f"/session/{several}?image=true", {}),
            ("POST", "/train/", {"json": {"device": {"max_epochs": 1}}}),
            ("POST", "/train/microscopy", {"data": "[1", "headers": JSON}),
            ("POST", "/scoring/x?run_sync=true", {"json": {}}),
            ("POST", "/activelearning/nosuch", {"json": {}}),
            ("PUT", "/datastore/label?image=nosuch&tag=final", {"files": {"label": ("a.png", label)}}),
            ("PUT", "/datastore/image/info?image=nosuch", {"data": {"info": "{}"}}),
            ("PUT", "/datastore/image?image=NUL", {"files": {"file": ("a.png", label)}}),
            ("PUT", "/datastore/image?image=LABELS", {"files": {"file": ("a.png", label)}}),
            ("DELETE", "/datastore/image?id=nosuch", {}),
            ("HEAD", "/datastore/image?image=rgb&check_sum=XX:1", {}),
        ]
        for method, path, options in refused:
            answer = requests.request(method, f"{server.url}{path}", timeout=120, **options)
            assert 400 <= answer.status_code < 500, (method, path, answer.status_code)
            if method != "HEAD":
                said = answer.json()["detail"]
                assert isinstance(said, str) and said.isprintable() and len(said) < 500, path
        assert ask(server, "GET", "/datastore/dataset") == 200
        assert ask(server, "PUT", "/session/", files={"files": ("a.png", label)}) == 200
        time.sleep(1)  # what was sent is removed after the answer
        left = [path for path in temporary.rglob("*") if path.is_file() and not {"app", "sessions"} & set(path.parts)]
        assert len(left) <= 1, left  # MONAI Label's configuration of its log
        (studies / "labels" / "away").symlink_to(tmp_path)  # after the start
        assert ask(server, "PUT", "/datastore/label?image=rgb&tag=away", files={"label": ("a.png", label)}) == 403
        assert ask(server, "DELETE", "/datastore/image?id=rgb") == 403
        (studies / "labels" / "away").unlink()

        page = {"Origin": "http://evil.example"}
        for method, path in (("GET", "/info/"), ("DELETE", "/datastore/image?id=rgb"), ("POST", "/train/microscopy")):
            assert ask(server, method, path, headers=page) == 403, path
        asked = {**page, "Access-Control-Request-Method": "DELETE"}
        answer = requests.options(f"{server.url}/datastore/image", headers=asked, timeout=30)
        assert not any(name.lower().startswith("access-control-allow") for name in answer.headers)
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            assert ask(server, "GET", "/info/", headers={"Sec-Fetch-Site": site}) == status, site  # without an origin
        assert ask_with_origins(server, "http://evil.example", server.url) == 403
        assert ask(server, "GET", "/info/", headers={"Host": "evil.example"}) == 403
        assert ask(server, "GET", "/info/", headers={"Origin": server.url}) == 200
        assert ask(server, "POST", "/infer/microscopy?image=rgb&output=image", data={"params": "{}"}) == 200
    assert before == (outside.read_bytes(), {path.name for path in tmp_path.iterdir()})
    assert not [path for path in temporary.rglob("*") if path.is_file()]  # the server ended in good order
    assert (studies / "sent.png").is_file() and (studies / "linked.png").is_symlink()
    assert not trap.exists() and not (tmp_path / "new.png").exists()
    assert {path.name for path in studies.glob("labels/*")} <= {
        "final",
        "original",
        "linked",
    }  # which MONAI Label makes
    assert not list(tmp_path.glob("*rgb.png")) and {path.stem for path in studies.glob("*.*")} >= {"rgb", "gray"}


def test_an_origin_that_is_allowed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_CORS_ORIGINS", '["http://viewer.example"]')
    data = find_task("microscopy").synthesize(
        tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL["microscopy"]
    )
    bundle = make_bundle("microscopy", tmp_path, data)
    make_studies("microscopy", tmp_path / "studies", data)
    with Server(bundle, tmp_path / "studies", tmp_path / "server.log") as server:
        assert ask(server, "GET", "/info/", headers={"Origin": "http://viewer.example"}) == 200
        assert ask(server, "GET", "/info/", headers={"Origin": "http://evil.example"}) == 403


def test_many_clients_at_once_and_images_too_large(tmp_path) -> None:
    """The folder is still looked after then, and what does not fit into memory is refused and forgotten."""
    data = find_task("microscopy").synthesize(
        tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL["microscopy"]
    )
    bundle, studies = make_bundle("microscopy", tmp_path, data), tmp_path / "studies"
    make_studies("microscopy", studies, data)
    content = (studies / "gray.png").read_bytes()

    def come_and_go(number: int) -> None:
        for _ in range(5):
            files = {"file": ("a.png", content)}
            assert ask(server, "PUT", f"/datastore/image?image=n{number}", files=files) == 200
            assert ask(server, "DELETE", f"/datastore/image?id=n{number}") == 200

    def list_images() -> set[str]:
        return set(server.call("GET", "/datastore/?output=all").json()["objects"])

    with Server(bundle, studies, tmp_path / "server.log") as server:
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(come_and_go, range(8)))
        assert list_images() == {"gray", "photo", "rgb", "rgba", "scan"}
        (studies / "later.png").write_bytes(content)
        (studies / "photo.jpg").unlink()
        for _ in range(40):
            if list_images() == {"gray", "later", "rgb", "rgba", "scan"}:
                break
            time.sleep(0.5)
        else:
            raise AssertionError(list_images())
        Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(studies / "large.png")
        large = {"file": ("large.png", (studies / "large.png").read_bytes())}
        taken = server.memory("VmSize")
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (taken + (4 << 30), taken + (4 << 30)))
        before = server.memory("VmRSS")
        for _ in range(3):
            answer = requests.post(f"{server.url}/infer/microscopy", files=large, timeout=120)
            assert answer.status_code == 400 and "GB of memory" in answer.json()["detail"], answer.text
        assert server.memory("VmRSS") < before + (300 << 20)  # the pixels alone are 81 MB, and 324 as numbers


def test_training_on_a_name_that_a_config_would_take_for_a_place(tmp_path) -> None:
    data = find_task("microscopy").synthesize(
        tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL["microscopy"]
    )
    bundle = make_bundle("microscopy", tmp_path, data)
    make_studies("microscopy", tmp_path / "studies", data)
    label = (data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]).read_bytes()
    for number in range(2):
        shutil.copy(tmp_path / "studies" / "rgb.png", tmp_path / "studies" / f"slide@#{number}.png")
    with Server(bundle, tmp_path / "studies", tmp_path / "server.log") as server:
        for number in range(2):
            query = {"image": f"slide@#{number}", "tag": "final"}
            assert ask(server, "PUT", "/datastore/label", params=query, files={"label": ("a.png", label)}) == 200
        server.train("microscopy", True)


@pytest.mark.parametrize("task", list(SMALL))
def test_server_gives_what_the_command_line_gives_and_learns(task, tmp_path) -> None:
    data = find_task(task).synthesize(tmp_path / "data", num_train=3, num_validation=2, num_test=1, **SMALL[task])
    bundle = make_bundle(task, tmp_path, data)
    model = bundle / "models" / "model.pt"
    if task == "microscopy":  # as it ships
        save_half_precision(model, model.with_suffix(".safetensors"))
        model.unlink()
    studies = tmp_path / "studies"
    make_studies(task, studies, data)
    images = sorted(studies.iterdir())
    expected = {image: predict(bundle, image, tmp_path / "expected" / image.name) for image in images}
    answer = tmp_path / f"answer{'.nii.gz' if task == 'abdomen_mri' else '.png'}"

    with Server(bundle, studies, tmp_path / "server.log") as server:
        labels = server.info["models"][task]["labels"]
        assert LABELS[task].items() <= labels.items() and "background" not in labels
        for image, file in expected.items():
            assert_same(server.infer(task, image, answer), file)
        if task == "abdomen_mri":
            for image in images[:2]:
                volume = nib.load(image)
                label = nib.Nifti1Image(np.ones(volume.shape, np.uint8), volume.affine)
                server.save_label(image, f"{stem(image)}.nii.gz", gzip.compress(label.to_bytes()))
        else:
            check_polygons(server, task, bundle, expected, tmp_path)
            truth = data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]
            server.save_label(images[0], truth.name, truth.read_bytes())
            server.save_label(images[1], "label.xml", server.ask_by_qupath(task, images[1], upload=False))

        for pretrained in (True, False):  # a second training does not trip over the first
            before = read_weights(model)
            server.train(task, pretrained)
            change = max((weight - before[name]).abs().max() for name, weight in read_weights(model).items())
            assert 0 < change < 0.01 if pretrained else change > 0.1
        assert_same(server.infer(task, images[0], answer), predict(bundle, images[0], tmp_path / "after"))


def check_polygons(server: Server, task: str, bundle: Path, expected: dict[Path, Path], folder: Path) -> None:
    """The plugins for QuPath and CVAT get those of what the command line predicts."""
    names = None if task == "microscopy" else class_names(bundle / "configs" / "metadata.json")
    for image, file in expected.items():
        collection = geojson(read_image(file).astype(int), names)
        answer = server.call("POST", f"/infer/{task}?image={stem(image)}&output=json").json()
        assert answer["polygons"] == collection and collection["features"]
        for upload in (False, True):
            assert asap_polygons(server.ask_by_qupath(task, image, upload)) == plain_polygons(collection)
    photo = folder / "cvat.jpg"  # what the plugin sends, whatever the image is
    frame = next(image for image in expected if image.name == "rgb.png")
    Image.open(frame).save(photo)
    answers = server.ask_by_cvat(task, frame)
    assert {answer["type"] for answer in answers} == {"polygon"}
    found = [(answer["label"], np.reshape(answer["points"], (-1, 2)).tolist()) for answer in answers]
    predicted = read_image(predict(bundle, photo, folder / "cvat")).astype(int)
    assert found == plain_polygons(geojson(predicted, names))
