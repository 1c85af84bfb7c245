# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor names what scans here, why nothing faster does, and what to install for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import swinumamba_monai
from swinumamba_monai import doctor
from swinumamba_monai.cli import main
from swinumamba_monai.ops import backends
from swinumamba_monai.ops.cuda import scan as cuda_scan

NO_NUMBA = "numba cannot be imported (No module named 'numba'; `pip install numba`)"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)


def numba(monkeypatch, obstacle) -> None:
    record = replace(backends.REGISTRY["numba"], why_unavailable=lambda *about: obstacle)
    monkeypatch.setitem(backends.REGISTRY, "numba", record)


def lines() -> str:
    return "\n".join(doctor.examine())


def test_command(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"swinumamba_monai {swinumamba_monai.__version__} in ")
    assert f"  torch {torch.__version__}" in out and "CPU: " in out and "GPU: torch" in out


def test_the_fastest(monkeypatch):
    numba(monkeypatch, None)
    assert "scan of float32: numba\n  that is the fastest there is for this device" in lines()


def test_what_to_install_for_a_faster_one(monkeypatch):
    numba(monkeypatch, NO_NUMBA)
    text = lines()
    assert f"scan of float32: portable\n  numba would be faster, but {NO_NUMBA}\n" in text
    assert 'to have it: pip install "swinumamba-monai[cpu]"' in text


def test_what_the_environment_variable_does(monkeypatch):
    numba(monkeypatch, None)
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "portable")
    assert "numba would be faster: unset SWINUMAMBA_BACKEND" in lines()
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "quick")
    assert "scan of float32: none; SWINUMAMBA_BACKEND must be one of" in lines()


@pytest.mark.parametrize(("obstacle", "words"), [(None, "is the fastest"), ("no NVRTC", "but no NVRTC\n  to have")])
def test_gpus(monkeypatch, obstacle, words):
    class Device:
        def __init__(self, index): ...

        def __enter__(self): ...

        def __exit__(self, *error): ...

    properties = SimpleNamespace(name="NVIDIA X", total_memory=80 << 30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(cuda_scan, "why_nvrtc_is_unavailable", lambda: obstacle)
    text = lines()
    assert "GPU 0: NVIDIA X, 80 GiB, compute capability 9.0\n  scan of bfloat16: " in text
    assert words in text[text.index("GPU 0") :]


def test_a_driver_without_a_cuda_build(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "install a CUDA build of torch that fits it" in lines()


def test_a_package_that_is_not_installed(monkeypatch):
    def absent(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", absent)
    monkeypatch.setattr(doctor.metadata, "version", absent)
    text = lines()
    assert "is not installed, " in text and "  torch: not installed" in text
