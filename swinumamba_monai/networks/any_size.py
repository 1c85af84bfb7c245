# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What every network here shares: any image size, metadata, recorded launches, and when coarser heads are returned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import Tensor

from swinumamba_monai.ops.dispatch import is_exporting

from .cuda_graphs import CUDAGraphs

__all__ = ["AnySize"]


class AnySize:
    """In the order of classes before :class:`torch.nn.Module`, or before a network of MONAI's that has one size.

    A subclass sets ``in_channels`` and ``step``, the multiples that sides must be, and has :meth:`logits` unless the
    network that it stands before already returns them.
    """

    in_channels: int
    spatial_dims = 2
    step: Sequence[int]
    deep_supervision = False
    _graphs: CUDAGraphs | None = None

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        """Logits of an image of :meth:`padded_size`, finest first; only the finest unless ``all_heads``."""
        heads = super().forward(x)
        return heads if isinstance(heads, list) else [heads]

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """The size that an image of ``size`` is continued to."""
        # written so that sizes which torch.compile keeps symbolic cancel to multiples
        return [(side + step - 1) // step * step for side, step in zip(size, self.step)]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """
        Args:
            x: image, (b, in_channels, *spatial), of any size. What is short of :meth:`padded_size` is continued at the
                ends by its last pixels, and the logits are cut back.

        Returns:
            logits (b, out_channels, *spatial); in training mode with ``deep_supervision`` the list of all heads, finest
            first, each ceil(side / scale) wide.

        Raises:
            ValueError: an input of other dimensions or channels, or without a pixel.
        """
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels or 0 in x.shape:
            axes = ", ".join("dhw"[-self.spatial_dims :])
            raise ValueError(f"expected an input of shape (b, {self.in_channels}, {axes}), got {tuple(x.shape)}.")
        image = x.as_tensor() if isinstance(x, MetaTensor) else x
        heads = self._heads(image) if self._graphs is None else self._graphs.run(self, self._heads, image)
        if isinstance(x, MetaTensor):
            heads = [convert_to_dst_type(head, x, dtype=head.dtype)[0] for head in heads]
        return heads if self.training and self.deep_supervision else heads[0]

    def _heads(self, x: Tensor) -> list[Tensor]:
        size, padded = x.shape[2:], self.padded_size(x.shape[2:])
        ends = [whole - side for whole, side in zip(padded, size)]
        x = F.pad(x, [n for end in reversed(ends) for n in (0, end)], mode="replicate")
        return [_cut(head, size, x.shape[2:]) for head in self.logits(x, self.training and self.deep_supervision)]


def _cut(head: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """The part of a head that belongs to the image; the head's own sides divide those of the padded image."""
    scales = [whole // own for whole, own in zip(padded, head.shape[2:])]
    sides = [(side + scale - 1) // scale for side, scale in zip(size, scales)]
    if not is_exporting():
        return head[(..., *map(slice, sides))]
    # The strides of a slice tell whether anything was cut, which would tie an exported program to sizes of one kind.
    for axis, side in enumerate(sides, start=2):
        head = head.index_select(axis, torch.arange(side, device=head.device))
    return head
