# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The two networks of U-Mamba, small, what their tests ask of both, and what is given to other networks too."""

from __future__ import annotations

import pytest
import torch

from swinumamba_monai.networks import UMambaBot, UMambaEnc
from swinumamba_monai.networks.residual_unet import ResidualBlock

CLASSES = [UMambaBot, UMambaEnc]
NOT_COUNTS = (0, -1, 1.0, "1", None, True)
BOTH = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
TINY = {"base_channels": 4, "d_state": 4, "strides": (1, 2, 2), "scan_backend": "portable"}


def build(cls, seed=0, **changes):
    torch.manual_seed(seed)
    net = cls(1, 3, **{**TINY, **changes})
    for module in net.modules():
        if isinstance(module, ResidualBlock):  # U-Mamba_Enc's blocks begin as their skips, which hides mistakes
            torch.nn.init.ones_(module.conv2.norm.weight)
    return net


def image(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def released(state):
    """The same tensors under all the names that the released code has for them."""
    weights = {}
    for name, tensor in state.items():
        names = [name, name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")]
        if ".mamba_layers." in name:
            names = names[:1]
        for alias in dict.fromkeys(names):
            weights[alias] = tensor
            if alias.startswith("encoder."):
                weights["decoder." + alias] = tensor
    return weights
