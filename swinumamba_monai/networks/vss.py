# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Visual state space (VSS) block and the layers that change resolution between its stages.

Source: VMamba (arXiv 2401.10166, v1 of January 2024), as used by Swin-UMamba (IEEE TMI 2024, section III-B); the
parameter names are those of the released checkpoints of both. Feature maps are channels last, (b, h, w, c).

Every layer here takes ``norm_name``, a key of :data:`.norm.NORMS`, and ``scan_backend``, one of
:data:`swinumamba_monai.ops.BACKENDS`, which computes its scan and its layer norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn as nn
from monai.networks.layers import DropPath
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # whose weight is read by what calls no layer
from torch.utils.checkpoint import checkpoint

from swinumamba_monai.ops.backends import BackendChoice
from swinumamba_monai.ops.ss2d import ss2d

from .cuda_graphs import has_hooks
from .mamba import init_scan
from .norm import LayerNorm, make_norm


class SS2D(nn.Module):
    """2D selective scan: gate, depthwise convolution and the four-direction scan (paper, fig. 3 and eqs. (5)-(7)).

    Args:
        d_model: number of channels of the map.
        d_state: number of states of each scanned channel.
        expand: ratio of scanned channels to ``d_model``.
        norm_name: norm of the merged scan, a key of :data:`.norm.NORMS`.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        gate: whether the merged scan is multiplied by SiLU of a second half of the projection.
        conv_bias: whether the depthwise convolution has biases.

    Raises:
        ValueError: an unknown backend.

    >>> SS2D(8, d_state=4)(torch.zeros(1, 6, 5, 8)).shape
    torch.Size([1, 6, 5, 8])
    """

    directions = 4

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        expand: int = 2,
        norm_name: str = "layer",
        scan_backend: str = "auto",
        gate: bool = True,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.backend = BackendChoice(scan_backend, d_state)
        inner = expand * d_model
        self.in_proj = NonDynamicallyQuantizableLinear(d_model, 2 * inner if gate else inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=conv_bias)
        self.x_proj_weight = nn.Parameter(torch.empty(self.directions, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(self.directions, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(self.directions, inner))
        self.A_logs = nn.Parameter(torch.empty(self.directions * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(self.directions * inner))
        self.out_norm = make_norm(norm_name, inner, scan_backend)
        self.out_proj = NonDynamicallyQuantizableLinear(inner, d_model, bias=False)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """As Mamba begins: :func:`.mamba.init_scan` in all directions."""
        with torch.no_grad():
            for weight in self.x_proj_weight:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # what nn.Linear does
        init_scan(self.A_logs, self.Ds, self.dt_projs_weight, self.dt_projs_bias)

    def forward(self, x: Tensor, pre_norm: tuple[Tensor, Tensor, float] | None = None) -> Tensor:
        """Map (b, h, w, d_model) to the same shape; RuntimeError if the backend asked for cannot scan it.

        Args:
            x: the map.
            pre_norm: weight, bias and eps of a layer norm that it goes through first; None for no such norm.
        """
        return ss2d(
            x, self.in_proj.weight, self.conv2d.weight, self.conv2d.bias, self.x_proj_weight, self.dt_projs_weight,
            self.dt_projs_bias, self.A_logs, self.Ds, self.out_norm.weight, getattr(self.out_norm, "bias", None),
            self.out_proj.weight, self.out_norm.eps, gated=self.gate, pre_norm=pre_norm,
            backend=self.backend.find(x),
        )  # fmt: skip


def mix_normed(norm: nn.Module, mixer: nn.Module, x: Tensor) -> Tensor:
    """``mixer(norm(x))``, where a backend's operator for SS2D may have the norm inside and keep x alone for both.

    A compiler sees to the memory itself. What else could tell the difference, such as a hook, has both called.

    Args:
        norm: module that normalizes maps.
        mixer: module that maps (b, h, w, d_model) to the same shape.
        x: (b, h, w, d_model).
    """
    if torch.compiler.is_compiling() or type(norm) is not LayerNorm or type(mixer) is not SS2D:
        return mixer(norm(x))
    backend = mixer.backend.find(x)
    if backend.ss2d is None or backend is not norm.backend.find(x) or has_hooks(norm) or has_hooks(mixer):
        return mixer(norm(x))
    return mixer(x, (norm.weight, norm.bias, norm.eps))


class VSSBlock(nn.Module):
    """``x + DropPath(SS2D(norm(x)))``; there is no MLP.

    Args:
        d_model: number of channels of the map.
        drop_path: probability with which the block is skipped for a sample in training.
        norm_name, scan_backend: see the module's text.
        mixer: class that stands in the place of :class:`SS2D` and takes its arguments (see :mod:`.mixers`).
        options: further keyword arguments of the mixer, such as ``d_state``.
    """

    def __init__(
        self,
        d_model: int,
        drop_path: float = 0.0,
        norm_name: str = "layer",
        scan_backend: str = "auto",
        mixer: Callable[..., nn.Module] = SS2D,
        **options,
    ) -> None:
        super().__init__()
        self.ln_1 = make_norm(norm_name, d_model, scan_backend)
        self.self_attention = mixer(d_model, norm_name=norm_name, scan_backend=scan_backend, **options)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        return x + self.drop_path(mix_normed(self.ln_1, self.self_attention, x))


class VSSStage(nn.Module):
    """VSS blocks at one resolution.

    Args:
        d_model: number of channels of the map.
        drop_paths: drop path rate of each block; their number is the depth.
        use_checkpoint: whether the backward computes the blocks again instead of keeping their activations.
        block: class of the blocks, :class:`VSSBlock` or one that takes such arguments.
        options: further keyword arguments of the blocks.
    """

    def __init__(
        self,
        d_model: int,
        drop_paths: list[float],
        use_checkpoint: bool = False,
        block: Callable[..., nn.Module] = VSSBlock,
        **options,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(block(d_model, drop_path=rate, **options) for rate in drop_paths)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class PatchEmbed(nn.Module):
    """Non-overlapping patches of side p to feature vectors: (b, in_channels, h, w) to (b, h / p, w / p, channels).

    Args:
        in_channels: number of channels of the image.
        channels: number of features of a patch.
        patch_size: side p of a patch in pixels.
        norm_name, scan_backend: see the module's text.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int = 4, norm_name: str = "layer", scan_backend: str = "auto"
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=patch_size, stride=patch_size)
        self.norm = make_norm(norm_name, channels, scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels: (b, h, w, channels) to (b, h / 2, w / 2, 2 * channels).

    The four pixels of a 2×2 patch are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1), row offset first.

    Args:
        channels: number of channels before.
        norm_name, scan_backend: see the module's text.
    """

    def __init__(self, channels: int, norm_name: str = "layer", scan_backend: str = "auto") -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = make_norm(norm_name, 4 * channels, scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (b, h / 2, row, w / 2, column, c)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class PatchExpanding(nn.Module):
    """Raise the resolution by a factor s, the scale: (b, h, w, in_channels) to (b, s * h, s * w, out_channels).

    A linear layer makes s² vectors of each pixel, and they take its place as in a pixel shuffle.

    Args:
        in_channels: number of channels before.
        out_channels: number of channels after.
        scale: factor s of both sides of the map.
        norm_name, scan_backend: see the module's text.
    """

    def __init__(
        self, in_channels: int, out_channels: int, scale: int = 2, norm_name: str = "layer", scan_backend: str = "auto"
    ) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(in_channels, scale**2 * out_channels, bias=False)
        self.norm = make_norm(norm_name, out_channels, scan_backend)

    def vectors(self, x: Tensor) -> Tensor:
        """What each pixel expands to, before it takes its place: (..., c) to (..., row, column, out_channels)."""
        vectors = self.norm(self.expand(x).unflatten(-1, (self.scale**2, -1)))  # of five axes: fvcore counts no more
        return vectors.unflatten(-2, (self.scale, self.scale))

    @staticmethod
    def place(x: Tensor) -> Tensor:
        """Put the vectors of each pixel in their places: (b, h, w, row, column, c) to (b, h * rows, w * columns, c)."""
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.place(self.vectors(x))
