# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What cannot be served is refused with a sentence before a server starts."""

from __future__ import annotations

import json
import signal
import tempfile

import pytest
import safetensors.torch
import torch

from swinumamba_monai.errors import InputError
from swinumamba_monai.serving import serve, start
from swinumamba_monai.weight_files import read_weights


def test_refusals(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="make label"):
        serve(tmp_path, tmp_path)
    monkeypatch.setattr(start, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="no bundle"):
        serve(tmp_path, tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no models/model\.pt"):
        serve(tmp_path, tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    with pytest.raises(InputError, match="--studies"):
        serve(tmp_path, tmp_path / "images")
    network = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": "@num_classes"}
    config = {"num_classes": 8, "network_def": network}
    (tmp_path / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(torch.nn.Linear(1, 3).state_dict(), tmp_path / "models" / "model.pt")  # trained with --num_classes 3
    with pytest.raises(InputError, match=r"does not fit the network: weight is \(3, 1\).* num_classes"):
        serve(tmp_path, tmp_path)


def test_half_precision_becomes_what_monai_label_reads(tmp_path, monkeypatch, capsys) -> None:
    """A server that would start finds models/model.pt in float32; one that is there already is left alone."""
    started = []
    monkeypatch.setattr(start, "find_spec", lambda name: name)
    monkeypatch.setattr(start, "stand_in_for_torchvision", lambda: None)
    monkeypatch.setattr(start.runpy, "run_module", lambda *args, **options: started.append(args))
    monkeypatch.chdir(tmp_path)  # which serve changes
    for name in (start.HOST_VARIABLE, start.ORIGINS_VARIABLE, start.SESSIONS_VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    for folder in ("configs", "models", "images"):
        (tmp_path / folder).mkdir()
    config = {"network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1, "bias": False}}
    (tmp_path / "configs" / "inference.json").write_text(json.dumps(config))
    model = tmp_path / "models" / "model.pt"
    safetensors.torch.save_file({"weight": torch.tensor([[1.5, 2.0]]).half()}, model.with_suffix(".safetensors"))
    serve(tmp_path, tmp_path / "images")
    weights = read_weights(model)
    assert weights["weight"].dtype == torch.float32 and weights["weight"].tolist() == [[1.5, 2.0]]
    assert "is made from model.safetensors" in capsys.readouterr().out
    torch.save({"weight": torch.zeros(1, 2)}, model)
    serve(tmp_path, tmp_path / "images")
    assert read_weights(model)["weight"].tolist() == [[0, 0]] and len(started) == 2


def test_studies_that_lead_out_of_their_folder(tmp_path) -> None:
    """As somebody sends them: MONAI Label would write through the links, and read and remove what the list names."""
    studies, outside = tmp_path / "studies", tmp_path / "outside"
    (studies / "labels").mkdir(parents=True)
    outside.mkdir()
    start._check_studies(studies)
    for name in ("datastore_v2.json", ".lock", "labels/final", "labels"):
        if name == "labels":
            (studies / "labels").rmdir()
        (studies / name).symlink_to(outside)
        with pytest.raises(InputError, match=f"{name} is a link, and the server writes there"):
            start._check_studies(studies)
        (studies / name).unlink()
    image = {"image": {"ext": ".png", "info": {}}, "labels": {"final": {"ext": ".nii.gz"}}}
    good = {"name": "a", "description": "b", "images_dir": ".", "labels_dir": "labels", "objects": {"$x..ome": image}}
    (studies / "datastore_v2.json").write_text(json.dumps(good))
    start._check_studies(studies)
    for change in (
        {"images_dir": "../outside"},
        {"images_dir": None},
        {"labels_dir": str(outside)},
        {"objects": {"../outside/a": image}},
        {"objects": {str(outside / "a"): image}},
        {"objects": {"..": {"image": {"ext": ""}}}},
        {"objects": {"a\0": image}},
        {"objects": {"a": {"image": {"ext": "/../../a.png"}}}},
        {"objects": {"a": {**image, "labels": {"../..": {"ext": ".png"}}}}},
        {"objects": {"a": {**image, "labels": {"..": {"ext": ".png"}}}}},
        {"objects": {"a": {**image, "labels": {"final": {"ext": "/../../../a"}}}}},
        {"objects": {"a": {}}},
        {"objects": [1]},
        {"description": float("nan")},
    ):
        (studies / "datastore_v2.json").write_text(json.dumps(good | change))
        with pytest.raises(InputError, match=r"no list of images of MONAI Label .*; remove it"):
            start._check_studies(studies)
    for content in ("", "[1]", "{", "[" * 100_000):
        (studies / "datastore_v2.json").write_text(content)
        with pytest.raises(InputError, match="no list of images of MONAI Label"):
            start._check_studies(studies)


def test_origins() -> None:
    assert start._read_origins("") == []
    assert start._read_origins('["https://Viewer.example:8443/"]') == ["https://viewer.example:8443"]
    assert start._read_origins("http://a.example, https://b.example") == ["http://a.example", "https://b.example"]
    for text in ("*", "[1]", "viewer.example", '["https://a/b"]', "[", "null"):
        with pytest.raises(InputError, match="MONAI_LABEL_CORS_ORIGINS must be a list"):
            start._read_origins(text)
