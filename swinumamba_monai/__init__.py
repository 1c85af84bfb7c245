# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Swin-UMamba for MONAI: Mamba-based segmentation networks, their training recipe and their bundles."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"prediction.predictor": ["Predictor"]})
