# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks as MONAI nets."""

from .nnformer import NNFormer
from .swin_umamba import SwinUMamba, SwinUMambaD
from .vmamba import VMambaClassifier, VMambaEncoder

__all__ = ["NNFormer", "SwinUMamba", "SwinUMambaD", "VMambaClassifier", "VMambaEncoder"]
