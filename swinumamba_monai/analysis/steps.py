# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured: an inference and a training step, each to be called; the package's tables and the benchmarks do."""

from __future__ import annotations

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from swinumamba_monai.tasks import Task


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which a network computes in bfloat16, ``"bf16"``, or as it is, ``"fp32"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class Inference:
    """Logits of random images, computed at every call.

    Args:
        network: network to call, on its device.
        task: task whose channels and size of crops the images have.
        device: device of the network.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        batch_size: number of images.
    """

    def __init__(
        self, network: nn.Module, task: Task, device: torch.device, precision: str = "fp32", batch_size: int = 1
    ) -> None:
        self.network, self.device, self.precision = network, device, precision
        self.image = torch.randn(batch_size, task.in_channels, *task.roi_size, device=device)

    def __call__(self) -> torch.Tensor:
        if self.network.training:  # a switch goes through all modules, which takes time
            self.network.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.network(self.image)

    def held_bytes(self) -> int:
        """Memory of parameters and images."""
        return sum(t.nbytes for t in (*self.network.parameters(), *self.network.buffers(), self.image))


class TrainingStep:
    """Forward, DeepSupervisionLoss over DiceCELoss, backward and AdamW on one random batch, done at every call.

    Args:
        network: network to train, on its device.
        task: task whose channels, classes and size of crops the batch has.
        batch_size: number of crops.
        device: device of the network.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
    """

    def __init__(
        self, network: nn.Module, task: Task, batch_size: int, device: torch.device, precision: str = "fp32"
    ) -> None:
        self.network, self.device, self.precision = network, device, precision
        self.loss = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True))
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, eps=1e-5)
        self.image = torch.randn(batch_size, task.in_channels, *task.roi_size, device=device)
        self.label = torch.randint(task.num_classes, (batch_size, 1, *task.roi_size), device=device).float()

    def __call__(self) -> None:
        if not self.network.training:
            self.network.train()
        with autocast(self.device, self.precision):
            loss = self.loss(self.network(self.image), self.label)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def held_bytes(self) -> int:
        """Memory of parameters, AdamW's state and batch."""
        states = [t for state in self.optimizer.state.values() for t in state.values()]
        held = *self.network.parameters(), *self.network.buffers(), *states, self.image, self.label
        return sum(t.nbytes for t in held)
