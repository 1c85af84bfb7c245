# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The norms over channels that lie last: layer norm by the backend of its network, and RMS norm."""

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
