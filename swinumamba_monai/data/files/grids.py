# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of a volume lie: how far apart they are, whether two grids are one, and how to go between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage

MIN_LEAN = 1e-3  # cosine of the angle between two axes, 0 for right angles, from which on it is more than rounding
SAME_PLACE = 0.05  # part of a voxel; grids whose corners are closer are one
_THICK = 2  # times the longer side of a pixel, from which on the slices of a volume are thick


def lean_of(affine: np.ndarray) -> float:
    """The largest cosine of the angle between two axes of a grid: 0 where all are right angles."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """The distance of neighbouring voxels along each array axis, in mm; of planes along the third where it leans."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if lean_of(affine) > MIN_LEAN:
        plane = np.cross(affine[:3, 0], affine[:3, 1])
        sizes[2] = abs(plane @ affine[:3, 2]) / np.linalg.norm(plane)
    return tuple(float(round(value, 5)) for value in sizes)


def thick_axis(spacing: Sequence[float]) -> int | None:
    """The axis along which the slices of a stack lie, by the three sides of its voxels; None where no side is twice as
    long as both others.
    """
    axis = int(np.argmax(spacing))
    others = [side for number, side in enumerate(spacing) if number != axis]
    return axis if spacing[axis] >= _THICK * max(others) else None


def corners_apart(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """How far apart two affines (4, 4) put the corners of a volume (X, Y, Z), in voxels of the first.

    The axes are the same in both; a small error moves the corners most.
    """
    corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])
    return float(np.linalg.norm((corners @ (affine - other).T)[:, :3], axis=1).max()) / min(spacing_of(affine))


def reoriented(voxels: np.ndarray, affine: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) or (X, Y, Z, C) with their axes in order and direction as in ``like``, and their affine then."""
    turn = nib.io_orientation(np.linalg.solve(like, affine))
    return (
        nib.orientations.apply_orientation(voxels, turn),
        affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape),
    )


def put_on_grid(
    labels: np.ndarray, affine: np.ndarray, grid: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray | None:
    """Labels of a part of a grid on the whole of it, 0 around them, as 3D Slicer cuts what it saves.

    Args:
        labels: (X, Y, Z), with the axes of the grid in their order and direction.
        affine: (4, 4) of the labels.
        grid: (4, 4) of the grid.
        shape: number of voxels of the grid along each axis.

    Returns:
        The labels in ``shape``; None where their voxels are no voxels of the grid, or as many as it has, as when
        two axes were exchanged, or where a label lies beyond it.
    """
    first = np.rint(np.linalg.solve(grid, affine)[:3, 3]).astype(int)
    place = grid.copy()
    place[:3, 3] += grid[:3, :3] @ first
    if labels.size == math.prod(shape) or corners_apart(place, affine, labels.shape) > SAME_PLACE:
        return None
    starts, stops = np.maximum(first, 0), np.minimum(first + labels.shape, shape)
    part = labels[tuple(map(slice, np.maximum(starts - first, 0), np.maximum(stops - first, 0)))]
    if np.count_nonzero(part) < np.count_nonzero(labels):
        return None
    whole = np.zeros(shape, labels.dtype)
    if part.size:
        whole[tuple(map(slice, starts, stops))] = part
    return whole


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
