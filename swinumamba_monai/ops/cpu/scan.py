# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan on the CPU by loops that Numba compiles, where that is installed: :mod:`.scan_forward_kernels`
and :mod:`.scan_backward_kernels`.

One operator, ``swinumamba::scan_jit``, serves sequences and maps. A map is (b, h, w, g, ...) with its four directions
as groups, which are read where they lie; a sequence is a map of one row. Where the groups share one u, they are the
directions of a map, and their outputs are summed. As in
:mod:`swinumamba_monai.ops.portable` only the state before each chunk is kept for the backward, and not even that where
there will be none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.ops.autograd import register_backward
from swinumamba_monai.ops.reference import state_dtype

from .scan_layout import chunk_states_shape, count_blocks, count_missing, count_parts
from .threads import run_tasks


@cache
def _import_error() -> str | None:
    try:
        from numba import config
    except ImportError as error:  # not installed, or it does not fit this NumPy
        return f"numba cannot be imported ({error}; `pip install numba`)"
    return "NUMBA_DISABLE_JIT is set" if config.DISABLE_JIT else None


def why_jit_is_unavailable(device_type: str, dtype: torch.dtype, d_state: int) -> str | None:
    """The reason why the loops cannot run on such tensors, or None if they can; any dtype and d_state will do.

    Args:
        device_type: type of the tensors' device, such as "cpu".
        dtype: dtype of the tensors.
        d_state: number of states of each channel.
    """
    return _import_error() if device_type == "cpu" else f"numba compiles for the CPU, not for '{device_type}'"


@cache
def _kernels() -> tuple[Callable, Callable]:
    """The loops of the forward and of the backward, imported when they are wanted: Numba need not be there."""
    from .scan_backward_kernels import backward
    from .scan_forward_kernels import forward

    return forward, backward


def _check_shapes(u, delta, projected, delta_weight, A, D, delta_bias) -> None:
    """Raise ValueError on shapes that do not fit each other: the loops would read beyond the arrays."""
    batch, height, width, u_groups, channels = u.shape
    groups, _, n = A.shape
    rank = delta_weight.shape[-1]
    positions = (batch, height, width, groups)
    expected = {
        "u": (u, (batch, height, width, 1 if u_groups == 1 else groups, channels)),
        "delta": (delta, (*positions, 0 if rank else channels)),
        "B and C": (projected, (*positions, rank + 2 * n)),
        "delta_weight": (delta_weight, (groups, channels, rank)),
        "A": (A, (groups, channels, n)),
        "D": (D, (groups, channels)),
        "delta_bias": (delta_bias, (groups, channels)),
    }
    for name, (t, shape) in expected.items():
        if t.shape != shape:
            raise ValueError(f"{name} must be {shape} for u {tuple(u.shape)}, got {tuple(t.shape)}.")


def _merge(parts: Tensor, u: Tensor) -> Tensor:
    """(parts, b, l, d) to the shape of ``u``."""
    merged = parts[0] + parts[1] if u.shape[3] < len(parts) else parts.permute(1, 2, 0, 3)
    return merged.reshape(u.shape)


@torch.library.custom_op(
    "swinumamba::scan_jit",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor u, Tensor delta, Tensor projected, Tensor delta_weight, Tensor A, Tensor D, Tensor delta_bias,"
    " bool delta_softplus, bool keep_states) -> (Tensor, Tensor)",
)
def _forward(u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, keep_states):
    inputs = [t.contiguous() for t in (u, delta, projected, delta_weight, A, D, delta_bias)]
    _check_shapes(*inputs)
    batch, height, width, _, channels = u.shape
    parts = count_parts(u, A)
    y = u.new_empty((parts, batch, height * width, channels))
    chunk_states = u.new_empty(chunk_states_shape(u, A, keep_states))
    flat = [t.flatten(1, 2) for t in inputs[:3]]
    forward, _ = _kernels()
    run_tasks(
        forward, batch * parts * count_blocks(channels), *flat, *inputs[3:], delta_softplus, height, width,
        y, chunk_states,
    )  # fmt: skip
    return _merge(y, u), chunk_states


@_forward.register_fake
def _(u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus, keep_states):
    return u.new_empty(u.shape), u.new_empty(chunk_states_shape(u, A, keep_states))


