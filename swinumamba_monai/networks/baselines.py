# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's CNN and transformer baselines: MONAI's networks in the configurations of its Tables I–III.

The configurations are those of U-Mamba's trainers (Ma et al., arXiv 2401.04722), from which the paper took its numbers:
they give the parameters and FLOPs that it prints. Parameter names are MONAI's. Unlike MONAI's own classes these take an
image of any size: it is continued to the right and below by its last pixels, and the logits are cut back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks import nets
from torch import Tensor, nn, zeros

from swinumamba_monai.nnunet_pooling import plan_strides

from .base import BaseNetwork


class _PlannedUNet(nets.DynUNet):
    """DynUNet whose heads keep their own resolutions, and which holds each of its layers once."""

    def __init__(self, **options) -> None:
        super().__init__(deep_supervision=True, **options)  # so that the heads are there
        del self.skip_layers  # the same layers again, for the recursion of MONAI's forward

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = [self.input_block(x)]
        for down in self.downsamples:
            skips.append(down(skips[-1]))
        maps = [self.bottleneck(skips[-1])]
        for up, skip in zip(self.upsamples, reversed(skips)):
            maps.append(up(maps[-1], skip))
        logits = self.output_block(maps[-1])
        if not self.all_heads:
            return logits
        return [logits, *(head(m) for head, m in zip(self.deep_supervision_heads, maps[-2::-1]))]


class NNUNet(BaseNetwork, _PlannedUNet):
    """The 2D network that nnU-Net plans for a crop: 33.5 M parameters and 23.3 GFLOPs at 1×320×320 and 14 classes.

    Two convolutions a stage, min(512, 32 · 2^i) channels, affine instance norm. The number of stages follows from
    ``roi_size`` by nnU-Net's own rule (:func:`swinumamba_monai.nnunet_pooling.plan_strides`): seven for 320 × 320 and
    384 × 640, eight for 512 × 512. There is a head at every resolution of the decoder, and as in nnU-Net each keeps
    its resolution: MONAI's DynUNet would raise all to the full one, at a cost in time and memory.

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        roi_size: size (h, w) of the crops that it is planned for.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.
        base_channels: number of channels of the first stage, doubled at each further one up to sixteen times as many.
        conv_bias: whether all convolutions have biases, as in nnU-Net's own code. MONAI has them in the heads alone:
            before an instance norm they change nothing.

    Raises:
        ValueError: a ``roi_size`` too small to be pooled twice.

    >>> NNUNet(1, 2, roi_size=(32, 32), base_channels=4).eval()(torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 2, 32, 32])
    """

    two_pixels = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        roi_size: Sequence[int],
        deep_supervision: bool = True,
        base_channels: int = 32,
        conv_bias: bool = False,
    ) -> None:
        strides = plan_strides(roi_size)
        stages, dims = len(strides), len(roi_size)
        if stages < 3:
            raise ValueError(f"roi_size must have a side of at least 16 pixels for nnU-Net, got {tuple(roi_size)}.")
        super().__init__(
            spatial_dims=dims,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=[[3] * dims] * stages,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(2**i, 16) * base_channels for i in range(stages)],
            deep_supr_num=stages - 2,
        )
        self.deep_supervision = deep_supervision
        self.step = [math.prod(axis) for axis in zip(*strides)]
        if conv_bias:
            for module in self.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is None:
                    module.bias = nn.Parameter(zeros(module.out_channels, device=module.weight.device))

    def coarse_heads(self) -> Sequence[nn.Module]:
        return getattr(self, "deep_supervision_heads", [])  # not there yet when MONAI's class sets deep_supervision


class SegResNet(BaseNetwork, nets.SegResNet):
    """SegResNet with 32 initial filters and 1, 2, 2, 4 blocks: 6.3 M parameters and 24.5 GFLOPs at 1×320×320.

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        init_filters: number of channels of the first stage.
        options: further keyword arguments of :class:`monai.networks.nets.SegResNet`.

    >>> SegResNet(1, 2, init_filters=8).eval()(torch.zeros(1, 1, 20, 33)).shape
    torch.Size([1, 2, 20, 33])
    """

    def __init__(self, in_channels: int, out_channels: int, init_filters: int = 32, **options) -> None:
        options = {"blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1), **options}
        super().__init__(
            spatial_dims=2, in_channels=in_channels, out_channels=out_channels, init_filters=init_filters, **options
        )
        self.step = [2 ** (len(options["blocks_down"]) - 1)] * 2


class UNETR(BaseNetwork, nets.UNETR):
    """UNETR with a ViT-Base encoder: 87.4 M parameters and 42.1 GFLOPs at 1×320×320 and 14 classes.

    Its position embedding belongs to one size: smaller images are padded to that, larger ones need a sliding window.

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        roi_size: size (h, w) of the crops, multiples of 16.
        options: further keyword arguments of :class:`monai.networks.nets.UNETR`, in place of the paper's.

    Raises:
        ValueError: a ``roi_size`` that patches of 16 pixels don't fill.

    >>> small = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2}
    >>> UNETR(1, 2, roi_size=(32, 48), **small).eval()(torch.zeros(1, 1, 20, 33)).shape
    torch.Size([1, 2, 20, 33])
    """

    def __init__(self, in_channels: int, out_channels: int, roi_size: Sequence[int], **options) -> None:
        if any(side % 16 or side <= 0 for side in roi_size):
            raise ValueError(f"roi_size must consist of multiples of 16 for UNETR, got {tuple(roi_size)}.")
        paper = {"feature_size": 16, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12, "proj_type": "conv"}
        super().__init__(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=tuple(roi_size),
            **{**paper, **options},
        )
        self.in_channels = in_channels
        self.roi_size = self.step = list(roi_size)
        for name, parameter in self.named_parameters():
            if "norm_cross_attn" in name:  # which MONAI's blocks have and never call
                parameter.requires_grad_(False)

    def padded_size(self, size: Sequence[int]) -> list[int]:
        if any(side > limit for side, limit in zip(size, self.roi_size)):
            limit, given = ("×".join(map(str, sides)) for sides in (self.roi_size, size))
            raise ValueError(f"this UNETR takes images up to {limit}, got {given}; use a sliding window.")
        return self.roi_size


class SwinUNETR(BaseNetwork, nets.SwinUNETR):
    """SwinUNETR with 48 features and 2, 2, 2, 2 blocks: 25.1 M parameters and 27.9 GFLOPs at 1×320×320.

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        feature_size: number of channels of the first stage, a multiple of 12.
        options: further keyword arguments of :class:`monai.networks.nets.SwinUNETR`.

    >>> SwinUNETR(1, 2, feature_size=12).eval()(torch.zeros(1, 1, 40, 33)).shape
    torch.Size([1, 2, 40, 33])
    """

    step = (32, 32)

    def __init__(self, in_channels: int, out_channels: int, feature_size: int = 48, **options) -> None:
        options = {"depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24), **options}
        super().__init__(
            spatial_dims=2, in_channels=in_channels, out_channels=out_channels, feature_size=feature_size, **options
        )
        self.in_channels = in_channels
