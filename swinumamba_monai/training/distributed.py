# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The loss of several processes as if it were one."""

from __future__ import annotations

import ignite.distributed as idist
import torch
import torch.nn as nn
from torch import Tensor


class GlobalBatchLoss(nn.Module):
    """A loss over the batches of all processes, for a loss that is not the mean of its images' losses.

    Dice over a batch (``batch=True``, nnU-Net's in 2D) is one: DDP averages gradients, and the mean of two halves'
    Dice losses is not the Dice loss of the whole. Every process gathers predictions and targets, or what the loss makes
    of each image, computes the same loss, and keeps the gradient of its own part, times the number of processes, which
    DDP divides by. With one process it is ``loss`` itself.

    Args:
        loss: loss of a prediction and a target, both batch first; its ``sums`` are gathered if it has some, as those of
            :class:`~swinumamba_monai.training.FusedDiceCELoss`.
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
