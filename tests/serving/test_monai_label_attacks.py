# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Requests as an attacker makes them do no harm on a real MONAI Label server (``make test-label``)."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from label_server import Server, make_served, needs_server
from PIL import Image

resource = pytest.importorskip("resource")  # Windows has none
pytestmark = needs_server


def ask(server: Server, method: str, path: str, **options: object) -> int:
    return requests.request(method, f"{server.url}{path}", timeout=300, **options).status_code


def ask_with_origins(server: Server, *origins: str) -> int:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=300)
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
    data, bundle, studies = make_served("microscopy", tmp_path)
    outside, trap = tmp_path / "outside.png", tmp_path / "trap"
    shutil.copy(studies / "rgb.png", outside)
    (studies / "linked.png").symlink_to(outside)
    (studies / "labels" / "linked").mkdir(parents=True)
    (studies / "labels" / "linked" / "photo.png").symlink_to(outside)
    before = outside.read_bytes(), {path.name for path in tmp_path.iterdir()} | {"server.log"}
    label = (data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]).read_bytes()
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    with Server(bundle, studies, tmp_path / "server.log") as server:
        assert ask(server, "POST", "/train/microscopy?run_sync=true", json={"max_epochs": 1, "device": "cpu"}) == 400
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
            ("POST", "/infer/microscopy?image=rgb", {"files": {str(n): (None, "a" * 1_000_000) for n in range(30)}}),
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
            answer = requests.request(method, f"{server.url}{path}", timeout=300, **options)
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
    _, bundle, studies = make_served("microscopy", tmp_path)
    with Server(bundle, studies, tmp_path / "server.log") as server:
        assert ask(server, "GET", "/info/", headers={"Origin": "http://viewer.example"}) == 200
        assert ask(server, "GET", "/info/", headers={"Origin": "http://evil.example"}) == 403


def test_many_clients_at_once_and_images_too_large(tmp_path) -> None:
    """The folder is still looked after then, and what does not fit into memory is refused and forgotten."""
    _, bundle, studies = make_served("microscopy", tmp_path)
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
            answer = requests.post(f"{server.url}/infer/microscopy", files=large, timeout=300)
            assert answer.status_code == 400 and "GB of memory" in answer.json()["detail"], answer.text
        assert server.memory("VmRSS") < before + (300 << 20)  # the pixels alone are 81 MB, and 324 as numbers


def test_a_training_ends_with_its_server(tmp_path) -> None:
    """And so does one that waits for its turn."""
    data, bundle, studies = make_served("microscopy", tmp_path)
    label = (data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]).read_bytes()
    with Server(bundle, studies, tmp_path / "server.log") as server:
        server.save_label(studies / "rgb.png", "rgb.png", label)
        for _ in range(2):
            server.call("POST", "/train/microscopy?enqueue=true", json={"max_epochs": 100_000, "device": "cpu"})
        while not (bundle / "models" / "label_checkpoint.pt").exists():
            assert server.call("GET", "/train/").json()["status"] in ("SUBMITTED", "RUNNING")
            time.sleep(0.2)
    still = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True, timeout=300).stdout
    assert "ps -eo args" in still and str(bundle) not in still


def test_training_on_a_name_that_a_config_would_take_for_a_place(tmp_path) -> None:
    data, bundle, studies = make_served("microscopy", tmp_path)
    label = (data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]).read_bytes()
    for number in range(2):
        shutil.copy(studies / "rgb.png", studies / f"slide@#{number}.png")
    with Server(bundle, studies, tmp_path / "server.log") as server:
        for number in range(2):
            query = {"image": f"slide@#{number}", "tag": "final"}
            assert ask(server, "PUT", "/datastore/label", params=query, files={"label": ("a.png", label)}) == 200
        server.train("microscopy", True)
