# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The depthwise convolution of a VSS block and SiLU behind it in one pass over the map, by loops that Numba compiles.

torch's convolution first copies a map that is half of a larger one, and SiLU reads and writes the result once more.
Float32 on a CPU, and without gradients: what else there is, the caller leaves to torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .norm_gate import flatten_map
from .threads import run_tasks


@torch.library.custom_op(
    "swinumamba::conv_silu_jit",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)
def conv_silu_jit(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of a depthwise convolution of 3×3 pixels with zeros around the map, (b, h, w, c), of float32.

    Args:
        x: map, (b, h, w, c); it may be some channels of a larger one.
        weight: kernels, (c, 1, 3, 3).
        bias: offsets, (c,), or None.

    Raises:
        ValueError: not float32, or shapes that do not fit.
    """
    channels = x.shape[-1]
    bias = weight.new_zeros(channels) if bias is None else bias
    if x.ndim != 4 or any(t.dtype != torch.float32 for t in (x, weight, bias)):
        raise ValueError(f"expected a float32 map (b, h, w, c), got {x.dtype} {tuple(x.shape)}.")
    if weight.shape != (channels, 1, 3, 3) or bias.shape != (channels,):
        shapes = f"{tuple(weight.shape)} and biases of {tuple(bias.shape)}"
        raise ValueError(f"kernels of {shapes} do not fit a map of {tuple(x.shape)}.")
    from .conv_silu_kernels import conv_silu  # imports Numba, which need not be there

    out = x.new_empty(x.shape)
    batch, height, width, _ = x.shape
    inputs = (*flatten_map(x), weight.flatten(1).t().flatten(), bias.contiguous())
    run_tasks(conv_silu, batch * height, *inputs, height, width, out.flatten())
    return out


@conv_silu_jit.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape)
