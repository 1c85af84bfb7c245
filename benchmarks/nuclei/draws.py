# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Random numbers and smooth random noise on a device, from one seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Random numbers on a device.

    Args:
        device: device of the numbers.
        seed: the same one gives the same numbers on the same kind of device; or a generator there, to go on with.
    """

    def __init__(self, device: torch.device, seed: int | torch.Generator) -> None:
        self.device = device
        self.generator = seed if isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers between ``low`` and ``high``."""
        return torch.rand(*shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Numbers of mean 0 and standard deviation 1."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def coin(self, chance: float, *shape: int) -> Tensor:
        """True as often as ``chance`` says."""
        return torch.rand(*shape, generator=self.generator, device=self.device) < chance

    def clouds(self, batch: int, side: int, grids: tuple[int, ...]) -> Tensor:
        """Smooth noise (batch, 1, side, side) of standard deviation 1: a sum of random grids of so many places a side,
        each with a random weight.
        """
        total = torch.zeros(batch, 1, side, side, device=self.device)
        for places in grids:
            grid = F.interpolate(self.normal(batch, 1, places, places), (side, side), mode="bicubic")
            total = total + grid * self.uniform(batch, 1, 1, 1)
        return total / total.std((2, 3), keepdim=True).clamp_min(1e-3)
