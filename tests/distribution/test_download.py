# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A stranger fetches a bundle by each of MONAI's ways, and uses it from an empty folder that is not the bundle's."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from monai.bundle import download, download_large_files, get_bundle_versions, load, push_to_hf_hub, scripts
from PIL import Image
from safetensors.torch import save_file as save_safetensors
from small_bundles import BUNDLES, ROOT

from swinumamba_monai.data import load_images
from swinumamba_monai.distribution import package_bundle
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.tasks import find_task
from swinumamba_monai.weight_files import read_weights, save_half_precision


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """The working directory: an empty folder."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the bundles' initialize replaces it
    return folder


def monai(*arguments: str) -> None:
    """``python -m monai.bundle``, without the seconds that another interpreter would need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["monai.bundle", *arguments])
        runpy.run_module("monai.bundle", run_name="__main__")


def test_download_large_files_and_run_on_a_file(small_bundle, serve, tmp_path, empty, monkeypatch):
    """The commands of the README, with weights in half precision as they are in the repository."""
    bundle, dist = small_bundle(), tmp_path / "dist"
    model = bundle / "models" / "model.pt"
    save_half_precision(model, model.with_suffix(".safetensors"))
    model.unlink()
    url = serve(dist)
    archive = package_bundle(bundle, dist, url).archive
    task = find_task("microscopy")
    data = task.synthesize(tmp_path / "data", num_test=1, **task.small_data)
    image = load_images(data)[0]["image"]

    monai("download", "--name", "microscopy", "--url", f"{url}/{archive.name}", "--bundle_dir", ".")
    fetched = empty / "microscopy"
    (fetched / "models" / "model.pt").unlink()
    monai("download_large_files", "--bundle_path", "microscopy")
    assert next(iter(read_weights(fetched / "models" / "model.pt").values())).dtype == torch.float16

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = str(fetched / "configs" / "inference.json")
    bundle_models = tmp_path / "bundles" / "microscopy" / "models"
    for weights in ("model.pt", "model.safetensors"):  # as downloaded, and as in a clone of the repository
        results = tmp_path / weights.replace(".", "_")
        monai(
            *("run", "--config_file", config, "--bundle_root", str(fetched)),
            *("--dataset_dir", image, "--output_dir", str(results)),
        )
        (result,) = results.iterdir()
        assert Image.open(result).size == Image.open(image).size
        (fetched / "models" / "model.pt").unlink(missing_ok=True)
        shutil.copy(bundle_models / "model.safetensors", fetched / "models")
    first, second = (next((tmp_path / name).iterdir()).read_bytes() for name in ("model_pt", "model_safetensors"))
    assert first == second
    assert not any(elsewhere.iterdir()), "nothing is written where it is run"


@pytest.mark.parametrize("name", BUNDLES)
def test_load(name, small_bundle, serve, tmp_path, empty):
    dist = tmp_path / "dist"
    archive = package_bundle(small_bundle(name), dist).archive
    download(name=name, url=f"{serve(dist)}/{archive.name}", bundle_dir=str(tmp_path / "bundle_dir"), progress=False)
    weights = read_weights(tmp_path / "bundles" / name / "models" / "model.pt")
    for workflow_type in ("train", "inference"):
        net = load(name, workflow_type=workflow_type, bundle_dir=str(tmp_path / "bundle_dir"), device="cpu")
        assert isinstance(net, SwinUMambaD)
        state = net.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[key], weights[key]) for key in weights), workflow_type
    assert not any(empty.iterdir()), "nothing is written where it is loaded"


def test_load_makes_float32_of_half(small_bundle, serve, tmp_path, empty):
    bundle, dist = small_bundle(), tmp_path / "dist"
    model = bundle / "models" / "model.pt"
    save_half_precision(model, model.with_suffix(".safetensors"))
    expected = {name: weight.half().float() for name, weight in read_weights(model).items()}
    model.unlink()
    archive = package_bundle(bundle, dist).archive
    download(name="microscopy", url=f"{serve(dist)}/{archive.name}", bundle_dir=".", progress=False)
    state = load("microscopy", workflow_type="inference", bundle_dir=".", device="cpu").state_dict()
    for name, weight in state.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, expected[name]), name


def test_large_files_are_checked(small_bundle, serve, tmp_path, empty):
    dist = tmp_path / "dist"
    package = package_bundle(small_bundle(), dist, serve(dist))
    fetched = empty / "microscopy"
    shutil.copytree(dist / "models" / "microscopy", fetched)  # what a clone of a model zoo has
    download_large_files(str(fetched))
    assert (fetched / "models" / "model.pt").read_bytes() == package.weights.read_bytes()
    download_large_files(str(fetched))  # there already, and right
    (fetched / "models" / "model.pt").unlink()
    package.weights.write_bytes(b"something else")
    for _ in range(2):  # MONAI 1.5 lets it lie, and refuses it again
        with pytest.raises((RuntimeError, ValueError)):
            download_large_files(str(fetched))


