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

import math
import re
from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.utils import ensure_tuple_rep
from torch import Tensor

from swinumamba_monai.checks import is_count, is_counts, require, require_counts
from swinumamba_monai.nnunet_pooling import plan_strides
from swinumamba_monai.ops.backends import check_backend_name

from .base import BaseNetwork, init_conv
from .cuda_graphs import CUDAGraphs
from .mamba import Mamba
from .norm import make_norm
from .residual_unet import ResidualBlock, ResidualDecoder, ResidualEncoder, Stages

# nnU-Net's, by spatial_dims: the channels at which doubling ends, and a size of crops whose plan is the default
CHANNEL_LIMITS = {2: 512, 3: 320}
ROI_SIZE = {2: (320, 320), 3: (128, 128, 128)}


def first_name(name: str) -> str:
    """The name that a tensor of a released U-Mamba checkpoint has here.

    The decoder of the release also holds the encoder, and each convolution block holds its layers a second time, in a
    sequence.

    >>> first_name("decoder.encoder.stem.convs.0.all_modules.0.weight")
    'encoder.stem.convs.0.conv.weight'
    """
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    return re.sub(r"\.all_modules\.([01])\.", lambda place: (".conv.", ".norm.")[int(place[1])], name)


def _take_released_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        first = prefix + first_name(name[len(prefix) :])
        if first != name:
            state_dict.setdefault(first, state_dict.pop(name))


class MambaLayer(nn.Module):
    """LayerNorm and Mamba over the pixels of a map in row-major order: (b, channels, ...) to the same shape.

    Args:
        channels: number of channels of the map.
        d_state: number of states of each scanned channel.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.

    >>> MambaLayer(8, d_state=4, scan_backend="auto")(torch.zeros(2, 8, 5, 3)).shape
    torch.Size([2, 8, 5, 3])
    """

    def __init__(self, channels: int, d_state: int, scan_backend: str) -> None:
        super().__init__()
        self.norm = make_norm("layer", channels, scan_backend)
        self.mamba = Mamba(channels, d_state, scan_backend=scan_backend)

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
        spatial_dims: number of axes of the image, 2 or 3.
        in_channels: number of channels of the image.
        stages: channels, kernels and strides of the stages.
        mamba: ``d_state`` and ``scan_backend`` of every :class:`MambaLayer`.

    >>> stages = Stages(channels=(4, 8), kernel_sizes=[(3, 3)] * 2, strides=[(1, 1), (2, 2)])
    >>> encoder = MambaEncoder(2, 1, stages, d_state=4, scan_backend="auto")
    >>> [tuple(features.shape) for features in encoder(torch.zeros(1, 1, 16, 12))]
    [(1, 4, 16, 12), (1, 8, 8, 6)]
    """

    def __init__(self, spatial_dims: int, in_channels: int, stages: Stages, **mamba) -> None:
        super().__init__(spatial_dims, in_channels, stages)
        self.mamba_layers = nn.ModuleList(MambaLayer(channels, **mamba) for channels in stages.channels)

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        return self.mamba_layers[i](self.stages[i](x))


class _UMamba(BaseNetwork, nn.Module):
    """What both networks share: the plan, any image size, and when the coarser heads are returned.

    Args: as those of :class:`UMambaBot`.
    """

    two_pixels = True

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
        require_counts(in_channels=in_channels, out_channels=out_channels, base_channels=base_channels, d_state=d_state)
        require("spatial_dims", spatial_dims, spatial_dims in (2, 3), "2 or 3")
        check_backend_name(scan_backend, "scan_backend")
        strides = _plan(roi_size, spatial_dims) if strides is None else _by_stage("strides", strides, spatial_dims)
        require("strides", strides, len(strides) > 1 and max(strides[0]) == 1, "of two stages or more, the first 1")
        if isinstance(kernel_size, int):
            kernel_size = [kernel_size] * len(strides)
        kernel_sizes = _by_stage("kernel_size", kernel_size, spatial_dims)
        odd = all(side % 2 for sides in kernel_sizes for side in sides)
        require("kernel_size", kernel_size, odd and len(kernel_sizes) == len(strides), "odd, and one for each stage")
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.spatial_dims = spatial_dims
        self.step = [math.prod(axis) for axis in zip(*strides)]  # pixels to one of the coarsest map
        self.channels = [min(base_channels * 2**i, CHANNEL_LIMITS[spatial_dims]) for i in range(len(strides))]
        stages = Stages(self.channels, kernel_sizes, strides)
        self._graphs = CUDAGraphs() if cuda_graphs else None
        self._build_encoder(stages, {"d_state": d_state, "scan_backend": scan_backend})
        self.decoder = ResidualDecoder(spatial_dims, out_channels, stages)
        self.deep_supervision = deep_supervision
        self._init_weights()
        self.register_load_state_dict_pre_hook(_take_released_names)

    def coarse_heads(self) -> Sequence[nn.Module]:
        return self.decoder.seg_layers[:-1]

    def _build_encoder(self, stages: Stages, mamba: dict) -> None:
        """Make what comes before the decoder, in the release's order of parameters."""
        raise NotImplementedError

    def _init_weights(self) -> None:
        self.apply(init_conv)

    def _maps(self, x: Tensor) -> list[Tensor]:
        """What the decoder gets, finest first."""
        return self.encoder(x)

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        return self.decoder(self._maps(x), all_heads=all_heads)


