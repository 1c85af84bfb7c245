# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes, frames and cells with their labels: reading, checking, preparing, synthesizing and sampling them."""

from __future__ import annotations

from .datalist import TASKS, load_class_names, load_datalist, load_images, write_datalist
from .fingerprint import describe_fingerprint
from .labels import ABDOMEN_CLASSES, ENDOSCOPY_CLASSES, LabelMap, read_label_map
from .pairs import check_pair, check_pairs
from .prepare import Options
from .prepare_abdomen import prepare_abdomen_mri
from .prepare_endoscopy import prepare_endoscopy
from .prepare_microscopy import prepare_microscopy
from .readers import ImageFileReader, read_classes, read_image, read_instances
from .slices import EverySliceDataset, SliceDataset
from .synthetic import SYNTHESIZERS, dataset_dir_or_synthetic
from .synthetic_abdomen import synthesize_abdomen_mri
from .synthetic_endoscopy import synthesize_endoscopy
from .synthetic_microscopy import synthesize_microscopy
from .transforms import InstancesToClasses, InstancesToClassesd, SliceSpacingd, ToRGB, ToRGBd
from .unlabelled import load_unlabelled
from .video import FrameReader, load_frames
from .volumes import VolumeReader, load_volumes, read_volume

__all__ = [
    "ABDOMEN_CLASSES",
    "ENDOSCOPY_CLASSES",
    "EverySliceDataset",
    "FrameReader",
    "ImageFileReader",
    "InstancesToClasses",
    "InstancesToClassesd",
    "LabelMap",
    "Options",
    "SYNTHESIZERS",
    "SliceDataset",
    "SliceSpacingd",
    "TASKS",
    "ToRGB",
    "ToRGBd",
    "VolumeReader",
    "check_pair",
    "check_pairs",
    "dataset_dir_or_synthetic",
    "describe_fingerprint",
    "load_class_names",
    "load_datalist",
    "load_frames",
    "load_images",
    "load_unlabelled",
    "load_volumes",
    "prepare_abdomen_mri",
    "prepare_endoscopy",
    "prepare_microscopy",
    "read_classes",
    "read_image",
    "read_instances",
    "read_label_map",
    "read_volume",
    "synthesize_abdomen_mri",
    "synthesize_endoscopy",
    "synthesize_microscopy",
    "write_datalist",
]
