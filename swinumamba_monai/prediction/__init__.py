# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle's answer on images: on one, in memory, and on many, in files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    "swinumamba_monai",
    submod_attrs={
        "prediction.folder": ["predict_images"],
        "prediction.location": ["find_bundle"],
        "prediction.objects": ["object_table"],
        "prediction.predictor": ["Prediction", "Predictor"],
        "prediction.result_files": ["FORMATS"],
        "prediction.rois": ["write_rois"],
    },
)
