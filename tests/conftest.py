# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What tests in several folders share."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist begins with the files that have most tests; the longest tests are alone in theirs.

    So they would come last, when nothing is left for the other processes; in the order of their names they do not.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """What has been imported by now stays, and the garbage collector need not look at it each time: that takes long."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """A process that does not end after its tests says where it waits, and ends; ``setup.cfg`` bounds each test.

    Not xdist's workers, which wait for each other then, and which it ends itself.
    """
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tensors here are small: more threads than one cost more than they bring, and other tests run beside these.

    So it is in the processes that tests start.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def empty_scans() -> Iterator[None]:
    """Scans of the backend ``portable`` give zeros at once, for what counts operations and looks at no number."""
    with torch.library._scoped_library("swinumamba", "FRAGMENT") as library:
        library.impl("selective_scan", lambda u, *others: (torch.zeros_like(u), torch.zeros(0)), "CPU")
        yield


@pytest.fixture
def uncached_shapes() -> Iterator[None]:
    """Torch asks operators each time what they give: where sizes are unknown, its cache of answers takes longer.

    The program is the same; other tests make one with the cache, as users do.
    """
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Numbers and names recorded from the released code; a checkout without them skips the tests that compare."""
    if not REFERENCE.is_dir():
        pytest.skip(f"the recorded numbers of the released code are not here: no {REFERENCE}")
    return REFERENCE
