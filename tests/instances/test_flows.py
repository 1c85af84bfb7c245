# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Instance maps to flows and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import MirrorInferer
from swinumamba_monai.instances.flows import FlowLoss, FlowsToInstancesd, flow_targets, flows_to_instances
from swinumamba_monai.metrics import cell_counts


def perfect(ids: np.ndarray) -> torch.Tensor:
    """What a network would give that has learnt everything."""
    target = torch.from_numpy(flow_targets(ids))
    return torch.cat([10 - target[:1] * 20, torch.zeros_like(target[:1]), target[1:]])


def f1(ids: np.ndarray, threshold: float = 0.75, **options) -> float:
    found, score = flows_to_instances(perfect(ids), **options)
    assert found.dtype == np.int32
    assert score.shape == (found.max(),)
    assert ((score >= 0) & (score <= 1)).all()
    return cell_counts(ids, found, threshold, count_border_cells=True, reading="corrected").f1


def test_perfect_targets_give_the_cells_back(nuclei: np.ndarray) -> None:
    assert f1(nuclei) >= 0.97


def test_large_cells(large_cells: np.ndarray) -> None:
    assert f1(large_cells) >= 0.97


def test_tiny_cells(tiny_cells: np.ndarray) -> None:
    assert f1(tiny_cells, merge=1, min_size=0) >= 0.97


def test_cells_that_share_a_straight_edge_stay_two() -> None:
    ids = np.zeros((40, 60), np.int32)
    ids[10:30, 10:30], ids[10:30, 30:50] = 1, 2
    assert f1(ids, 0.9) == 1


def test_cells_on_the_border() -> None:
    ids = np.zeros((50, 50), np.int32)
    ids[:9, :12], ids[41:, 20:30], ids[20:35, 45:] = 3, 7, 9
    assert f1(ids, 0.9) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 20)])
def test_an_image_without_cells(shape: tuple[int, int]) -> None:
    ids = np.zeros(shape, np.int32)
    output = perfect(ids)
    assert output.shape == (4, *shape)
    found, score = flows_to_instances(output)
    assert found.shape == shape
    assert not found.any()
    assert len(score) == 0


def test_an_image_of_one_pixel_that_is_a_cell() -> None:
    target = flow_targets(np.ones((1, 1), np.int32))
    assert target[0].item() == 1
    assert np.isfinite(target).all()
    flows_to_instances(perfect(np.ones((1, 1), np.int32)), min_size=0)  # whatever it finds, it does not fail


def test_the_answer_is_always_the_same(nuclei: np.ndarray) -> None:
    output = perfect(nuclei)
    output = output + torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    first, second = flows_to_instances(output), flows_to_instances(output.clone())
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_noise_does_not_take_most_cells_away(nuclei: np.ndarray) -> None:
    output = perfect(nuclei)
    output[2:] += torch.randn(output[2:].shape, generator=torch.Generator().manual_seed(0)) * 0.2
    found, _ = flows_to_instances(output)
    assert cell_counts(nuclei, found, 0.5, True, "corrected").f1 > 0.7


def test_doubtful_and_small_cells_are_dropped() -> None:
    ids = np.zeros((60, 60), np.int32)
    ids[5:25, 5:25], ids[35:55, 35:55], ids[5:8, 50:53] = 1, 2, 3
    output = perfect(ids)
    output[0, 35:55, 35:55] = -0.3  # a probability of 0.57
    assert flows_to_instances(output, min_size=0)[0].max() == 3
    assert flows_to_instances(output, min_size=20)[0].max() == 2
    found, score = flows_to_instances(output, min_size=20, min_score=0.7)
    assert found.max() == len(score) == 1
    assert found[15, 15] == 1


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(InputError, match="--target classes"):
        flows_to_instances(torch.zeros(3, 8, 8))


def test_the_loss_of_the_truth_is_least(nuclei: np.ndarray) -> None:
    target = torch.from_numpy(flow_targets(nuclei))[None]
    right = perfect(nuclei)[None]
    wrong = right.roll(5, -1)
    assert FlowLoss()(right, target) < 0.01
    assert FlowLoss()(wrong, target) > 0.1


def test_where_nothing_is_known_nothing_is_asked(nuclei: np.ndarray) -> None:
    target = torch.from_numpy(flow_targets(nuclei))[None]
    known = torch.zeros(1, 1, *nuclei.shape)
    known[..., :100] = 1
    output = perfect(nuclei)[None]
    output[..., 104:] = 3  # wrong there; a slope reaches two pixels
    assert FlowLoss()(output, torch.cat([target, known], 1)) < 0.01
    assert FlowLoss()(output, torch.cat([target, 0 * known], 1)) == 0


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
    assert f1(ids, 0.9) == 1


def test_the_transform_keeps_the_scores_and_where_the_image_came_from(nuclei: np.ndarray) -> None:
    pred = MetaTensor(perfect(nuclei), meta={"filename_or_obj": "a.png"})
    result = FlowsToInstancesd("pred", scores_key="scores")({"pred": pred})
    ids, scores = flows_to_instances(perfect(nuclei))
    np.testing.assert_array_equal(result["pred"].numpy(), ids[None])
    np.testing.assert_array_equal(result["scores"], scores)
    assert result["pred"].meta["filename_or_obj"] == "a.png"


def test_mirror_images_give_the_same_flows(nuclei: np.ndarray) -> None:
    def network(image: torch.Tensor) -> torch.Tensor:
        return perfect(image[0, 0].numpy().astype(np.int32))[None]

    image = torch.from_numpy(nuclei)[None, None].float()
    mirrored = MirrorInferer(SimpleInferer(), [0, 1], vector_channels=[2, 3])(image, network)
    agreement = F.cosine_similarity(mirrored[0, 2:], network(image)[0, 2:], dim=0)[image[0, 0] > 0]
    assert agreement.quantile(0.05) > 0.99  # near a centre between two pixels the mirror image takes the other one
    without = MirrorInferer(SimpleInferer(), [0, 1])(image, network)
    assert without[0, 2:].norm(dim=0).mean() < 0.3 * mirrored[0, 2:].norm(dim=0).mean()