@torch.library.custom_op(
    "swinumamba::scan_jit_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor dy, Tensor chunk_states, Tensor u, Tensor delta, Tensor projected, Tensor delta_weight, Tensor A,"
    " Tensor D, Tensor delta_bias, bool delta_softplus)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dy, chunk_states, u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus):
    dy, *inputs = (t.contiguous() for t in (dy, u, delta, projected, delta_weight, A, D, delta_bias))
    batch, height, width, _, channels = u.shape
    groups, _, n = A.shape
    rank, parts, blocks = delta_weight.shape[-1], count_parts(u, A), count_blocks(channels)
    du = u.new_empty((parts, batch, height * width, channels))
    ddelta = u.new_empty((groups, batch, height * width, channels))
    dBC = u.new_empty((blocks, batch, height * width, groups, 2 * n))
    dA, dD, dbias = (t.new_empty((batch, *t.shape)) for t in (A, D, delta_bias))
    flat = [t.flatten(1, 2) for t in inputs[:3]]
    _, backward = _kernels()
    run_tasks(
        backward, batch * parts * blocks, dy.flatten(1, 2), chunk_states, *flat, *inputs[3:],
        delta_softplus, height, width, du, ddelta, dBC, dA, dD, dbias,
    )  # fmt: skip
    dprojected = projected.new_empty(projected.shape)
    torch.sum(dBC, 0, out=dprojected.flatten(1, 2)[..., rank:])
    ddelta = ddelta.flatten(1, 2)
    low_rank = projected[..., :rank].flatten(0, 2).transpose(0, 1)  # (g, b * l, r)
    dprojected[..., :rank] = torch.bmm(ddelta, delta_weight).transpose(0, 1).unflatten(0, (batch, height, width))
    ddelta_weight = torch.bmm(ddelta.transpose(1, 2), low_rank)
    ddelta = ddelta.transpose(0, 1).reshape(delta.shape) if rank == 0 else torch.empty_like(delta)
    return _merge(du, u), ddelta, dprojected, ddelta_weight, *(t.sum(0) for t in (dA, dD, dbias))


@_backward.register_fake
def _(dy, chunk_states, u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus):
    return tuple(t.new_empty(t.shape) for t in (u, delta, projected, delta_weight, A, D, delta_bias))


register_backward(_forward, lambda *inputs: _backward(*inputs[:-1]), num_options=2)  # all but keep_states


def _scan(u, delta, projected, delta_weight, A, D, delta_bias, delta_softplus) -> Tensor:
    dtype = state_dtype(u, delta, A)
    inputs = [t.to(dtype) for t in (u, delta, projected, delta_weight, A, D, delta_bias)]
    keep_states = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    return _forward(*inputs, delta_softplus, keep_states)[0].to(u.dtype)


def _pad_states(A: Tensor, *matrices: Tensor) -> list[Tensor]:
    """Add states of zeros, of which the output knows nothing, up to what the loops take at once: 1 or a multiple."""
    missing = count_missing(A.shape[-1])
    return [F.pad(t, (0, missing)) if missing else t for t in (A, *matrices)]


def selective_scan_jit(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    """Selective scan in the layout of :mod:`swinumamba_monai.ops.portable`: (b, l, g, d) in and out."""
    A, B, C = _pad_states(A, B, C)
    BC = torch.cat([B, C], dim=-1).unsqueeze(1)
    u, delta = (t.unsqueeze(1) for t in (u, delta))
    return _scan(u, delta, BC, A.new_empty((*A.shape[:2], 0)), A, D, delta_bias, delta_softplus).squeeze(1)


def cross_scan_2d_jit(x, delta, A, B, C, D, delta_bias) -> Tensor:
    """Four-direction scan of a map; the shapes are those of :func:`swinumamba_monai.ops.scan.cross_scan_2d`."""
    A, B, C = _pad_states(A, B, C)
    BC = torch.cat([B, C], dim=-1)
    return _scan(x.unsqueeze(3), delta, BC, A.new_empty((*A.shape[:2], 0)), A, D, delta_bias, True).squeeze(3)


def projected_scan_2d_jit(x, projected, delta_weight, A, D, delta_bias) -> Tensor:
    """:func:`swinumamba_monai.ops.scan.projected_scan_2d`, which makes delta from its low rank on the way."""
    rank, n = delta_weight.shape[-1], A.shape[-1]
    if count_missing(n):
        low_rank, B, C = projected.split([rank, n, n], dim=-1)
        A, B, C = _pad_states(A, B, C)
        projected = torch.cat([low_rank, B, C], dim=-1)
    delta = x.new_empty((*projected.shape[:4], 0))
    return _scan(x.unsqueeze(3), delta, projected, delta_weight, A, D, delta_bias, True).squeeze(3)
