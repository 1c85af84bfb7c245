# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""nnFormer: convolutions between self-attention in windows, and skip connections that are attention too.

Source: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", IEEE TIP 2023. In 3D the
structure and the parameter names are those of the released code (its Synapse configuration where the defaults are
kept), with three of its peculiarities, without which released weights would mean something else: the index of the
relative position bias lets some offsets share a bias, the decoder's stages have the heads of the next coarser stage
of the encoder, and the zeros that fill the last windows take part in the attention.

``spatial_dims`` of every layer is the number of axes of its map, 2 or 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers import Conv
from torch import Tensor

from swinumamba_monai.checks import is_counts, require, require_counts, require_rate

from .base import BaseNetwork, drop_path_rates
from .nnformer_attention import TransformerBlock

MERGED = 8  # patches of the finest map along a side to one of the coarsest
DEFAULTS = {2: {"patch_size": (4, 4), "roi_size": (320, 320)}, 3: {"patch_size": (2, 4, 4), "roi_size": (64, 128, 128)}}


def _channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


class Projection(nn.Module):
    """Two 3-wide convolutions, the first with a stride, each with GELU and LayerNorm, the last one bare if asked.

    Args:
        in_channels: number of channels of the input.
        channels: number of channels of the output.
        stride: stride of the first convolution along each axis.
        last: whether GELU and LayerNorm are left out after the second convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: Sequence[int], spatial_dims: int, last: bool) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.conv1 = conv(in_channels, channels, kernel_size=3, stride=tuple(stride), padding=1)
        self.conv2 = conv(channels, channels, kernel_size=3, padding=1)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = None if last else nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(_channels_first(self.norm1(_channels_last(F.gelu(self.conv1(x))))))
        return x if self.norm2 is None else _channels_first(self.norm2(_channels_last(F.gelu(x))))


class PatchEmbedding(nn.Module):
    """Convolutions that bring the image to the patches' resolution: (b, in, *spatial) to (b, *patches, dim).

    Args:
        in_channels: number of channels of the image.
        dim: number of channels of a patch.
        patch_size: sides of a patch in pixels, each 1, 2 or 4.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: Sequence[int], spatial_dims: int) -> None:
        super().__init__()
        first = [min(2, side) for side in patch_size]
        second = [side // stride for side, stride in zip(patch_size, first)]
        self.proj1 = Projection(in_channels, dim // 2, first, spatial_dims, last=False)
        self.proj2 = Projection(dim // 2, dim, second, spatial_dims, last=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_channels_last(self.proj2(self.proj1(x))))


class Downsample(nn.Module):
    """GELU, LayerNorm and a convolution with stride 2: (b, *spatial, dim) to (b, *spatial / 2, 2 dim)."""

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        self.reduction = Conv[Conv.CONV, spatial_dims](dim, 2 * dim, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return _channels_last(self.reduction(_channels_first(self.norm(F.gelu(x)))))


class Upsample(nn.Module):
    """LayerNorm and a transposed convolution: (b, *spatial, 2 dim) to (b, *2 spatial, dim)."""

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * dim)
        self.up = Conv[Conv.CONVTRANS, spatial_dims](2 * dim, dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return _channels_last(self.up(_channels_first(self.norm(x))))


class Head(nn.Module):
    """A transposed convolution over patches: (b, *patches, dim) to logits (b, out_channels, *spatial)."""

    def __init__(self, dim: int, out_channels: int, patch_size: Sequence[int], spatial_dims: int) -> None:
        super().__init__()
        self.up = Conv[Conv.CONVTRANS, spatial_dims](
            dim, out_channels, kernel_size=tuple(patch_size), stride=tuple(patch_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(_channels_first(x))


class Stage(nn.Module):
    """Blocks of one resolution; in the encoder with what leads down from it, in the decoder with what leads up to it.

    Args:
        shifts: shift of the windows in pixels, for each block.
        drop_paths: drop path rate of each block.
        dim, window, num_heads: see :class:`.nnformer_attention.TransformerBlock`.
        downsample: whether a coarser stage of the encoder follows.
        upsample: whether this is a stage of the decoder.
    """

    def __init__(
        self,
        dim: int,
        window: int,
        shifts: Sequence[int],
        num_heads: int,
        spatial_dims: int,
        drop_paths: Sequence[float],
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, window, shift, num_heads, spatial_dims, rate, cross=upsample and i == 0)
            for i, (shift, rate) in enumerate(zip(shifts, drop_paths))
        )
        if downsample:
            self.downsample = Downsample(dim, spatial_dims)
        if upsample:
            self.Upsample = Upsample(dim, spatial_dims)  # the released name

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        first, *rest = self.blocks
        x = first(x) if skip is None else first(self.Upsample(x), skip)
        for block in rest:
            x = block(x)
        return x


class Encoder(nn.Module):
    """Patch embedding, stages and a norm for each map that leaves: image to maps (b, *spatial, dim), finest first.

    Args:
        patch_embed: layer from the image to the first stage's map.
        stages: the stages, finest first.
        dims: number of channels of each stage.
    """

    def __init__(self, patch_embed: nn.Module, stages: Sequence[Stage], dims: Sequence[int]) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.layers = nn.ModuleList(stages)
        for i, dim in enumerate(dims):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))  # the released names

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        maps = []
        for i, stage in enumerate(self.layers):
            x = stage(x if i == 0 else self.layers[i - 1].downsample(x))
            maps.append(self.get_submodule(f"norm{i}")(x))
        return maps


class Decoder(nn.Module):
    """Stages, stored finest first, that go up from the encoder's coarsest map."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(stages)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        *skips, x = features
        maps = []
        for stage, skip in zip(reversed(self.layers), reversed(skips)):
            x = stage(x, skip)
            maps.insert(0, x)
        return maps


class NNFormer(BaseNetwork, nn.Module):
    """nnFormer; by default as released for the Synapse abdomen in 3D, and its natural counterpart in 2D.

    The 2D network that the Swin-UMamba† paper compares with (60 M parameters) was not published. Here convolutions,
    windows, shifts and the bias table lose their first axis and all other numbers stay; the patches are 4×4, and the
    bias table has a row for each offset. It costs more parameters than printed: 114.2 M, 114.1 M and 114.0 M, and
    52.2, 119.0 and 126.5 GFLOPs (multiply-adds of convolutions, linear layers and attention, all heads) where the
    paper has 50.2, 125.5 and 136.7, at 1×320×320 (14 classes), 3×384×640 (8) and 3×512×512 (3).

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: number of axes of the image, 2 or 3.
        roi_size: size of the training crops, (64, 128, 128) or (320, 320) unless given. A stage whose map of such a
            crop is no larger than its window attends to one window of the map's smallest side, never shifted, so the
            parameters depend on it. Images of any size may follow.
        depths: number of blocks of the encoder's four stages; the decoder's three have as many as those they face.
        feature_size: number of channels of the first stage.
        num_heads: number of heads of the encoder's four stages; those of the last three serve the decoder's too.
        patch_size: sides of a patch in pixels, each 1, 2 or 4; (2, 4, 4) or (4, 4) unless given.
        window_size: side in patches of the windows of the encoder's four stages; the first three serve the decoder's.
        drop_path_rate: drop path rate of the last block of encoder and decoder; it grows from 0 through each.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.

    Raises:
        ValueError: an argument out of its range; the message names it.

    >>> network = NNFormer(1, 2, spatial_dims=2, feature_size=8, num_heads=(1, 1, 1, 1)).eval()
    >>> network(torch.zeros(1, 1, 40, 50)).shape
    torch.Size([1, 2, 40, 50])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 3,
        roi_size: Sequence[int] | None = None,
        depths: Sequence[int] = (2, 2, 2, 2),
        feature_size: int = 192,
        num_heads: Sequence[int] = (6, 12, 24, 48),
        patch_size: Sequence[int] | None = None,
        window_size: Sequence[int] = (4, 4, 8, 4),
        drop_path_rate: float = 0.2,
        deep_supervision: bool = True,
    ) -> None:
        require("spatial_dims", spatial_dims, spatial_dims in DEFAULTS, "2 or 3")
        patch_size = DEFAULTS[spatial_dims]["patch_size"] if patch_size is None else patch_size
        roi_size = DEFAULTS[spatial_dims]["roi_size"] if roi_size is None else roi_size
        require_counts(in_channels=in_channels, out_channels=out_channels, feature_size=feature_size)
        for name, value in {"depths": depths, "num_heads": num_heads, "window_size": window_size}.items():
            require(name, value, is_counts(value, 4), "4 positive integers")
        for name, value in {"patch_size": patch_size, "roi_size": roi_size}.items():
            require(name, value, is_counts(value, spatial_dims), f"{spatial_dims} positive integers")
        small = all(side in (1, 2, 4) for side in patch_size)
        require("patch_size", patch_size, small, "1, 2 or 4 along each axis")
        dims = [feature_size * 2**i for i in range(4)]
        pairs = (*zip(dims, num_heads), *zip(dims, num_heads[1:]))
        if feature_size % 2 or any(dim % heads for dim, heads in pairs):
            raise ValueError(
                "feature_size must be even, and feature_size * 2 ** i a multiple of num_heads[i] and num_heads[i + 1], "
                f"got {feature_size!r} and {num_heads!r}."
            )
        require_rate("drop_path_rate", drop_path_rate)
        super().__init__()
        self.in_channels, self.out_channels, self.spatial_dims = in_channels, out_channels, spatial_dims
        self.step = [MERGED * side for side in patch_size]
        windows, shifts = _windows(window_size, roi_size, self.step)

        def stage(i: int, shifts: list[int], heads: int, drop_paths: list[float], **links: bool) -> Stage:
            return Stage(dims[i], windows[i], shifts, heads, spatial_dims, drop_paths, **links)

        down, up = (drop_path_rates(0, drop_path_rate, stages) for stages in (depths, depths[2::-1]))
        encoder = [
            stage(i, [shift * (block % 2) for block in range(depth)], num_heads[i], down[i], downsample=i < 3)
            for i, (depth, shift) in enumerate(zip(depths, shifts))
        ]
        decoder = [
            stage(i, [0] + [shifts[i]] * (depths[i] - 1), num_heads[i + 1], up[2 - i], upsample=True) for i in range(3)
        ]
        embedding = PatchEmbedding(in_channels, feature_size, patch_size, spatial_dims)
        self.model_down = Encoder(embedding, encoder, dims)
        self.decoder = Decoder(decoder)
        self.final = nn.ModuleList(Head(dim, out_channels, patch_size, spatial_dims) for dim in dims[:3])
        self.deep_supervision = deep_supervision

    def coarse_heads(self) -> Sequence[nn.Module]:
        return self.final[1:]

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        maps = self.decoder(self.model_down(x))
        return [head(m) for head, m in zip(self.final, maps if all_heads else maps[:1])]


def _windows(sizes: Sequence[int], roi_size: Sequence[int], step: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sides and shifts of each stage's windows, in pixels of its map, which for a crop may be smaller than a window."""
    sides = [-(-side // stride) for side, stride in zip(roi_size, step)]  # of the coarsest map
    smallest = [min(sides) * MERGED // 2**i for i in range(3)] + [min(sides)]
    windows = [min(window, side) for window, side in zip(sizes, smallest)]
    return windows, [window // 2 if side > window else 0 for window, side in zip(windows, smallest)]
