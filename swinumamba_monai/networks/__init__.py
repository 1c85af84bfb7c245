# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks as MONAI nets."""

from .baselines import UNETR, NNUNet, SegResNet, SwinUNETR
from .swin_umamba import SwinUMamba, SwinUMambaD
from .systems import SYSTEMS, System, build_network
from .vmamba import VMambaEncoder

__all__ = [
    "SYSTEMS",
    "NNUNet",
    "SegResNet",
    "SwinUMamba",
    "SwinUMambaD",
    "SwinUNETR",
    "System",
    "UNETR",
    "VMambaEncoder",
    "build_network",
]
