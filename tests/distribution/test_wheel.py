# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel alone, in an environment of its own, runs everything; nothing comes from a network or from the checkout.

The packages that it depends on are those of this environment, which is given to the new one as a path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from small_bundles import ROOT, copy_bundle

from swinumamba_monai.distribution import package_bundle
from swinumamba_monai.tasks import find_task

# What a checkout holds besides the sources; wheels that were built before must not find their way into a new one.
NO_SOURCES = ".* build dist demo *.egg-info __pycache__ models eval shared".split()
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"

# ``python -m`` with one list of words after another, in one process: most of each would be imports.
IN_TURN = """
import json, runpy, sys
for module, *words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, words
"""


def run(*line: object, cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        [str(word) for word in line], cwd=cwd, capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def build(kind: str, source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    return target / run(sys.executable, "-c", BUILD, f"build_{kind}", target, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist of a copy of the checkout, and the wheel of the sdist."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*NO_SOURCES))
    sdist = build("sdist", folder / "checkout", folder / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return sdist, build("wheel", source, folder / "dist")


@pytest.fixture(scope="module")
def python(built, tmp_path_factory) -> Path:
    """The interpreter of a fresh environment with the wheel."""
    environment = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-index", built[1]),
        cwd=environment,
    )
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip()
    # A path in a .pth file is not searched for further .pth files, such as that of an editable installation.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_what_is_in_the_archives(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "swinumamba_monai"
    sources = {file for kind in ("py", "cu", "cuh", "csv", "json") for file in package.rglob(f"*.{kind}")}
    assert {file.relative_to(ROOT).as_posix() for file in sources} == {
        name for name in names if name.startswith("swinumamba_monai/")
    }
    assert all(name.startswith(("swinumamba_monai/", "swinumamba_monai-")) for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    for name in (
        "README.md",
        "LICENSE",
        "constraints.txt",
        "tests/fuzzing.py",
        "bundles/microscopy/configs/train.json",
    ):
        assert name in inside, name


@pytest.mark.skipif(sys.platform == "win32", reason="the folders of its environments have other names")
def test_the_wheel_alone_runs(python, tmp_path):
    """A bundle out of its archive, images, inference, and the doctor, in a folder with nothing else."""
    package = package_bundle(copy_bundle("endoscopy", tmp_path / "bundles"), tmp_path / "dist")
    empty = tmp_path / "empty"
    empty.mkdir()
    height, width = map(str, find_task("endoscopy").small_data["image_size"])
    counts = ["--num_train", "1", "--num_validation", "1", "--num_test", "1", "--image_size", height, width]
    inference = ["--config_file", "endoscopy/configs/inference.json", "--bundle_root", "endoscopy"]
    inference += ["--dataset_dir", "data", "--output_dir", "results", "--num_workers", "0"]
    lines = [
        ["swinumamba_monai", "doctor"],
        ["swinumamba_monai", "synthesize", "endoscopy", "--output_dir", "data", *counts],
        ["monai.bundle", "run", *inference],
    ]
    with zipfile.ZipFile(package.archive) as archive:
        archive.extractall(empty)
    backend = {"SWINUMAMBA_BACKEND": "portable"}  # the other would be compiled for this environment first
    said = run(python, "-c", IN_TURN, json.dumps(lines), cwd=empty, **backend)
    installed = Path(said.splitlines()[0].split(" in ")[1])
    assert installed.is_relative_to(python.parents[1]), "not the package of the checkout"
    assert "scan of float32" in said
    assert len(list((empty / "results").rglob("*_classes.png"))) == 1
