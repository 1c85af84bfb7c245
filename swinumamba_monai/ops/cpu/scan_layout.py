# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How the scan of the CPU is cut: into tasks of one block of channels, and these into chunks of positions."""

from __future__ import annotations

from torch import Tensor

CHANNELS = 64  # number of channels of a block: four vectors of AVX-512, whose latencies overlap, in float32
POSITIONS = 32  # number of positions of a chunk: 8 KiB a buffer in float32
# Number of states of a channel that the loops take at once, as many as they write out, or its only one; the forward
# takes twice as many where there are.
STATES = 4


def count_parts(u: Tensor, A: Tensor) -> int:
    """Independent outputs: one a group, or the pair along the rows and the pair along the columns of a map.

    Args:
        u: the inputs, (b, h, w, 1 or g, d).
        A: transition rates, (g, d, n).
    """
    return 2 if u.shape[3] < len(A) else len(A)


def count_blocks(channels: int) -> int:
    """How many blocks so many channels make."""
    return -(-channels // CHANNELS)


def chunk_states_shape(u: Tensor, A: Tensor, keep_states: bool) -> tuple[int, ...]:
    """Shape of the states that the forward keeps, one set before each chunk: (g, b, chunks, n, d).

    Args:
        u: the inputs, (b, h, w, 1 or g, d).
        A: transition rates, (g, d, n).
        keep_states: whether a backward will follow; else there are no chunks.
    """
    batch, height, width, _, channels = u.shape
    chunks = -(-height * width // POSITIONS) if keep_states else 0
    return len(A), batch, chunks, A.shape[-1], channels


def count_missing(n: int) -> int:
    """How many states of zeros make of ``n`` what the loops take: 1 or a multiple of STATES."""
    return 0 if n == 1 else -n % STATES
