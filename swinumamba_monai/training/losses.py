# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loss: MONAI's DiceCELoss, by one kernel on a GPU, over the heads of a network and over several processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ignite.distributed as idist
import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import Tensor, nn

from swinumamba_monai.ops.backends import BackendChoice
from swinumamba_monai.ops.cuda.class_sums import MAX_CLASSES

# Options of MONAI's loss that the sums are enough for, besides a softmax and classes that are numbers.
_KNOWN = {"include_background", "to_onehot_y", "softmax", "batch", "smooth_nr", "smooth_dr", "lambda_dice", "lambda_ce"}


def in_single_precision(x: Tensor) -> Tensor:
    """Half precision to float32; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FusedDiceCELoss(DiceCELoss):
    """MONAI's loss; on an NVIDIA GPU one kernel makes all that depends on pixels, and one its gradient.

    There it is computed by :mod:`swinumamba_monai.ops.cuda.class_sums`, from logits in half precision too, and a
    target that is no class makes it NaN. Elsewhere, with more than 32 classes, and with options that are not
    ``to_onehot_y``, ``softmax``, ``include_background``, ``batch``, ``smooth_nr``, ``smooth_dr``, ``lambda_dice`` and
    ``lambda_ce``, it is MONAI's own. ``SWINUMAMBA_BACKEND=portable`` has MONAI's everywhere; the ``scan_backend`` of a
    network decides about the network alone.

    Args:
        options: options of MONAI's ``DiceCELoss``.

    >>> loss = FusedDiceCELoss(softmax=True, to_onehot_y=True)
    >>> sure = 50 * torch.eye(2)[None, :, :, None]  # logits of two classes (1, 2, 2, 1), right everywhere
    >>> round(loss(sure, torch.tensor([0, 1]).view(1, 1, 2, 1)).item(), 4)
    0.0
    """

    ignored = math.nan  # target of pixels that count for nothing; NaN is none

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._sums_are_enough = options.keys() <= _KNOWN and bool(options.get("softmax") and options.get("to_onehot_y"))
        self._backend = BackendChoice()

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (b, classes, ...) and classes (b, 1, ...), or what else MONAI's loss takes."""
        sums = self.sums(input, target)
        return super().forward(in_single_precision(input), target) if sums is None else self.of_sums(sums)

    def sums(self, input: Tensor, target: Tensor) -> Tensor | None:
        """Sums over the pixels of each image, (b, 3 * classes + 1); None where the loss is not computed from them."""
        if not self._sums_are_enough or target.shape != (len(input), 1, *input.shape[2:]):
            return None
        class_sums = self._backend.find(input).class_sums
        if class_sums is None or not 2 <= input.shape[1] <= MAX_CLASSES:
            return None
        return class_sums(*(t.as_tensor() if isinstance(t, MetaTensor) else t for t in (input, target)), self.ignored)

    def of_sums(self, sums: Tensor) -> Tensor:
        """The loss of the images whose :meth:`sums` these are."""
        if self.dice.batch:
            sums = sums.sum(0, keepdim=True)
        classes, skipped = sums.shape[1] // 3, 0 if self.dice.include_background else 1
        all_pixels = sums[:, 2 * classes : -1].detach().sum().clamp(min=1)
        _, own, _, everywhere, _, pixels, cross_entropy = sums.split([skipped, classes - skipped] * 3 + [1], 1)
        dice = (2 * own + self.dice.smooth_nr) / (everywhere + (pixels.detach() + self.dice.smooth_dr))
        return self.lambda_dice * (1 - dice.mean()) + self.lambda_ce * (cross_entropy.sum() / all_pixels)


class HalvingDeepSupervisionLoss(DeepSupervisionLoss):
    """Loss over a network's heads, finest first: each weighs half of the one before, the coarsest nothing; sum 1.

    That is [4, 2, 1, 0] / 7 for the four heads of both Swin-UMamba networks, as they were released, and nnU-Net's own
    weights for its six or seven. The number of heads is taken from the network's output, so the loss fits every
    network; that of a network with a single output is the plain loss.

    Args:
        loss: loss of one head and the label at the head's size. It gets heads as the network gave them, under autocast
            in half precision; MONAI's DeepSupervisionLoss would make float32 of them, which takes as long as a loss.

    >>> loss = HalvingDeepSupervisionLoss(torch.nn.L1Loss())
    >>> heads = [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)]
    >>> loss(heads, torch.ones(1, 1, 8, 8)), loss.get_weights(3)
    (tensor(1.), [0.6666666666666666, 0.3333333333333333, 0.0])
    """

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The weighted sum of the losses of heads (b, channels, ...), finest first, or of one; target (b, 1, ...)."""
        if isinstance(input, Tensor):
            return self.loss(input, target)
        return sum(weight * self.get_loss(head, target) for weight, head in zip(self.get_weights(len(input)), input))

    def get_weights(self, levels: int = 1) -> list[float]:
        """Weights of so many heads."""
        if levels == 1:
            return [1.0]
        weights = [0.5**level for level in range(levels - 1)]
        return [*(weight / sum(weights) for weight in weights), 0.0]


class GlobalBatchLoss(nn.Module):
    """A loss over the batches of all processes, for a loss that is not the mean of its images' losses.

    Dice over a batch (``batch=True``, nnU-Net's in 2D) is one: DDP averages gradients, and the mean of two halves'
    Dice losses is not the Dice loss of the whole. Every process gathers predictions and targets, or what the loss makes
    of each image, computes the same loss, and keeps the gradient of its own part, times the number of processes, which
    DDP divides by. With one process it is ``loss`` itself.

    Args:
        loss: loss of a prediction and a target, both batch first; its ``sums`` are gathered if it has some, as those of
            :class:`FusedDiceCELoss`.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of all parts (b, ...), with the same b, and with the gradient that makes DDP's mean right."""
        processes = idist.get_world_size()
        if processes == 1:
            return self.loss(prediction, target)
        sums = self.loss.sums(prediction, target) if hasattr(self.loss, "sums") else None
        if sums is None:
            loss = self.loss(_everyones(prediction), idist.all_gather(target))
        else:
            loss = self.loss.of_sums(_everyones(sums))
        return loss.detach() + processes * (loss - loss.detach())


def _everyones(part: Tensor) -> Tensor:
    """What all processes have, (processes * b, ...), of which this process's part (b, ...) has its gradient."""
    start = idist.get_rank() * len(part)
    everyone = idist.all_gather(part.detach())
    return torch.cat([everyone[:start], part, everyone[start + len(part) :]])
