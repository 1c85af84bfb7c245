# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Norms by the backend of their network: layer norm over channels that lie last, RMS norm, instance norm of maps."""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from swinumamba_monai.ops.backends import BackendChoice


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis, eps 1e-5, by the layer norm of a backend.

    Args:
        channels: number of channels.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.

    >>> LayerNorm(8)(torch.zeros(2, 5, 5, 8)).shape
    torch.Size([2, 5, 5, 8])
    """

    def __init__(self, channels: int, scan_backend: str = "auto") -> None:
        super().__init__(channels, eps=1e-5)
        self.backend = BackendChoice(scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., channels) to the same shape; the errors are those of :mod:`swinumamba_monai.ops.backends`."""
        return self.backend.find(x).norm(x, self.weight, self.bias, self.eps)


NORMS = {"layer": LayerNorm, "rms": lambda channels, scan_backend: nn.RMSNorm(channels, eps=1e-5)}


def make_norm(norm_name: str, channels: int, scan_backend: str = "auto") -> nn.Module:
    """Norm over the last axis, eps 1e-5; ``norm_name`` is a key of :data:`NORMS`, the backend that of the network.

    Args:
        norm_name: key of :data:`NORMS`.
        channels: length of the last axis.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
    """
    return NORMS[norm_name](channels, scan_backend)


class InstanceNorm(nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` with what follows it in a residual block, by the instance norm of a backend.

    Args:
        channels: number of channels.
        eps: number added to the variance.
        affine: whether each channel has a weight and a bias.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.

    >>> norm, x = InstanceNorm(8), torch.rand(2, 8, 5, 5)
    >>> torch.equal(norm(x, slope=0.0), norm(x).relu())
    True
    """

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = False, scan_backend: str = "auto") -> None:
        super().__init__(channels, eps=eps, affine=affine)
        self.backend = BackendChoice(scan_backend)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        slope: float | None = None,
        residual_norm: InstanceNorm | None = None,
    ) -> Tensor:
        """Map (b, channels, h, w) to the same shape: normed, with a residual added, through LeakyReLU.

        Args:
            x: the map.
            residual: what is added; None for nothing.
            slope: slope of LeakyReLU below zero; None for no LeakyReLU.
            residual_norm: norm, of the same eps, that the residual goes through first; None for none.
        """
        other = None if residual_norm is None else (residual_norm.weight, residual_norm.bias)
        return self.backend.find(x).instance_norm(x, residual, self.weight, self.bias, self.eps, slope, other)
