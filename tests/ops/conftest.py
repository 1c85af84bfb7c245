# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the CPU, for the tests that ask for them."""

from __future__ import annotations

import emulator as emulation
import pytest
from emulated_backend import Emulator


@pytest.fixture
def emulator(monkeypatch) -> Emulator:
    """CPU tensors go to the backend ``cuda``, whose kernels the host's C++ compiler has made."""
    if emulation.COMPILER is None:
        pytest.skip("no C++ compiler (c++, g++ or clang++) is there to emulate the CUDA kernels with")
    return Emulator(monkeypatch)
