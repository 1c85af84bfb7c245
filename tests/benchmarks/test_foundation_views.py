# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Views of images for stage 1, and the losses of two views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coloured_images import images_of

from benchmarks.foundation import train
from benchmarks.foundation.student import dense_loss
from benchmarks.foundation.training import rate_factor
from benchmarks.foundation.views import (
    GRAY,
    Batch,
    RandomViews,
    cut,
    draw_crops,
    middle_views,
    mix,
    normalized,
    recolour,
)
from benchmarks.nuclei.looks import Draws

CPU = torch.device("cpu")


class TestViews:
    def test_the_whole_image_is_itself_and_may_be_mirrored(self):
        pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        extent = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
        view = cut(pixels, torch.zeros(2, 2), extent, 32)
        torch.testing.assert_close(view[0], pixels[0] / 255, atol=1e-4, rtol=0)
        torch.testing.assert_close(view[1], pixels[1].flip(-1) / 255, atol=1e-4, rtol=0)

    def test_a_quarter_is_in_its_place(self):
        pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
        view = cut(pixels, torch.tensor([[0.5, -0.5]]), torch.tensor([[0.5, 0.5]]), 16)
        torch.testing.assert_close(view[0], pixels[0, :, :16, 16:] / 255, atol=1e-4, rtol=0)

    def test_crops_stay_inside_and_keep_proportions(self):
        aspect = torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(2000)
        centre, extent = draw_crops(Draws(CPU, 0), aspect)
        assert ((centre.abs() + extent.abs()) <= 1 + 1e-6).all()
        assert 0.45 < (extent[:, 0] < 0).float().mean() < 0.55
        shape = extent[:, 0].abs() / extent[:, 1] * aspect  # width over height in pixels
        whole = (extent.abs() == 1).any(1)  # at the image's border it is stretched less
        assert shape[~whole].max() <= 4 / 3 + 1e-5 and shape[~whole].min() >= 3 / 4 - 1e-5
        area = extent.abs().prod(1)
        assert 0.15 < area.min() and area[aspect == 1].mean() == pytest.approx(0.6, abs=0.03)

    def test_the_middle_of_a_wide_image_is_square(self):
        """Twice as wide as high: the view is 0.45 of the width and 0.9 of the height."""
        column = torch.arange(100, dtype=torch.uint8).expand(1, 3, 100, 100)
        view = middle_views(images_of(column, 2.0), torch.tensor([0]), 90)[0, 0] * 255
        assert view[:, 0].mean() == pytest.approx(49.5 - 22.5, abs=0.6)
        assert view[:, -1].mean() == pytest.approx(49.5 + 22.5, abs=0.6)

    def test_normalized(self):
        image = torch.rand(2, 3, 16, 16)
        image[1, 2] = 0.3
        made = normalized(image)
        flat = made[1, 2]
        assert not flat.any()
        torch.testing.assert_close(made[0].mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(made[0].std((1, 2), correction=0), torch.ones(3))

    def test_some_are_gray(self):
        image = torch.tensor([0.8, 0.3, 0.4]).view(3, 1, 1).expand(4000, 3, 2, 2)
        changed = recolour(Draws(CPU, 0), image)
        assert changed.min() >= 0 and changed.max() <= 1
        gray = ((changed.amax(1) - changed.amin(1)) < 1e-6).all((1, 2)).float().mean()
        assert gray == pytest.approx(GRAY, abs=0.02)  # a standard deviation is 0.006

    def test_mixtures_count_what_is_seen(self):
        """Black and white halves: the mean of a mixture is the share of white, by either way of mixing."""
        image = torch.cat([torch.zeros(8, 3, 20, 20), torch.ones(8, 3, 20, 20)])
        label = torch.cat([torch.zeros(8), torch.ones(8)]).long()
        kinds = set()
        for seed in range(40):
            batch = mix(Draws(CPU, seed), image, label)
            expected = batch.share * batch.label + (1 - batch.share) * batch.other
            torch.testing.assert_close(batch.image.mean((1, 2, 3)), expected)
            values = len(batch.image.unique())
            kinds.add("plain" if batch.share == 1 else "sum" if values > 2 else "rectangle")
        assert kinds == {"plain", "sum", "rectangle"}

    def test_an_epoch_shows_every_image_once(self):
        pixels = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 8, 8)
        views = RandomViews(images_of(pixels), seed=0, batch_size=4)
        assert views.steps_per_epoch == 3
        epochs = [
            torch.cat([views.batch(step, 8).label for step in steps]).tolist() for steps in ((0, 1, 2), (3, 4, 5))
        ]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
        assert epochs[0] != epochs[1]
        again, other = (RandomViews(images_of(pixels), seed, 4).batch(4, 8) for seed in (0, 1))
        assert torch.equal(again.image, views.batch(4, 8).image)
        assert not torch.equal(other.label, again.label)


class TestLosses:
    def test_dense_loss_is_zero_for_the_teachers_own_vectors(self):
        teachers = [torch.randn(2, 6, 4, 4), torch.randn(2, 5, 2, 2)]
        own = [F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]) for maps in teachers]
        assert dense_loss(own, teachers) < 1e-10
        # vectors of squared length 6 and 5 against zeros: a mean square of 1, but for the norm's epsilon
        assert dense_loss([torch.zeros_like(maps) for maps in own], teachers).item() == pytest.approx(1, abs=1e-3)

    def test_losses_by_hand(self):
        """Two classes, equal logits: whatever the labels, log 2; the teacher's 3/4 and 1/4 against 1/2 and 1/2."""
        batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor(0.7))
        said = torch.tensor([[3.0, 1.0]]).log().expand(2, 2), [torch.randn(2, 4, 1, 1)]
        found = train.losses((torch.zeros(2, 2), torch.zeros(2, 2), [torch.zeros(2, 1, 1, 4)]), batch, said)
        divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
        assert found.tolist() == pytest.approx([np.log(2), divergence, 1], abs=1e-3)
        alone = train.losses((torch.zeros(2, 2), torch.zeros(2, 0), []), batch, None)
        assert alone.tolist() == pytest.approx([np.log(2), 0, 0], abs=1e-6)

    def test_learning_rate(self):
        assert rate_factor(0) == pytest.approx(0.001, rel=0.01)
        assert rate_factor(0.05) == pytest.approx(1, abs=0.01)
        assert rate_factor(0.5) == pytest.approx(0.505)
        assert rate_factor(1) == pytest.approx(0.01)
