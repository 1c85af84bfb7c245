# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""nnFormer's transformer block: self-attention in windows that every other block shifts.

Source, and what is peculiar to it: :mod:`.nnformer`.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers import DropPath
from monai.networks.nets.swin_unetr import compute_mask, window_partition, window_reverse
from torch import Tensor


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias for each relative position.

    Args:
        cross: whether queries come from elsewhere than keys and values; they are then not projected.
        dim, window, num_heads, spatial_dims: see :class:`TransformerBlock`.
    """

    def __init__(self, dim: int, window: int, num_heads: int, spatial_dims: int, cross: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** spatial_dims, num_heads))
        self.register_buffer("relative_position_index", self._index(window, spatial_dims))
        if cross:
            self.kv = nn.Linear(dim, 2 * dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    @staticmethod
    def _index(window: int, spatial_dims: int) -> Tensor:
        """Row of the table for each pair of pixels of a window."""
        places = torch.tensor(list(product(range(window), repeat=spatial_dims)))
        offsets = places[:, None] - places[None, :] + window - 1
        # (2w - 1)² would give each 3D offset a row of its own; the released weights were trained with 3w - 1
        strides = {2: (2 * window - 1, 1), 3: (3 * window - 1, 2 * window - 1, 1)}[spatial_dims]
        return (offsets * torch.tensor(strides)).sum(-1)

    def forward(self, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        """
        Args:
            x: features of the queries, (b, windows, pixels, dim); of keys and values too unless ``source`` is given.
            source: features of keys and values, (b, windows, pixels, dim).
            mask: mask that is added to the attention's logits, (windows, pixels, pixels).
        """
        batch, windows, pixels, dim = x.shape

        def heads(x: Tensor) -> tuple[Tensor, ...]:  # (b, windows, pixels, n * dim) to n of (b * windows, heads, ...)
            x = x.reshape(batch * windows, pixels, -1, self.num_heads, dim // self.num_heads)
            return x.permute(2, 0, 3, 1, 4).unbind(0)

        q, k, v = heads(self.qkv(x)) if source is None else (*heads(x), *heads(self.kv(source)))
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
        else:
            bias = bias.expand(batch * windows, -1, -1, -1)
        # one dtype, which the fused kernels ask for; under autocast the queries of a skip come from a float32 norm
        attended = F.scaled_dot_product_attention(q.to(v.dtype), k, v, attn_mask=bias.to(v.dtype))
        return self.proj(attended.transpose(1, 2).reshape(batch, windows, pixels, dim))


class FeedForward(nn.Module):
    """Two linear layers with GELU, named as the released ones: (..., dim) to (..., dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Attention in windows, shifted or not, and an MLP, both with a pre-norm and a residual.

    Args:
        dim: number of channels.
        window: side of a window in pixels.
        shift: number of pixels by which the windows are shifted.
        num_heads: number of heads of the attention, a divisor of ``dim``.
        spatial_dims: number of axes of the map, 2 or 3.
        drop_path: probability with which a residual branch is skipped for a sample in training.
        cross: whether this is a skip connection: queries from the decoder, keys and values from the encoder.
    """

    def __init__(
        self, dim: int, window: int, shift: int, num_heads: int, spatial_dims: int, drop_path: float, cross: bool
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, num_heads, spatial_dims, cross)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (b, *spatial, dim) to the same shape; for a skip connection with the encoder's map of this size."""
        batch, spatial, axes = x.shape[0], x.shape[1:-1], tuple(range(1, x.ndim - 1))  # len(x) a trace would keep
        fill = [n for side in reversed(spatial) for n in (0, -side % self.window)]

        padded, sides = [-(-side // self.window) * self.window for side in spatial], [self.window] * len(axes)

        def windows(x: Tensor) -> Tensor:  # to (b, windows, pixels of a window, dim)
            x = F.pad(self.norm1(x), (0, 0, *fill))
            x = x.roll([-self.shift] * len(axes), axes) if self.shift else x
            return window_partition(x, sides).unflatten(0, (batch, -1))

        mask = compute_mask(padded, sides, [self.shift] * len(axes), x.device) if self.shift else None
        y = self.attn(windows(x), None if skip is None else windows(skip), mask)
        y = window_reverse(y.flatten(0, 1), sides, [batch, *padded])
        if self.shift:
            y = y.roll([self.shift] * len(axes), axes)
        for axis, side in zip(axes, spatial):
            y = y.narrow(axis, 0, side)
        x = (x if skip is None else x + skip) + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))