class UMambaBot(_UMamba):
    """U-Mamba_Bot, Mamba at the bottleneck: 63.3 M parameters and 45.7 GFLOPs at 1×320×320 and 14 classes.

    The number of stages and their strides are nnU-Net's plan for a size of crops, at isotropic pixels; give ``strides``
    and ``kernel_size`` for another plan (``pool_op_kernel_sizes`` and ``conv_kernel_sizes`` of nnU-Net's plans.json).

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: number of axes of the image, 2 or 3.
        roi_size: size of the crops that it is planned for; None for 320 × 320, or 128 × 128 × 128 in 3D. Not looked at
            where ``strides`` are given.
        strides: stride of each stage, along all axes or along each; the first is 1. None for those of the plan.
        kernel_size: odd side of the kernels, one for all stages, or of each stage, along all axes or along each.
        base_channels: number of channels of the first stage; doubled from stage to stage up to 512, in 3D 320.
        d_state: number of states of each scanned channel.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        cuda_graphs: whether launches on a GPU are recorded and replayed; see :mod:`.cuda_graphs`.

    Raises:
        ValueError: an argument out of its range; the message names it.

    >>> UMambaBot(1, 2, roi_size=(32, 32), base_channels=4).eval()(torch.zeros(1, 1, 40, 33)).shape
    torch.Size([1, 2, 40, 33])
    """

    def _build_encoder(self, stages: Stages, mamba: dict) -> None:
        self.encoder = ResidualEncoder(self.spatial_dims, self.in_channels, stages)
        self.ln = make_norm("layer", stages.channels[-1], mamba["scan_backend"])
        self.mamba = Mamba(stages.channels[-1], **mamba)

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

    >>> network = UMambaEnc(1, 2, roi_size=(32, 32), base_channels=4)
    >>> [tuple(head.shape) for head in network(torch.zeros(1, 1, 32, 48))]
    [(1, 2, 32, 48), (1, 2, 16, 24), (1, 2, 8, 12)]
    """

    def _build_encoder(self, stages: Stages, mamba: dict) -> None:
        self.encoder = MambaEncoder(self.spatial_dims, self.in_channels, stages, **mamba)

    def _init_weights(self) -> None:
        super()._init_weights()
        for block in self.modules():
            if isinstance(block, ResidualBlock):
                nn.init.zeros_(block.conv2.norm.weight)


def _plan(roi_size: Sequence[int] | None, spatial_dims: int) -> list[tuple[int, ...]]:
    """nnU-Net's strides for crops of a size."""
    roi_size = ROI_SIZE[spatial_dims] if roi_size is None else roi_size
    require("roi_size", roi_size, is_counts(roi_size, spatial_dims), f"{spatial_dims} positive integers")
    strides = plan_strides(roi_size)
    require("roi_size", roi_size, len(strides) > 1, "large enough to be pooled, 12 pixels along a side")
    return strides


def _by_stage(name: str, value, spatial_dims: int) -> list[tuple[int, ...]]:
    """One tuple for each stage, of a number for each axis."""
    valid = isinstance(value, Sequence) and all(is_count(stage) or is_counts(stage, spatial_dims) for stage in value)
    require(name, value, valid, f"positive integers, for each stage one or {spatial_dims}")
    return [ensure_tuple_rep(stage, spatial_dims) for stage in value]
