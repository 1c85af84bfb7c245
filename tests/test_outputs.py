# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Outputs that cannot be written: every command says so in one sentence that names the place, and leaves nothing."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from fuzzed_structures import METRICS, SUMMARY, as_csv, as_json

from swinumamba_monai.cli import main
from swinumamba_monai.distribution.network_of_config import build_bundle_network
from swinumamba_monai.tasks import find_task

resource = pytest.importorskip("resource")  # which Windows has not
BUNDLE = Path(__file__).parents[1] / "bundles" / "microscopy"
SMALL = {"feature_size": 8, "depths": [1, 1, 1, 1], "decoder_depths": [1, 1, 1], "d_state": 2}
SIZES = ["--num_train", "2", "--num_validation", "1", "--num_test", "1", "--image_size", "64", "64"]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """What the commands take: a small bundle, weights, images and an evaluation."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("configs", "docs", "models"):
        (folder / "microscopy" / name).mkdir(parents=True)
    for file in (*BUNDLE.glob("configs/*"), *BUNDLE.glob("docs/*.md"), BUNDLE / "LICENSE"):
        (folder / "microscopy" / file.relative_to(BUNDLE)).write_bytes(file.read_bytes())
    config = folder / "microscopy" / "configs" / "inference.json"
    content = json.loads(config.read_text())
    content["network_def"] |= SMALL
    config.write_text(json.dumps(content))
    torch.manual_seed(0)
    torch.save(build_bundle_network(config).state_dict(), folder / "microscopy" / "models" / "model.pt")
    find_task("microscopy").synthesize(folder / "data", num_train=2, num_validation=1, num_test=1, image_size=(64, 64))
    (folder / "run").mkdir()
    (folder / "run" / "summary.json").write_bytes(as_json(SUMMARY))
    (folder / "run" / "metrics.csv").write_bytes(as_csv(METRICS))
    return folder


def commands(given: Path) -> dict[str, tuple[list[str], str]]:
    """Command lines without the output, and its name, by what they are called here."""
    bundle, data = str(given / "microscopy"), str(given / "data")
    config, weights = f"{bundle}/configs/inference.json", f"{bundle}/models/model.pt"
    erf = ["--network_name", "nnUNet", "--num_images", "1", "--roi_size", "64", "64", "--device", "cpu"]
    return {
        "halve": (["halve", weights], "half.safetensors"),
        "export": (["export", "program", "--config_file", config, "--ckpt_file", weights, "--filepath"], "a.pt2"),
        "prepare": (["prepare", "microscopy", "--source_dir", data, "--output_dir"], "out"),
        "synthesize": (["synthesize", "microscopy", *SIZES, "--output_dir"], "out"),
        "predict": (["predict", bundle, data, "--device", "cpu", "--output_dir"], "out"),
        "package": (["package", bundle, "--output_dir"], "out"),
        "table": (["table", "results", str(given / "run"), "--output_dir"], "out"),
        "erf": (["erf", *erf, "--output_dir"], "out"),
    }


def refused(capsys, line: list[str]) -> str:
    assert main(line) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and error.isprintable() and error.endswith(".")
    return error


@pytest.mark.parametrize("name", ["halve", "export", "prepare", "synthesize", "predict", "package", "table", "erf"])
def test_a_place_that_cannot_be(given, tmp_path, capsys, name):
    line, output = commands(given)[name]
    (tmp_path / "file").write_text("mine")
    assert "file" in refused(capsys, [*line, str(tmp_path / "file" / output)])
    place = tmp_path / output  # a folder where a file should be, and the other way round
    if "." in output:
        place.mkdir()
        (place / "mine").touch()
    else:
        place.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert output in refused(capsys, [*line, str(place)])
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["halve", "export", "synthesize", "predict", "package", "table", "erf"])
def test_a_disk_that_gets_full(given, tmp_path, capsys, monkeypatch, name):
    """A limit on the size of files: the system refuses in the middle of a write, as a full disk does."""
    line, output = commands(given)[name]
    small = torch.export.export(torch.nn.Linear(9, 9), (torch.zeros(1, 9),))
    monkeypatch.setattr("swinumamba_monai.export.make_program", lambda network: small)  # the network's takes long
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
        error = refused(capsys, [*line, str(tmp_path / output)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.strerror(errno.EFBIG) in error and str(tmp_path / output)[:60] in error
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == 50], "half a file"


def test_half_a_package_is_none(given, tmp_path, capsys):
    """The weights, which come last, do not fit any more; what a release is made of is not there without them."""
    line, output = commands(given)["package"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        limit = (given / "microscopy" / "models" / "model.pt").stat().st_size - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        assert "huggingface" in refused(capsys, [*line, str(tmp_path / output)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / output / "huggingface").iterdir())
    assert main([*line, str(tmp_path / output)]) == 0
