# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The backend ``cuda`` on CPU tensors, and what a test may turn and look at."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import emulator as emulation
import pytest

from swinumamba_monai.ops import backends
from swinumamba_monai.ops.cuda import class_sums, fused, instance_norm, packing, row_sums, scan, scan_one


class _Recorded:
    """Kernels that write down what is launched."""

    def __init__(self, kernels: emulation.EmulatedKernels, launched: list) -> None:
        self.kernels, self.launched = kernels, launched

    def launch(self, name, grid, *others) -> None:
        self.launched.append((name, grid))
        self.kernels.launch(name, grid, *others)


class Emulator:
    """What a test may turn and look at.

    Args:
        monkeypatch: takes back what this changes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.loaded: list[tuple[str, dict[str, int]]] = []  # files and their macros
        self.launched: list[tuple[str, tuple[int, int, int]]] = []  # kernels and their grids
        for module in (class_sums, scan, scan_one, fused, instance_norm, packing, row_sums):
            monkeypatch.setattr(module, "load_kernels", self.load)
        monkeypatch.setattr(scan, "TWO_LAUNCHES", 0)  # so that short sequences are worth cutting
        monkeypatch.setattr(scan, "count_shared_kib", lambda device: 227)
        self.set_multiprocessors(1)
        monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
        monkeypatch.setattr(scan, "why_nvrtc_is_unavailable", lambda: None)
        monkeypatch.setitem(backends._FASTEST, "cpu", "cuda")
        why_unavailable = partial(scan.why_cuda_is_unavailable, "cuda")
        record = replace(
            backends.REGISTRY["cuda"], why_unavailable=lambda device_type, *others: why_unavailable(*others)
        )
        monkeypatch.setitem(backends.REGISTRY, "cuda", record)

    def load(self, name: str, defines: dict[str, int]) -> _Recorded:
        self.loaded.append((name, dict(defines)))
        return _Recorded(emulation.load_emulated(name, defines), self.launched)

    def macros(self, file: str, macro: str) -> list[int]:
        """What a macro of a file of kernels was, from the file's first use to its last."""
        return [defines[macro] for name, defines in self.loaded if name == file]

    def grids(self, kernel: str) -> list[tuple[int, int, int]]:
        """The grids that a kernel was launched with."""
        return [grid for name, grid in self.launched if name == kernel]

    def set_multiprocessors(self, count: int) -> None:
        """The more of them, the more warps are wanted, and the more segments a sequence is cut into."""
        for module in (class_sums, scan, scan_one, fused, instance_norm):
            self.monkeypatch.setattr(module, "count_multiprocessors", lambda device: count)

    def tune(self, **changes: int) -> None:
        """Compile the scan with other numbers than those found best."""
        self.monkeypatch.setattr(scan, "TUNING", scan.TUNING._replace(**changes))
