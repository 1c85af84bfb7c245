# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""VMamba: the encoder, foundation model of both Swin-UMamba networks, and the classifier that ImageNet trained.

Both are the paper's VMamba-Tiny where the defaults are kept; :mod:`.encoders` has the others by name.

Source: VMamba (arXiv 2401.10166, v1 of January and v3 of May 2024); Swin-UMamba (IEEE TMI 2024, section III-C).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
from monai.data import MetaTensor
from torch import Tensor

from swinumamba_monai.checks import require_counts

from .base import continued, drop_path_rates, next_multiple
from .mamba import MambaScan
from .norm import make_norm
from .vss import PatchEmbed, PatchMerging, VSSBlock, VSSStage
from .vss_later import ConvDownsample, ConvPatchEmbed, VSSMLPBlock


class Layers(NamedTuple):
    """The layers of one version of VMamba.

    Args:
        patch_embed: class of the patch embedding.
        block: class of the blocks.
        downsample: class of what halves the resolution between two stages.
    """

    patch_embed: Callable[..., nn.Module]
    block: Callable[..., nn.Module]
    downsample: Callable[..., nn.Module]


FIRST = Layers(PatchEmbed, VSSBlock, PatchMerging)  # which the paper took
LATER = Layers(ConvPatchEmbed, VSSMLPBlock, ConvDownsample)


class VMambaEncoder(nn.Module):
    """Patch embedding and stages of VSS blocks with half the resolution from one to the next; no norm after the last.

    Args:
        in_channels: number of channels of the image.
        depths: number of VSS blocks of each stage.
        feature_size: number of channels of the first stage; each further stage has twice those of the one before.
        patch_size: side of a patch in pixels.
        drop_path_rate: drop path rate of the last block; it grows linearly from 0 at the first.
        norm_name: key of :data:`.norm.NORMS`.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
        layers: :data:`FIRST` or :data:`LATER`.
        stage: further keyword arguments of :class:`.vss.VSSStage` and its blocks, such as ``d_state``.

    >>> encoder = VMambaEncoder(3, depths=(1, 1), feature_size=8, d_state=4)
    >>> [tuple(features.shape) for features in encoder(torch.zeros(1, 3, 32, 16))]
    [(1, 8, 4, 8), (1, 4, 2, 16)]
    """

    def __init__(
        self,
        in_channels: int,
        depths: Sequence[int] = (2, 2, 9, 2),
        feature_size: int = 96,
        patch_size: int = 4,
        drop_path_rate: float = 0.2,
        norm_name: str = "layer",
        scan_backend: str = "auto",
        layers: Layers = FIRST,
        **stage,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = patch_size * 2 ** (len(depths) - 1)  # pixels of the image to one of the last map
        self.channels = [feature_size * 2**i for i in range(len(depths))]
        norm = {"norm_name": norm_name, "scan_backend": scan_backend}
        self.patch_embed = layers.patch_embed(in_channels, feature_size, patch_size, **norm)
        rates = drop_path_rates(0, drop_path_rate, depths)
        self.layers = nn.ModuleList(
            VSSStage(c, of_stage, block=layers.block, **norm, **stage) for c, of_stage in zip(self.channels, rates)
        )
        self.downsamples = nn.ModuleList(layers.downsample(channels, **norm) for channels in self.channels[:-1])
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, MambaScan):  # which comes after its own linear layers
            module.reset_scan_parameters()

    def forward(self, x: Tensor) -> list[Tensor]:
        """The stages' maps of an image of any size, (b, in_channels, h, w): finest first, channels last.

        What is short of multiples of ``stride`` is continued at the ends by its last pixels.
        """
        size = [next_multiple(side, self.stride) for side in x.shape[2:]]
        # inside a network there is nothing to continue, and the gradient of that on a GPU would be summed in any order
        if torch.jit.is_tracing() or list(x.shape[2:]) != size:
            x = continued(x, size)
        return self.forward_stages(self.patch_embed(x))

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The stages' maps of embedded patches (b, h / p, w / p, feature_size), some of them replaced perhaps."""
        if isinstance(x, MetaTensor):  # the scan's kernels take plain tensors
            x = x.as_tensor()
        features = []
        for i, stage in enumerate(self.layers):
            if i > 0:
                x = self._downsample(i - 1)(x)
            x = stage(x)
            features.append(x)
        return features

    def _downsample(self, stage: int) -> nn.Module:
        """What halves the resolution after a stage."""
        return self.downsamples[stage]


