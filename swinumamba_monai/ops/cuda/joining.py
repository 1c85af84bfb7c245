# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Joining the channels of two maps on an NVIDIA GPU, and taking them apart in the backward.

autograd hands each map its half of the joint gradient as a view, and whoever takes it next copies it number by number:
half a millisecond a map, at 1/8 of what the memory can do. Here the halves are copied 16 bytes at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDEST = torch.complex128  # the dtype with most bytes, 16


def join_channels(x: Tensor, y: Tensor) -> Tensor:
    """``torch.cat((x, y), dim=1)``.

    Args:
        x: map (b, c, h, w).
        y: map (b, d, h, w).

    Returns:
        map (b, c + d, h, w).
    """
    if torch.compiler.is_compiling() or x.dtype != y.dtype:
        return torch.cat((x, y), dim=1)
    return _Join.apply(x, y)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        ctx.sizes = (x.shape[1], y.shape[1])
        return torch.cat((x, y), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor) -> tuple[Tensor, ...]:
        rows = dout.permute(0, 2, 3, 1).contiguous()
        return tuple(dense(part).permute(0, 3, 1, 2) for part in rows.split(ctx.sizes, dim=-1))


def dense(x: Tensor) -> Tensor:
    """``x.contiguous()``, by as few and wide numbers as the bytes of its last axis make."""
    numbers = WIDEST.itemsize // x.element_size()
    places = (x.shape[-1], x.storage_offset(), *x.stride()[:-1])
    if x.stride(-1) != 1 or any(place % numbers for place in places):
        return x.contiguous()
    return x.view(WIDEST).contiguous().view(x.dtype)
