# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of the heads in deep supervision (paper, eq. (13); nnU-Net's rule)."""

from __future__ import annotations

from collections.abc import Sequence

from monai.losses import DeepSupervisionLoss
from torch import Tensor


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
