# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The backward of the scan, compiled by Numba; :mod:`.scan_buffers` says how arrays and tasks are laid out.

Importing this module imports Numba.
"""

from __future__ import annotations

import numpy as np

from . import scan_buffers as buffers
from .math import LN2, LOG2E, apart, entry, exp2, exp2_falling, inner, inner_summing, sigmoid
from .scan_layout import CHANNELS, POSITIONS, STATES


@inner
def _load_states(source, first, h):
    apart()
    for s in range(len(source)):
        row = source[s, first : first + CHANNELS]
        for j in range(len(row)):
            h[s * CHANNELS + j] = row[j]


@inner
def _differentiate_discretisation(step, bias, delta_softplus, slope):
    """dΔ/ddelta, before delta is turned into Δ."""
    apart()
    for t in range(POSITIONS):
        if delta_softplus:
            for j in range(CHANNELS):
                slope[t, j] = sigmoid(step[t, j] + bias[j])
        else:
            for j in range(CHANNELS):
                slope[t, j] = 1


def _make_keep_states(power):
    @inner
    def keep_states(rows, b, h, A, step, inflow, decay, states):
        """Take four states through a chunk from its start ``h``, and keep their decays and what they were before."""
        apart()
        for t in range(len(rows)):
            b0, b1, b2, b3 = rows[t, b], rows[t, b + 1], rows[t, b + 2], rows[t, b + 3]
            for j in range(CHANNELS):
                h0, h1, h2, h3 = h[j], h[j + CHANNELS], h[j + 2 * CHANNELS], h[j + 3 * CHANNELS]
                decay0 = power(step[t, j], A[j])
                decay1 = power(step[t, j], A[j + CHANNELS])
                decay2 = power(step[t, j], A[j + 2 * CHANNELS])
                decay3 = power(step[t, j], A[j + 3 * CHANNELS])
                states[t, j], states[t, j + CHANNELS] = h0, h1
                states[t, j + 2 * CHANNELS], states[t, j + 3 * CHANNELS] = h2, h3
                decay[t, j], decay[t, j + CHANNELS] = decay0, decay1
                decay[t, j + 2 * CHANNELS], decay[t, j + 3 * CHANNELS] = decay2, decay3
                h[j] = decay0 * h0 + inflow[t, j] * b0
                h[j + CHANNELS] = decay1 * h1 + inflow[t, j] * b1
                h[j + 2 * CHANNELS] = decay2 * h2 + inflow[t, j] * b2
                h[j + 3 * CHANNELS] = decay3 * h3 + inflow[t, j] * b3
        states[len(rows)] = h

    return keep_states


def _make_keep_state(power):
    @inner
    def keep_state(rows, b, h, A, step, inflow, decay, states):
        """The same with the only state of a channel."""
        apart()
        for t in range(len(rows)):
            b0 = rows[t, b]
            for j in range(CHANNELS):
                decay0 = power(step[t, j], A[j])
                states[t, j] = h[j]
                decay[t, j] = decay0
                h[j] = decay0 * h[j] + inflow[t, j] * b0
        states[len(rows)] = h

    return keep_state


_keep_states, _keep_state = _make_keep_states(exp2), _make_keep_state(exp2)
_keep_falling_states, _keep_falling_state = _make_keep_states(exp2_falling), _make_keep_state(exp2_falling)


@inner_summing
def _differentiate_states(rows, b, c, A, step, inflow, dy, decay, states, from_right, dA, dstep, dinflow, dBC, s, n):
    """Take the gradients of four states back through a chunk; A is times log2(e), decay and states are as kept.

    ``from_right`` is decay_{t+1} * dL/dh_{t+1}, what position t inherits. Gradients that other states or chunks
    contribute to are added to, dstep without a factor of ln 2; those of B, in column ``s`` of dBC, and of C, ``n``
    columns after it, this block's share, are overwritten.
    """
    apart()
    zero = A.dtype.type(0)
    for back in range(1, len(rows) + 1):
        t = len(rows) - back
        b0, b1, b2, b3 = rows[t, b], rows[t, b + 1], rows[t, b + 2], rows[t, b + 3]
        c0, c1, c2, c3 = rows[t, c], rows[t, c + 1], rows[t, c + 2], rows[t, c + 3]
        dB0 = dB1 = dB2 = dB3 = dC0 = dC1 = dC2 = dC3 = zero
        for j in range(CHANNELS):
            j1, j2, j3 = j + CHANNELS, j + 2 * CHANNELS, j + 3 * CHANNELS
            dC0 += dy[t, j] * states[t + 1, j]
            dC1 += dy[t, j] * states[t + 1, j1]
            dC2 += dy[t, j] * states[t + 1, j2]
            dC3 += dy[t, j] * states[t + 1, j3]
            dh0 = dy[t, j] * c0 + from_right[j]
            dh1 = dy[t, j] * c1 + from_right[j1]
            dh2 = dy[t, j] * c2 + from_right[j2]
            dh3 = dy[t, j] * c3 + from_right[j3]
            dB0 += dh0 * inflow[t, j]
            dB1 += dh1 * inflow[t, j]
            dB2 += dh2 * inflow[t, j]
            dB3 += dh3 * inflow[t, j]
            dinflow[t, j] += dh0 * b0 + dh1 * b1 + (dh2 * b2 + dh3 * b3)
            dh0, dh1, dh2, dh3 = decay[t, j] * dh0, decay[t, j1] * dh1, decay[t, j2] * dh2, decay[t, j3] * dh3
            from_right[j], from_right[j1], from_right[j2], from_right[j3] = dh0, dh1, dh2, dh3
            power0, power1 = dh0 * states[t, j], dh1 * states[t, j1]
            power2, power3 = dh2 * states[t, j2], dh3 * states[t, j3]
            dstep[t, j] += power0 * A[j] + power1 * A[j1] + (power2 * A[j2] + power3 * A[j3])
            dA[j] += power0 * step[t, j]
            dA[j1] += power1 * step[t, j]
            dA[j2] += power2 * step[t, j]
            dA[j3] += power3 * step[t, j]
        dBC[t, s], dBC[t, s + 1], dBC[t, s + 2], dBC[t, s + 3] = dB0, dB1, dB2, dB3
        dBC[t, n + s], dBC[t, n + s + 1], dBC[t, n + s + 2], dBC[t, n + s + 3] = dC0, dC1, dC2, dC3


@inner_summing
def _differentiate_state(rows, b, c, A, step, inflow, dy, decay, states, from_right, dA, dstep, dinflow, dBC):
    """The same with the only state of a channel."""
    apart()
    for back in range(1, len(rows) + 1):
        t = len(rows) - back
        b0, c0 = rows[t, b], rows[t, c]
        dB0 = dC0 = A.dtype.type(0)
        for j in range(CHANNELS):
            dC0 += dy[t, j] * states[t + 1, j]
            dh0 = dy[t, j] * c0 + from_right[j]
            dB0 += dh0 * inflow[t, j]
            dinflow[t, j] += dh0 * b0
            dh0 = decay[t, j] * dh0
            from_right[j] = dh0
            power0 = dh0 * states[t, j]
            dstep[t, j] += power0 * A[j]
            dA[j] += power0 * step[t, j]
        dBC[t, 0], dBC[t, 1] = dB0, dC0


@inner
def _differentiate_inputs(length, u, dy, step, slope, D, dstep, dinflow, dbias, dD):
    """Turn the gradients of Δ, without a factor of ln 2, and of Δu into those of delta and u."""
    apart()
    for t in range(length):
        for j in range(CHANNELS):
            ddelta = slope[t, j] * (D.dtype.type(LN2) * dstep[t, j] + dinflow[t, j] * u[t, j])
            dstep[t, j] = ddelta
            dbias[j] += ddelta
            dD[j] += dy[t, j] * u[t, j]
            dinflow[t, j] = dinflow[t, j] * step[t, j] + D[j] * dy[t, j]


@inner
def _backward_task(
    dy, chunk_states, u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, b, g, direction, height,
    width, first, du, adds, ddelta, dBC, dA, dD, dbias,
):  # fmt: skip
    n, rank, dtype = A.shape[1], delta_weight.shape[1], A.dtype
    falling = delta_softplus and A.max() <= 0
    lanes = min(n, STATES) * CHANNELS
    A = buffers.load_matrix(A, first) * dtype.type(LOG2E)
    weight = buffers.load_matrix(delta_weight, first)
    D, bias = buffers.load_vector(D, first), buffers.load_vector(delta_bias, first)
    h = np.zeros(n * CHANNELS, dtype)
    from_right = np.zeros(n * CHANNELS, dtype)
    dA_block = np.zeros(n * CHANNELS, dtype)
    dD_block, dbias_block = np.zeros(CHANNELS, dtype), np.zeros(CHANNELS, dtype)
    rows = np.zeros((POSITIONS, max(rank + 2 * n, len(weight) // CHANNELS)), dtype)
    dBC_c = np.zeros((POSITIONS, 2 * n), dtype)
    u_c = np.zeros((POSITIONS, CHANNELS), dtype)
    dy_c = np.zeros((POSITIONS, CHANNELS), dtype)
    step = np.zeros((POSITIONS, CHANNELS), dtype)
    slope = np.zeros((POSITIONS, CHANNELS), dtype)
    inflow = np.zeros((POSITIONS, CHANNELS), dtype)
    decay = np.zeros((POSITIONS, lanes), dtype)
    dstep = np.zeros((POSITIONS, CHANNELS), dtype)
    dinflow = np.zeros((POSITIONS, CHANNELS), dtype)
    states = np.zeros((POSITIONS + 1, lanes), dtype)
    for i in range(len(chunk_states) - 1, -1, -1):
        where = buffers.visits(direction, i * POSITIONS, height, width)
        length = len(where)
        _load_states(chunk_states[i], first, h)
        buffers.load_rows(u, b, where, g % u.shape[2], first, u_c)
        buffers.load_rows(dy, b, where, g % u.shape[2], first, dy_c)
        buffers.load_rows(projected, b, where, g, 0, rows)
        buffers.clear(step)
        if rank == 0:
            buffers.load_rows(delta, b, where, g, first, step)
        buffers.add_delta(rows, weight, step)
        _differentiate_discretisation(step, bias, delta_softplus, slope)
        buffers.discretise(step, bias, delta_softplus)
        buffers.multiply(step, u_c, inflow)
        buffers.clear(dstep)
        buffers.clear(dinflow)
        chunk = rows[:length]
        for s in range(0, n, STATES):
            h_s, A_s = h[s * CHANNELS : s * CHANNELS + lanes], A[s * CHANNELS : s * CHANNELS + lanes]
            from_right_s = from_right[s * CHANNELS : s * CHANNELS + lanes]
            dA_s = dA_block[s * CHANNELS : s * CHANNELS + lanes]
            if n == 1 and falling:
                _keep_falling_state(chunk, rank, h_s, A_s, step, inflow, decay, states)
            elif n == 1:
                _keep_state(chunk, rank, h_s, A_s, step, inflow, decay, states)
            elif falling:
                _keep_falling_states(chunk, rank + s, h_s, A_s, step, inflow, decay, states)
            else:
                _keep_states(chunk, rank + s, h_s, A_s, step, inflow, decay, states)
            if n == 1:
                _differentiate_state(
                    chunk, rank, rank + 1, A_s, step, inflow, dy_c, decay, states, from_right_s, dA_s, dstep, dinflow,
                    dBC_c,
                )  # fmt: skip
            else:
                _differentiate_states(
                    chunk, rank + s, rank + n + s, A_s, step, inflow, dy_c, decay, states, from_right_s, dA_s, dstep,
                    dinflow, dBC_c, s, n,
                )  # fmt: skip
        for t in range(length):
            dBC[where[t], g] = dBC_c[t]
        _differentiate_inputs(length, u_c, dy_c, step, slope, D, dstep, dinflow, dbias_block, dD_block)
        buffers.store_rows(dstep, where, first, ddelta, False)
        buffers.store_rows(dinflow, where, first, du, adds)
    for j in range(min(CHANNELS, len(dA) - first)):
        dD[first + j] = dD_block[j]
        dbias[first + j] = dbias_block[j]
        for s in range(n):
            dA[first + j, s] = dA_block[s * CHANNELS + j]


@entry
def backward(
    start, stop, dy, chunk_states, u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, height, width,
    du, ddelta, dBC, dA, dD, dbias,
):  # fmt: skip
    """Run the tasks ``start`` to ``stop`` of the backward of :func:`.scan_forward_kernels.forward`.

    Args:
        start: first task.
        stop: the task to stop before.
        dy: gradient of the output, shaped like u.
        chunk_states: states before each chunk as the forward wrote them; the inputs of the forward follow.
        du: written, (parts, b, l, d).
        ddelta: written, (g, b, l, d).
        dBC: written for each block of channels, (blocks, b, l, g, 2n).
        dA: written for each sample, (b, g, d, n); dD and dbias likewise, (b, g, d).
    """
    groups, channels, _ = A.shape
    parts = len(du)
    for task in range(start, stop):
        b, part, k = buffers.coordinates(task, parts, channels)
        for g in range(part, groups, parts):
            direction = g if parts < groups else 0
            _backward_task(
                dy, chunk_states[g, b], u, delta, projected, delta_weight[g], A[g], D[g], delta_bias[g],
                delta_softplus, b, g, direction, height, width, k * CHANNELS, du[part, b], g > part, ddelta[g, b],
                dBC[k, b], dA[b, g], dD[b, g], dbias[b, g],
            )  # fmt: skip