class VMambaClassifier(VMambaEncoder):
    """VMamba with its classification head: 22,893,448 parameters in 212 tensors for the 1000 classes of ImageNet.

    The names are those of the checkpoints of December 2023 and February 2024: the patch merging after a stage belongs
    to it (``layers.N.downsample``). What :func:`swinumamba_monai.weight_files.read_checkpoint` reads from such a file
    holds the state dict under ``"model"``, and ``load_state_dict`` takes it strictly.

    Args:
        in_channels: number of channels of the image.
        num_classes: number of classes.
        encoder: further keyword arguments of :class:`VMambaEncoder`.

    Raises:
        ValueError: ``in_channels`` or ``num_classes`` is not a positive integer.

    >>> VMambaClassifier(3, 10, depths=(1, 1, 1, 1), feature_size=8)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 1000, **encoder) -> None:
        require_counts(in_channels=in_channels, num_classes=num_classes)
        super().__init__(in_channels, **encoder)
        mergings = self.downsamples
        del self.downsamples
        for stage, merging in zip(self.layers, mergings):
            stage.downsample = merging
        norm_name, scan_backend = encoder.get("norm_name", "layer"), encoder.get("scan_backend", "auto")
        self.norm = make_norm(norm_name, self.channels[-1], scan_backend)
        self.head = nn.Linear(self.channels[-1], num_classes)
        self._init_weights(self.head)

    def _downsample(self, stage: int) -> nn.Module:
        return self.layers[stage].downsample

    def _classify(self, coarsest: Tensor) -> Tensor:
        return self.head(self.norm(coarsest).mean(dim=(1, 2)))

    def features(self, x: Tensor) -> list[Tensor]:
        """The stages' maps, as :meth:`VMambaEncoder.forward` returns them."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, classes) of an image (b, in_channels, h, w), sides multiples of ``stride``; or a ValueError."""
        fits = x.ndim == 4 and x.shape[1] == self.in_channels and 0 not in x.shape
        if not fits or any(side % self.stride for side in x.shape[2:]):
            shape = f"(b, {self.in_channels}, h, w) with sides that divide by {self.stride}"
            raise ValueError(f"expected an input of shape {shape}, got {tuple(x.shape)}.")
        return self._classify(self.features(x)[-1])


class LaterVMambaClassifier(VMambaClassifier):
    """The classifier of VMamba's final version, whose norm and head have other names.

    ``load_state_dict`` takes linear layers as convolutions of one pixel too, (out, in, 1, 1), as some files have them.

    Args:
        in_channels: number of channels of the image.
        num_classes: number of classes.
        encoder: keyword arguments of :class:`VMambaEncoder` but ``layers``.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 1000, **encoder) -> None:
        super().__init__(in_channels, num_classes, layers=LATER, **encoder)
        self.classifier = nn.Sequential(OrderedDict(norm=self.norm, head=self.head))
        del self.norm, self.head
        self.register_load_state_dict_pre_hook(_flatten_pointwise)

    def _classify(self, coarsest: Tensor) -> Tensor:
        norm, head = self.classifier
        return head(norm(coarsest).mean(dim=(1, 2)))


def _flatten_pointwise(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name, own in module.state_dict(prefix=prefix).items():
        if name in state_dict:
            state_dict[name] = as_linear(state_dict[name], own)


def as_linear(weight: Tensor, own: Tensor) -> Tensor:
    """The weight of a convolution of one pixel, (out, in, 1, 1), as that of a linear layer where ``own`` is one."""
    return weight.flatten(1) if own.ndim == 2 and weight.shape[2:] == (1, 1) else weight


def find_encoder(network: nn.Module) -> VMambaEncoder | None:
    """The VMamba encoder of a network, which a foundation model or pretraining gives its weights; or None."""
    return getattr(network, "vssm_encoder", None)
