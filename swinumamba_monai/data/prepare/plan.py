# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The crop and batch size that nnU-Net's planner would choose for a 2D network on a dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from swinumamba_monai.nnunet_pooling import pad_for_pooling

# Constants of nnU-Net v2's ExperimentPlanner: what its network may hold in a GPU of 8 GB, in numbers of the feature
# maps of a batch of 12; the part of the dataset that a batch may show.
_REFERENCE_ELEMENTS = 85_000_000
_REFERENCE_BATCH_SIZE = 12
_MAX_PART_OF_DATASET = 0.05
_MIN_BATCH_SIZE = 2
_LARGEST_CROP = 2048


def propose_2d(
    shape: Sequence[float], num_classes: int, num_pixels: float, spacing: Sequence[float] = (1.0, 1.0)
) -> dict[str, list[int] | int]:
    """Crop "roi_size" [H, W] and "batch_size" by the rule of nnU-Net v2 (Isensee et al. 2021; ``ExperimentPlanner``).

    1. The crop starts as the median image, cut to 2048 × 2048 pixels (in mm a square of that area).
    2. An axis is halved by pooling as long as it keeps 4 pixels and its pixels are less than twice as long as the
       shortest; a single axis only while it has 12. The crop is padded until every pooling divides it.
    3. While the feature maps of nnU-Net's own network (32 features, doubled up to 512, two convolutions a stage) exceed
       the reference of 85 million elements, the axis that is longest relative to the median image loses one step.
    4. The batch is 12 × 85 million / elements, at most what covers 5 % of all training pixels, and at least 2.

    On the three tasks of the paper this gives its crops and batches: 320 × 320 and 30, 384 × 640 and 13, 512 × 512 and
    12. Swin-UMamba† needs another amount of memory than nnU-Net's network; the paper kept these sizes nevertheless.

    Args:
        shape: the median size (H, W) of the images, after resampling, in pixels.
        num_classes: number of classes, background included.
        num_pixels: number of pixels of all training images together, after resampling.
        spacing: the size of a pixel along H and W after resampling.
    """
    shape, spacing = np.asarray(shape, dtype=float), np.asarray(spacing, dtype=float)
    square = 1 / spacing * np.sqrt(_LARGEST_CROP**2 / np.prod(1 / spacing))
    crop, poolings = pad_for_pooling(np.minimum(np.round(square), shape).astype(int), spacing)
    while (elements := _feature_map_elements(crop, poolings, num_classes)) > _REFERENCE_ELEMENTS:
        axis = int(np.argmax(crop / shape))
        smaller = crop.copy()
        smaller[axis] -= 2 ** poolings[axis]
        # The step is the one that the smaller crop's own poolings ask for, so that they divide the result.
        step = 2 ** pad_for_pooling(smaller, spacing)[1][axis]
        crop[axis] -= step
        crop, poolings = pad_for_pooling(crop, spacing)
    batch_size = round(_REFERENCE_ELEMENTS / elements * _REFERENCE_BATCH_SIZE)
    covered = round(num_pixels * _MAX_PART_OF_DATASET / np.prod(crop))
    return {"roi_size": crop.tolist(), "batch_size": max(min(batch_size, covered), _MIN_BATCH_SIZE)}


def _feature_map_elements(crop: np.ndarray, poolings: np.ndarray, num_classes: int) -> int:
    """Elements of all feature maps of nnU-Net's plain U-Net for one image: those behind convolutions, and the heads."""
    levels = int(poolings.max())
    # The axis with fewer poolings keeps its size in the last stages.
    pixels = [int(np.prod(crop // 2 ** np.minimum(poolings, level))) for level in range(levels + 1)]
    features = [min(32 * 2**level, 512) for level in range(levels + 1)]
    encoder = sum(2 * f * n for f, n in zip(features, pixels))
    # A decoder stage: two convolutions and the transposed one before them, and a head for deep supervision.
    decoder = sum((3 * f + num_classes) * n for f, n in zip(features[:-1], pixels[:-1]))
    return encoder + decoder
