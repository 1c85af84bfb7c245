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

from .norm import InstanceNorm


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without dilation or groups, by the convolution of a backend.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        kernel_size: side of the kernel in pixels, or its two sides.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        options: further keyword arguments of ``nn.Conv2d``.

    >>> Conv2d(3, 8, kernel_size=3, padding=1)(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        scan_backend: str = "auto",
        **options,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.backend = BackendChoice(scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, h, w) to (b, out_channels, ...)."""
        return self.backend.find(x).conv2d(x, self.weight, self.bias, self.stride, self.padding)


def adopt_convolutions(module: nn.Module, scan_backend: str) -> None:
    """Put a :class:`Conv2d` in the place of every plain convolution inside a module, with its parameters.

    Args:
        module: module whose parts are replaced.
        scan_backend: see :class:`Conv2d`.
    """
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d:
                options = {"stride": conv.stride, "padding": conv.padding, "bias": conv.bias is not None}
                # on "meta" no random number is drawn
                new = Conv2d(
                    conv.in_channels, conv.out_channels, conv.kernel_size, scan_backend, device="meta", **options
                )
                new.weight, new.bias = conv.weight, conv.bias
                setattr(parent, name, new)


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
        self, norm: nn.Module, x: Tensor, residual: Tensor | None = None, residual_norm: nn.Module | None = None
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
