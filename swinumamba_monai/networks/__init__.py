# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks as MONAI nets; a name is imported when it is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "baselines": ["NNUNet", "SegResNet", "SwinUNETR", "UNETR"],
        "encoders": ["ENCODERS", "build_vmamba"],
        "mamba": ["Mamba"],
        "nnformer": ["NNFormer"],
        "swin_umamba": ["SwinUMamba", "SwinUMambaD"],
        "systems": ["SYSTEMS", "System", "build_network"],
        "umamba": ["UMambaBot", "UMambaEnc"],
        "vmamba": ["VMambaClassifier", "VMambaEncoder", "find_encoder"],
    },
)
