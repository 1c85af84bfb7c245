# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes, frames and cells with their labels: reading, checking, preparing, synthesizing and sampling them.

What is handed on here is loaded when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    "swinumamba_monai",
    submod_attrs={
        "cells": ["InstancesToClasses", "InstancesToClassesd"],
        "data.datalist": [
            "has_ignored",
            "is_prepared",
            "load_class_names",
            "load_datalist",
            "load_regions",
            "write_datalist",
        ],
        "data.files.images": [
            "ClassFileReader",
            "ImageFileReader",
            "InstanceFileReader",
            "MultiplexFileReader",
            "read_classes",
            "read_image",
            "read_instances",
        ],
        "data.files.label_map": ["ABDOMEN_CLASSES", "ENDOSCOPY_CLASSES", "LabelMap", "read_label_map"],
        "data.files.video": ["FrameReader"],
        "data.files.volumes": ["VolumeLabelReader", "VolumeReader", "read_volume"],
        "data.listing": ["load_frames", "load_images", "load_volumes"],
        "data.prepare.dataset": ["PrepareOptions"],
        "data.prepare.fingerprint": ["describe_fingerprint"],
        "data.prepare.inspection": ["check_pairs"],
        "data.sampling.intensity": ["InvertLightd", "NormalizeLook", "NormalizeLookd"],
        "data.sampling.slice_crops": ["EverySliceDataset", "SliceDataset"],
        "data.sampling.transforms": ["SliceOrientationd", "SliceSpacingd", "ToRGB", "ToRGBd"],
        "data.sampling.unlabelled": ["load_unlabelled"],
        "data.synthetic.abdomen_mri": ["synthesize_abdomen_mri"],
        "data.synthetic.endoscopy": ["synthesize_endoscopy"],
        "data.synthetic.folder": ["dataset_dir_or_synthetic", "remind_of_synthetic"],
        "data.synthetic.microscopy": ["synthesize_microscopy"],
        "tasks.abdomen_mri": ["prepare_abdomen_mri"],
        "tasks.endoscopy": ["prepare_endoscopy"],
        "tasks.microscopy": ["prepare_microscopy"],
    },
)
