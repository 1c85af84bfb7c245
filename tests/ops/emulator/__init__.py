# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a CPU: the same files, compiled by the host's C++ compiler with other words (``cpu.cuh``)."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from swinumamba_monai.ops.cuda.nvrtc import read_source

LIBRARIES = "SWINUMAMBA_EMULATED"  # names the folder where the processes of a test run share what they compile
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


class EmulatedKernels:
    """Has the ``launch`` of :class:`swinumamba_monai.ops.cuda.nvrtc.Kernels`."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    def launch(self, name, grid, threads, shared_bytes, params) -> None:
        launch = getattr(self.library, f"launch_{name}")
        launch((ctypes.c_int * 3)(*grid), threads, shared_bytes, ctypes.byref(params))


@cache
def _build(name: str, defines: tuple[tuple[str, int], ...]) -> EmulatedKernels:
    source = read_source(name, words=Path(__file__).with_name("cpu.cuh"))
    kernels = re.findall(r"^KERNEL (?:LAUNCH_BOUNDS\([^)]*\) )?(\w+)\(const GRID_CONSTANT (\w+) ", source, re.MULTILINE)
    source += "\n" + "\n".join(f"EMULATED({kernel}, {params})" for kernel, params in kernels)
    options = [COMPILER, "-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-fPIC"]
    options += ["-U_FORTIFY_SOURCE"]  # it takes a jump to another stack for a mistake
    command = [*options, "-shared", *(f"-D{key}={value}" for key, value in defines)]
    return EmulatedKernels(_made(source, command, ".so", ["-include", str(_read_headers(source, options))]))


def _read_headers(source: str, options: list[str]) -> Path:
    """The headers of the C++ library as the compiler has read them, which takes longer than to compile most kernels.

    A file to include, empty beside what has been read: a compiler that cannot use that reads them anew.
    """
    headers = "\n".join(re.findall(r"^#include <.*>$", source, re.MULTILINE))
    header = _made(headers, [*options, "-x", "c++-header"], ".h.gch").with_suffix("")
    header.touch()
    return header


def _made(source: str, command: list[str], suffix: str, where: Sequence[str] = ()) -> Path:
    """What the compiler makes of a text, in the folder that the processes of a test run share.

    Args:
        source: the text.
        command: compiler and options, which with the text name the file.
        suffix: how its name ends.
        where: further options, whose words are paths of this folder.
    """
    made = Path(os.environ[LIBRARIES], hashlib.sha256("\n".join([*command, source]).encode()).hexdigest() + suffix)
    if not made.exists():
        with TemporaryDirectory(dir=made.parent) as folder:
            Path(folder, "text.cpp").write_text(source)
            line = [*command, *where, "-o", "made", "text.cpp"]
            result = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)
            if result.returncode:
                raise RuntimeError(result.stderr)
            Path(folder, "made").replace(made)
    return made


def load_emulated(name: str, defines: dict[str, int]) -> EmulatedKernels:
    """What :func:`swinumamba_monai.ops.cuda.nvrtc.load_kernels` is replaced by in a test."""
    return _build(name, tuple(sorted(defines.items())))
