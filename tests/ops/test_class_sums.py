# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Soft Dice and cross entropy from the sums of a CUDA kernel, emulated, against MONAI's loss in float64."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import (
    TOLERANCES,
    assert_equal,
    assert_loss_like_float64,
    assert_near,
    leaves,
    loss_inputs,
    output_and_gradients,
)
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss

from swinumamba_monai.data.files.label_map import IGNORED
from swinumamba_monai.ops.cuda import class_sums
from swinumamba_monai.training import FusedDiceCELoss, HalvingDeepSupervisionLoss, PartialDiceCELoss, losses

OPTIONS = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}

# b, classes, sizes: one pixel; pixels one at a time, two and four; two dimensions and three
SHAPES = [(1, 3, 1, 1), (2, 4, 9, 7), (2, 14, 5, 6), (3, 5, 8, 6), (2, 3, 4, 3, 5)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, channels_last, emulator):
    assert_loss_like_float64(
        FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), *loss_inputs(*shape, channels_last=channels_last)
    )
    assert [name for name, _ in emulator.launched] == ["class_sums", "class_sums_backward"]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, channels_last, emulator):
    given = loss_inputs(2, 4, 9, 7, dtype=dtype, channels_last=channels_last)
    assert_loss_like_float64(FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), *given)
    assert len(emulator.launched) == 2


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_options(include_background, batch, emulator):
    options = {**OPTIONS, "include_background": include_background, "batch": batch}
    options |= {"smooth_nr": 0.5, "smooth_dr": 0.25, "lambda_dice": 2.0, "lambda_ce": 0.5}
    assert_loss_like_float64(FusedDiceCELoss(**options), DiceCELoss(**options), *loss_inputs(2, 4, 9, 7))
    assert len(emulator.launched) == 2


@pytest.mark.parametrize("batch", [False, True])
def test_classes_without_a_pixel(batch, emulator):
    options = {**OPTIONS, "batch": batch}
    logits, target = loss_inputs(2, 4, 9, 7)
    target[:1] = 0
    assert_loss_like_float64(FusedDiceCELoss(**options), DiceCELoss(**options), logits, target)
    assert_loss_like_float64(FusedDiceCELoss(**options), DiceCELoss(**options), logits, 0 * target)


def test_logits_of_any_size(emulator):
    logits, target = loss_inputs(2, 4, 9, 7)
    assert_loss_like_float64(FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), 60 * logits, target)
    assert_loss_like_float64(FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), 1e-3 * logits + 500, target)


def test_targets_of_other_types(emulator):
    logits, target = loss_inputs(2, 4, 9, 7)
    for dtype in (torch.uint8, torch.int64, torch.float64):
        assert_loss_like_float64(FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), logits, target.to(dtype))


@pytest.mark.parametrize("channels_last", [False, True])
def test_ignored_pixels(channels_last, emulator):
    """Columns of every image are ignored: the loss, and its gradient, are those of the others alone."""
    logits, target = loss_inputs(2, 4, 9, 7, channels_last=channels_last)
    partly = target.clone()
    partly[..., :3] = IGNORED

    def of_the_others(logits, target):
        return DiceCELoss(**OPTIONS)(logits[..., 3:], target[..., 3:])

    loss = PartialDiceCELoss(**OPTIONS)
    actual = assert_loss_like_float64(loss, of_the_others, logits, partly, target)
    assert (actual["logits"][..., :3] == 0).all()
    nothing = output_and_gradients(lambda x: loss(x, torch.full_like(target, IGNORED)), leaves({"x": logits}))
    assert nothing["out"].isfinite() and (nothing["x"] == 0).all()
    assert len(emulator.launched) == 4


@pytest.mark.parametrize("wrong", [-1.0, 4.0, 1.5, float("nan"), float(IGNORED)])
def test_a_target_that_is_no_class_is_heard_of(wrong, emulator):
    logits, target = loss_inputs(2, 4, 9, 7)
    target[0, 0, 0, 0] = wrong
    result = output_and_gradients(lambda x: FusedDiceCELoss(**OPTIONS)(x, target), leaves({"x": logits}))
    assert result["out"].isnan() and result["x"][0, :, 0, 0].isnan().all()


def test_many_blocks(emulator):
    """The parts that blocks give are added up in the same order in each run."""
    emulator.set_multiprocessors(3)
    given = loss_inputs(2, 4, 33, 29)
    actual = assert_loss_like_float64(FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), *given)
    assert emulator.grids("class_sums") == [(4, 2, 1)]
    assert_equal(assert_loss_like_float64(FusedDiceCELoss(**OPTIONS), DiceCELoss(**OPTIONS), *given), actual)


def test_tensors_with_metadata(emulator):
    logits, target = loss_inputs(2, 4, 9, 7)
    loss = FusedDiceCELoss(**OPTIONS)
    expected = output_and_gradients(lambda x: loss(x, target), leaves({"x": logits}))
    actual = output_and_gradients(lambda x: loss(MetaTensor(x), MetaTensor(target)), leaves({"x": logits}))
    assert_equal(actual, expected)
    assert len(emulator.launched) == 4


