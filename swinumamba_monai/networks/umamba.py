# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""U-Mamba: nnU-Net's U-shape of residual blocks with Mamba at its bottleneck, or behind each stage of its encoder.

Source: Ma et al., "U-Mamba: Enhancing long-range dependency for biomedical image segmentation" (arXiv 2401.04722), in
the version that the paper compares with, the one first released (January 2024): Mamba replaces the map it is given,
without a residual connection. Structure, initialisation and parameter names agree with that release and with the blocks
of dynamic-network-architectures it is made of.

The release holds most tensors under several names; here each has the first of them, and :func:`first_name` says which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.utils import ensure_tuple_rep
from torch import Tensor

from swinumamba_monai.ops.dispatch import check_backend_name
from swinumamba_monai.pooling import pad_for_pooling

from .any_size import AnySize
from .cuda_graphs import CUDAGraphs
from .mamba import Mamba
from .residual_unet import ResidualBlock, ResidualDecoder, ResidualEncoder
from .vss import make_norm

__all__ = ["UMambaBot", "UMambaEnc", "first_name"]

# nnU-Net's, by spatial_dims: the channels at which doubling ends, and a size of crops whose plan is the default
MAX_CHANNELS = {2: 512, 3: 320}
ROI_SIZE = {2: (320, 320), 3: (128, 128, 128)}


def first_name(name: str) -> str:
    """The name that a tensor of a released U-Mamba checkpoint has here.

    The decoder of the release also holds the encoder, and each convolution block holds its layers a second time, in a
    sequence.

    Args:
        name: any of the tensor's names, such as ``decoder.encoder.stem.convs.0.all_modules.0.weight``.

    Returns:
        the first, ``encoder.stem.convs.0.conv.weight``.
    """
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    return re.sub(r"\.all_modules\.([01])\.", lambda place: (".conv.", ".norm.")[int(place[1])], name)


def _take_released_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        first = prefix + first_name(name[len(prefix) :])
        if first != name:
            state_dict.setdefault(first, state_dict.pop(name))


class MambaLayer(nn.Module):
    """LayerNorm and Mamba over the pixels of a map in row-major order.

    Args:
        channels: of the map.
        mamba: keyword arguments of :class:`.mamba.Mamba`.
    """

    def __init__(self, channels: int, **mamba) -> None:
        super().__init__()
        self.norm = make_norm("layer", channels)
        self.mamba = Mamba(channels, **mamba)

    def forward(self, x: Tensor) -> Tensor:
        return _scan_map(self.norm, self.mamba, x)


def _scan_map(norm: nn.Module, mamba: Mamba, x: Tensor) -> Tensor:
    """A map through norm and Mamba, without autocast: (b, c, ...) to the same shape.

    As in the released U-Mamba_Enc, the parameters' precision holds for the whole block, for both networks: seven blocks
    in a row without residual connections make of a difference of 1e-7 one of 1e-2, and at the bottleneck it costs
    nothing.
    """
    with torch.autocast(x.device.type, enabled=False):
        y = mamba(norm(x.flatten(2).transpose(1, 2).to(mamba.D.dtype)))
        # the convolutions that follow, and their norms, take channels first
        return y.to(x.dtype).transpose(1, 2).contiguous().view(x.shape)


class MambaEncoder(ResidualEncoder):
    """Residual encoder in which each stage's map goes through Mamba before anything else sees it.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: of each stage, finest first.
        stages: kernel sizes and strides of each stage, as for :class:`.residual_unet.ResidualEncoder`.
        mamba: keyword arguments of :class:`.mamba.Mamba`.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: Sequence[int], *stages, **mamba) -> None:
        super().__init__(spatial_dims, in_channels, channels, *stages)
        self.mamba_layers = nn.ModuleList(MambaLayer(c, **mamba) for c in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (b, in_channels, ...) to the stages' maps, finest first."""
        x = self.stem.convs(x)
        maps = []
        for stage, mamba in zip(self.stages, self.mamba_layers):
            x = mamba(stage(x))
            maps.append(x)
        return maps


class _UMamba(AnySize, nn.Module):
    """What both networks share: the plan, any image size, and when the coarser heads are returned.

    Args: as those of :class:`UMambaBot`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
        roi_size: Sequence[int] | None = None,
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_size: int | Sequence[int | Sequence[int]] = 3,
        base_channels: int = 32,
        d_state: int = 16,
        deep_supervision: bool = True,
        scan_backend: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        counts = {"in_channels": in_channels, "out_channels": out_channels, "base_channels": base_channels}
        for name, value in {**counts, "d_state": d_state}.items():
            _require(name, value, _is_count(value), "a positive integer")
        _require("spatial_dims", spatial_dims, spatial_dims in (2, 3), "2 or 3")
        check_backend_name(scan_backend, "scan_backend")
        strides = _plan(roi_size, spatial_dims) if strides is None else _by_stage("strides", strides, spatial_dims)
        _require("strides", strides, len(strides) > 1 and max(strides[0]) == 1, "of two stages or more, the first 1")
        if isinstance(kernel_size, int):
            kernel_size = [kernel_size] * len(strides)
        kernel_sizes = _by_stage("kernel_size", kernel_size, spatial_dims)
        odd = all(side % 2 for sides in kernel_sizes for side in sides)
        _require("kernel_size", kernel_size, odd and len(kernel_sizes) == len(strides), "odd, and one for each stage")
        super().__init__()
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.deep_supervision = deep_supervision
        self.step = [torch.Size(axis).numel() for axis in zip(*strides)]  # pixels to one of the coarsest map
        self.channels = [min(base_channels * 2**i, MAX_CHANNELS[spatial_dims]) for i in range(len(strides))]
        self._graphs = CUDAGraphs() if cuda_graphs else None
        self._build(
            in_channels, out_channels, kernel_sizes, strides, {"d_state": d_state, "scan_backend": scan_backend}
        )
        self.apply(_init_conv)
        self.register_load_state_dict_pre_hook(_take_released_names)

    def _build(self, in_channels, out_channels, kernel_sizes, strides, mamba) -> None:
        """Make ``encoder`` and ``decoder``, in the release's order of parameters."""
        raise NotImplementedError

    def _maps(self, x: Tensor) -> list[Tensor]:
        """What the decoder gets, finest first."""
        raise NotImplementedError

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """Multiples of the strides, and two pixels at the bottleneck at least, as its instance norm needs."""
        padded = super().padded_size(size)
        if padded == self.step:
            padded[-1] *= 2
        return padded

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        return self.decoder(self._maps(x), all_heads=all_heads)


