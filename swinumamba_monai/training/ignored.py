# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pixels of which nobody knows what they are (nnU-Net's "ignore"): they are neither learnt nor scored."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from swinumamba_monai.data.files.label_map import IGNORED
from swinumamba_monai.training.losses import FusedDiceCELoss, in_single_precision

_CERTAIN = 50.0  # a logit: its softmax against the negative is 1 to the last bit of float32


class PartialDiceCELoss(FusedDiceCELoss):
    """MONAI's DiceCELoss, of the pixels that have a class.

    The others become background that the network is certain of: nothing of Dice without background, no cross entropy,
    and no gradient. The cross entropy is the mean over the pixels that have a class, as nnU-Net's.

    Args:
        partial: whether there are pixels without class at all; without them it is MONAI's loss itself.
        options: options of MONAI's ``DiceCELoss``, with ``to_onehot_y`` and without background.
    """

    def __init__(self, partial: bool = True, **options: object) -> None:
        super().__init__(**options)
        self.partial = partial
        if partial:
            self.ignored = IGNORED

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (b, classes, ...) and classes (b, 1, ...), 255 where there is none."""
        if not self.partial:
            return super().forward(input, target)
        if (sums := self.sums(input, target)) is not None:
            return self.of_sums(sums)
        input, ignored = in_single_precision(input), target == IGNORED
        known, target = _forget(input, ignored), target.masked_fill(ignored, 0)
        share = ignored.numel() / (~ignored).sum().clamp(min=1)
        return self.lambda_dice * self.dice(known, target) + self.lambda_ce * share * self.ce(known, target)


class IgnoredToBackgroundd(MapTransform):
    """Make pixels without class background in prediction and label alike, so that no score counts them.

    Args:
        keys: keys of predictions, logits (classes, ...) or class numbers (1, ...).
        label_key: key of the label (1, ...) on the same grid.

    >>> data = {"label": torch.tensor([[[1, IGNORED]]]), "pred": torch.tensor([[[1, 1]]])}
    >>> IgnoredToBackgroundd("pred")(data)
    {'label': tensor([[[1, 0]]]), 'pred': tensor([[[1, 0]]])}
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        result = dict(data)
        ignored = result[self.label_key] == IGNORED
        if not ignored.any():
            return result
        result[self.label_key] = result[self.label_key].masked_fill(ignored, 0)
        for key in self.key_iterator(result):
            prediction, place = result[key], torch.as_tensor(ignored).to(result[key].device)
            several = prediction.shape[0] > 1
            result[key] = _forget(prediction[None], place[None])[0] if several else prediction.masked_fill(place, 0)
        return result


def _forget(logits: Tensor, ignored: Tensor) -> Tensor:
    """Logits (b, classes, ...) that are sure of background where pixels (b, 1, ...) are ignored."""
    background = logits.new_full((1, logits.shape[1], *(1 for _ in logits.shape[2:])), -_CERTAIN)
    background[:, 0] = _CERTAIN
    return torch.where(ignored, background, logits)
