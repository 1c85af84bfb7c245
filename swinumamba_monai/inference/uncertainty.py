# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How sure a prediction is: probabilities of the classes, their entropy, and their mean over an object: its score."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor


def entropy_map(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities, in units of that of a uniform choice.

    Args:
        logits: logits (classes, ...) of two classes at least.

    Returns:
        map (1, ...) float32: 0 where one class is certain, 1 where all are equally likely.

    >>> entropy_map(torch.tensor([[0.0, 99.0], [0.0, 0.0]])).round().abs()
    tensor([[1., 0.]])
    """
    result = torch.empty((1, *logits.shape[1:]), dtype=torch.float32, device=logits.device)
    # By rows, so that the probabilities of a volume are never all in memory.
    for row, part in enumerate(logits.unbind(1)):
        log_p = part.float().log_softmax(0)
        result[0, row] = -(log_p.exp() * log_p).sum(0) / math.log(logits.shape[0])
    return result.clamp_(0, 1)


def class_scores(logits: Tensor) -> np.ndarray:
    """How sure the network is of each class, (classes,) float32: its mean probability where it is the highest, or NaN.

    Args:
        logits: logits (classes, ...) of images or volumes.
    """
    total, area = np.zeros(len(logits)), np.zeros(len(logits))
    for part in logits.unbind(1):
        best, classes = (values.cpu().numpy().ravel() for values in part.float().softmax(0).max(0))
        total += np.bincount(classes, best, len(logits))
        area += np.bincount(classes, minlength=len(logits))
    return np.divide(total, area, out=np.full_like(total, np.nan), where=area > 0).astype(np.float32)


class Uncertaintyd(MapTransform):
    """Put beside logits (classes, ...) the probabilities of the classes, their softmax, and :func:`entropy_map`.

    Both are float32 and have the metadata of the logits.

    Args:
        keys: key of the logits.
        probabilities_key: key of the probabilities (classes, ...); None for none.
        entropy_key: key of the entropy (1, ...); None for none.
        num_classes: how many of the channels, from the first on, are logits; None for all.
        allow_missing_keys: whether absent logits are passed over, instead of being an error.

    >>> two = Uncertaintyd("pred", "probabilities", "entropy")({"pred": torch.zeros(2, 1, 1)})
    >>> two["probabilities"].flatten(), two["entropy"].flatten()  # two classes that are equally likely
    (tensor([0.5000, 0.5000]), tensor([1.]))
    """

    def __init__(
        self,
        keys: KeysCollection,
        probabilities_key: str | None = None,
        entropy_key: str | None = None,
        num_classes: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.probabilities_key = probabilities_key
        self.entropy_key = entropy_key
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        result = dict(data)
        for key in self.key_iterator(data):
            logits = result[key][: self.num_classes]
            if self.probabilities_key is not None:
                result[self.probabilities_key] = logits.float().softmax(0)
            if self.entropy_key is not None:
                entropy = entropy_map(convert_to_tensor(logits, track_meta=False))
                result[self.entropy_key] = convert_to_dst_type(entropy, logits, dtype=torch.float32)[0]
        return result
