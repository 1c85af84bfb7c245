# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loops behind :mod:`.jit_cpu`, compiled by Numba. Importing this module imports Numba.

Symbols as in :mod:`.reference`, groups first and channels last: u (g or 1, b, l, d); delta (g, b, l, d); A (g, d, n);
B, C (g, b, l, n); D, delta_bias (g, d); and ``order`` (g, l), the positions in the order in which a group visits them.
Every array is C-contiguous.

A task is one group, one sample and one block of channels, and writes what no other task writes; the caller adds up the
results of tasks that share an input. So the tasks run in any order, on any number of threads, to the same bits.

A task walks its sequence in chunks of POSITIONS visits. It gathers a chunk into buffers of (POSITIONS, CHANNELS), which
stay in the core's first cache, and goes through them once for each of the n states. The innermost loops run over the
CHANNELS lanes of a buffer and become vector instructions. They are kept short because LLVM, before version 16, makes no
vectors of a loop in which more than eight pairs of arrays might overlap. Lanes beyond the last channel hold zeros, and
so do the states and gradients in them.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numba import njit, types
from numba.extending import overload

__all__ = ["CHANNELS", "POSITIONS", "backward", "forward"]

logger = logging.getLogger(__name__)

CHANNELS = 64  # of a block: four vectors of AVX-512, whose latencies overlap, in float32
POSITIONS = 32  # of a chunk: 8 KiB a buffer in float32

# Multiply-adds may be fused, and a division by zero is not an exception but an infinity. Only where lanes are added up
# may sums be reordered: it would undo the rounding trick of the exponential, which keeps its own rules when inlined.
_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy"}
_inner = njit(no_cpython_wrapper=True, **_OPTIONS)
_inner_summing = njit(no_cpython_wrapper=True, **_OPTIONS | {"fastmath": {"contract", "reassoc", "nsz"}})


def _entry(function):
    """Compile what Python calls: without the interpreter lock, and kept on disk for the next process."""
    try:
        return njit(function, nogil=True, cache=True, **_OPTIONS)
    except RuntimeError:  # neither NUMBA_CACHE_DIR, nor this directory, nor the user's cache directory can be written
        logger.warning(f"every process compiles the scan's {function.__name__} anew: set NUMBA_CACHE_DIR to keep it")
        return njit(function, nogil=True, **_OPTIONS)


# LLVM has no exponential for vectors, so here is one for float32: e^x = 2^k e^r, where k is the integer nearest to
# x / ln 2. Adding 1.5 * 2^23 rounds a number to an integer and leaves that in the lowest bits of the sum, from where it
# is moved into the exponent of 2^k.
_LOG2E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(0.693359375)  # nine bits, so that k times it is exact
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_ROUNDER = np.float32(1.5 * 2**23)
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
_LOWEST, _HIGHEST = np.float32(-88), np.float32(88.7)  # where 2^k becomes 0 and infinity
_E6, _E5, _E4, _E3, _E2, _E1, _E0 = (
    np.polynomial.Chebyshev.interpolate(np.exp, 6, [-math.log(2) / 2, math.log(2) / 2])
    .convert(kind=np.polynomial.Polynomial)
    .coef[::-1]
    .astype(np.float32)
)


