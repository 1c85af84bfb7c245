# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of maps by the backend of their network, which may have faster ones than cuDNN for few channels."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from swinumamba_monai.ops.backends import BackendChoice


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
