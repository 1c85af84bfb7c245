# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Instance maps to targets and back, for each of the three ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from swinumamba_monai.instances.distances import (
    DistanceLoss,
    PositionLoss,
    distance_targets,
    distances_to_instances,
    position_targets,
    positions_to_instances,
)
from swinumamba_monai.instances.flows import FlowLoss, flow_targets, flows_to_instances
from swinumamba_monai.metrics import cell_counts


class Way(NamedTuple):
    targets: Callable
    instances: Callable
    loss: torch.nn.Module
    channels: int
    least: float  # F1 at IoU 0.75 of perfect targets of ordinary nuclei


WAYS = [
    Way(flow_targets, flows_to_instances, FlowLoss(), 3, 0.97),
    Way(distance_targets, distances_to_instances, DistanceLoss(), 2, 0.97),
    Way(position_targets, positions_to_instances, PositionLoss(), 3, 0.85),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=["flows", "distance", "hv"])
FLOWS = WAYS[0]


def perfect(way: Way, ids: np.ndarray) -> torch.Tensor:
    """What a network would give that has learnt everything."""
    output = torch.from_numpy(way.targets(ids))
    output[0] = output[0] * 20 - 10
    return output


def f1(way: Way, ids: np.ndarray, threshold: float = 0.75, **options) -> float:
    found, score = way.instances(perfect(way, ids), **options)
    assert found.dtype == np.int32
    assert score.shape == (found.max(),)
    assert ((score >= 0) & (score <= 1)).all()
    return cell_counts(ids, found, threshold, count_border_cells=True, reading="corrected").f1


@every_way
def test_perfect_targets_give_the_cells_back(way: Way, nuclei: np.ndarray) -> None:
    assert f1(way, nuclei) >= way.least


@every_way
def test_large_cells(way: Way, large_cells: np.ndarray) -> None:
    assert f1(way, large_cells) >= way.least


def test_tiny_cells(tiny_cells: np.ndarray) -> None:
    assert f1(FLOWS, tiny_cells, merge=1, min_size=0) >= 0.97


@every_way
def test_cells_that_share_a_straight_edge_stay_two(way: Way) -> None:
    ids = np.zeros((40, 60), np.int32)
    ids[10:30, 10:30], ids[10:30, 30:50] = 1, 2
    assert f1(way, ids, 0.9) == 1


@every_way
def test_cells_on_the_border(way: Way) -> None:
    ids = np.zeros((50, 50), np.int32)
    ids[:9, :12], ids[41:, 20:30], ids[20:35, 45:] = 3, 7, 9
    assert f1(way, ids, 0.9) == 1


@every_way
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 20)])
def test_an_image_without_cells(way: Way, shape: tuple[int, int]) -> None:
    ids = np.zeros(shape, np.int32)
    output = perfect(way, ids)
    assert output.shape == (way.channels, *shape)
    found, score = way.instances(output)
    assert found.shape == shape
    assert not found.any()
    assert len(score) == 0


@every_way
def test_an_image_of_one_pixel_that_is_a_cell(way: Way) -> None:
    target = way.targets(np.ones((1, 1), np.int32))
    assert target[0].item() == 1
    assert np.isfinite(target).all()
    way.instances(perfect(way, np.ones((1, 1), np.int32)), min_size=0)  # whatever it finds, it does not fail


@every_way
def test_the_answer_is_always_the_same(way: Way, nuclei: np.ndarray) -> None:
    output = perfect(way, nuclei)
    output = output + torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    first, second = way.instances(output), way.instances(output.clone())
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@every_way
def test_noise_does_not_take_most_cells_away(way: Way, nuclei: np.ndarray) -> None:
    output = perfect(way, nuclei)
    output[1:] += torch.randn(output[1:].shape, generator=torch.Generator().manual_seed(0)) * 0.2
    found, _ = way.instances(output)
    assert cell_counts(nuclei, found, 0.5, True, "corrected").f1 > 0.7


@every_way
def test_doubtful_and_small_cells_are_dropped(way: Way) -> None:
    ids = np.zeros((60, 60), np.int32)
    ids[5:25, 5:25], ids[35:55, 35:55], ids[5:8, 50:53] = 1, 2, 3
    output = perfect(way, ids)
    output[0, 35:55, 35:55] = 0.3  # a probability of 0.57
    assert way.instances(output, min_size=0)[0].max() == 3
    assert way.instances(output, min_size=20)[0].max() == 2
    found, score = way.instances(output, min_size=20, min_score=0.7)
    assert found.max() == len(score) == 1
    assert found[15, 15] == 1


@every_way
def test_another_number_of_channels_is_refused(way: Way) -> None:
    with pytest.raises(ValueError, match="shape"):
        way.instances(torch.zeros(way.channels + 1, 8, 8))


@every_way
def test_the_loss_of_the_truth_is_least(way: Way, nuclei: np.ndarray) -> None:
    target = torch.from_numpy(way.targets(nuclei))[None]
    right = perfect(way, nuclei)[None]
    wrong = right.roll(5, -1)
    assert way.loss(right, target) < 0.01
    assert way.loss(wrong, target) > 0.1


@every_way
def test_where_nothing_is_known_nothing_is_asked(way: Way, nuclei: np.ndarray) -> None:
    target = torch.from_numpy(way.targets(nuclei))[None]
    known = torch.zeros(1, 1, *nuclei.shape)
    known[..., :100] = 1
    output = perfect(way, nuclei)[None]
    output[..., 104:] = 3  # wrong there; a slope reaches two pixels
    assert way.loss(output, torch.cat([target, known], 1)) < 0.01
    assert way.loss(output, torch.cat([target, 0 * known], 1)) == 0


def test_flows_lead_to_the_centre() -> None:
    ids = np.zeros((41, 41), np.int32)
    rows, columns = np.mgrid[:41, :41] - 20
    ids[rows**2 + columns**2 <= 15**2] = 5
    flow = flow_targets(ids)[1:]
    length = np.sqrt((flow**2).sum(0))
    np.testing.assert_allclose(length[(ids > 0) & (rows**2 + columns**2 > 2)], 1, atol=1e-5)
    assert not flow[:, ids == 0].any()
    ring = (ids > 0) & (rows**2 + columns**2 > 9)
    cosine = -(flow[0] * rows + flow[1] * columns)[ring] / np.hypot(rows, columns)[ring]
    assert cosine.min() > 0.9


def test_flows_stay_in_a_bent_cell() -> None:
    """A horseshoe: the straight way to its centre leaves it."""
    rows, columns = np.mgrid[:60, :60] - 30
    radius = np.hypot(rows, columns)
    ids = ((radius < 25) & (radius > 15) & (rows < 12)).astype(np.int32)
    assert f1(FLOWS, ids, 0.9) == 1


def test_distances_are_relative_to_the_cell() -> None:
    ids = np.zeros((60, 90), np.int32)
    ids[10:15, 10:15], ids[5:55, 35:85] = 1, 2
    distance = distance_targets(ids)[1]
    assert distance[12, 12] == distance[30, 60] == 1
    assert distance[10, 10] == pytest.approx(1 / 3)
    assert distance[0, 0] == 0


def test_positions_go_from_minus_one_to_one() -> None:
    ids = np.zeros((20, 30), np.int32)
    ids[5:12, 8:23] = 1
    position = position_targets(ids)[1:]
    np.testing.assert_allclose(position[0, 5:12, 10], np.linspace(-1, 1, 7), atol=1e-6)
    np.testing.assert_allclose(position[1, 6, 8:23], np.linspace(-1, 1, 15), atol=1e-6)