@_inner
def _exp_float32(x):
    x = _LOWEST if x < _LOWEST else x  # this way round, NaN stays NaN
    x = _HIGHEST if x > _HIGHEST else x
    rounded = np.float32(x * _LOG2E + _ROUNDER)
    k = rounded - _ROUNDER
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    power = np.int32((rounded.view(np.int32) + _EXPONENT_BIAS) << _MANTISSA_BITS).view(np.float32)
    return power * ((((((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0)


# log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3: eight terms of the series 2 (s + s^3 / 3 + s^5 / 5 + ...)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = (np.float32(2 / i) for i in range(1, 17, 2))
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@_inner
def _softplus_float32(x):
    e = _exp_float32(-abs(x))
    s = e / (_TWO + e)
    q = s * s
    log1p = s * (((((((_L7 * q + _L6) * q + _L5) * q + _L4) * q + _L3) * q + _L2) * q + _L1) * q + _L0)
    return (x if x > _ZERO else _ZERO) + log1p, (_ONE if x > _ZERO else e) / (_ONE + e)


@_inner
def _softplus_float64(x):
    e = math.exp(-abs(x))
    return (x if x > 0.0 else 0.0) + math.log1p(e), (1.0 if x > 0.0 else e) / (1.0 + e)


def _exp(x):
    """e^x in the precision of ``x``; in float32 to 1e-7, with 0 below -87.7 and infinity above 88.3."""


def _softplus(x):
    """log(1 + e^x) and its derivative, the logistic function, in the precision of ``x``."""


@overload(_exp, jit_options=_OPTIONS)
def _exp_of(x):
    return (lambda x: _exp_float32(x)) if x == types.float32 else (lambda x: math.exp(x))


@overload(_softplus, jit_options=_OPTIONS)
def _softplus_of(x):
    return (lambda x: _softplus_float32(x)) if x == types.float32 else (lambda x: _softplus_float64(x))


@_inner
def _load_rows(source, where, first, buffer):
    """The rows ``where`` of (l, d), channels ``first`` onwards."""
    for t in range(len(where)):
        row = source[where[t], first : first + CHANNELS]
        for j in range(len(row)):
            buffer[t, j] = row[j]


@_inner
def _store_rows(buffer, where, first, target):
    for t in range(len(where)):
        row = target[where[t], first : first + CHANNELS]
        for j in range(len(row)):
            row[j] = buffer[t, j]


@_inner
def _load_columns(source, where, buffer):
    """The rows ``where`` of (l, n), transposed."""
    for t in range(len(where)):
        for s in range(len(buffer)):
            buffer[s, t] = source[where[t], s]


@_inner
def _store_columns(buffer, where, target):
    for t in range(len(where)):
        for s in range(len(buffer)):
            target[where[t], s] = buffer[s, t]


@_inner
def _load_parameters(A, D, delta_bias, first):
    """The block's share of (d, n), (d,) and (d,), as (n, CHANNELS), (CHANNELS,) and (CHANNELS,)."""
    A_block = np.zeros((A.shape[1], CHANNELS), A.dtype)
    D_block = np.zeros(CHANNELS, A.dtype)
    bias_block = np.zeros(CHANNELS, A.dtype)
    for j in range(min(CHANNELS, len(A) - first)):
        D_block[j] = D[first + j]
        bias_block[j] = delta_bias[first + j]
        for s in range(len(A_block)):
            A_block[s, j] = A[first + j, s]
    return A_block, D_block, bias_block


@_inner
def _store_parameters(A_block, D_block, bias_block, first, A, D, delta_bias):
    for j in range(min(CHANNELS, len(A) - first)):
        D[first + j] = D_block[j]
        delta_bias[first + j] = bias_block[j]
        for s in range(len(A_block)):
            A[first + j, s] = A_block[s, j]


@_inner
def _discretise(step, bias, delta_softplus, slope):
    """Turn delta into Δ in place, and put dΔ/ddelta into ``slope``."""
    for t in range(POSITIONS):
        if delta_softplus:
            for j in range(CHANNELS):
                step[t, j], slope[t, j] = _softplus(step[t, j] + bias[j])
        else:
            for j in range(CHANNELS):
                step[t, j] += bias[j]
                slope[t, j] = 1


@_inner
def _multiply(a, b, product):
    for t in range(POSITIONS):
        for j in range(CHANNELS):
            product[t, j] = a[t, j] * b[t, j]


@_inner
def _scan_state(h, A, step, inflow, B, C, y):
    """Take one of the n states through a chunk and add its output to ``y``; ``inflow`` is Δu."""
    for t in range(len(B)):
        b, c = B[t], C[t]
        for j in range(CHANNELS):
            h[j] = _exp(step[t, j] * A[j]) * h[j] + inflow[t, j] * b
            y[t, j] += c * h[j]


@_inner
def _forward_task(u, delta, A, B, C, D, delta_bias, order, delta_softplus, first, y, chunk_states):
    A, D, delta_bias = _load_parameters(A, D, delta_bias, first)
    dtype, n = A.dtype, len(A)
    every_state = np.arange(n)
    h = np.zeros((n, CHANNELS), dtype)
    B_c = np.zeros((n, POSITIONS), dtype)
    C_c = np.zeros((n, POSITIONS), dtype)
    u_c = np.zeros((POSITIONS, CHANNELS), dtype)
    step = np.zeros((POSITIONS, CHANNELS), dtype)
    slope = np.zeros((POSITIONS, CHANNELS), dtype)
    inflow = np.zeros((POSITIONS, CHANNELS), dtype)
    y_c = np.zeros((POSITIONS, CHANNELS), dtype)
    for i in range(len(chunk_states)):
        where = order[i * POSITIONS : (i + 1) * POSITIONS]
        length = len(where)
        _store_rows(h, every_state, first, chunk_states[i])
        _load_rows(u, where, first, u_c)
        _load_rows(delta, where, first, step)
        _load_columns(B, where, B_c)
        _load_columns(C, where, C_c)
        _discretise(step, delta_bias, delta_softplus, slope)
        _multiply(step, u_c, inflow)
        for t in range(length):
            for j in range(CHANNELS):
                y_c[t, j] = D[j] * u_c[t, j]
        for s in range(n):
            _scan_state(h[s], A[s], step, inflow, B_c[s, :length], C_c[s, :length], y_c)
        _store_rows(y_c, where, first, y)


@_inner_summing
def _differentiate_state(h, A, step, inflow, B, C, dy, from_right, decay, states, dA, dstep, dinflow, dB, dC):
    """Take one state through a chunk from its start ``h``, and then its gradient back.

    ``from_right`` is decay_{t+1} * dL/dh_{t+1}, what position t inherits. Gradients that other states or chunks
    contribute to are added to; dB and dC, this block's share of them, are overwritten.
    """
    for t in range(len(B)):
        b = B[t]
        for j in range(CHANNELS):
            decay[t, j] = _exp(step[t, j] * A[j])
        for j in range(CHANNELS):
            states[t, j] = h[j]
            h[j] = decay[t, j] * h[j] + inflow[t, j] * b
    for j in range(CHANNELS):
        states[len(B), j] = h[j]
    for back in range(1, len(B) + 1):
        t = len(B) - back
        b, c = B[t], C[t]
        dB_t = dC_t = A.dtype.type(0)
        for j in range(CHANNELS):
            dC_t += dy[t, j] * states[t + 1, j]
        for j in range(CHANNELS):
            dh = dy[t, j] * c + from_right[j]
            from_right[j] = decay[t, j] * dh
            dB_t += dh * inflow[t, j]
            dinflow[t, j] += dh * b
        dB[t] = dB_t
        dC[t] = dC_t
        for j in range(CHANNELS):
            dstep[t, j] += from_right[j] * states[t, j] * A[j]
        for j in range(CHANNELS):
            dA[j] += from_right[j] * states[t, j] * step[t, j]


@_inner
def _backward_task(
    dy, chunk_states, u, delta, A, B, C, D, delta_bias, order, delta_softplus, first, du, ddelta, dA, dB, dC, dD, dbias
):
    A, D, delta_bias = _load_parameters(A, D, delta_bias, first)
    dtype, n = A.dtype, len(A)
    every_state = np.arange(n)
    h = np.zeros((n, CHANNELS), dtype)
    from_right = np.zeros((n, CHANNELS), dtype)
    dA_block = np.zeros((n, CHANNELS), dtype)
    dD_block = np.zeros(CHANNELS, dtype)
    dbias_block = np.zeros(CHANNELS, dtype)
    B_c = np.zeros((n, POSITIONS), dtype)
    C_c = np.zeros((n, POSITIONS), dtype)
    dB_c = np.zeros((n, POSITIONS), dtype)
    dC_c = np.zeros((n, POSITIONS), dtype)
    u_c = np.zeros((POSITIONS, CHANNELS), dtype)
    dy_c = np.zeros((POSITIONS, CHANNELS), dtype)
    step = np.zeros((POSITIONS, CHANNELS), dtype)
    slope = np.zeros((POSITIONS, CHANNELS), dtype)
    inflow = np.zeros((POSITIONS, CHANNELS), dtype)
    decay = np.zeros((POSITIONS, CHANNELS), dtype)
    states = np.zeros((POSITIONS + 1, CHANNELS), dtype)
    dstep = np.zeros((POSITIONS, CHANNELS), dtype)
    dinflow = np.zeros((POSITIONS, CHANNELS), dtype)
    for i in range(len(chunk_states) - 1, -1, -1):
        where = order[i * POSITIONS : (i + 1) * POSITIONS]
        length = len(where)
        _load_rows(chunk_states[i], every_state, first, h)
        _load_rows(u, where, first, u_c)
        _load_rows(dy, where, first, dy_c)
        _load_rows(delta, where, first, step)
        _load_columns(B, where, B_c)
        _load_columns(C, where, C_c)
        _discretise(step, delta_bias, delta_softplus, slope)
        _multiply(step, u_c, inflow)
        dstep[:] = 0
        dinflow[:] = 0
        for s in range(n):
            _differentiate_state(
                h[s], A[s], step, inflow, B_c[s, :length], C_c[s, :length], dy_c, from_right[s], decay, states,
                dA_block[s], dstep, dinflow, dB_c[s], dC_c[s],
            )  # fmt: skip
        _store_columns(dB_c, where, dB)
        _store_columns(dC_c, where, dC)
        for t in range(length):
            for j in range(CHANNELS):
                dstep[t, j] = slope[t, j] * (dstep[t, j] + dinflow[t, j] * u_c[t, j])
                dbias_block[j] += dstep[t, j]
            for j in range(CHANNELS):
                dD_block[j] += dy_c[t, j] * u_c[t, j]
            for j in range(CHANNELS):
                dinflow[t, j] = dinflow[t, j] * step[t, j] + D[j] * dy_c[t, j]
        _store_rows(dstep, where, first, ddelta)
        _store_rows(dinflow, where, first, du)
    _store_parameters(dA_block, dD_block, dbias_block, first, dA, dD, dbias)


@_inner
def _coordinates(task, batch, channels):
    """Group, sample and channel block of a task."""
    blocks = -(-channels // CHANNELS)
    return task // (batch * blocks), task // blocks % batch, task % blocks


@_entry
def forward(start, stop, u, delta, A, B, C, D, delta_bias, order, delta_softplus, y, chunk_states):
    """Run the tasks ``start`` to ``stop``.

    Args:
        start: first task; there are g * b * (blocks of d).
        stop: the task to stop before.
        u: the inputs, from here to delta_softplus; a u of one group is shared by all.
        y: written, (g, b, l, d).
        chunk_states: written with the states before each chunk, (g, b, chunks, n, d).
    """
    _, batch, _, channels = delta.shape
    for task in range(start, stop):
        g, b, k = _coordinates(task, batch, channels)
        _forward_task(
            u[g % len(u), b], delta[g, b], A[g], B[g, b], C[g, b], D[g], delta_bias[g], order[g], delta_softplus,
            k * CHANNELS, y[g, b], chunk_states[g, b],
        )  # fmt: skip


@_entry
def backward(
    start, stop, dy, chunk_states, u, delta, A, B, C, D, delta_bias, order, delta_softplus,
    du, ddelta, dA, dB, dC, dD, dbias,
):  # fmt: skip
    """Run the tasks ``start`` to ``stop`` of the backward of :func:`forward`.

    Args:
        start: first task.
        stop: the task to stop before.
        dy: gradient of the output, shaped like u.
        chunk_states: what the forward wrote, followed by its inputs.
        du: written for each group, (g, b, l, d).
        ddelta: written, (g, b, l, d).
        dA: written for each sample, (b, g, d, n); dD and dbias likewise, (b, g, d).
        dB: written for each block of channels, (blocks, g, b, l, n); dC likewise.
    """
    _, batch, _, channels = delta.shape
    for task in range(start, stop):
        g, b, k = _coordinates(task, batch, channels)
        _backward_task(
            dy[g % len(u), b], chunk_states[g, b], u[g % len(u), b], delta[g, b], A[g], B[g, b], C[g, b], D[g],
            delta_bias[g], order[g], delta_softplus, k * CHANNELS,
            du[g, b], ddelta[g, b], dA[b, g], dB[k, g, b], dC[k, g, b], dD[b, g], dbias[b, g],
        )  # fmt: skip
