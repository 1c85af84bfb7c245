# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What ``package`` makes is complete, the same every time, and refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from small_bundles import BUNDLES, ROOT

from swinumamba_monai.cli import main
from swinumamba_monai.distribution import package_bundle
from swinumamba_monai.distribution.network_of_config import build_bundle_network
from swinumamba_monai.errors import InputError
from swinumamba_monai.weight_files import find_checkpoint, read_weights

URL = "https://example.org/releases/download/first"


def edit_metadata(bundle: Path, **changes: object) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(bundle: Path) -> None:
    file = bundle / "models" / "model.pt"
    torch.save({name: weight + 1 for name, weight in read_weights(file).items()}, file)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_below(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_everything_that_a_release_needs(small_bundle, tmp_path):
    bundle, out = small_bundle(), tmp_path / "dist"
    (bundle / "eval").mkdir()
    (bundle / "eval" / "events").write_text("of a run")
    package = package_bundle(bundle, out, URL)
    stem = "microscopy_v" + json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    assert {path.name for path in out.iterdir()} == {f"{stem}.zip", f"{stem}_model.pt", "models", "huggingface"}
    assert package.sha256 == sha256(package.archive)

    own = [name for name in files_below(bundle) if not name.startswith(("eval/", "models/"))]
    whole = sorted([*own, "large_files.yml", "models/model.pt"])
    with zipfile.ZipFile(package.archive) as archive:
        assert archive.namelist() == [f"microscopy/{name}" for name in whole]
    assert files_below(out / "huggingface" / "microscopy") == whole
    assert files_below(out / "models" / "microscopy") == sorted([*own, "large_files.yml"])

    (large,) = yaml.safe_load((out / "models" / "microscopy" / "large_files.yml").read_text())["large_files"]
    assert large == {
        "path": "models/model.pt",
        "url": f"{URL}/{stem}_model.pt",
        "hash_val": sha256(package.weights),
        "hash_type": "sha256",
    }
    assert sha256(out / "huggingface" / "microscopy" / "models" / "model.pt") == large["hash_val"]
    info = json.loads((out / "models" / "model_info.json").read_text())
    checksum = hashlib.sha1(package.archive.read_bytes()).hexdigest()
    assert info == {stem: {"checksum": checksum, "source": f"{URL}/{stem}.zip"}}


def test_the_same_bytes_every_time(small_bundle, tmp_path):
    bundle = small_bundle()
    first = package_bundle(bundle, tmp_path / "one")
    for file in bundle.rglob("*"):
        os.utime(file, (1e9, 1e9))
        file.chmod(0o700)
    second = package_bundle(bundle, tmp_path / "two")
    again = package_bundle(bundle, tmp_path / "two")
    assert first.sha256 == second.sha256 == again.sha256
    assert sha256(first.weights) == sha256(second.weights)


def test_half_precision_stays_half_and_is_a_float32_network(small_bundle, tmp_path):
    bundle = small_bundle()
    trained = bundle / "models" / "model.pt"
    assert main(["halve", str(trained), str(bundle / "models" / "model.safetensors")]) == 0
    modes = [(bundle / "models" / f"model{suffix}").stat().st_mode for suffix in (".pt", ".safetensors")]
    assert modes[0] == modes[1], "whoever can read the one can read the other"
    whole = read_weights(trained)
    trained.unlink()
    assert find_checkpoint(bundle / "models").endswith("model.safetensors")
    package = package_bundle(bundle, tmp_path / "dist")
    packed = torch.load(package.weights, weights_only=True)
    assert packed.keys() == whole.keys()
    for name, weight in packed.items():
        assert weight.dtype == torch.float16 and torch.equal(weight, whole[name].half()), name
    assert package.weights.stat().st_size < 0.7 * 4 * sum(weight.numel() for weight in whole.values())


def test_halving_refuses_what_float16_cannot_hold(tmp_path, capsys):
    torch.save({"a": torch.tensor([1e6])}, tmp_path / "model.pt")
    target = tmp_path / "model.safetensors"
    assert main(["halve", str(tmp_path / "model.pt"), str(target)]) == 1
    assert "cannot be halved: a" in capsys.readouterr().err
    assert main(["halve", str(tmp_path / "model.pt"), str(tmp_path / "model.pt")]) == 1
    assert not target.exists()


def test_the_whole_network_in_half_precision_fits_in_60_mb(tmp_path):
    """Of the file that may be in the repository."""
    net = build_bundle_network(ROOT / "bundles" / "microscopy" / "configs" / "inference.json")
    state = {name: weight.half() for name, weight in net.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size <= 60e6


@pytest.mark.parametrize("name", BUNDLES)
def test_the_bundles_as_they_are(name, tmp_path, capsys):
    bundle = ROOT / "bundles" / name
    assert main(["package", str(bundle), "--output_dir", str(tmp_path / "dist")]) == 0
    printed = capsys.readouterr().out
    assert f"{name}_v" in printed and "weights: " in printed
    whole = files_below(tmp_path / "dist" / "huggingface" / name)
    assert {"LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"} < set(whole)


@pytest.mark.parametrize("name", BUNDLES)
def test_the_archive_alone_says_what_to_install_and_has_no_dead_link(name, tmp_path):
    package = package_bundle(ROOT / "bundles" / name, tmp_path / "dist")
    with zipfile.ZipFile(package.archive) as archive:
        archive.extractall(tmp_path / "alone")
    page = tmp_path / "alone" / name / "docs" / "README.md"
    text = page.read_text()
    assert "pip install " in text and "docs/ablations.md says what each is" in text
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall("^#+ (.*)", text, re.M)
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        place, _, anchor = link.partition("#")
        assert (page.parent / place).exists() and (not anchor or place or anchor in anchors), link


@pytest.mark.parametrize("kind", ["train", "pretrain", "inference"])
def test_without_the_package_the_bundle_says_so(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "swinumamba_monai", None)  # an import of it fails
    config = ROOT / "bundles" / "microscopy" / "configs" / f"{kind}.json"
    with pytest.raises(SystemExit, match=r"needs the Python package swinumamba_monai.* has the pip install line"):
        ConfigWorkflow(str(config), workflow_type="train", logging_file=False).initialize()
    parser = ConfigParser()  # as MONAI's exports do, without initialize
    parser.read_config(config)
    with pytest.raises(SystemExit, match=r"needs the Python package swinumamba_monai.* has the pip install line"):
        parser.get_parsed_content("network_def")


def test_the_collection_grows(small_bundle, tmp_path):
    out = tmp_path / "dist"
    for name in ("microscopy", "endoscopy"):
        bundle = small_bundle(name, weights=False)
        edit_metadata(bundle, version="0.1.0", changelog={"0.1.0": ""})
        package_bundle(bundle, out)
    bundle = tmp_path / "bundles" / "microscopy"
    edit_metadata(bundle, version="0.2.0", changelog={"0.1.0": "", "0.2.0": ""})
    package_bundle(bundle, out)
    info = json.loads((out / "models" / "model_info.json").read_text())
    assert list(info) == ["endoscopy_v0.1.0", "microscopy_v0.1.0", "microscopy_v0.2.0"]


def other_classes(bundle: Path) -> None:
    config = bundle / "configs" / "inference.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_classes": 5}))


