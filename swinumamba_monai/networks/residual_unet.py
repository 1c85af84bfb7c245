# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's residual U-shape, the parts of it that U-Mamba is made of.

Source: dynamic-network-architectures, as nnU-Net v2 (Isensee et al.) and U-Mamba (arXiv 2401.04722) use it: the
residual blocks of ResNet-D, strided convolutions in the encoder and transposed ones in the decoder. The parameter names
are those of its checkpoints, where a tensor has several the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import Tensor

BLOCKS = 2  # residual blocks of a stage, of the encoder and of the decoder


class ConvBlock(nn.Module):
    """Convolution, affine instance norm and, unless ``activation`` is False, LeakyReLU.

    Args:
        spatial_dims: number of axes, 2 or 3.
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        kernel_size: odd side of the kernel along each axis; sides are padded so that stride 1 keeps them.
        strides: stride along each axis.
        bias: whether the convolution has a bias.
        activation: whether LeakyReLU comes last.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        strides: Sequence[int],
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = tuple(side // 2 for side in kernel_size)
        self.conv = Conv[Conv.CONV, spatial_dims](
            in_channels, out_channels, tuple(kernel_size), tuple(strides), padding, bias=bias
        )
        self.norm = Norm[Norm.INSTANCE, spatial_dims](out_channels, eps=1e-5, affine=True)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, 0.01, inplace=True) if self.activation else x


class ResidualBlock(nn.Module):
    """Two convolution blocks and a residual connection, which is pooled and projected where the map changes (ResNet-D).

    Args:
        spatial_dims: number of axes, 2 or 3.
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        kernel_size: odd side of the kernels along each axis.
        strides: stride of the first convolution along each axis.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, kernel_size: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        ones = (1,) * spatial_dims
        self.conv1 = ConvBlock(spatial_dims, in_channels, out_channels, kernel_size, strides)
        self.conv2 = ConvBlock(spatial_dims, out_channels, out_channels, kernel_size, ones, activation=False)
        skip = [] if tuple(strides) == ones else [Pool[Pool.AVG, spatial_dims](tuple(strides), tuple(strides))]
        if in_channels != out_channels:
            skip.append(ConvBlock(spatial_dims, in_channels, out_channels, ones, ones, bias=False, activation=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01, inplace=True)


class ResidualStage(nn.Module):
    """Residual blocks at one resolution, of which the first changes channels and resolution.

    Its arguments are those of :class:`ResidualBlock`.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, kernel_size, strides) -> None:
        super().__init__()
        blocks = [ResidualBlock(spatial_dims, in_channels, out_channels, kernel_size, strides)]
        for _ in range(BLOCKS - 1):
            blocks.append(ResidualBlock(spatial_dims, out_channels, out_channels, kernel_size, (1,) * spatial_dims))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Stages(NamedTuple):
    """The stages of a U-shape, finest first.

    Args:
        channels: number of channels of each stage.
        kernel_sizes: odd sides of each stage's kernels, along each axis.
        strides: stride of each stage's first convolution, along each axis.
    """

    channels: Sequence[int]
    kernel_sizes: Sequence[Sequence[int]]
    strides: Sequence[Sequence[int]]


class _Stem(nn.Module):
    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.convs = nn.Sequential(block)


class ResidualEncoder(nn.Module):
    """Stem and residual stages, for images of ``in_channels`` channels and 2 or 3 ``spatial_dims``."""

    def __init__(self, spatial_dims: int, in_channels: int, stages: Stages) -> None:
        super().__init__()
        width = stages.channels[0]
        self.stem = _Stem(ConvBlock(spatial_dims, in_channels, width, stages.kernel_sizes[0], (1,) * spatial_dims))
        self.stages = nn.ModuleList(
            ResidualStage(spatial_dims, *stage) for stage in zip((width, *stages.channels), *stages)
        )

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """The map of a stage.

        Args:
            i: number of the stage, 0 for the finest.
            x: map of the stage before it; of the stem for the finest.
        """
        return self.stages[i](x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (b, in_channels, ...) to the stages' maps, finest first."""
        x = self.stem.convs(x)
        maps = []
        for i in range(len(self.stages)):
            x = self.run_stage(i, x)
            maps.append(x)
        return maps


class ResidualDecoder(nn.Module):
    """Transposed convolution, skip connection, residual blocks and a head at each scale, coarsest first.

    Args:
        spatial_dims: number of axes, 2 or 3.
        out_channels: number of classes, background included.
        stages: stages of the encoder.
    """

    def __init__(self, spatial_dims: int, out_channels: int, stages: Stages) -> None:
        super().__init__()
        channels, kernel_sizes, strides = stages
        conv, up = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        below, skips = channels[:0:-1], channels[-2::-1]
        self.stages = nn.ModuleList(
            ResidualStage(spatial_dims, 2 * c, c, k, (1,) * spatial_dims) for c, k in zip(skips, kernel_sizes[-2::-1])
        )
        self.transpconvs = nn.ModuleList(up(b, c, s, s) for b, c, s in zip(below, skips, strides[:0:-1]))
        self.seg_layers = nn.ModuleList(conv(c, out_channels, kernel_size=1) for c in skips)

    def forward(self, maps: list[Tensor], all_heads: bool) -> list[Tensor]:
        """Logits (b, out_channels, ...) of the encoder's maps, both finest first; or the finest alone."""
        x, *skips = reversed(maps)
        heads = []
        for i, (up, stage, skip) in enumerate(zip(self.transpconvs, self.stages, skips)):
            x = stage(torch.cat([up(x), skip], dim=1))
            if all_heads or i == len(self.stages) - 1:
                heads.append(self.seg_layers[i](x))
        return heads[::-1]
