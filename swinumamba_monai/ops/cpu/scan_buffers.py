# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The buffers that the loops of the scan work in, and what forward and backward both do with them.

Symbols as in :mod:`swinumamba_monai.ops.reference`. The sequences of the groups are laid out as (b, l, g, ...), and so
are maps, pixel by pixel, whose groups are the four directions: u (b, l, g or 1, d); A (g, d, n), n 1 or a multiple of
STATES; D, delta_bias (g, d). ``projected``, (b, l, g, r + 2n), holds r numbers that ``delta_weight``, (g, d, r), makes
delta of, then B, then C. With r = 0, ``delta`` is given, (b, l, g, d). Every array is C-contiguous.

A task is one sample, one block of channels and one part: a group of sequences, or two opposite directions of a map,
whose outputs it adds. It writes what no other task writes; the caller adds up the results of tasks that share an input.
So the tasks run in any order, on any number of threads, to the same bits.

A task walks a direction in chunks of POSITIONS visits. It gathers a chunk into buffers of (POSITIONS, CHANNELS), which
stay in the core's first cache, and goes through them again and again, in the forward for eight of the n states at a
time. The innermost loops run over the CHANNELS lanes of a buffer and become vector instructions. They are kept short
because LLVM, before version 16, makes no vectors of a loop in which more than eight pairs of arrays might overlap; that
is also why what belongs to several states, (n, CHANNELS), is kept in arrays of one axis. Lanes beyond the last channel
hold zeros, and so do the states and gradients in them.

Importing this module imports Numba.
"""

from __future__ import annotations

import numpy as np

from .math import MODERATE, apart, inner, softplus
from .scan_layout import CHANNELS, POSITIONS, STATES


@inner
def visits(direction, first, height, width):
    """The pixels of a map that a chunk of visits sees, at most POSITIONS indices in row-major order.

    Args:
        direction: 0 along the rows, 1 along the columns, 2 and 3 the same reversed.
        first: number of the chunk's first visit.
        height: rows of the map.
        width: columns of the map.
    """
    length = height * width
    where = np.arange(first, min(first + POSITIONS, length))
    for i in range(len(where)):
        t = where[i] if direction < 2 else length - 1 - where[i]
        where[i] = t if direction % 2 == 0 else t % height * width + t // height
    return where


@inner
def load_rows(source, b, where, g, first, buffer):
    """Gather a chunk of a sequence into a buffer.

    Args:
        source: sequences of all groups, (b, l, g, d).
        b: sample.
        where: positions in l, at most POSITIONS.
        g: group.
        first: first of the channels.
        buffer: buffer that is filled, (POSITIONS, CHANNELS).
    """
    apart()
    for i in range(len(where)):
        row = source[b, where[i], g, first : first + buffer.shape[1]]
        for j in range(len(row)):
            buffer[i, j] = row[j]


@inner
def store_rows(buffer, where, first, target, adds):
    """Put a buffer where its chunk belongs.

    Args:
        buffer: what was computed, (POSITIONS, CHANNELS).
        where: positions in l, at most POSITIONS.
        first: first of the channels.
        target: output of one sample and group, (l, d).
        adds: whether it is added to what is there.
    """
    apart()
    for i in range(len(where)):
        row = target[where[i], first : first + CHANNELS]
        if adds:
            for j in range(len(row)):
                row[j] += buffer[i, j]
        else:
            for j in range(len(row)):
                row[j] = buffer[i, j]


@inner
def load_vector(source, first):
    """The part of a vector that a block of channels needs, (CHANNELS,), with zeros beyond the last.

    Args:
        source: vector of a group, (d,).
        first: first of the channels.
    """
    block = np.zeros(CHANNELS, source.dtype)
    for j in range(min(CHANNELS, len(source) - first)):
        block[j] = source[first + j]
    return block


@inner
def load_matrix(source, first):
    """The part of a matrix that a block of channels needs, transposed, with rows of zeros up to a multiple of STATES.

    Args:
        source: matrix of a group, (d, n).
        first: first of the channels.
    """
    channels, n = source.shape
    block = np.zeros(-(-n // STATES) * STATES * CHANNELS, source.dtype)
    for j in range(min(CHANNELS, channels - first)):
        for s in range(n):
            block[s * CHANNELS + j] = source[first + j, s]
    return block


@inner
def clear(buffer):
    """Fill a buffer with zeros, by vectors, which ``buffer[:] = 0`` does not."""
    apart()
    for t in range(POSITIONS):
        for j in range(CHANNELS):
            buffer[t, j] = 0


@inner
def add_delta(rows, weight, step):
    """Add delta, the low rank at the head of ``rows`` times ``weight``, whose rows of zeros drop what follows there."""
    apart()
    for t in range(POSITIONS):
        for k in range(0, len(weight) // CHANNELS, STATES):
            w = weight[k * CHANNELS : k * CHANNELS + STATES * CHANNELS]
            r0, r1, r2, r3 = rows[t, k], rows[t, k + 1], rows[t, k + 2], rows[t, k + 3]
            for j in range(CHANNELS):
                pair = r0 * w[j] + r1 * w[j + CHANNELS]
                step[t, j] += pair + (r2 * w[j + 2 * CHANNELS] + r3 * w[j + 3 * CHANNELS])


@inner
def discretise(step, bias, delta_softplus):
    """Turn delta into Δ in place.

    Args:
        step: delta of a chunk, (POSITIONS, CHANNELS).
        bias: ``delta_bias`` of the block, (CHANNELS,).
        delta_softplus: whether it passes through softplus.
    """
    apart()
    for t in range(POSITIONS):
        if delta_softplus:
            for j in range(CHANNELS):
                step[t, j] = softplus(step[t, j] + bias[j])
        else:
            for j in range(CHANNELS):
                step[t, j] += bias[j]


@inner
def find_fastest(A):
    """The largest size of the rates of each channel of a block, (CHANNELS,).

    Args:
        A: rates of the block, from :func:`load_matrix`.
    """
    fastest = np.zeros(CHANNELS, A.dtype)
    for i in range(0, len(A), CHANNELS):
        for j in range(CHANNELS):
            fastest[j] = max(fastest[j], abs(A[i + j]))
    return fastest


@inner
def is_moderate(step, fastest, largest):
    """Whether no exponent Δ A of a chunk is larger than MODERATE; what is NaN stays so in either case.

    Args:
        step: Δ of the chunk, (POSITIONS, CHANNELS).
        fastest: largest size of A times log2(e) of each channel, (CHANNELS,).
        largest: overwritten, (CHANNELS,).
    """
    apart()
    for j in range(CHANNELS):
        largest[j] = 0
    for t in range(POSITIONS):
        for j in range(CHANNELS):
            size = abs(step[t, j])
            largest[j] = size if size > largest[j] else largest[j]
    return (largest * fastest).max() <= MODERATE


@inner
def multiply(a, b, product):
    """Write the product of two buffers into a third; all are (POSITIONS, CHANNELS)."""
    apart()
    for t in range(POSITIONS):
        for j in range(CHANNELS):
            product[t, j] = a[t, j] * b[t, j]


@inner
def coordinates(task, parts, channels):
    """Sample, part and channel block of a task.

    Args:
        task: number of the task.
        parts: number of parts, groups of a sequence or pairs of directions of a map.
        channels: number of channels d of a part.
    """
    blocks = -(-channels // CHANNELS)
    return task // (parts * blocks), task // blocks % parts, task % blocks
