# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells as landscapes that a watershed divides: the distance to the edge of the cell, or the position within the cell.

``distance``: each pixel learns its distance to the nearest pixel outside of its cell, in units of the largest in that
cell, so that a small cell has a peak as high as a large one's. Peaks of the prediction are the seeds of a watershed.

``hv``: each pixel learns where it is between the left and right, and between the upper and lower end of its cell
("horizontal and vertical maps"). Where cells touch, these jump. Source: Graham et al., "HoVer-Net: simultaneous
segmentation and classification of nuclei in multi-tissue histology images", Medical Image Analysis 58 (2019).

Channel 0 of a target is 1 in cells and 0 elsewhere (of a network's output: its logit); then follows the distance, or
the position of rows and of columns, from -1 to 1 and 0 at the cell's centroid.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import convert_data_type
from scipy import ndimage
from skimage.morphology import reconstruction
from skimage.segmentation import find_boundaries, watershed
from torch import Tensor, nn

from swinumamba_monai.instances.whole_cells import finish_cells, weighted_mean

__all__ = [
    "DistanceLoss",
    "PositionLoss",
    "distance_targets",
    "distances_to_instances",
    "position_targets",
    "positions_to_instances",
]

DISTANCE_WEIGHT = 10.0  # of the squared error of the distance beside the foreground's cross-entropy
POSITION_WEIGHT = 2.0  # of the squared errors of the position and of its slope
SMOOTHING = 1.0  # pixels, of a predicted landscape before its peaks are looked for


def distance_targets(instances: np.ndarray) -> np.ndarray:
    """Foreground and relative distance to the edge.

    Args:
        instances: instance ids of shape (H, W), integers, 0 background. The array's edge is no edge of a cell.

    Returns:
        targets of shape (2, H, W), float32.
    """
    inside = instances > 0
    edge = find_boundaries(instances, mode="inner")
    distance = ndimage.distance_transform_edt(~edge) + 1 if edge.any() else np.ones(instances.shape)
    distance = np.where(inside, distance, 0.0)
    largest = np.zeros(int(instances.max(initial=0)) + 1)
    np.maximum.at(largest, instances[inside], distance[inside])
    relative = distance / np.maximum(largest, 1)[instances]
    return np.stack([inside, relative]).astype(np.float32)


def position_targets(instances: np.ndarray) -> np.ndarray:
    """Foreground and position of every pixel within its cell.

    Args:
        instances: instance ids of shape (H, W), integers, 0 background.

    Returns:
        targets of shape (3, H, W), float32: foreground, and positions along rows and columns, each side of the centroid
        in units of its own extent.
    """
    target = np.zeros((3, *instances.shape), np.float32)
    pixels = np.nonzero(instances)
    target[0][pixels] = 1
    cell = instances[pixels]
    area = np.maximum(np.bincount(cell), 1)
    for channel, at in enumerate(pixels, start=1):
        offset = at - (np.bincount(cell, at) / area)[cell]
        farthest = np.zeros((2, len(area)))
        np.maximum.at(farthest, ((offset > 0).astype(int), cell), np.abs(offset))
        target[channel][pixels] = offset / np.maximum(farthest[(offset > 0).astype(int), cell], 0.5)
    return target


def distances_to_instances(
    output: Tensor,
    foreground: float = 0.5,
    peak: float = 0.1,
    min_size: int = 12,
    min_score: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the foreground by a watershed from the peaks of the predicted distance.

    Args:
        output: a network's output of shape (2, H, W), see the module's docstring.
        foreground: probability from which on a pixel belongs to a cell.
        peak: how far a peak must rise above the saddle to a higher one, to be a cell of its own; the unit is the
            largest distance in a cell.
        min_size: cells with fewer pixels are dropped.
        min_score: cells with a lower score are dropped.

    Returns:
        instance ids of shape (H, W), int32, 0 background, 1 to n in the order of the cells' first pixels; and the score
        of each cell, shape (n,), float32: the mean over its pixels of the foreground's probability.

    Raises:
        ValueError: another shape.
    """
    probability, maps = _read(output, 2)
    inside = probability >= foreground
    height = ndimage.gaussian_filter(maps[0], SMOOTHING)
    ids = watershed(-height, _peaks(np.where(inside, height, -1), peak), mask=inside)
    return finish_cells(ids, probability, min_size, min_score)


def positions_to_instances(
    output: Tensor,
    foreground: float = 0.5,
    slope: float = 0.15,
    min_size: int = 12,
    min_score: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the foreground where predicted positions jump: HoVer-Net's watershed.

    Args:
        output: a network's output of shape (3, H, W), see the module's docstring.
        foreground: probability from which on a pixel belongs to a cell.
        slope: the fall of a position between two pixels from which on a place is an edge between cells; where two cells
            touch, it falls by up to 2.
        min_size: cells with fewer pixels are dropped.
        min_score: cells with a lower score are dropped.

    Returns:
        as :func:`distances_to_instances`.

    Raises:
        ValueError: another shape.
    """
    probability, maps = _read(output, 3)
    inside = probability >= foreground
    # Within a cell a position grows along its axis; it falls only where the next cell begins.
    falls = [-ndimage.sobel(ndimage.gaussian_filter(values, SMOOTHING / 2), axis) for axis, values in enumerate(maps)]
    edge = np.maximum(*falls).clip(0) / 8  # a jump from 1 to -1 is 2 here before the smoothing
    markers, _ = ndimage.label(inside & (edge < slope) & ~find_boundaries(inside, mode="inner"))
    markers = _drop_small(markers, max(min_size // 4, 1))
    lonely, _ = ndimage.label(inside, np.ones((3, 3)))
    seeded = np.bincount(lonely.ravel(), markers.ravel() > 0)[lonely] > 0
    markers = np.where(inside & ~seeded, lonely + markers.max(), markers)  # a piece without a marker is one cell
    ids = watershed(ndimage.gaussian_filter(edge, SMOOTHING), markers, mask=inside)
    return finish_cells(ids, probability, min_size, min_score)


def _read(output: Tensor, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the foreground (H, W), and the other channels."""
    if output.ndim != 3 or output.shape[0] != channels:
        raise ValueError(f"A network's output of shape ({channels}, H, W) is needed, not {tuple(output.shape)}.")
    output = convert_data_type(output, Tensor, device="cpu")[0].float()
    return output[0].sigmoid().numpy(), output[1:].numpy()


def _peaks(height: np.ndarray, least: float) -> np.ndarray:
    """Number the maxima that rise by ``least`` above the saddle to a higher one, (H, W) int32."""
    flooded = reconstruction(height - least, height)
    remaining = height - flooded >= least - 1e-6
    # What is left are plateaus around peaks; the flat -1 outside of cells is one too.
    return ndimage.label(remaining & (height > 0), np.ones((3, 3)))[0]


def _drop_small(pieces: np.ndarray, least: int) -> np.ndarray:
    return np.where(np.bincount(pieces.ravel())[pieces] >= least, pieces, 0)


class DistanceLoss(nn.Module):
    """Binary cross-entropy of the foreground, and 10 times the squared error of the distance."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            output: (b, 2, h, w), a network's output.
            target: (b, 2, h, w) targets; a third channel, if there is one, weighs the pixels (0: nothing is known).

        Returns:
            the loss, a scalar.
        """
        output = output.float()
        foreground = F.binary_cross_entropy_with_logits(output[:, 0], target[:, 0], reduction="none")
        distance = (output[:, 1] - target[:, 1]) ** 2
        return weighted_mean(foreground + DISTANCE_WEIGHT * distance, target[:, 2:])


class PositionLoss(nn.Module):
    """Binary cross-entropy of the foreground, and twice the squared errors of the positions and, in cells, of their
    slopes, as in HoVer-Net."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            output: (b, 3, h, w), a network's output.
            target: (b, 3, h, w) targets; a fourth channel, if there is one, weighs the pixels (0: nothing is known).

        Returns:
            the loss, a scalar.
        """
        output = output.float()
        inside, positions = target[:, 0], target[:, 1:3]
        foreground = F.binary_cross_entropy_with_logits(output[:, 0], inside, reduction="none")
        error = output[:, 1:] - positions
        slopes = torch.stack([_slope(error[:, 0], 1), _slope(error[:, 1], 2)], 1)
        square = (error**2).mean(1) + (slopes**2).mean(1) * inside
        return weighted_mean(foreground + POSITION_WEIGHT * square, target[:, 3:])


def _slope(values: Tensor, axis: int) -> Tensor:
    """Central difference along an axis of (b, h, w); 0 at the image's edge, and for a single pixel."""
    size = values.shape[axis]
    if size < 3:
        return torch.zeros_like(values)
    inner = (values.narrow(axis, 2, size - 2) - values.narrow(axis, 0, size - 2)) / 2
    padding = [0, 0, 1, 1] if axis == 1 else [1, 1, 0, 0]
    return F.pad(inner, padding)
