# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The blocks of VMamba's final version and the layers that change resolution between its stages.

Source: VMamba (arXiv 2401.10166, v3 of May 2024; its forward type "v05_noz"); the parameter names are those of the
checkpoints released with it. Against :mod:`.vss` SS2D has no gate and one state a channel, an MLP follows it, and
resolution changes by convolutions of 3×3 pixels that overlap. Feature maps are channels last, (b, h, w, c).
``norm_name`` and ``scan_backend`` of every layer are as in :mod:`.vss`.
"""

from __future__ import annotations

import torch.nn as nn
from monai.networks.layers import DropPath
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from swinumamba_monai.ops.mlp import mlp

from .norm import make_norm
from .vss import SS2D, mix_normed

MLP_RATIO = 4  # number of channels between the two layers of an MLP to one around it


class MLP(nn.Module):
    """Two linear layers with GELU between them: (..., channels) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = NonDynamicallyQuantizableLinear(channels, MLP_RATIO * channels)
        self.fc2 = NonDynamicallyQuantizableLinear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class VSSMLPBlock(nn.Module):
    """``x + DropPath(SS2D(norm(x)))``, and the same with an MLP.

    Args:
        d_model: number of channels of the map.
        drop_path: probability with which either half of the block is skipped for a sample in training.
        norm_name, scan_backend: see the module's text.
        scan: further keyword arguments of :class:`.vss.SS2D`, such as ``d_state``.

    >>> import torch
    >>> VSSMLPBlock(8, d_state=1, expand=1)(torch.zeros(1, 6, 5, 8)).shape
    torch.Size([1, 6, 5, 8])
    """

    def __init__(
        self, d_model: int, drop_path: float = 0.0, norm_name: str = "layer", scan_backend: str = "auto", **scan
    ) -> None:
        super().__init__()
        norm = {"norm_name": norm_name, "scan_backend": scan_backend}
        self.norm = make_norm(channels=d_model, **norm)
        self.op = SS2D(d_model, gate=False, conv_bias=False, **norm, **scan)
        self.drop_path = DropPath(drop_path)
        self.norm2 = make_norm(channels=d_model, **norm)
        self.mlp = MLP(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        x = x + self.drop_path(mix_normed(self.norm, self.op, x))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Permute(nn.Module):
    """Another order of the axes, as a layer: VMamba's names count these."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def _halving_conv(in_channels: int, channels: int, norm_name: str, scan_backend: str) -> list[nn.Module]:
    """Half of the resolution by a convolution, then the norm: channels first to channels last."""
    conv = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1)
    return [conv, Permute(0, 2, 3, 1), make_norm(norm_name, channels, scan_backend)]


class ConvPatchEmbed(nn.Sequential):
    """Image to feature vectors of 2×2 or 4×4 pixels: (b, in_channels, h, w) to (b, h / p, w / p, channels).

    Each halving is a convolution and a norm; GELU stands between two of them, and the first has half of the channels.

    Args:
        in_channels, channels: number of channels of the image, and of features of a patch.
        patch_size: side p of a patch in pixels, 2 or 4.
        norm_name, scan_backend: see the module's text.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int = 4, norm_name: str = "layer", scan_backend: str = "auto"
    ) -> None:
        layers = []
        if patch_size == 4:
            first = _halving_conv(in_channels, channels // 2, norm_name, scan_backend)
            layers = [*first, Permute(0, 3, 1, 2), nn.GELU()]
            in_channels = channels // 2
        super().__init__(*layers, *_halving_conv(in_channels, channels, norm_name, scan_backend))


class ConvDownsample(nn.Sequential):
    """Halve the resolution and double the channels: (b, h, w, channels) to (b, h / 2, w / 2, 2 * channels).

    Args:
        channels: number of channels before.
        norm_name, scan_backend: see the module's text.
    """

    def __init__(self, channels: int, norm_name: str = "layer", scan_backend: str = "auto") -> None:
        super().__init__(Permute(0, 3, 1, 2), *_halving_conv(channels, 2 * channels, norm_name, scan_backend))
