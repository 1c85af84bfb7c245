# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks as MONAI nets."""

from .baselines import UNETR, NNUNet, SegResNet, SwinUNETR
from .mamba import Mamba
from .nnformer import NNFormer
from .swin_umamba import SwinUMamba, SwinUMambaD
from .systems import SYSTEMS, System, build_network
from .umamba import UMambaBot, UMambaEnc
from .vmamba import VMambaClassifier, VMambaEncoder

__all__ = [
    "SYSTEMS",
    "Mamba",
    "NNFormer",
    "NNUNet",
    "SegResNet",
    "SwinUMamba",
    "SwinUMambaD",
    "SwinUNETR",
    "System",
    "UMambaBot",
    "UMambaEnc",
    "UNETR",
    "VMambaClassifier",
    "VMambaEncoder",
    "build_network",
]
