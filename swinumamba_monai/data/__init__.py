# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cell images and their instance maps: reading, checking, preparing, synthesizing and turning them into classes."""

from __future__ import annotations

from .datalist import check_pair, check_pairs, load_datalist, load_images, write_datalist
from .prepare import prepare_microscopy
from .readers import ImageFileReader, read_image, read_instances
from .synthetic import dataset_dir_or_synthetic, synthesize_microscopy
from .transforms import InstancesToClasses, InstancesToClassesd, ToRGB, ToRGBd

__all__ = [
    "ImageFileReader",
    "InstancesToClasses",
    "InstancesToClassesd",
    "ToRGB",
    "ToRGBd",
    "check_pair",
    "check_pairs",
    "dataset_dir_or_synthetic",
    "load_datalist",
    "load_images",
    "prepare_microscopy",
    "read_image",
    "read_instances",
    "synthesize_microscopy",
    "write_datalist",
]
