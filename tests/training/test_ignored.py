# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pixels without class are neither learnt nor scored."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from swinumamba_monai.data.files.label_map import IGNORED
from swinumamba_monai.training import IgnoredToBackgroundd, PartialDiceCELoss

OPTIONS = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 8, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, 1, 8, 6)).double()
    return logits, target


def test_without_ignored_pixels_it_is_monais_loss(batch):
    logits, target = batch
    expected = DiceCELoss(**OPTIONS)(logits, target)
    for partial in (False, True):
        torch.testing.assert_close(PartialDiceCELoss(partial=partial, **OPTIONS)(logits, target), expected)


def test_loss_is_that_of_the_pixels_that_are_left(batch):
    """Half of every image is ignored: the loss, and its gradient, are those of the other half alone."""
    logits, target = batch
    half = target.clone()
    half[..., 3:] = IGNORED
    loss = PartialDiceCELoss(**OPTIONS)(logits, half)
    torch.testing.assert_close(loss, DiceCELoss(**OPTIONS)(logits[..., :3], target[..., :3]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[..., 3:] == 0).all() and (gradient[..., :3] != 0).all()


def test_a_batch_without_any_class_has_no_gradient(batch):
    logits, target = batch
    loss = PartialDiceCELoss(**OPTIONS)(logits, torch.full_like(target, IGNORED))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss) and (gradient == 0).all()


@pytest.mark.parametrize("several", [False, True])
def test_scores_see_background_in_both(several, batch):
    logits, target = (part[0].detach() for part in batch)
    label = target.clone()
    label[0, 2] = IGNORED
    pred = logits if several else logits.argmax(0, keepdim=True).double()
    result = IgnoredToBackgroundd("pred")({"pred": pred, "label": label})
    classes = result["pred"].argmax(0, keepdim=True) if several else result["pred"]
    expected = logits.argmax(0, keepdim=True).double()
    expected[0, 2] = 0
    torch.testing.assert_close(classes.double(), expected)
    label[0, 2] = 0
    torch.testing.assert_close(result["label"], label)
    same = IgnoredToBackgroundd("pred")({"pred": pred, "label": target})
    assert same["pred"] is pred and same["label"] is target
