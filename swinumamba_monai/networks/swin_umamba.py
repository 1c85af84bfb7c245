# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Swin-UMamba† (Mamba decoder) and Swin-UMamba (CNN decoder).

Source: Liu, Yang et al., "Swin-UMamba†: Adapting Mamba-based vision foundation models for medical image segmentation",
IEEE TMI 2024, sections III-C to III-E; structure, initialisation and parameter names agree with the code the authors
released in March 2024, so that checkpoints travel in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swinumamba_monai.checks import is_counts, require, require_counts, require_one_of, require_rate
from swinumamba_monai.ops.backends import BackendChoice, check_backend_name
from swinumamba_monai.ops.cuda.device import ALIGNED

from .base import BaseNetwork, drop_path_rates, init_conv
from .cuda_graphs import CUDAGraphs
from .encoders import RELEASED, encoder_options
from .mixers import MIXERS
from .norm import NORMS, InstanceNorm
from .unetr_blocks import Conv2d, SkipBlock, UpBlock, adopt_convolutions
from .vmamba import FIRST, VMambaEncoder
from .vss import PatchExpanding, VSSStage

# Number of parts of a batch whose finest logits a GPU computes one after another: the expanded map is the largest.
PARTS = 4
STRIDE = 32  # pixels of the image to a pixel of the coarsest map
# Number of pixels of the decoder's last map that are expanded at once on a CPU: the result stays in its cache.
CHUNK_PIXELS = 256


class MambaDecoder(nn.Module):
    """Decoder of Swin-UMamba†: patch expanding, skip connection, VSS blocks and a head at each scale (section III-D).

    Args:
        out_channels: number of classes, background included.
        channels: number of channels of the encoder's stages, finest first.
        depths: number of VSS blocks of each stage, coarsest first.
        drop_path_rate: drop path rate of the first block; it falls linearly to 0 at the last.
        norm_name: key of :data:`.norm.NORMS`.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        stage: further keyword arguments of :class:`.vss.VSSStage` and its blocks.
    """

    def __init__(
        self,
        out_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        drop_path_rate: float,
        norm_name: str,
        scan_backend: str,
        **stage,
    ) -> None:
        super().__init__()
        norm = {"norm_name": norm_name, "scan_backend": scan_backend}
        self.backend = BackendChoice(scan_backend)
        _, *skips = reversed(channels)
        rates = drop_path_rates(drop_path_rate, 0, depths)
        self.expand_layers = nn.ModuleList(PatchExpanding(2 * c, c, **norm) for c in skips)
        self.expand_layers.append(PatchExpanding(skips[-1], skips[-1], scale=4, **norm))
        self.concat_back_dim = nn.ModuleList(nn.Linear(2 * c, c) for c in skips)
        self.stages = nn.ModuleList(VSSStage(c, of_stage, **norm, **stage) for c, of_stage in zip(skips, rates))
        self.seg_layers = nn.ModuleList(nn.Conv2d(c, out_channels, kernel_size=1) for c in (*skips, skips[-1]))

    def forward(self, features: list[Tensor], all_heads: bool) -> list[Tensor]:
        """Logits (b, out_channels, ...) of the encoder's maps, finest first, channels last.

        They are at 1, 1/4, 1/8 and 1/16 of the image; the first alone unless ``all_heads``.
        """
        x, *skips = reversed(features)
        maps = []
        for expand, fuse, stage, skip in zip(self.expand_layers, self.concat_back_dim, self.stages, skips):
            x = expand(x)
            x = stage(fuse(self.backend.find(x).join(x, skip, -1)))
            maps.append(x)
        coarser = list(zip(self.seg_layers, maps))[::-1] if all_heads else []
        return [self._finest_logits(x), *(head(m.permute(0, 3, 1, 2)) for head, m in coarser)]

    def _finest_logits(self, x: Tensor) -> Tensor:
        """Expand the last map and apply its head, a 1×1 convolution, before pixels change places: classes are fewer."""
        expand, head = self.expand_layers[-1], self.seg_layers[-1]
        weight, bias = head.weight.flatten(1), head.bias
        if x.is_cuda:
            surplus = -head.out_channels % ALIGNED
            weight, bias = F.pad(weight, (0, 0, 0, surplus)), F.pad(bias, (0, surplus))

        def pixel_logits(x: Tensor) -> Tensor:  # (..., c) to (..., row, column, out_channels)
            logits = F.linear(expand.vectors(x), weight, bias)
            return logits[..., : head.out_channels] if x.is_cuda else logits

        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # the number of parts would be fixed
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not recorded:
            # by parts that stay in a cache, and whose memory is used again: this halves the time
            logits = torch.cat([pixel_logits(part) for part in x.flatten(0, 2).split(CHUNK_PIXELS)])
            logits = logits.unflatten(0, x.shape[:3])
        elif x.is_cuda and torch.is_grad_enabled() and not recorded:
            logits = compute_by_parts(pixel_logits, x)
        else:
            logits = pixel_logits(x)
        return expand.place(logits).permute(0, 3, 1, 2)


