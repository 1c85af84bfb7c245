# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Visual state space (VSS) block and the layers that change resolution between its stages.

Source: VMamba (arXiv 2401.10166, v1 of January 2024), as used by Swin-UMamba (IEEE TMI 2024, section III-B); the
parameter names are those of the released checkpoints of both. Feature maps are channels last, (b, h, w, c).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn as nn
from monai.networks.layers import DropPath
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swinumamba_monai.ops.dispatch import check_backend_name
from swinumamba_monai.ops.layer_norm import layer_norm
from swinumamba_monai.ops.ss2d import ss2d

from .mamba import init_scan

__all__ = ["SS2D", "VSSBlock", "VSSStage", "PatchEmbed", "PatchMerging", "PatchExpanding", "make_norm", "NORMS"]


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis by :func:`swinumamba_monai.ops.layer_norm.layer_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


NORMS = {"layer": LayerNorm, "rms": nn.RMSNorm}


def make_norm(norm_name: str, channels: int) -> nn.Module:
    """Normalisation over the last axis, eps 1e-5; ``norm_name`` is a key of :data:`NORMS`."""
    return NORMS[norm_name](channels, eps=1e-5)


class SS2D(nn.Module):
    """2D selective scan: gate, depthwise convolution and the four-direction scan (paper, fig. 3 and eqs. (5)-(7)).

    Args:
        d_model: channels of the map.
        d_state: states of each scanned channel.
        expand: scanned channels as a multiple of ``d_model``.
        norm_name: key of :data:`NORMS`, applied to the merged scan.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
    """

    directions = 4

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        expand: int = 2,
        norm_name: str = "layer",
        scan_backend: str = "auto",
    ) -> None:
        super().__init__()
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.scan_backend = check_backend_name(scan_backend, "scan_backend")
        inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(self.directions, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(self.directions, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(self.directions, inner))
        self.A_logs = nn.Parameter(torch.empty(self.directions * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(self.directions * inner))
        self.out_norm = make_norm(norm_name, inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """As Mamba begins: :func:`.mamba.init_scan` in all directions."""
        with torch.no_grad():
            for weight in self.x_proj_weight:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # what nn.Linear does
        init_scan(self.A_logs, self.Ds, self.dt_projs_weight, self.dt_projs_bias)

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (b, h, w, d_model).

        Returns:
            (b, h, w, d_model).
        """
        return ss2d(
            x, self.in_proj.weight, self.conv2d.weight, self.conv2d.bias, self.x_proj_weight, self.dt_projs_weight,
            self.dt_projs_bias, self.A_logs, self.Ds, self.out_norm.weight, getattr(self.out_norm, "bias", None),
            self.out_proj.weight, self.out_norm.eps, backend=self.scan_backend,
        )  # fmt: skip


class VSSBlock(nn.Module):
    """``x + DropPath(SS2D(norm(x)))``; there is no MLP.

    Args:
        d_model: channels of the map.
        d_state: states of each scanned channel.
        drop_path: probability with which the block is skipped for a sample in training.
        norm_name: key of :data:`NORMS`.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        mixer: what stands in the place of :class:`SS2D`; takes the same arguments (see :mod:`.blocks`).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        drop_path: float = 0.0,
        norm_name: str = "layer",
        scan_backend: str = "auto",
        mixer: Callable[..., nn.Module] = SS2D,
    ) -> None:
        super().__init__()
        self.ln_1 = make_norm(norm_name, d_model)
        self.self_attention = mixer(d_model, d_state, norm_name=norm_name, scan_backend=scan_backend)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        return x + self.drop_path(self.self_attention(self.ln_1(x)))


class VSSStage(nn.Module):
    """VSS blocks at one resolution.

    Args:
        d_model: channels of the map.
        drop_paths: the blocks' drop path rates; their number is the depth.
        use_checkpoint: recompute the blocks in the backward instead of keeping their activations.
        block: keyword arguments of :class:`VSSBlock`.
    """

    def __init__(self, d_model: int, drop_paths: list[float], use_checkpoint: bool = False, **block) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(VSSBlock(d_model, drop_path=rate, **block) for rate in drop_paths)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class PatchEmbed(nn.Module):
    """Non-overlapping patches to feature vectors: (b, c, h, w) to (b, h / p, w / p, channels).

    Args:
        in_channels: channels of the image.
        channels: channels of the feature map.
        patch_size: side of a patch in pixels.
        norm_name: key of :data:`NORMS`.
    """

    def __init__(self, in_channels: int, channels: int, patch_size: int = 4, norm_name: str = "layer") -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=patch_size, stride=patch_size)
        self.norm = make_norm(norm_name, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels: (b, h, w, c) to (b, h / 2, w / 2, 2c).

    The four pixels of a 2×2 patch are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1), row offset first.

    Args:
        channels: of the input.
        norm_name: key of :data:`NORMS`.
    """

    def __init__(self, channels: int, norm_name: str = "layer") -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = make_norm(norm_name, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class PatchExpanding(nn.Module):
    """Raise the resolution by a linear layer and a pixel shuffle: (b, h, w, c) to (b, s·h, s·w, out_channels).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        scale: the factor s.
        norm_name: key of :data:`NORMS`.
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int = 2, norm_name: str = "layer") -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(in_channels, scale**2 * out_channels, bias=False)
        self.norm = make_norm(norm_name, out_channels)

    def vectors(self, x: Tensor) -> Tensor:
        """What each pixel expands to, before it takes its place: (..., c) to (..., row, column, out_channels)."""
        return self.norm(self.expand(x).unflatten(-1, (self.scale, self.scale, -1)))

    @staticmethod
    def place(x: Tensor) -> Tensor:
        """Put the vectors of each pixel in their places: (b, h, w, row, column, c) to (b, h * rows, w * columns, c)."""
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.place(self.vectors(x))
