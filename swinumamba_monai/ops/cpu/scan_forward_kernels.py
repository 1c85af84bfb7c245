# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The forward of the scan, compiled by Numba; :mod:`.scan_buffers` says how arrays and tasks are laid out.

Importing this module imports Numba.
"""

from __future__ import annotations

import numpy as np

from . import scan_buffers as buffers
from .math import LOG2E, apart, entry, exp2, exp2_moderate, inner
from .scan_layout import CHANNELS, POSITIONS


@inner
def _store_states(h, first, target):
    apart()
    for s in range(len(target)):
        row = target[s, first : first + CHANNELS]
        for j in range(len(row)):
            row[j] = h[s * CHANNELS + j]


@inner
def _skip(D, u, y):
    apart()
    for t in range(POSITIONS):
        for j in range(CHANNELS):
            y[t, j] = D[j] * u[t, j]


def _make_loops(power):
    """The loops over a chunk, with an exponential: of eight states, of four, and of the only state of a channel.

    ``rows`` has the states' B from column ``b`` on and their C from column ``c`` on, A is times log2(e), inflow is Δu.
    The outputs are added to ``y``. Eight at once read Δ, Δu, the output and the exponential's constants half as often.
    """

    @inner
    def scan_eight(rows, b, c, h, A, step, inflow, y):
        apart()
        for t in range(len(rows)):
            b0, b1, b2, b3 = rows[t, b], rows[t, b + 1], rows[t, b + 2], rows[t, b + 3]
            b4, b5, b6, b7 = rows[t, b + 4], rows[t, b + 5], rows[t, b + 6], rows[t, b + 7]
            c0, c1, c2, c3 = rows[t, c], rows[t, c + 1], rows[t, c + 2], rows[t, c + 3]
            c4, c5, c6, c7 = rows[t, c + 4], rows[t, c + 5], rows[t, c + 6], rows[t, c + 7]
            for j in range(CHANNELS):
                j1, j2, j3, j4 = j + CHANNELS, j + 2 * CHANNELS, j + 3 * CHANNELS, j + 4 * CHANNELS
                j5, j6, j7 = j + 5 * CHANNELS, j + 6 * CHANNELS, j + 7 * CHANNELS
                h0 = power(step[t, j], A[j]) * h[j] + inflow[t, j] * b0
                h1 = power(step[t, j], A[j1]) * h[j1] + inflow[t, j] * b1
                h2 = power(step[t, j], A[j2]) * h[j2] + inflow[t, j] * b2
                h3 = power(step[t, j], A[j3]) * h[j3] + inflow[t, j] * b3
                h4 = power(step[t, j], A[j4]) * h[j4] + inflow[t, j] * b4
                h5 = power(step[t, j], A[j5]) * h[j5] + inflow[t, j] * b5
                h6 = power(step[t, j], A[j6]) * h[j6] + inflow[t, j] * b6
                h7 = power(step[t, j], A[j7]) * h[j7] + inflow[t, j] * b7
                h[j], h[j1], h[j2], h[j3], h[j4], h[j5], h[j6], h[j7] = h0, h1, h2, h3, h4, h5, h6, h7
                y[t, j] += c0 * h0 + c1 * h1 + (c2 * h2 + c3 * h3) + (c4 * h4 + c5 * h5 + (c6 * h6 + c7 * h7))

    @inner
    def scan_four(rows, b, c, h, A, step, inflow, y):
        apart()
        for t in range(len(rows)):
            b0, b1, b2, b3 = rows[t, b], rows[t, b + 1], rows[t, b + 2], rows[t, b + 3]
            c0, c1, c2, c3 = rows[t, c], rows[t, c + 1], rows[t, c + 2], rows[t, c + 3]
            for j in range(CHANNELS):
                j1, j2, j3 = j + CHANNELS, j + 2 * CHANNELS, j + 3 * CHANNELS
                h0 = power(step[t, j], A[j]) * h[j] + inflow[t, j] * b0
                h1 = power(step[t, j], A[j1]) * h[j1] + inflow[t, j] * b1
                h2 = power(step[t, j], A[j2]) * h[j2] + inflow[t, j] * b2
                h3 = power(step[t, j], A[j3]) * h[j3] + inflow[t, j] * b3
                h[j], h[j1], h[j2], h[j3] = h0, h1, h2, h3
                y[t, j] += c0 * h0 + c1 * h1 + (c2 * h2 + c3 * h3)

    @inner
    def scan_one(rows, b, c, h, A, step, inflow, y):
        apart()
        for t in range(len(rows)):
            b0, c0 = rows[t, b], rows[t, c]
            for j in range(CHANNELS):
                h0 = power(step[t, j], A[j]) * h[j] + inflow[t, j] * b0
                h[j] = h0
                y[t, j] += c0 * h0

    @inner
    def scan_states(n, rows, rank, h, A, step, inflow, y):
        """Take all states through a chunk; ``rows`` has r numbers of delta, B and C."""
        if n == 1:
            scan_one(rows, rank, rank + 1, h, A, step, inflow, y)
        for s in range(0, n - n % 8, 8):
            i, b = s * CHANNELS, rank + s
            scan_eight(rows, b, b + n, h[i : i + 8 * CHANNELS], A[i : i + 8 * CHANNELS], step, inflow, y)
        if n % 8 == 4:
            i, b = (n - 4) * CHANNELS, rank + n - 4
            scan_four(rows, b, b + n, h[i:], A[i:], step, inflow, y)

    return scan_states


_scan_states, _scan_moderate_states = _make_loops(exp2), _make_loops(exp2_moderate)


@inner
def _forward_task(
    u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, b, g, direction, height, width, first, y,
    adds, chunk_states,
):  # fmt: skip
    n, rank, dtype = A.shape[1], delta_weight.shape[1], A.dtype
    A = buffers.load_matrix(A, first) * dtype.type(LOG2E)
    fastest, largest = buffers.find_fastest(A), np.zeros(CHANNELS, dtype)
    weight = buffers.load_matrix(delta_weight, first)
    D, bias = buffers.load_vector(D, first), buffers.load_vector(delta_bias, first)
    h = np.zeros(n * CHANNELS, dtype)
    rows = np.zeros((POSITIONS, max(rank + 2 * n, len(weight) // CHANNELS)), dtype)
    u_c = np.zeros((POSITIONS, CHANNELS), dtype)
    step = np.zeros((POSITIONS, CHANNELS), dtype)
    inflow = np.zeros((POSITIONS, CHANNELS), dtype)
    y_c = np.zeros((POSITIONS, CHANNELS), dtype)
    for i in range(-(-height * width // POSITIONS)):
        where = buffers.visits(direction, i * POSITIONS, height, width)
        length = len(where)
        if len(chunk_states) > 0:
            _store_states(h, first, chunk_states[i])
        buffers.load_rows(u, b, where, g % u.shape[2], first, u_c)
        buffers.load_rows(projected, b, where, g, 0, rows)
        buffers.clear(step)
        if rank == 0:
            buffers.load_rows(delta, b, where, g, first, step)
        buffers.add_delta(rows, weight, step)
        buffers.discretise(step, bias, delta_softplus)
        buffers.multiply(step, u_c, inflow)
        _skip(D, u_c, y_c)
        if buffers.is_moderate(step, fastest, largest):
            _scan_moderate_states(n, rows[:length], rank, h, A, step, inflow, y_c)
        else:
            _scan_states(n, rows[:length], rank, h, A, step, inflow, y_c)
        buffers.store_rows(y_c, where, first, y, adds)


@entry
def forward(
    start, stop, u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, height, width, y, chunk_states
):  # fmt: skip
    """Run the tasks ``start`` to ``stop``.

    Args:
        start: first task; there are b * parts * (blocks of d).
        stop: the task to stop before.
        u: the inputs, from here to delta_softplus; a u of one group is shared by all.
        height: rows of the map; 1 for sequences.
        width: pixels of a row.
        y: written, (parts, b, l, d).
        chunk_states: written with the states before each chunk, (g, b, chunks, n, d), unless it has no chunks.
    """
    groups, channels, _ = A.shape
    parts = len(y)
    for task in range(start, stop):
        b, part, k = buffers.coordinates(task, parts, channels)
        for g in range(part, groups, parts):
            direction = g if parts < groups else 0
            _forward_task(
                u, delta, projected, delta_weight[g], A[g], D[g], delta_bias[g], delta_softplus, b, g, direction,
                height, width, k * CHANNELS, y[part, b], g > part, chunk_states[g, b],
            )  # fmt: skip
