# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The model zoo's checks pass for the bundles as they are, and find what is wrong with a spoilt one."""

from __future__ import annotations

import json
import shutil
from functools import cache

import pytest
from small_bundles import BUNDLES, ROOT, SMALL

from swinumamba_monai.cli import main
from swinumamba_monai.distribution import package_bundle, verify_bundle

WINDOW = {"roi_size": [64, 64]}
SMALL_NETWORK = {f"network_def#{name}": value for name, value in SMALL.items()}


@cache
def results(name: str) -> dict[str, str | None]:
    """Of the network that ships with microscopy as it is, and of small ones with random weights for the other two."""
    before = sorted((ROOT / "bundles" / name).rglob("*"))
    override = WINDOW if name == "microscopy" else WINDOW | SMALL_NETWORK
    found = dict(verify_bundle(ROOT / "bundles" / name, override=override))
    assert sorted((ROOT / "bundles" / name).rglob("*")) == before, "nothing is written into the bundle"
    return found


@pytest.mark.parametrize("name", BUNDLES)
def test_the_bundles_pass(name):
    assert len(results(name)) == 8
    assert {check: problem for check, problem in results(name).items() if problem} == {}


def problems(bundle, **options) -> dict[str, str]:
    return {name: problem for name, problem in verify_bundle(bundle, **options) if problem}


def edit(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_missing_is_named(small_bundle):
    bundle = small_bundle(weights=False)
    (bundle / "LICENSE").unlink()
    edit(bundle / "configs" / "metadata.json", lambda m: (m.pop("authors"), m.update(version="7.0.0")))
    edit(bundle / "configs" / "inference.json", lambda c: c.pop("inferer"))
    found = problems(bundle)
    assert "lacks LICENSE" in found["files"]
    assert "lacks authors" in found["metadata"]
    assert "7.0.0, which is not in the changelog" in found["version and changelog"]
    assert "inferer" in found["properties of inference.json"]
    assert "inference on an image" in found
    assert not {"network gives what the metadata says", "properties of train.json"} & found.keys()


def test_what_does_not_fit_is_named(small_bundle):
    bundle = small_bundle()
    edit(bundle / "configs" / "metadata.json", lambda m: m["network_data_format"]["outputs"]["pred"].pop("dtype"))
    edit(bundle / "configs" / "inference.json", lambda c: c.update(num_classes=7))
    found = problems(bundle)
    assert "outputs#pred#dtype" in found["metadata"]
    assert "network gives what the metadata says" in found
    assert "does not fit the network" in found["inference on an image"]


def test_by_a_schema(small_bundle, tmp_path):
    pytest.importorskip("jsonschema")
    bundle = small_bundle(weights=False)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"required": ["version", "colour"]}))
    assert "'colour' is a required property" in problems(bundle, schema_file=str(schema))["metadata"]


def test_a_copy_of_another_name(small_bundle):
    copy = small_bundle("endoscopy", weights=False)
    assert problems(copy.rename(copy.with_name("my_tools")), override=WINDOW) == {}
    edit(copy.with_name("my_tools") / "configs" / "inference.json", lambda c: c["dataset"].update(data=[]))
    found = problems(copy.with_name("my_tools"), override=WINDOW)
    assert "inference.json must name one of the tasks abdomen_mri, " in found["inference on an image"]


def test_command_takes_folders_and_archives(small_bundle, tmp_path, capsys):
    bundle = small_bundle(weights=False)
    archive = package_bundle(bundle, tmp_path / "dist").archive
    shutil.rmtree(bundle / "docs")
    (tmp_path / "bad.zip").write_text("no archive")
    code = main(["verify", str(tmp_path / "bad.zip"), str(archive), str(bundle)])
    out, error = capsys.readouterr()
    assert code == 1 and "checks failed" in error.splitlines()[-1]
    assert f"bad.zip: archive: {tmp_path / 'bad.zip'} cannot be read as a zip archive" in out
    assert out.count("microscopy: files: ok") == 1 and "lacks docs/README.md" in out
    for text, problem in {"{": "--override is not JSON", "[1]": "--override is no JSON object"}.items():
        assert main(["verify", str(bundle), "--override", text]) == 1
        assert problem in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().out == f"nowhere: there is no folder or archive {tmp_path / 'nowhere'}\n"
