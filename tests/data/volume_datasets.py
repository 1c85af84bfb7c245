# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Small volumes, from which datasets are made."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from swinumamba_monai.data.files.label_map import LabelMap

AFFINE = np.diag([1.5, 1.5, 6.0, 1.0])
SHAPE = (8, 9, 4)
LABELS = LabelMap.of_names(["background", "liver", "spleen"])


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 999, shape).astype(np.int16)


def classes(numbers=(0, 1, 2), shape=SHAPE):
    return np.random.default_rng(1).choice(np.array(numbers, np.uint8), shape)