def compute_by_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, of parts of the batch one after another, and once more in the backward, for which none is kept.

    Args:
        function: function of (b, ...) of which each sample's result depends on that sample alone; nothing in it is
            random.
        x: its input.
    """
    # without random states to restore it can be recorded in a CUDA graph
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(function, part, **options) for part in x.tensor_split(min(PARTS, len(x)))])


class _SwinUMamba(BaseNetwork, nn.Module):
    """What both networks share: their arguments, which are those of :class:`SwinUMambaD`, and an encoder.

    Attributes:
        encoder_options: arguments of :class:`.vmamba.VMambaEncoder`, with the numbers for ``"released"``.
    """

    step = (STRIDE, STRIDE)

    def __init__(
        self, in_channels, out_channels, spatial_dims, use_checkpoint, scan_backend, cuda_graphs, encoder, **stages
    ) -> None:
        options = encoder_options(encoder, **stages)
        depths, feature_size, d_state = (options[name] for name in ("depths", "feature_size", "d_state"))
        require_counts(in_channels=in_channels, out_channels=out_channels, d_state=d_state, feature_size=feature_size)
        require("feature_size", feature_size, feature_size % 2 == 0, "even")
        require("spatial_dims", spatial_dims, spatial_dims == 2, "2, these networks scan 2D images")
        require("depths", depths, is_counts(depths, 4), "four positive integers, one for each stage of the encoder")
        require_rate("drop_path_rate", options["drop_path_rate"])
        check_backend_name(scan_backend, "scan_backend")
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.encoder_options = options
        # a recomputation restores the state of the random numbers, which cannot be recorded
        self._graphs = CUDAGraphs(training=not use_checkpoint) if cuda_graphs else None


class SwinUMambaD(_SwinUMamba):
    """Swin-UMamba†, the pure Mamba U-shape: 27.50 M parameters and 18.9 GFLOPs at 1×320×320 and 14 classes.

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        spatial_dims: number of axes of the image, 2.
        depths: number of VSS blocks of the encoder's four stages; ``"released"``, as for the encoder's other arguments,
            is what it was released with: 2, 2, 9, 2 for the paper's.
        decoder_depths: number of VSS blocks of the decoder's three stages, coarsest first.
        feature_size: number of channels of the first stage; 96 in the paper.
        d_state: number of states of each scanned channel; 16 in the paper.
        norm_name: ``"layer"`` (the paper's) or ``"rms"``.
        drop_path_rate: drop path rate of the encoder's last block, to which it grows from 0, and from which it falls
            back to 0 through the decoder; 0.2 in the paper.
        deep_supervision: whether all heads are returned in training mode; the parameters are the same either way.
        use_checkpoint: whether the backward computes the blocks again instead of keeping their activations.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`, for scans and layer norms.
        cuda_graphs: whether launches on a GPU are recorded and replayed; see :mod:`.cuda_graphs`.
        block_type: ``"VSS"``, or what the paper's Fig. 6 puts in its place: ``"Vim"``, ``"Mamba"``; ``"Conv"`` has no
            scan at all (see :mod:`.mixers`).
        encoder: one of VMamba's released encoders, a key of :data:`.encoders.ENCODERS`; the decoder is of the same
            blocks.

    Raises:
        ValueError: an argument out of its range; the message names it.

    >>> network = SwinUMambaD(1, 2, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1), feature_size=8)
    >>> [tuple(head.shape) for head in network(torch.zeros(1, 1, 32, 64))]
    [(1, 2, 32, 64), (1, 2, 8, 16), (1, 2, 4, 8), (1, 2, 2, 4)]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
        depths: Sequence[int] | str = RELEASED,
        decoder_depths: Sequence[int] = (2, 2, 2),
        feature_size: int | str = RELEASED,
        d_state: int | str = RELEASED,
        norm_name: str = "layer",
        drop_path_rate: float | str = RELEASED,
        deep_supervision: bool = True,
        use_checkpoint: bool = False,
        scan_backend: str = "auto",
        cuda_graphs: bool = True,
        block_type: str = "VSS",
        encoder: str = "vmamba_tiny_v0",
    ) -> None:
        super().__init__(
            in_channels, out_channels, spatial_dims, use_checkpoint, scan_backend, cuda_graphs, encoder,
            depths=depths, feature_size=feature_size, d_state=d_state, drop_path_rate=drop_path_rate,
        )  # fmt: skip
        options = self.encoder_options
        allowed = "three positive integers, coarsest first"
        require("decoder_depths", decoder_depths, is_counts(decoder_depths, 3), allowed)
        require_one_of("norm_name", norm_name, NORMS)
        require_one_of("block_type", block_type, MIXERS)
        first = options["layers"] is FIRST
        require("block_type", block_type, first or block_type == "VSS", f"VSS with the encoder {encoder}")
        common = {"norm_name": norm_name, "use_checkpoint": use_checkpoint, "scan_backend": scan_backend}
        if first:
            common["mixer"] = MIXERS[block_type]
        self.vssm_encoder = VMambaEncoder(in_channels, **options, **common)
        self.decoder = MambaDecoder(
            out_channels, self.vssm_encoder.channels, decoder_depths, options["drop_path_rate"], **common,
            block=options["layers"].block, d_state=options["d_state"], expand=options["expand"],
        )  # fmt: skip
        self.apply(init_conv)
        self.deep_supervision = deep_supervision

    def coarse_heads(self) -> Sequence[nn.Module]:
        return self.decoder.seg_layers[:-1]

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        """Logits at 1, 1/4, 1/8 and 1/16 of the image, or the first alone."""
        return self.decoder(self.vssm_encoder(x), all_heads)


class SwinUMamba(_SwinUMamba):
    """Swin-UMamba with the CNN decoder: 60 M parameters and 68.0 GFLOPs at 1×320×320 and 14 classes.

    With an encoder of VMamba's final version the stem stands in the place of the first of its patch embedding's two
    convolutions.

    Args:
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        feature_size: number of channels of the encoder's first stage, 96 in the paper; the stem before it has half of
            them.
        norm_name: norm of the convolution blocks, any that MONAI's ``get_norm_layer`` takes.
        drop_path_rate: drop path rate of the encoder's last block, to which it grows from 0; 0.2 in the paper.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`, for scans, layer and instance norms.
        spatial_dims, depths, d_state, deep_supervision, use_checkpoint, cuda_graphs, encoder: see :class:`SwinUMambaD`.

    Raises:
        ValueError: an argument out of its range; the message names it.

    >>> network = SwinUMamba(1, 2, depths=(1, 1, 1, 1), feature_size=8).eval()
    >>> network(torch.zeros(1, 1, 50, 37)).shape
    torch.Size([1, 2, 50, 37])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int = 2,
        depths: Sequence[int] | str = RELEASED,
        feature_size: int | str = RELEASED,
        d_state: int | str = RELEASED,
        norm_name: tuple | str = "instance",
        drop_path_rate: float | str = RELEASED,
        deep_supervision: bool = True,
        use_checkpoint: bool = False,
        scan_backend: str = "auto",
        cuda_graphs: bool = True,
        encoder: str = "vmamba_tiny_v0",
    ) -> None:
        super().__init__(
            in_channels, out_channels, spatial_dims, use_checkpoint, scan_backend, cuda_graphs, encoder,
            depths=depths, feature_size=feature_size, d_state=d_state, drop_path_rate=drop_path_rate,
        )  # fmt: skip
        options = self.encoder_options
        half = options["feature_size"] // 2
        try:
            get_norm_layer(norm_name, spatial_dims=2, channels=half)  # all widths are multiples of this
        except (KeyError, TypeError, ValueError) as error:
            allowed = "a norm that MONAI's get_norm_layer takes"
            raise ValueError(f"norm_name must be {allowed}, got {norm_name!r}.") from error
        self.stem = nn.Sequential(
            Conv2d(in_channels, half, kernel_size=7, stride=2, padding=3, scan_backend=scan_backend),
            InstanceNorm(half, affine=True, scan_backend=scan_backend),
        )
        blocks = {"scan_backend": scan_backend, "use_checkpoint": use_checkpoint}
        self.vssm_encoder = VMambaEncoder(half, patch_size=2, **options, **blocks)
        # Names count from the image (1) to the coarsest skip (5), as in MONAI's UNETR.
        c1, (c2, c3, c4, c5) = half, self.vssm_encoder.channels

        norms = {"norm_name": norm_name, "scan_backend": scan_backend}
        self.encoder1 = SkipBlock(in_channels, c1, **norms)
        self.encoder2 = SkipBlock(half, c2, **norms)
        self.encoder3 = SkipBlock(c2, c3, **norms)
        self.encoder4 = SkipBlock(c3, c4, **norms)
        self.encoder5 = SkipBlock(c4, c5, **norms)
        self.decoder6 = UpBlock(c5, c5, **norms)
        self.decoder5 = UpBlock(c5, c4, **norms)
        self.decoder4 = UpBlock(c4, c3, **norms)
        self.decoder3 = UpBlock(c3, c2, **norms)
        self.decoder2 = UpBlock(c2, c1, **norms)
        self.decoder1 = SkipBlock(c1, c1, **norms)
        self.out_layers = nn.ModuleList(UnetOutBlock(2, c, out_channels) for c in (c1, c2, c3, c4))
        adopt_convolutions(self.out_layers, scan_backend)
        self.deep_supervision = deep_supervision

    def coarse_heads(self) -> Sequence[nn.Module]:
        return self.out_layers[1:]

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
