# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The convolution blocks of UNETR, of which Swin-UMamba's CNN decoder is made, with the norms of a backend.

Source: MONAI's ``UnetrBasicBlock`` and ``UnetrUpBlock`` with ``res_block=True`` in two dimensions; the parameter names
and random weights are theirs.
"""

from __future__ import annotations

import torch.nn as nn
from monai.networks.blocks.dynunet_block import UnetResBlock, get_conv_layer
from torch import Tensor

from swinumamba_monai.ops.backends import BackendChoice

from .convolution import adopt_convolutions
from .norm import InstanceNorm


class UnetrResidualBlock(UnetResBlock):
    """Two 3×3 convolutions, each with a norm, and a residual connection, which is projected where channels change.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        norm_name: norm, any that MONAI's ``get_norm_layer`` takes.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`, which computes instance norms.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_name: tuple | str, scan_backend: str = "auto") -> None:
        super().__init__(2, in_channels, out_channels, kernel_size=3, stride=1, norm_name=norm_name)
        for name, norm in list(self.named_children()):
            if type(norm) is nn.InstanceNorm2d and not norm.track_running_stats:
                setattr(self, name, InstanceNorm(norm.num_features, norm.eps, norm.affine, scan_backend))
        adopt_convolutions(self, scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, h, w) to (b, out_channels, h, w)."""
        out = self.conv2(self._finish(self.norm1, self.conv1(x)))
        residual = (self.conv3(x), self.norm3) if self.downsample else (x, None)
        return self._finish(self.norm2, out, *residual)

    def _finish(
        self,
        norm: nn.Module,
        x: Tensor,
        residual: Tensor | None = None,
        residual_norm: nn.Module | None = None,
    ) -> Tensor:
        """Norm, sum with a residual, which may have a norm of its own, and LeakyReLU."""
        if isinstance(norm, InstanceNorm):
            return norm(x, residual, self.lrelu.negative_slope, residual_norm)
        x = norm(x)
        residual = residual if residual_norm is None else residual_norm(residual)
        return self.lrelu(x if residual is None else x + residual)


class SkipBlock(nn.Module):
    """A residual block between the encoder and the decoder; its arguments are those of :class:`UnetrResidualBlock`."""

    def __init__(self, in_channels: int, out_channels: int, norm_name: tuple | str, scan_backend: str = "auto") -> None:
        super().__init__()
        self.layer = UnetrResidualBlock(in_channels, out_channels, norm_name, scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, h, w) to (b, out_channels, h, w)."""
        return self.layer(x)


class UpBlock(nn.Module):
    """Transposed convolution to twice the size, skip connection and a residual block.

    Args:
        in_channels: number of channels of the coarse map.
        out_channels: number of channels of the skip connection and of the output.
        norm_name, scan_backend: see :class:`UnetrResidualBlock`.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_name: tuple | str, scan_backend: str = "auto") -> None:
        super().__init__()
        options = {"kernel_size": 2, "stride": 2, "conv_only": True, "is_transposed": True}
        self.transp_conv = get_conv_layer(2, in_channels, out_channels, **options)
        self.conv_block = UnetrResidualBlock(2 * out_channels, out_channels, norm_name, scan_backend)
        self.backend = BackendChoice(scan_backend)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Maps (b, in_channels, h, w) and (b, out_channels, 2 * h, 2 * w) to (b, out_channels, 2 * h, 2 * w)."""
        x = self.transp_conv(x)
        return self.conv_block(self.backend.find(x).join(x, skip, 1))
