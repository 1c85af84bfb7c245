# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of maps with few channels on an NVIDIA GPU, brought to forms for which cuDNN has fast kernels.

Matrix units load :data:`.device.ALIGNED` channels at a time: with the 3 of a colour image a 1×1 convolution spent 5 ms
of a step in one product. For 48 channels cuDNN has slower kernels than for 96, which two neighbouring pixels together
have: of 13 maps of 384×640 a convolution from 48 to 48 takes 0.62 ms, of pairs of pixels 0.47, although half of their
weights are zero; its gradients 0.64 and 1.39 ms, of pairs 0.45 and 0.62. From 96 to 48 it takes 1.31 ms and from 48 to
96 1.67, by the kernels for the gradient of the other, which are the same sums, 0.71 and 0.75 (H200, bfloat16).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinumamba_monai.ops.autocast import to_autocast_dtype

from .device import ALIGNED

NARROW = 64  # a map of fewer channels is narrow
BY_PAIRS = (torch.bfloat16, torch.float16)  # dtypes in which narrow maps are faster by pairs; in TF32 they are slower


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
    """3×3 kernels with a zero on each side, of maps of which at least one is narrow."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if max(weight.shape[:2]) < NARROW:
            return _from_pairs(F.conv2d(_as_pairs(x), weight_of_pairs(weight), padding=1))
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, turned, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy, dx = dy.contiguous(memory_format=torch.channels_last), None
        if ctx.needs_input_grad[0] and max(weight.shape[:2]) < NARROW:
            dx = _from_pairs(_gradients(_as_pairs(dy), _as_pairs(x), weight_of_pairs(weight), of_x=True)[0])
        elif ctx.needs_input_grad[0]:
            dx = _gradients(dy, x, weight, of_x=True)[0]
        return dx, weight_gradient_by_pairs(x, dy) if ctx.needs_input_grad[1] else None


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, of_x: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of x or of the weights. torch.nn.grad would hide from cuDNN that the channels lie last."""
    ones, wanted = [1, 1], [of_x, not of_x, False]
    return torch.ops.aten.convolution_backward(dy, x, weight, None, ones, ones, ones, False, [0, 0], 1, wanted)


# Two neighbours of a row are one pixel with twice the channels. An output's pair depends on the three pairs around it,
# six pixels, of which its first pixel sees the second to the fourth, and its second the third to the fifth.


def weight_of_pairs(weight: Tensor) -> Tensor:
    """Weights (2 * o, 2 * c, 3, 3) of a convolution of pairs of pixels, of (o, c, 3, 3) of one of the pixels."""
    of_outputs = torch.stack([F.pad(weight, (1, 2)), F.pad(weight, (2, 1))])
    pairs = of_outputs.unflatten(-1, (3, 2)).permute(0, 1, 5, 2, 3, 4).flatten(0, 1).flatten(1, 2)
    return pairs.contiguous(memory_format=torch.channels_last)


def weight_gradient_by_pairs(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient of the weights of a 3×3 convolution with a zero on each side, from that of one of pairs of pixels.

    Args:
        x: input (b, c, h, w), w even.
        dy: gradient of the output (b, o, h, w).

    Returns:
        gradient (o, c, 3, 3).
    """
    pairs, dpairs = _as_pairs(x), _as_pairs(dy)
    weight = x.new_empty(dpairs.shape[1], 3, 3, pairs.shape[1]).permute(0, 3, 1, 2)  # of the pairs, for its shape alone
    of_pairs = _gradients(dpairs, pairs, weight, of_x=False)[1]
    of_pairs = of_pairs.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (2, -1)).unflatten(2, (2, -1))
    first, second = of_pairs.permute(0, 1, 3, 4, 5, 2).flatten(-2)  # (o, c, 3, six pixels)
    return (first[..., 1:4] + second[..., 2:5]).to(x.dtype)


def _as_pairs(x: Tensor) -> Tensor:
    """Map (b, c, h, w) to (b, 2 * c, h, w / 2), a view where the channels lie last in memory."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], x.shape[3] // 2, -1).permute(0, 3, 1, 2)


def _from_pairs(x: Tensor) -> Tensor:
    """Map (b, 2 * c, h, w / 2) to (b, c, h, w), a view where the channels lie last in memory."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], x.shape[3] * 2, -1).permute(0, 3, 1, 2)
