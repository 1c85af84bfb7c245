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
from .synthetic import dataset_dir_or_synthetic, synthesize_microscopy
from .transforms import InstancesToClasses, InstancesToClassesd, ToRGB, ToRGBd
from .video import FrameReader, load_frames
from .volumes import VolumeReader, load_volumes, read_volume