class UMambaBot(_UMamba):
    """U-Mamba_Bot, Mamba at the bottleneck: 63.3 M parameters and 45.7 GFLOPs at 1×320×320 and 14 classes.

    The number of stages and their strides are nnU-Net's plan for a size of crops, at isotropic pixels; give ``strides``
    and ``kernel_size`` for another plan (``pool_op_kernel_sizes`` and ``conv_kernel_sizes`` of nnU-Net's plans.json).

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: 2 or 3.
        roi_size: size of the crops that it is planned for; None for 320 × 320, or 128 × 128 × 128 in 3D. Not looked at
            where ``strides`` are given.
        strides: of each stage, along all axes or along each; the first is 1. None for those of the plan.
        kernel_size: odd, one for all stages, or of each stage, along all axes or along each.
        base_channels: of the first stage; doubled from stage to stage up to 512, in 3D 320.
        d_state: states of each scanned channel.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        cuda_graphs: on a GPU, replay recorded launches for shapes that come again; see :mod:`.cuda_graphs`.

    Raises:
        ValueError: an argument out of its range; the message names it.
    """

    def _build(self, in_channels, out_channels, kernel_sizes, strides, mamba) -> None:
        stages = (self.channels, kernel_sizes, strides)
        self.encoder = ResidualEncoder(self.spatial_dims, in_channels, *stages)
        self.ln = make_norm("layer", self.channels[-1])
        self.mamba = Mamba(self.channels[-1], **mamba)
        self.decoder = ResidualDecoder(self.spatial_dims, out_channels, *stages)

    def _maps(self, x: Tensor) -> list[Tensor]:
        *skips, bottleneck = self.encoder(x)
        return [*skips, _scan_map(self.ln, self.mamba, bottleneck)]


class UMambaEnc(_UMamba):
    """U-Mamba_Enc, Mamba behind each stage of the encoder: 67.3 M parameters and 51.5 GFLOPs at 1×320×320, 14 classes.

    The paper prints 49.9 GFLOPs, which leave the projections to Δ, B, C and out of Mamba aside. As released, each
    residual block begins as its residual connection alone: the gain of its last norm is 0.

    Args: as those of :class:`UMambaBot`.

    Raises:
        ValueError: an argument out of its range; the message names it.
    """

    def _build(self, in_channels, out_channels, kernel_sizes, strides, mamba) -> None:
        stages = (self.channels, kernel_sizes, strides)
        self.encoder = MambaEncoder(self.spatial_dims, in_channels, *stages, **mamba)
        self.decoder = ResidualDecoder(self.spatial_dims, out_channels, *stages)
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                nn.init.zeros_(block.conv2.norm.weight)

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self.encoder(x)


def _init_conv(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _plan(roi_size: Sequence[int] | None, spatial_dims: int) -> list[tuple[int, ...]]:
    """nnU-Net's strides for crops of a size: an axis with fewer poolings keeps its size in the last stages."""
    roi_size = ROI_SIZE[spatial_dims] if roi_size is None else roi_size
    valid = isinstance(roi_size, Sequence) and len(roi_size) == spatial_dims and all(map(_is_count, roi_size))
    _require("roi_size", roi_size, valid, f"{spatial_dims} positive integers")
    _, poolings = pad_for_pooling(roi_size)
    _require("roi_size", roi_size, poolings.any(), "large enough to be pooled, 12 pixels along a side")
    return [(1,) * spatial_dims, *(tuple(1 + int(i < n) for n in poolings) for i in range(max(poolings)))]


def _by_stage(name: str, value, spatial_dims: int) -> list[tuple[int, ...]]:
    """One tuple for each stage, of a number for each axis."""
    valid = isinstance(value, Sequence) and all(
        _is_count(stage) or (isinstance(stage, Sequence) and len(stage) == spatial_dims and all(map(_is_count, stage)))
        for stage in value
    )
    _require(name, value, valid, f"positive integers, for each stage one or {spatial_dims}")
    return [ensure_tuple_rep(stage, spatial_dims) for stage in value]


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(name: str, value, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")
