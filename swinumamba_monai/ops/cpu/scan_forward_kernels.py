# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The forward of the scan, compiled by Numba; :mod:`.scan_buffers` says how arrays and tasks are laid out.

Importing this module imports Numba.
"""

from __future__ import annotations

import numpy as np

from . import scan_buffers as buffers
from .math import LOG2E, apart, entry, exp2, exp2_falling, inner
from .scan_layout import CHANNELS, POSITIONS, STATES


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


def _make_scan_states(power):
    @inner
    def scan_states(rows, b, c, h, A, step, inflow, y):
        """Take four states through a chunk and add their outputs to ``y``.

        ``rows`` has their B from column ``b`` on and their C from column ``c`` on, A is times log2(e), inflow is Δu.
        """
        apart()
        for t in range(len(rows)):
            b0, b1, b2, b3 = rows[t, b], rows[t, b + 1], rows[t, b + 2], rows[t, b + 3]
            c0, c1, c2, c3 = rows[t, c], rows[t, c + 1], rows[t, c + 2], rows[t, c + 3]
            for j in range(CHANNELS):
                h0 = power(step[t, j] * A[j]) * h[j] + inflow[t, j] * b0
                h1 = power(step[t, j] * A[j + CHANNELS]) * h[j + CHANNELS] + inflow[t, j] * b1
                h2 = power(step[t, j] * A[j + 2 * CHANNELS]) * h[j + 2 * CHANNELS] + inflow[t, j] * b2
                h3 = power(step[t, j] * A[j + 3 * CHANNELS]) * h[j + 3 * CHANNELS] + inflow[t, j] * b3
                h[j] = h0
                h[j + CHANNELS] = h1
                h[j + 2 * CHANNELS] = h2
                h[j + 3 * CHANNELS] = h3
                y[t, j] += c0 * h0 + c1 * h1 + (c2 * h2 + c3 * h3)

    return scan_states


def _make_scan_state(power):
    @inner
    def scan_state(rows, b, c, h, A, step, inflow, y):
        """The same with the only state of a channel."""
        apart()
        for t in range(len(rows)):
            b0, c0 = rows[t, b], rows[t, c]
            for j in range(CHANNELS):
                h0 = power(step[t, j] * A[j]) * h[j] + inflow[t, j] * b0
                h[j] = h0
                y[t, j] += c0 * h0

    return scan_state


_scan_states, _scan_state = _make_scan_states(exp2), _make_scan_state(exp2)
_scan_falling_states, _scan_falling_state = _make_scan_states(exp2_falling), _make_scan_state(exp2_falling)


@inner
def _forward_task(
    u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, b, g, direction, height, width, first, y,
    adds, chunk_states,
):  # fmt: skip
    n, rank, dtype = A.shape[1], delta_weight.shape[1], A.dtype
    falling = delta_softplus and A.max() <= 0  # no decay is above 1
    A = buffers.load_matrix(A, first) * dtype.type(LOG2E)
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
        for s in range(0, n, STATES):
            h_s, A_s = (
                h[s * CHANNELS : s * CHANNELS + STATES * CHANNELS],
                A[s * CHANNELS : s * CHANNELS + STATES * CHANNELS],
            )
            if n == 1 and falling:
                _scan_falling_state(rows[:length], rank, rank + 1, h_s, A_s, step, inflow, y_c)
            elif n == 1:
                _scan_state(rows[:length], rank, rank + 1, h_s, A_s, step, inflow, y_c)
            elif falling:
                _scan_falling_states(rows[:length], rank + s, rank + n + s, h_s, A_s, step, inflow, y_c)
            else:
                _scan_states(rows[:length], rank + s, rank + n + s, h_s, A_s, step, inflow, y_c)
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
