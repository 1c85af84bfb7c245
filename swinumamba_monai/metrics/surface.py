# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Normalised surface distance (NSD): the share of two boundaries that lies within a tolerance of each other.

The boundary is that of S. Nikolov et al. (arXiv:1809.04430), as in MONAI's ``compute_surface_dice`` with
``use_subvoxels=True``: it runs between the centres of neighbouring pixels, and every 2 x 2 (2 x 2 x 2) neighbourhood
that lies partly inside holds a piece of it, whose length (area) a marching squares (cubes) table gives. MONAI counts in
float32, which changes digits that the published scripts print, so only its tables are used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from monai.metrics import utils as monai_tables
from scipy import ndimage

# Bits of the neighbours in a code of MONAI's tables.
KERNELS = {2: np.array([[8, 4], [2, 1]]), 3: np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])}


@dataclass(frozen=True)
class Boundary:
    """The pieces of the boundary of one mask.

    Args:
        distances: distance of every piece from the nearest piece of the other mask, in the unit of the spacing;
            infinite if the other mask is empty.
        sizes: length (2D) or area (3D) of every piece, in the unit of the spacing.
    """

    distances: np.ndarray
    sizes: np.ndarray

    def near(self, tolerance: float) -> float:
        """Length or area within the tolerance of the other mask; a distance equal to it counts."""
        return self.sizes[self.distances <= tolerance].sum()


def find_boundaries(truth: np.ndarray, pred: np.ndarray, spacing: Sequence[float]) -> tuple[Boundary, Boundary]:
    """The boundaries of truth and prediction.

    Outside of the image is background: a mask that touches the border of the image has a boundary there.

    Args:
        truth: boolean mask of shape (H, W) or (H, W, D).
        pred: predicted boolean mask of the same shape.
        spacing: distance of neighbouring pixels along each axis, in mm or any other unit.
    """
    box = ndimage.find_objects((truth | pred).astype(np.uint8))
    if not box:
        return Boundary(np.zeros(0), np.zeros(0)), Boundary(np.zeros(0), np.zeros(0))
    kernel = KERNELS[truth.ndim]
    # The kernel reaches one pixel back, the padding one pixel on.
    padded = [np.pad(mask[box[0]], (0, 1)).astype(np.uint8) for mask in (truth, pred)]
    codes = [ndimage.correlate(mask, kernel, mode="constant") for mask in padded]
    edges = [(code != 0) & (code != kernel.sum()) for code in codes]
    table = _size_of_code(tuple(map(float, spacing)))
    return (
        _boundary(table[codes[0][edges[0]]], edges[0], edges[1], spacing),
        _boundary(table[codes[1][edges[1]]], edges[1], edges[0], spacing),
    )


def surface_dice(truth: Boundary, pred: Boundary, tolerance: float) -> float:
    """The NSD of what :func:`find_boundaries` found; nan if there is no boundary at all.

    Pieces count as near up to the tolerance, in the unit of the spacing.
    """
    total = truth.sizes.sum() + pred.sizes.sum()
    return float((truth.near(tolerance) + pred.near(tolerance)) / total) if total else float("nan")


def _boundary(sizes: np.ndarray, edges: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> Boundary:
    # SciPy measures to the nearest zero, and without any to a place outside of the image.
    to_other = ndimage.distance_transform_edt(~other, sampling=spacing) if other.any() else np.full(other.shape, np.inf)
    distances = to_other[edges]
    # The order in which the published scripts add up the pieces: another one can change the last bit of the sum.
    order = np.lexsort((sizes, distances))
    return Boundary(distances[order], sizes[order])


@lru_cache(maxsize=16)
def _size_of_code(spacing: tuple[float, ...]) -> np.ndarray:
    """Length or area of the boundary in a neighbourhood of every code, float64."""
    if len(spacing) == 2:
        return monai_tables.get_code_to_measure_table(spacing)[0].double().numpy()
    # In 3D the public function rounds to float32. The normals of the table's triangles are exact in any type.
    normals = monai_tables._get_neighbour_code_to_normals_table().double().numpy()
    first, second, third = spacing
    faces = np.array([second * third, first * third, first * second])
    return np.linalg.norm(normals * faces, axis=-1).sum(axis=-1)