def test_layouts(emulator):
    """Gaps between the numbers, and an address that allows no pixels to be loaded together."""
    logits, target = loss_inputs(2, 4, 8, 6)
    expected = FusedDiceCELoss(**OPTIONS)(logits, target)
    assert emulator.macros("class_sums.cu", "VECTOR") == [4]
    gaps = torch.stack([logits, torch.full_like(logits, torch.nan)], -1)[..., 0]
    moved = torch.empty(logits.numel() + 1)[1:].view(logits.shape).copy_(logits)
    for same in (gaps, moved):
        torch.testing.assert_close(FusedDiceCELoss(**OPTIONS)(same, target), expected)
    assert emulator.macros("class_sums.cu", "VECTOR") == [4, 4, 1]


def test_heads(emulator):
    """All heads of a network in half precision, and MONAI's loss of them."""
    logits, target = loss_inputs(2, 3, 16, 16, dtype=torch.bfloat16)
    heads = {f"head {i}": logits[..., :: 2**i, :: 2**i].contiguous() for i in range(4)}
    expected = DeepSupervisionLoss(DiceCELoss(**OPTIONS), weights=[4 / 7, 2 / 7, 1 / 7, 0])
    results = []
    for loss in (HalvingDeepSupervisionLoss(FusedDiceCELoss(**OPTIONS)), expected):
        results.append(output_and_gradients(lambda loss=loss, **heads: loss([*heads.values()], target), leaves(heads)))
    assert_near({"": results[0]["out"]}, {"": results[1]["out"]}, TOLERANCES[torch.float32])
    assert_near(*results, TOLERANCES[torch.bfloat16])
    assert len(emulator.launched) == 8


def test_several_processes(emulator, monkeypatch):
    """Two processes with two images each exchange sums alone; DDP's mean of their gradients is that of the four."""
    logits, target = loss_inputs(4, 4, 9, 7)
    target[:2, :, :5] = IGNORED
    loss = PartialDiceCELoss(**OPTIONS)
    whole = output_and_gradients(lambda x: loss(x, target), leaves({"x": logits}))
    parts = [(logits[part], target[part]) for part in (slice(0, 2), slice(2, 4))]
    sums = [loss.sums(*part) for part in parts]
    for rank, (x, y) in enumerate(parts):

        def all_gather(part, rank=rank):
            assert part.equal(sums[rank]) and not part.requires_grad
            return torch.cat(sums)

        monkeypatch.setattr(losses.idist, "get_world_size", lambda: 2)
        monkeypatch.setattr(losses.idist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(losses.idist, "all_gather", all_gather)
        result = output_and_gradients(lambda x, y=y: losses.GlobalBatchLoss(loss)(x, y), leaves({"x": x}))
        torch.testing.assert_close(result["out"], whole["out"])
        torch.testing.assert_close(result["x"] / 2, whole["x"][2 * rank : 2 * rank + 2])


@pytest.mark.parametrize(
    "options",
    [{"squared_pred": True}, {"jaccard": True}, {"weight": torch.arange(1.0, 5)}, {"label_smoothing": 0.1}],
    ids=lambda options: next(iter(options)),
)
def test_what_the_sums_are_not_enough_for(options, emulator):
    logits, target = loss_inputs(2, 4, 9, 7)
    options = {**OPTIONS, **options}
    assert FusedDiceCELoss(**options)(logits, target).equal(DiceCELoss(**options)(logits, target))
    assert not emulator.launched


def test_what_the_kernel_does_not_take(emulator):
    logits, target = loss_inputs(2, class_sums.MAX_CLASSES + 1, 3, 2)
    assert FusedDiceCELoss(**OPTIONS)(logits, target).equal(DiceCELoss(**OPTIONS)(logits, target))
    logits, target = loss_inputs(2, 4, 9, 7)
    exact = FusedDiceCELoss(**OPTIONS)(logits.double(), target)
    assert exact.equal(DiceCELoss(**OPTIONS)(logits.double(), target))
    shares = {**OPTIONS, "to_onehot_y": False}  # of each class in a pixel
    soft = logits.softmax(1)
    assert FusedDiceCELoss(**shares)(logits, soft).equal(DiceCELoss(**shares)(logits, soft))
    assert not emulator.launched


def test_elsewhere_it_is_monais_bit_for_bit():
    """No emulator: on the CPU, values and gradients of all heads."""
    logits, target = loss_inputs(2, 3, 16, 16)
    heads = {f"head {i}": logits[..., :: 2**i, :: 2**i].contiguous() for i in range(4)}
    expected = DeepSupervisionLoss(DiceCELoss(**OPTIONS), weights=HalvingDeepSupervisionLoss(None).get_weights(4))
    for loss in (FusedDiceCELoss(**OPTIONS), PartialDiceCELoss(partial=False, **OPTIONS)):
        loss = HalvingDeepSupervisionLoss(loss)
        actual, exact = (
            output_and_gradients(lambda loss=loss, **heads: loss([*heads.values()], target), leaves(heads))
            for loss in (loss, expected)
        )
        assert_equal(actual, exact)


def test_operators_are_registered_correctly(emulator):
    for channels_last in (False, True):
        logits, target = loss_inputs(2, 4, 63, channels_last=channels_last)
        arguments = (logits.requires_grad_(), target[:, 0], float(IGNORED))
        torch.library.opcheck(torch.ops.swinumamba.class_sums.default, arguments)
        saved = (torch.randn(2, 13), logits.detach(), *arguments[1:])
        torch.library.opcheck(torch.ops.swinumamba.class_sums_backward.default, saved)