def no_network(bundle: Path) -> None:
    config = bundle / "configs" / "inference.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "network_def": {"_target_": "no.such.Network"}}))


def link(bundle: Path) -> None:
    (bundle / "docs" / "more.md").symlink_to("/etc/passwd")


def link_to_nothing(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()
    (bundle / "models" / "model.pt").symlink_to("/data/disk/that/is/away.pt")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: edit_metadata(b, version="9.9.9"), "9.9.9, which is not in the changelog"),
        (lambda b: edit_metadata(b, version="0.10.0", changelog={"0.9.0": "", "0.10.0": ""}), "would take 0.9.0"),
        (lambda b: edit_metadata(b, version="first"), "one like 0.1.0"),
        (lambda b: edit_metadata(b, changelog=["0.1.0"]), "not in the changelog"),
        (lambda b: (b / "configs" / "metadata.json").write_text("{"), "metadata.json cannot be read"),
        (lambda b: (b / "LICENSE").unlink(), "lacks LICENSE"),
        (link, "is a link"),
        (link_to_nothing, "model.pt is a link to a file that is not there"),
        (other_classes, "does not fit the network"),
        (no_network, "no network_def that can be built"),
        (lambda b: (b / "models" / "model.pt").write_bytes(b"text"), "corrupt"),
    ],
)
def test_refusals(small_bundle, tmp_path, capsys, spoil, words):
    bundle = small_bundle()
    spoil(bundle)
    assert main(["package", str(bundle), "--output_dir", str(tmp_path / "dist")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "dist").exists()


def test_names_that_monai_would_cut(small_bundle, tmp_path):
    bundle = small_bundle(weights=False)
    with pytest.raises(InputError, match="'_v' in its name"):
        package_bundle(bundle.rename(bundle.with_name("cells_vivo")), tmp_path / "dist")


def test_a_damaged_model_info_is_not_replaced(small_bundle, tmp_path):
    (tmp_path / "dist" / "models").mkdir(parents=True)
    info = tmp_path / "dist" / "models" / "model_info.json"
    info.write_text("{")
    with pytest.raises(InputError, match=r"model_info\.json cannot be read"):
        package_bundle(small_bundle(weights=False), tmp_path / "dist")
    assert info.read_text() == "{"


def contents(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in files_below(folder)}


@pytest.mark.parametrize("place", ["models/microscopy", "huggingface/microscopy"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_bundle_that_lies_where_it_would_be_written(small_bundle, tmp_path, capsys, place, linked):
    """``package models/NAME --output_dir .``, by its own path and by a link to it."""
    home = tmp_path / "home"
    bundle = home / place
    bundle.parent.mkdir(parents=True)
    small_bundle().rename(bundle)
    (bundle / "eval").mkdir()
    (bundle / "eval" / "notes.txt").write_text("mine")
    (bundle / "models" / "checkpoint.pt").write_bytes(b"resume")
    if linked:
        (home / "here").symlink_to(bundle)
        named = home / "there" / "microscopy"
        named.parent.mkdir()
        named.symlink_to(bundle)
    before = contents(home)
    assert main(["package", str(named if linked else bundle), "--output_dir", str(home)]) == 1
    assert "is what is packed; give another output_dir" in capsys.readouterr().err
    assert contents(home) == before


def test_an_output_inside_of_the_bundle(small_bundle, capsys):
    bundle = small_bundle(weights=False)
    before = contents(bundle)
    assert main(["package", str(bundle), "--output_dir", str(bundle / "dist")]) == 1
    assert "is what is packed" in capsys.readouterr().err and contents(bundle) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("models/model.pt", b"trained"), ("notes.txt", b"mine"), ("configs/train.json", b"{}"), ("eval/a/b.csv", b"1")],
)
@pytest.mark.parametrize("packaged", [False, True])
def test_what_no_package_made_stays(small_bundle, tmp_path, capsys, name, content, packaged):
    """Another bundle of that name lies there, or somebody worked in the folder since: all of it stays."""
    bundle, out = small_bundle(weights=False), tmp_path / "dist"
    if packaged:
        package_bundle(bundle, out)
    own = out / "models" / "microscopy" / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(content)
    before = contents(out)
    assert main(["package", str(bundle), "--output_dir", str(out)]) == 1
    error = capsys.readouterr().err
    assert str(own) in error and "move it away or give another output_dir" in error
    assert contents(out) == before


def test_what_an_earlier_package_made_is_brought_up_to_date(small_bundle, tmp_path):
    bundle, out = small_bundle(weights=False), tmp_path / "dist"
    more = bundle / "docs" / "more" / "page.md"
    more.parent.mkdir()
    more.write_text("once")
    package_bundle(bundle, out)
    assert (out / "models" / "microscopy" / "docs" / "more" / "page.md").is_file()
    more.unlink()
    (bundle / "docs" / "README.md").write_text("changed")
    package_bundle(bundle, out)
    assert not (out / "models" / "microscopy" / "docs" / "more").exists()
    assert (out / "models" / "microscopy" / "docs" / "README.md").read_text() == "changed"
    assert files_below(out / "models" / "microscopy") == files_below(out / "huggingface" / "microscopy")


def test_a_link_in_the_place_of_the_folder(small_bundle, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "dist" / "models").mkdir(parents=True)
    (tmp_path / "dist" / "models" / "microscopy").symlink_to(other)
    assert main(["package", str(small_bundle(weights=False)), "--output_dir", str(tmp_path / "dist")]) == 1
    assert "is no folder or file that package made" in capsys.readouterr().err and not any(other.iterdir())


def test_what_a_killed_package_left_is_nobodys_file(small_bundle, tmp_path):
    bundle, out = small_bundle(weights=False), tmp_path / "dist"
    package_bundle(bundle, out)
    before = contents(out)
    for place in ("models/microscopy", "models/microscopy/configs", "huggingface/microscopy/docs"):
        (out / place / f".{'0' * 32}-train.json").write_bytes(b'{"half')
    (out / "huggingface" / "microscopy" / "LICENSE").unlink()
    package_bundle(bundle, out)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("ending", "file", "compression"),
    [
        (".zip", "mine", zipfile.ZIP_STORED),
        (".zip", "microscopy/mine", zipfile.ZIP_STORED),  # as somebody packs the folder by hand
        (".zip", "microscopy/mine", zipfile.ZIP_DEFLATED),
        ("_model.pt", None, None),
    ],
)
def test_a_file_with_the_name_of_an_archive_or_of_weights_stays(small_bundle, tmp_path, ending, file, compression):
    bundle, output = small_bundle(), tmp_path / "dist"
    made = package_bundle(bundle, output)
    edit_weights(bundle)
    package_bundle(bundle, output)  # what it made itself it replaces
    mine = made.archive.with_name(f"{made.archive.stem}{ending}")
    assert mine.is_file()
    if ending == ".zip":
        with zipfile.ZipFile(mine, "w", compression) as archive:
            archive.writestr(file, "precious")
    else:
        mine.write_text("precious")
    before = mine.read_bytes()
    with pytest.raises(InputError, match="is not as a package left it; move it away or give another output_dir"):
        package_bundle(bundle, output)
    assert mine.read_bytes() == before
