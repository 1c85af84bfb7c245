# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How often nnU-Net halves an image of a given size: its planner and its networks must agree on it.

Source: Isensee et al., "nnU-Net", Nature Methods 2021; ``get_pool_and_conv_props`` of nnU-Net v2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_FEATURE_MAP = 4  # pixels that an axis keeps


def pad_for_pooling(size: Sequence[int], spacing: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Halve each axis as long as it keeps 4 pixels whose length is less than twice that of the shortest axis' pixels.

    A single axis is halved only while it has 12 pixels. 320 × 320 and 384 × 640 are halved six times, 512 × 512 seven.

    Args:
        size: number of pixels along each axis.
        spacing: length of a pixel along each axis; None if it is the same along all.

    Returns:
        the size padded to what its poolings divide, and how often each axis is pooled.
    """
    size = np.asarray(size, dtype=int)
    spacing = np.ones(len(size)) if spacing is None else np.array(spacing, dtype=float)
    pooled, poolings = size.copy(), np.zeros_like(size)
    while True:
        axes = np.flatnonzero(pooled >= 2 * MIN_FEATURE_MAP)
        axes = axes[spacing[axes] / spacing[axes].min() < 2] if axes.size else axes
        if axes.size == 0 or (axes.size == 1 and pooled[axes[0]] < 3 * MIN_FEATURE_MAP):
            break
        poolings[axes] += 1
        spacing[axes] *= 2
        pooled[axes] = -(-pooled[axes] // 2)
    step = 2**poolings
    return -(-size // step) * step, poolings


def plan_strides(size: Sequence[int]) -> list[tuple[int, ...]]:
    """The strides, 1 or 2 along each axis, of the stages of a network for images of a size, finest first.

    An axis with fewer poolings than another keeps its size in the last stages.

    Args:
        size: number of pixels along each axis.

    >>> plan_strides((16, 64))
    [(1, 1), (2, 2), (2, 2), (1, 2)]
    """
    _, poolings = pad_for_pooling(size)
    return [(1,) * len(poolings), *(tuple(1 + int(i < n) for n in poolings) for i in range(max(poolings)))]
