# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Norm and gate behind the scan of a VSS block in one pass over the map, by loops that Numba compiles.

A pixel is read once where torch's operators, one after another, would read and write it several times, and the gate may
be half of a larger map: it is not copied. Float32 on a CPU; what else there is, the caller leaves to torch. What the
backward needs of the forward is computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swinumamba_monai.ops.autograd import register_backward

from .threads import run_tasks


def _kernels():
    from . import norm_gate_kernels  # imports Numba, which need not be there

    return norm_gate_kernels


def _flat(x: Tensor) -> tuple[Tensor, int]:
    """The memory under a map (b, h, w, c) from its first to its last element, and the distance of its pixels."""
    _, height, width, channels = x.shape
    distance = x.stride(2)
    if distance < channels or x.stride() != (height * width * distance, width * distance, distance, 1):
        x, distance = x.contiguous(), channels
    return x.as_strided([x.numel() // channels * distance - distance + channels], [1]), distance


def _check(x: Tensor, *parameters: Tensor) -> None:
    """Raise ValueError on what the loops would misread."""
    if x.ndim != 4 or any(t.dtype != torch.float32 for t in (x, *parameters)):
        raise ValueError(f"expected a float32 map (b, h, w, c), got {x.dtype} {tuple(x.shape)}.")
    for t in parameters:
        if t.shape not in [(x.shape[-1],), x.shape]:
            raise ValueError(f"{tuple(t.shape)} does not fit a map of {tuple(x.shape)}.")


@torch.library.custom_op("swinumamba::norm_gate_jit", mutates_args=(), device_types="cpu")
def norm_gate_jit(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm times SiLU of a gate, (b, h, w, c), of float32; the gate may be some channels of a larger map.

    Raises:
        ValueError: not float32, or shapes that do not fit.
    """
    _check(y, gate, weight, bias)
    out = y.new_empty(y.shape)
    inputs = (y.contiguous(), *_flat(gate), weight.contiguous(), bias.contiguous())
    run_tasks(_kernels().norm_gate, y.shape[0] * y.shape[1], *inputs, eps, out)
    return out


@norm_gate_jit.register_fake
def _(y, gate, weight, bias, eps=1e-5):
    return y.new_empty(y.shape)


@torch.library.custom_op("swinumamba::norm_gate_jit_backward", mutates_args=(), device_types="cpu")
def _norm_gate_backward(
    dout: Tensor, y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, channels = y.shape[0] * y.shape[1], y.shape[-1]
    dy, dgate = y.new_empty(y.shape), y.new_empty(y.shape)
    dweight, dbias = y.new_empty((rows, channels)), y.new_empty((rows, channels))
    inputs = (dout.contiguous(), y.contiguous(), *_flat(gate), weight.contiguous(), bias.contiguous())
    run_tasks(_kernels().norm_gate_backward, rows, *inputs, eps, dy, dgate, dweight, dbias)
    return dy, dgate, dweight.sum(0), dbias.sum(0)


@_norm_gate_backward.register_fake
def _(dout, y, gate, weight, bias, eps):
    return tuple(t.new_empty(t.shape) for t in (y, gate, weight, bias))


register_backward(norm_gate_jit, _norm_gate_backward, num_options=1)
