# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of maps with few channels on an NVIDIA GPU, brought to forms for which cuDNN has fast kernels.

Matrix units load :data:`.device.ALIGNED` channels at a time: with the 3 of a colour image a 1×1 convolution spent 5 ms
of a step in one product. And what cuDNN has for the weights' gradient of 48 channels reaches a fifth of the speed that
it has with 96, which two neighbouring pixels together have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinumamba_monai.ops.autocast import to_autocast_dtype

from .device import ALIGNED

NARROW = 64  # maps of fewer channels have their pixels taken two by two
BY_PAIRS = (torch.bfloat16, torch.float16)  # for which that is up to three times as fast; in TF32 it is slower


def conv2d_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """``torch.nn.functional.conv2d`` of the same arguments.

    Args:
        x: map (b, c, h, w).
        weight: (o, c, rows, columns).
        bias: (o), or None.
        stride: steps of the kernel along both axes.
        padding: numbers of zeros on each side of the map, along both axes.

    Returns:
        map (b, o, ...), its channels last in memory.
    """
    if torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias, stride, padding)
    x, weight, bias = (None if t is None else to_autocast_dtype(t) for t in (x, weight, bias))
    outputs, inputs = weight.shape[:2]
    x = x.contiguous(memory_format=torch.channels_last)
    if inputs % ALIGNED:
        x, weight = (F.pad(t, (0, 0, 0, 0, 0, -inputs % ALIGNED)) for t in (x, weight))
    if outputs % ALIGNED:
        more = -outputs % ALIGNED
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)), None if bias is None else F.pad(bias, (0, more))
    is_same = weight.shape[2:] == (3, 3) and (stride, padding) == ((1, 1), (1, 1)) and bias is None
    if is_same and x.dtype in BY_PAIRS and x.shape[3] % 2 == 0 and min(inputs, outputs) < NARROW:
        y = _NarrowConvolution.apply(x, weight)
    else:
        y = F.conv2d(x, weight, bias, stride, padding)
    return y[:, :outputs] if outputs % ALIGNED else y


class _NarrowConvolution(torch.autograd.Function):
    """3×3 kernels with a zero on each side; the weights' gradient is found from pairs of pixels."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = _gradients(dy, x, weight, of_x=True)[0] if ctx.needs_input_grad[0] else None
        return dx, weight_gradient_by_pairs(x, dy) if ctx.needs_input_grad[1] else None


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, of_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x or of the weights. torch.nn.grad would hide from cuDNN that the channels lie last."""
    dy = dy.contiguous(memory_format=torch.channels_last)
    ones, wanted = [1, 1], [of_x, not of_x, False]
    return torch.ops.aten.convolution_backward(dy, x, weight, None, ones, ones, ones, False, [0, 0], 1, wanted)


def weight_gradient_by_pairs(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient of the weights of a 3×3 convolution with a zero on each side.

    Two neighbours of a row are one pixel with twice the channels, which is a view of maps whose channels lie last; of
    the weights of a convolution between such, those that join pixels at most one apart are those of the pixels.

    Args:
        x: input (b, c, h, w), w even.
        dy: gradient of the output (b, o, h, w).

    Returns:
        gradient (o, c, 3, 3).
    """
    pairs, dpairs = _as_pairs(x), _as_pairs(dy)
    weight = x.new_empty(dpairs.shape[1], 3, 3, pairs.shape[1]).permute(0, 3, 1, 2)  # of the pairs, for its shape alone
    of_pairs = _gradients(dpairs, pairs, weight, of_x=False)[1]
    # by the pixel of the output's pair and of the input's
    parts = of_pairs.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (2, -1)).unflatten(2, (2, -1))
    columns = [0.0, 0.0, 0.0]
    for output in range(2):
        for input in range(2):
            for pair in range(3):
                column = 2 * (pair - 1) + input - output + 1
                if 0 <= column < 3:
                    columns[column] = columns[column] + parts[output, :, input, ..., pair]
    return torch.stack(columns, dim=-1).to(x.dtype)


def _as_pairs(x: Tensor) -> Tensor:
    """Map (b, c, h, w) to (b, 2 * c, h, w / 2), a view where the channels lie last in memory."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], x.shape[3] // 2, -1).permute(0, 3, 1, 2)
