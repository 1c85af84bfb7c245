# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What kernels are compiled for and launched by: element types, the width of loads, and what a GPU has."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

ALIGNED = 8  # elements of half precision that the matrix units load at a time
LANES = 32  # threads of a block with different channels, at the most
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the macro ELEMENT


def alignment(count: int, *tensors: Tensor) -> int:
    """Neighbours that a thread may load at once: 4 where every row of every tensor begins at a multiple of 4."""
    aligned = all(t.data_ptr() % (4 * t.element_size()) == 0 for t in tensors)
    return 4 if aligned and all(size % 4 == 0 for t in tensors for size in (count, *t.stride()[:-1])) else 1


def divide_channels(vectors: int, threads: int) -> tuple[int, int, int]:
    """How the threads of a block share the channels of a map; `Team` in kernels/common.cuh is one of its teams.

    Args:
        vectors: vectors of neighbouring channels that a pixel has.
        threads: threads of a block, at the most.

    Returns:
        threads of a team; blocks for all channels of a pixel; teams of a block.
    """
    lanes = min(vectors, LANES)
    return lanes, -(-vectors // lanes), threads // lanes


@cache
def count_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def count_shared_kib(device: torch.device) -> int:
    """Shared memory that a block may have, in KiB: of the data center's GPUs, or what all from Ampere on have."""
    return {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}.get(
        torch.cuda.get_device_capability(device), 99
    )
