# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan on the CPU by loops that Numba compiles (:mod:`.jit_cpu_kernels`), where that is installed.

One operator, ``swinumamba::scan_jit``, serves sequences and maps. It is given the order in which each group visits the
positions, so the four directions of a map are read where they lie, and groups may share one u, in which case their
outputs are summed. As in :mod:`.portable` only the state before each chunk is kept for the backward.

Threads are plain Python threads, started for each call: the loops run without the interpreter lock. Unlike a thread
pool of OpenMP's or Numba's own they survive a fork, and several threads of a program may scan at once.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from .reference import scan_orders, state_dtype

__all__ = ["cross_scan_2d_jit", "selective_scan_jit", "why_jit_is_unavailable"]

logger = logging.getLogger(__name__)


@cache
def _import_error() -> str | None:
    try:
        from numba import config
    except ImportError as error:  # not installed, or it does not fit this NumPy
        return f"numba cannot be imported ({error}; `pip install numba`)"
    return "NUMBA_DISABLE_JIT is set" if config.DISABLE_JIT else None


def why_jit_is_unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """The reason why the loops cannot run on such tensors, or None if they can; every floating dtype will do."""
    return _import_error() if device_type == "cpu" else f"numba compiles for the CPU, not for '{device_type}'"


@cache
def _kernels():
    from . import jit_cpu_kernels

    logger.info("the first scan in each dtype on this machine compiles its loops, which takes up to ten seconds")
    return jit_cpu_kernels


def _run(kernel, tasks: int, *arguments) -> None:
    """Spread the tasks of a kernel over as many threads as torch uses."""
    arguments = [a.detach().contiguous().numpy() if isinstance(a, Tensor) else a for a in arguments]
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(0, tasks, *arguments)
        return
    calls = min(tasks, 4 * threads)  # several for each thread, so that a core busy elsewhere delays the others little
    bounds = [tasks * i // calls for i in range(calls + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda start, stop: kernel(start, stop, *arguments), bounds, bounds[1:]))


def _check_shapes(u, delta, A, B, C, D, delta_bias, order) -> None:
    """Raise ValueError on shapes that do not fit each other: the loops would read beyond the arrays."""
    groups, batch, length, channels = delta.shape
    n = A.shape[-1]
    expected = {
        "u": (u, (1 if u.shape[0] == 1 else groups, batch, length, channels)),
        "A": (A, (groups, channels, n)),
        "B": (B, (groups, batch, length, n)),
        "C": (C, (groups, batch, length, n)),
        "D": (D, (groups, channels)),
        "delta_bias": (delta_bias, (groups, channels)),
        "order": (order, (groups, length)),
    }
    for name, (t, shape) in expected.items():
        if t.shape != shape:
            raise ValueError(f"{name} must be {shape} for delta {tuple(delta.shape)}, got {tuple(t.shape)}.")


def _count_blocks(channels: int) -> int:
    return -(-channels // _kernels().CHANNELS)


def _chunk_states_shape(delta: Tensor, A: Tensor) -> tuple[int, ...]:
    groups, batch, length, channels = delta.shape
    return groups, batch, -(-length // _kernels().POSITIONS), A.shape[-1], channels


@torch.library.custom_op(
    "swinumamba::scan_jit",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, Tensor order,"
    " bool delta_softplus) -> (Tensor, Tensor)",
)
def _forward(u, delta, A, B, C, D, delta_bias, order, delta_softplus):
    _check_shapes(u, delta, A, B, C, D, delta_bias, order)
    groups, batch, _, channels = delta.shape
    y = delta.new_empty(delta.shape)
    chunk_states = delta.new_empty(_chunk_states_shape(delta, A))
    inputs = (u, delta, A, B, C, D, delta_bias, order, delta_softplus)
    _run(_kernels().forward, groups * batch * _count_blocks(channels), *inputs, y, chunk_states)
    return y.sum_to_size(u.shape), chunk_states


@_forward.register_fake
def _(u, delta, A, B, C, D, delta_bias, order, delta_softplus):
    return u.new_empty(u.shape), delta.new_empty(_chunk_states_shape(delta, A))


@torch.library.custom_op(
    "swinumamba::scan_jit_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor dy, Tensor chunk_states, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D,"
    " Tensor delta_bias, Tensor order, bool delta_softplus)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dy, chunk_states, u, delta, A, B, C, D, delta_bias, order, delta_softplus):
    groups, batch, _, channels = delta.shape
    blocks = _count_blocks(channels)
    du, ddelta = (delta.new_empty(delta.shape) for _ in range(2))
    dA, dD, dbias = (t.new_empty((batch, *t.shape)) for t in (A, D, delta_bias))
    dB, dC = (t.new_empty((blocks, *t.shape)) for t in (B, C))
    inputs = (u, delta, A, B, C, D, delta_bias, order, delta_softplus)
    grads = (du, ddelta, dA, dB, dC, dD, dbias)
    _run(_kernels().backward, groups * batch * blocks, dy, chunk_states, *inputs, *grads)
    return du.sum_to_size(u.shape), ddelta, *(t.sum(0) for t in (dA, dB, dC, dD, dbias))


@_backward.register_fake
def _(dy, chunk_states, u, delta, A, B, C, D, delta_bias, order, delta_softplus):
    return tuple(t.new_empty(t.shape) for t in (u, delta, A, B, C, D, delta_bias))


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx, dy, _):
    return *_backward(dy, *ctx.saved_tensors, ctx.delta_softplus), None, None


_forward.register_autograd(_autograd, setup_context=_save_for_backward)


def _scan(u, delta, A, B, C, D, delta_bias, order, delta_softplus) -> Tensor:
    dtype = state_dtype(u, delta, A)
    inputs = (t.to(dtype) for t in (u, delta, A, B, C, D, delta_bias))
    return _forward(*inputs, order, delta_softplus)[0].to(u.dtype)


def selective_scan_jit(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, delta_softplus: bool
) -> Tensor:
    """Selective scan in the layout of :mod:`.portable`; returns (b, l, g, d) in the dtype of ``u``."""
    _, length, groups, _ = u.shape
    order = torch.arange(length).expand(groups, -1)
    u, delta, B, C = (t.permute(2, 0, 1, 3) for t in (u, delta, B, C))
    return _scan(u, delta, A, B, C, D, delta_bias, order, delta_softplus).permute(1, 2, 0, 3)


def cross_scan_2d_jit(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Four-direction scan of a map; the shapes are those of :func:`.dispatch.cross_scan_2d`."""
    _, height, width, _ = x.shape
    delta, B, C = (t.permute(3, 0, 1, 2, 4).flatten(2, 3) for t in (delta, B, C))
    y = _scan(x.flatten(1, 2).unsqueeze(0), delta, A, B, C, D, delta_bias, scan_orders(height, width), True)
    return y.squeeze(0).unflatten(1, (height, width))
