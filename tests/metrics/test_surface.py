# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage
from scipy.spatial.distance import cdist

from swinumamba_monai.metrics.surface import find_boundaries, surface_dice


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that are alike, with several pieces, some on the border of the image."""
    rng = np.random.default_rng(seed)
    height, noise = (ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) for _ in range(2))
    return height > 0.03, height + 0.5 * noise > 0.03


def nsd(truth: np.ndarray, pred: np.ndarray, tolerance: float, spacing: tuple[float, ...]) -> float:
    return surface_dice(*find_boundaries(truth, pred, spacing), tolerance)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((24, 30), (1, 1)), ((24, 30), (0.7, 2.3)), ((14, 12, 9), (1, 1, 1)), ((14, 12, 9), (0.7, 1.3, 4.1))],
)
def test_equal_to_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    for seed in range(3):
        truth, pred = blobs(shape, seed)
        pair = [torch.tensor(mask)[None, None].float() for mask in (pred, truth)]
        for tolerance in (0.9, 1.9, 3.3):  # no distance on these grids, where float32 could fall on either side
            theirs = compute_surface_dice(
                *pair, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
            )
            ours = nsd(truth, pred, tolerance, spacing)
            assert 0.2 < ours <= 1
            assert ours == pytest.approx(theirs.item(), abs=2e-6)  # sums of some hundred float32 numbers


def brute_force(truth: np.ndarray, pred: np.ndarray, tolerance: float, spacing: tuple[float, float]) -> float:
    """NSD in 2D by going through the corners where four pixels meet, straight from the definition."""

    def corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, places, lengths = np.pad(mask, 1), [], []
        first, second = spacing
        diagonal = math.hypot(first, second) / 2  # cuts off one corner of the square between four centres
        for y in range(mask.shape[0] - 1):
            for x in range(mask.shape[1] - 1):
                (a, b), (c, d) = mask[y : y + 2, x : x + 2].tolist()
                if a == b == c == d:
                    continue
                places.append((y * first, x * second))
                inside = a + b + c + d
                if inside in (1, 3):
                    lengths.append(diagonal)
                elif a == d:
                    lengths.append(2 * diagonal)
                else:
                    lengths.append(second if a == b else first)
        return np.array(places), np.array(lengths)

    (true_places, true_lengths), (pred_places, pred_lengths) = corners(truth), corners(pred)
    distances = cdist(true_places, pred_places)
    near = (
        true_lengths[distances.min(axis=1) <= tolerance].sum() + pred_lengths[distances.min(axis=0) <= tolerance].sum()
    )
    return near / (true_lengths.sum() + pred_lengths.sum())


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.75)])
def test_equal_to_the_definition(spacing: tuple[float, float]) -> None:
    for seed in range(3):
        truth, pred = blobs((15, 18), seed)
        for tolerance in (0.0, 0.5, 1.0, 2.0):  # distances equal to the tolerance are exact in binary here
            assert nsd(truth, pred, tolerance, spacing) == pytest.approx(brute_force(truth, pred, tolerance, spacing))


def test_lengths_and_areas_of_a_box() -> None:
    box = np.zeros((12, 14, 9), bool)
    box[3:9, 2:12, 4:8] = True
    boundary, _ = find_boundaries(box, box, (2.0, 3.0, 5.0))
    # Between the centres of its outer pixels the box is 5 x 9 x 3 pixels large; the faces lie half a pixel further out.
    faces = 2 * (5 * 2 * 9 * 3 + 5 * 2 * 3 * 5 + 9 * 3 * 3 * 5)
    assert faces < boundary.sizes.sum() < 2 * (6 * 2 * 10 * 3 + 6 * 2 * 4 * 5 + 10 * 3 * 4 * 5)
    assert not boundary.distances.any()
    rectangle, _ = find_boundaries(box[..., 5], box[..., 5], (2.0, 3.0))
    assert rectangle.sizes.sum() == pytest.approx(2 * (5 * 2 + 9 * 3) + 4 * math.hypot(2, 3) / 2)


def test_a_distance_equal_to_the_tolerance_counts() -> None:
    truth, pred = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[5:10, 5:10], pred[8:13, 5:10] = True, True
    # Of the boundaries' corners, five in a row on the far side are 3 pixels from the other boundary.
    assert nsd(truth, pred, 3.0, (1, 1)) == 1
    assert nsd(truth, pred, 2.999, (1, 1)) < 1
    assert nsd(truth, pred, 1.5, (0.5, 1)) == 1


def test_masks_at_the_border_and_empty_masks() -> None:
    full, empty = np.ones((6, 7, 3), bool), np.zeros((6, 7, 3), bool)
    assert nsd(full, full, 0, (1, 1, 1)) == 1
    assert nsd(full, empty, 1e9, (1, 1, 1)) == nsd(empty, full, 1e9, (1, 1, 1)) == 0
    assert math.isnan(nsd(empty, empty, 1, (1, 1, 1)))
    single = empty.copy()
    single[-1, -1, -1] = True
    assert nsd(single, single, 0, (1, 1, 1)) == 1


def test_far_away_specks_cost_no_accuracy() -> None:
    truth, pred = blobs((30, 30), 0)
    far_truth, far_pred = (np.pad(mask, ((2, 200), (1, 300))) for mask in (truth, pred))
    far_pred[-1, -1] = True
    speck = 4 * math.hypot(1, 1) / 2
    near, far = find_boundaries(truth, pred, (1, 1)), find_boundaries(far_truth, far_pred, (1, 1))
    for tolerance in (0, 1, 2):
        assert far[0].near(tolerance) == pytest.approx(near[0].near(tolerance))
        assert far[1].near(tolerance) == pytest.approx(near[1].near(tolerance))
    assert far[1].sizes.sum() == pytest.approx(near[1].sizes.sum() + speck)
