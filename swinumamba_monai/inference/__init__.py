# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Around and after the network: ensembles and mirroring, the image's own grid, cells, uncertainty, and writing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    "swinumamba_monai",
    submod_attrs={
        "cells": ["ClassesToInstancesd", "cell_scores", "class_map", "classes_to_instances"],
        "inference.blocks": ["BlockInference"],
        "inference.coco": ["to_coco", "write_coco"],
        "inference.ensemble": ["Ensemble"],
        "inference.folders": ["keep_folders", "result_names"],
        "inference.memory": ["MemoryHandler", "MemoryNeed"],
        "inference.mirroring": ["MirrorInferer"],
        "inference.one_image": ["ImageInference"],
        "inference.overlay": ["Overlayd"],
        "inference.polygons": ["PolygonWriter", "geojson"],
        "inference.rescaling": ["AtImageSized", "RescalingInferer"],
        "inference.restore": ["RestoreVolumed"],
        "inference.uncertainty": ["Uncertaintyd", "class_scores", "entropy_map"],
        "inference.windows": ["FittingWindowInferer"],
        "inference.writers": ["ClassWriter", "InstanceWriter", "MapWriter", "PictureWriter", "VolumeWriter"],
    },
)
