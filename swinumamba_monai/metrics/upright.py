# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of leaning slices, as a tilted gantry makes them, put over each other so that distances can be measured."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from swinumamba_monai.data.files.grids import MIN_LEAN, lean_of


def put_upright(labels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift the slices of a label volume by whole pixels to where they lie on a grid at right angles.

    No voxel is lost, and none becomes another: where the pixels of a slice are at right angles, what is counted in
    voxels, such as DSC, stays. A place is right to half a pixel.

    Args:
        labels: (X, Y, Z) whole numbers or bool, slices along the last axis.
        affine: (4, 4) to mm.

    Returns:
        The labels on a grid that holds all of them, 0 elsewhere, and the distances (3) of its voxels in mm; the very
        labels, and the sizes of their voxels, where nothing leans.
    """
    steps = np.asarray(affine, dtype=np.float64)[:3, :3]
    if lean_of(steps) <= MIN_LEAN:
        return labels, np.linalg.norm(steps, axis=0)
    triangle = np.linalg.qr(steps)[1]  # the steps in axes of which the first two lie in a slice
    sizes = np.abs(np.diag(triangle))
    upright = triangle / np.diag(triangle)[:, None]  # from voxels to those at right angles
    ends = np.array(np.meshgrid(*((0, side - 1) for side in labels.shape))).reshape(3, -1)
    low, high = np.floor((upright @ ends).min(axis=1)), np.ceil((upright @ ends).max(axis=1))
    shape = (high - low).astype(int) + 1
    back = np.linalg.inv(upright)
    return ndimage.affine_transform(labels, back, back @ low, tuple(shape), order=0, mode="constant"), sizes