def test_a_pretrained_encoder_is_fetched_by_its_hash(small_bundle, serve, tmp_path, empty):
    """Beside the weights or without any, and no part of the archive; a training takes it."""
    given = SwinUMambaD(3, 2, encoder="vmamba_tiny_s1l8")
    encoder = {name: t.half() for name, t in given.state_dict().items() if name.startswith("vssm_encoder.")}
    file = tmp_path / "stage1" / "encoder.safetensors"
    file.parent.mkdir()
    save_safetensors(encoder, file)
    for name in ("microscopy", "endoscopy"):
        dist = tmp_path / name
        package = package_bundle(small_bundle(name, weights=name == "microscopy"), dist, serve(dist), file)
        assert "encoder" not in " ".join(zipfile.ZipFile(package.archive).namelist())
        assert (package.weights is None) == (name == "endoscopy")
        fetched = empty / name
        shutil.copytree(dist / "models" / name, fetched)
        download_large_files(str(fetched))
        assert (fetched / "models" / "encoder.safetensors").read_bytes() == file.read_bytes()
    net = SwinUMambaD(3, 5, encoder="vmamba_tiny_s1l8")
    report = load_pretrained(net, fetched / "models" / "encoder.safetensors")
    assert report.kind == "pretrained encoder" and set(report.loaded) == set(encoder)


def test_what_is_no_encoder_is_not_released(small_bundle, tmp_path):
    bundle, dist = small_bundle(), tmp_path / "dist"
    torch.save({}, tmp_path / "encoder.pt")
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        package_bundle(bundle, dist, encoder_weights=tmp_path / "encoder.pt")
    save_safetensors({"conv.weight": torch.zeros(3)}, tmp_path / "encoder.safetensors")
    with pytest.raises(InputError, match="none of VMamba's encoders whole"):
        package_bundle(bundle, dist, encoder_weights=tmp_path / "encoder.safetensors")
    assert not dist.exists()


def test_from_github(small_bundle, serve, tmp_path, empty, monkeypatch):
    """GitHub's addresses lead to the server here; what they lead to is what ``package`` made."""
    dist, site = tmp_path / "dist", tmp_path / "site"
    owner, repo, tag = "owner", "repo", "v1"
    package_bundle(small_bundle("endoscopy"), dist)
    package = package_bundle(small_bundle("microscopy"), dist)
    release = site / owner / repo / "releases" / "download" / tag
    release.mkdir(parents=True)
    shutil.copy(package.archive, release)
    shutil.copytree(dist / "models", site / owner / repo / tag / "models")
    url, get = serve(site), requests.get
    release_url = scripts._get_git_release_url
    monkeypatch.setattr(
        scripts, "_get_git_release_url", lambda *a, **k: release_url(*a, **k).replace("https://github.com", url)
    )
    monkeypatch.setattr(
        scripts.requests,
        "get",
        lambda address, *a, **k: get(address.replace("https://raw.githubusercontent.com", url), *a, **k),
    )
    latest = get_bundle_versions("microscopy", repo=f"{owner}/{repo}", tag=tag)["latest_version"]
    assert package.archive.name == f"microscopy_v{latest}.zip"
    net = load("microscopy", bundle_dir=".", source="github", repo=f"{owner}/{repo}/{tag}", device="cpu")
    assert isinstance(net, SwinUMambaD)
    assert sorted(path.name for path in empty.iterdir()) == ["microscopy", package.archive.name]


def test_by_hugging_face(small_bundle, tmp_path, empty, monkeypatch):
    """Its hub is a folder here, as the package for it need not be installed."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token=None): ...

        def create_repo(self, repo_id, **options): ...

        def create_tag(self, repo_id, **options): ...

        def upload_folder(self, repo_id, folder_path):
            return str(shutil.copytree(folder_path, hub / repo_id))

    def snapshot_download(repo_id, revision, local_dir):
        shutil.copytree(hub / repo_id, local_dir)

    fake = SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    monkeypatch.setattr(scripts, "huggingface_hub", fake)
    folder = package_bundle(small_bundle(), tmp_path / "dist").huggingface_dir
    push_to_hf_hub("owner/cells", "microscopy", str(folder), version="0.1.0")
    assert (hub / "owner" / "cells" / "README.md").read_text().startswith("---\ntags:\n- monai")
    options = {"source": "huggingface_hub", "repo": "owner/cells", "version": "0.1.0"}
    assert isinstance(load("microscopy", bundle_dir=".", device="cpu", **options), SwinUMambaD)


def test_the_version_of_the_metadata_is_the_package_it_needs():
    import swinumamba_monai

    for name in BUNDLES:
        path = ROOT / "bundles" / name / "configs" / "metadata.json"
        needed = json.loads(path.read_text())["required_packages_version"]["swinumamba-monai"]
        assert needed == swinumamba_monai.__version__
