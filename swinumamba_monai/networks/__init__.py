# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks as MONAI nets."""

from .mamba import Mamba
from .swin_umamba import SwinUMamba, SwinUMambaD
from .umamba import UMambaBot, UMambaEnc
from .vmamba import VMambaEncoder

__all__ = ["Mamba", "SwinUMamba", "SwinUMambaD", "UMambaBot", "UMambaEnc", "VMambaEncoder"]
