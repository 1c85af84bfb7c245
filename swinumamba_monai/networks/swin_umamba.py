# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Swin-UMamba† (Mamba decoder) and Swin-UMamba (CNN decoder).

Source: Liu, Yang et al., "Swin-UMamba†: Adapting Mamba-based vision foundation models for medical image segmentation",
IEEE TMI 2024, sections III-C to III-E; structure, initialisation and parameter names agree with the code the authors
released in March 2024, so that checkpoints travel in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor

from swinumamba_monai.ops.dispatch import check_backend_name

from .any_size import AnySize
from .blocks import MIXERS
from .cuda_graphs import CUDAGraphs
from .vmamba import VMambaEncoder
from .vss import NORMS, PatchExpanding, VSSStage

__all__ = ["SwinUMambaD", "SwinUMamba"]

STRIDE = 32  # pixels of the image to a pixel of the coarsest map
PIXELS = 1024  # of the finest map, expanded at a time for inference on a CPU


class MambaDecoder(nn.Module):
    """Decoder of Swin-UMamba†: patch expanding, skip connection, VSS blocks and a head at each scale (section III-D).

    Args:
        out_channels: number of classes.
        channels: the encoder's channels, finest first.
        depths: VSS blocks of each stage, coarsest first.
        drop_path_rate: drop path of the first block; it falls linearly to 0 at the last.
        norm_name: key of :data:`.vss.NORMS`.
        use_checkpoint: recompute blocks in the backward instead of keeping their activations.
        block: further keyword arguments of :class:`.vss.VSSBlock`.
    """

    def __init__(
        self,
        out_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        drop_path_rate: float,
        norm_name: str,
        use_checkpoint: bool,
        **block,
    ) -> None:
        super().__init__()
        _, *skips = reversed(channels)
        rates = torch.linspace(drop_path_rate, 0, sum(depths), device="cpu").split(list(depths))
        self.expand_layers = nn.ModuleList(PatchExpanding(2 * c, c, norm_name=norm_name) for c in skips)
        self.expand_layers.append(PatchExpanding(skips[-1], skips[-1], scale=4, norm_name=norm_name))
        self.concat_back_dim = nn.ModuleList(nn.Linear(2 * c, c) for c in skips)
        self.stages = nn.ModuleList(
            VSSStage(c, stage_rates.tolist(), use_checkpoint, norm_name=norm_name, **block)
            for c, stage_rates in zip(skips, rates)
        )
        self.seg_layers = nn.ModuleList(nn.Conv2d(c, out_channels, kernel_size=1) for c in (*skips, skips[-1]))

    def forward(self, features: list[Tensor], all_heads: bool) -> list[Tensor]:
        """
        Args:
            features: the encoder's maps, finest first, channels last.
            all_heads: whether the coarser heads are wanted too.

        Returns:
            logits (b, out_channels, ...), finest first: at 1, 1/4, 1/8 and 1/16 of the image, or the first alone.
        """
        x, *skips = reversed(features)
        maps = []
        for expand, fuse, stage, skip in zip(self.expand_layers, self.concat_back_dim, self.stages, skips):
            x = stage(fuse(torch.cat([expand(x), skip], dim=-1)))
            maps.append(x)
        coarser = list(zip(self.seg_layers, maps))[::-1] if all_heads else []
        return [self._finest_logits(x), *(head(m.permute(0, 3, 1, 2)) for head, m in coarser)]

    def _finest_logits(self, x: Tensor) -> Tensor:
        """Expand the last map and apply its head, a 1×1 convolution, before pixels change places: classes are fewer."""
        expand, head = self.expand_layers[-1], self.seg_layers[-1]

        def pixel_logits(x: Tensor) -> Tensor:  # (..., c) to (..., row, column, out_channels)
            return F.linear(expand.vectors(x), head.weight.flatten(1), head.bias)

        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # the number of parts would be fixed
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not recorded:
            # by parts that stay in a cache, and whose memory is used again: this halves the time
            logits = torch.cat([pixel_logits(part) for part in x.flatten(0, 2).split(PIXELS)])
            logits = logits.unflatten(0, x.shape[:3])
        else:
            logits = pixel_logits(x)
        return expand.place(logits).permute(0, 3, 1, 2)


