# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is installed, on which devices networks run, how they will scan there and why, and what would make it faster."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

import swinumamba_monai
from swinumamba_monai.ops import backends

D_STATE = 16  # number of states of the networks' channels
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}  # what training and inference compute in by default
# What to do where the fastest backend cannot run, by device type.
REMEDIES = {
    "cpu": 'pip install "swinumamba-monai[cpu]"',
    "cuda": "install a CUDA build of torch that has its NVRTC library and supports this GPU (see pytorch.org)",
}
FOLDER = Path(__file__).parent


def examine() -> Iterator[str]:
    """Look around, and compute nothing.

    Yields:
        one finding a line.
    """
    yield f"swinumamba_monai {swinumamba_monai.__version__} in {FOLDER}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    yield from _packages()
    if wanted := os.environ.get(backends.ENVIRONMENT_VARIABLE):
        yield f"{backends.ENVIRONMENT_VARIABLE}={wanted} is set"
    yield f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    yield from _scan("cpu")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            capability = f"{properties.major}.{properties.minor}"
            yield f"GPU {index}: {properties.name}, {memory:.0f} GiB, compute capability {capability}"
            with torch.cuda.device(index):
                yield from _scan("cuda")
    else:
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        yield f"GPU: torch {torch.__version__} {build} and finds none"
        if shutil.which("nvidia-smi") is not None:
            yield "  an NVIDIA driver is here: install a CUDA build of torch that fits it (see pytorch.org)"


def _packages() -> Iterator[str]:
    """Every package that the installation names, those of extras marked."""
    try:
        requirements = metadata.requires("swinumamba-monai") or []
    except metadata.PackageNotFoundError:
        yield f"swinumamba-monai is not installed, {FOLDER} is used as it lies there"
        requirements = ["torch", "monai", "numpy", "numba"]
    found: dict[str, str] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        found.setdefault(name, f" (extra: {extra[1]})" if extra else "")
    for name, extra in found.items():
        try:
            yield f"  {name} {metadata.version(name)}{extra}"
        except metadata.PackageNotFoundError:
            yield f"  {name}: not installed{extra}"


def _scan(device_type: str) -> Iterator[str]:
    """Which backend scans on a device, why not another, and what to do about it."""
    dtype = DTYPES[device_type]
    name = str(dtype).removeprefix("torch.")
    try:
        chosen = backends.choose_backend("auto", device_type, dtype, D_STATE)
    except (RuntimeError, ValueError) as error:
        yield f"  scan of {name}: none; {error}"
        return
    yield f"  scan of {name}: {chosen}"
    fastest = backends.fastest_backend(device_type)
    if chosen == fastest:
        yield "  that is the fastest there is for this device"
    elif obstacle := backends.REGISTRY[fastest].why_unavailable(device_type, dtype, D_STATE):
        yield f"  {fastest} would be faster, but {obstacle}"
        yield f"  to have it: {REMEDIES[device_type]}"
    else:
        yield f"  {fastest} would be faster: unset {backends.ENVIRONMENT_VARIABLE}"
