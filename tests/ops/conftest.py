# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the CPU, and the portable scan in small chunks, for the tests that ask for them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import emulator as emulation
import pytest
from emulated_backend import Emulator
from scan_inputs import SMALL_CHUNK

from swinumamba_monai.ops import portable


@pytest.fixture(scope="session")
def libraries(tmp_path_factory) -> Iterator[None]:
    """A folder for what the compiler makes, the same for all of xdist's workers and for processes that tests start."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "emulated"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(emulation.LIBRARIES, str(folder))
        yield


@pytest.fixture
def emulator(monkeypatch, libraries) -> Emulator:
    """CPU tensors go to the backend ``cuda``, whose kernels the host's C++ compiler has made."""
    if emulation.COMPILER is None:
        pytest.skip("no C++ compiler (c++, g++ or clang++) is there to emulate the CUDA kernels with")
    return Emulator(monkeypatch)


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Chunks of five positions, so that short sequences meet every boundary."""
    monkeypatch.setattr(portable, "MIN_CHUNK", SMALL_CHUNK)
    monkeypatch.setattr(portable, "CHUNK_ELEMENTS", 1)