class _SwinUMambaBase(AnySize, nn.Module):
    """What both networks share: checked arguments, and sides that are multiples of 32 inside."""

    step = (STRIDE, STRIDE)

    def __init__(self, deep_supervision: bool, cuda_graphs: bool, use_checkpoint: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        # a recomputation restores the state of the random numbers, which cannot be recorded
        self._graphs = CUDAGraphs(training=not use_checkpoint) if cuda_graphs else None

    @staticmethod
    def check_arguments(**arguments) -> None:
        """Raise a ``ValueError`` that names the argument and what is allowed, for the arguments both networks have."""

        def require(name: str, ok: bool, allowed: str) -> None:
            if not ok:
                raise ValueError(f"{name} must be {allowed}, got {arguments[name]!r}.")

        def positive(value) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value > 0

        def positives(value, length: int) -> bool:
            return isinstance(value, Sequence) and len(value) == length and all(map(positive, value))

        for name in ("in_channels", "out_channels", "d_state"):
            require(name, positive(arguments[name]), "a positive integer")
        require("feature_size", positive(arguments["feature_size"]), "a positive integer")
        require("feature_size", arguments["feature_size"] % 2 == 0, "even")
        require("spatial_dims", arguments["spatial_dims"] == 2, "2, these networks scan 2D images")
        require(
            "depths", positives(arguments["depths"], 4), "four positive integers, one for each stage of the encoder"
        )
        if "decoder_depths" in arguments:
            require(
                "decoder_depths", positives(arguments["decoder_depths"], 3), "three positive integers, coarsest first"
            )
        rate = arguments["drop_path_rate"]
        require("drop_path_rate", isinstance(rate, (int, float)) and 0 <= rate < 1, "a number in [0, 1)")
        check_backend_name(arguments["scan_backend"], "scan_backend")


class SwinUMambaD(_SwinUMambaBase):
    """Swin-UMamba†, the pure Mamba U-shape: 27.50 M parameters and 18.9 GFLOPs at 1×320×320 and 14 classes.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: 2.
        depths: VSS blocks of the encoder's four stages.
        decoder_depths: VSS blocks of the decoder's three stages, coarsest first.
        feature_size: channels of the first stage.
        d_state: states of each scanned channel.
        norm_name: ``"layer"`` (the paper's) or ``"rms"``.
        block_type: ``"VSS"``, or what the paper's Fig. 6 puts in its place: ``"Vim"``, ``"Mamba"``; ``"Conv"`` has no
            scan at all (see :mod:`.blocks`).
        drop_path_rate: grows from 0 to this through the encoder, and falls back to 0 through the decoder.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.
        use_checkpoint: recompute blocks in the backward instead of keeping their activations.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        cuda_graphs: on a GPU, replay recorded launches for shapes that come again; see :mod:`.cuda_graphs`.

    Raises:
        ValueError: an argument out of its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
        depths: Sequence[int] = (2, 2, 9, 2),
        decoder_depths: Sequence[int] = (2, 2, 2),
        feature_size: int = 96,
        d_state: int = 16,
        norm_name: str = "layer",
        drop_path_rate: float = 0.2,
        deep_supervision: bool = True,
        use_checkpoint: bool = False,
        scan_backend: str = "auto",
        cuda_graphs: bool = True,
        block_type: str = "VSS",
    ) -> None:
        self.check_arguments(
            in_channels=in_channels,
            out_channels=out_channels,
            spatial_dims=spatial_dims,
            depths=depths,
            decoder_depths=decoder_depths,
            feature_size=feature_size,
            d_state=d_state,
            drop_path_rate=drop_path_rate,
            scan_backend=scan_backend,
        )
        if norm_name not in list(NORMS):
            raise ValueError(f"norm_name must be one of {', '.join(NORMS)}, got {norm_name!r}.")
        if block_type not in list(MIXERS):
            raise ValueError(f"block_type must be one of {', '.join(MIXERS)}, got {block_type!r}.")
        super().__init__(deep_supervision, cuda_graphs, use_checkpoint)
        self.in_channels = in_channels
        common = {
            "d_state": d_state,
            "norm_name": norm_name,
            "use_checkpoint": use_checkpoint,
            "scan_backend": scan_backend,
            "mixer": MIXERS[block_type],
        }
        self.vssm_encoder = VMambaEncoder(in_channels, depths, feature_size, drop_path_rate=drop_path_rate, **common)
        self.decoder = MambaDecoder(
            out_channels, self.vssm_encoder.channels, decoder_depths, drop_path_rate=drop_path_rate, **common
        )
        self.apply(self._init_conv)

    @staticmethod
    def _init_conv(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=1e-2)
            nn.init.zeros_(module.bias)

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        """Logits at 1, 1/4, 1/8 and 1/16 of the image, or the first alone."""
        return self.decoder(self.vssm_encoder(x), all_heads)


class SwinUMamba(_SwinUMambaBase):
    """Swin-UMamba with the CNN decoder: 60 M parameters and 68.0 GFLOPs at 1×320×320 and 14 classes.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: 2.
        depths: VSS blocks of the encoder's four stages.
        feature_size: channels of the first VSS stage; the stem has half of them.
        d_state: states of each scanned channel.
        norm_name: normalisation of the convolution blocks, any that MONAI's ``get_norm_layer`` takes.
        drop_path_rate: grows from 0 to this through the encoder.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.
        use_checkpoint: recompute VSS blocks in the backward instead of keeping their activations.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        cuda_graphs: on a GPU, replay recorded launches for shapes that come again; see :mod:`.cuda_graphs`.

    Raises:
        ValueError: an argument out of its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
        depths: Sequence[int] = (2, 2, 9, 2),
        feature_size: int = 96,
        d_state: int = 16,
        norm_name: tuple | str = "instance",
        drop_path_rate: float = 0.2,
        deep_supervision: bool = True,
        use_checkpoint: bool = False,
        scan_backend: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        self.check_arguments(
            in_channels=in_channels,
            out_channels=out_channels,
            spatial_dims=spatial_dims,
            depths=depths,
            feature_size=feature_size,
            d_state=d_state,
            drop_path_rate=drop_path_rate,
            scan_backend=scan_backend,
        )
        try:
            get_norm_layer(norm_name, spatial_dims=2, channels=feature_size // 2)  # all widths are multiples of this
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"norm_name must be a norm that MONAI's get_norm_layer takes, got {norm_name!r}."
            ) from error
        super().__init__(deep_supervision, cuda_graphs, use_checkpoint)
        self.in_channels = in_channels
        half = feature_size // 2
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, half, kernel_size=7, stride=2, padding=3),
            nn.InstanceNorm2d(half, eps=1e-5, affine=True),
        )
        self.vssm_encoder = VMambaEncoder(
            half,
            depths,
            feature_size,
            patch_size=2,
            d_state=d_state,
            drop_path_rate=drop_path_rate,
            use_checkpoint=use_checkpoint,
            scan_backend=scan_backend,
        )
        # Names count from the image (1) to the coarsest skip (5), as in MONAI's UNETR.
        c1, (c2, c3, c4, c5) = half, self.vssm_encoder.channels
        self.encoder1 = self._skip_block(in_channels, c1, norm_name)
        self.encoder2 = self._skip_block(half, c2, norm_name)
        self.encoder3 = self._skip_block(c2, c3, norm_name)
        self.encoder4 = self._skip_block(c3, c4, norm_name)
        self.encoder5 = self._skip_block(c4, c5, norm_name)
        self.decoder6 = self._up_block(c5, c5, norm_name)
        self.decoder5 = self._up_block(c5, c4, norm_name)
        self.decoder4 = self._up_block(c4, c3, norm_name)
        self.decoder3 = self._up_block(c3, c2, norm_name)
        self.decoder2 = self._up_block(c2, c1, norm_name)
        self.decoder1 = self._skip_block(c1, c1, norm_name)
        self.out_layers = nn.ModuleList(UnetOutBlock(2, c, out_channels) for c in (c1, c2, c3, c4))

    @staticmethod
    def _skip_block(in_channels: int, out_channels: int, norm_name: tuple | str) -> UnetrBasicBlock:
        return UnetrBasicBlock(2, in_channels, out_channels, 3, stride=1, norm_name=norm_name, res_block=True)

    @staticmethod
    def _up_block(in_channels: int, out_channels: int, norm_name: tuple | str) -> UnetrUpBlock:
        return UnetrUpBlock(
            2, in_channels, out_channels, 3, upsample_kernel_size=2, norm_name=norm_name, res_block=True
        )

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        """Logits at 1, 1/2, 1/4 and 1/8 of the image, or the first alone (section III-E, eqs. (8)-(10))."""
        stem = self.stem(x)
        maps = [m.permute(0, 3, 1, 2) for m in self.vssm_encoder(stem)]
        y = self.decoder6(maps[3], self.encoder5(maps[2]))
        y8 = self.decoder5(y, self.encoder4(maps[1]))
        y4 = self.decoder4(y8, self.encoder3(maps[0]))
        y2 = self.decoder3(y4, self.encoder2(stem))
        y1 = self.decoder1(self.decoder2(y2, self.encoder1(x)))
        levels = [y1, y2, y4, y8] if all_heads else [y1]
        return [head(level) for head, level in zip(self.out_layers, levels)]
