# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's DiceCELoss, on an NVIDIA GPU from sums over the pixels that one kernel makes."""

from __future__ import annotations

import math

import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss
from torch import Tensor

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
        """Sums over the pixels of each image, (b, 3 * classes + 1); None where the loss is not computed from them.

        Args:
            input, target: see :meth:`forward`.
        """
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
