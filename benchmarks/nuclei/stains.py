# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Stained tissue: painted over the nuclei of a fluorescence image, or a real one's dyes changed for others.

A dye takes away light by Beer and Lambert: exp(-amount * absorption) of each colour is left. Images are batches on one
device, 0 at their dark end and 1 where no dye is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import Draws

__all__ = ["Stains"]

# absorption of red, green and blue, from Ruifrok and Johnston, Anal Quant Cytol Histol 23, 291 (2001)
HEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
DYE_SPREAD = 0.08  # standard deviation of each number
ANTIBODY = 0.3  # share of images in which brown DAB takes the place of eosin, as in immunohistochemistry,
COUNTERSTAIN = (0.25, 1.0)  # and of hematoxylin there is so much of what there would be
AMOUNT_SPREAD = (0.25, 0.4, 0.3)  # standard deviations of its logarithm: of hematoxylin, the other dye and the rest
DARKEST = 0.08  # share of the light that is left at an image's dark end

NUMBERS = 4096  # number of nuclei of an image that differ from each other
SHELL = 4  # pixels between a nucleus and the middle of the membrane around it
FIBRES = (3.0, 24.0)  # number of fibres across a crop
BEND = (0.5, 4.0)  # radians by which fibres are bent


class Stains:
    """Gives tissue random dyes.

    Args:
        draws: random numbers on the images' device.
    """

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def redye(self, image: Tensor, instances: Tensor) -> Tensor:
        """Real tissue as other dyes, in other amounts, would show it.

        The image is taken apart into hematoxylin, eosin and what neither explains, and put together again.

        Args:
            image: (b, 3, s, s).
            instances: the nuclei's ids (b, s, s), 0 background.
        """
        brown, mask, own = self._draw_nuclei(instances)
        usual = torch.linalg.inv(_basis(image.new_tensor([[HEMATOXYLIN, EOSIN]])))[0]
        absorbed = -torch.log(DARKEST + (1 - DARKEST) * image.clamp_min(0))
        gain = torch.exp(self.draws.normal(len(image), 3) * image.new_tensor(AMOUNT_SPREAD))[:, :, None, None]
        blue, pink, rest = (torch.einsum("bchw,cd->bdhw", absorbed, usual) * gain).split(1, 1)
        blue = torch.where(brown, blue.clamp_min(0) * self._each(image, *COUNTERSTAIN), blue)
        other = torch.where(brown, self._bind(absorbed.mean(1, keepdim=True).clamp_min(0), mask, own), pink)
        rest = torch.where(brown, 0.1 * rest, rest)  # of eosin's own colours little is left
        basis = _basis(self._draw_dyes(brown.flatten(1)))
        light = torch.exp(-torch.einsum("bdhw,bdc->bchw", torch.cat([blue, other, rest], 1), basis))
        return (light - DARKEST) / (1 - DARKEST)

    def paint(self, gray: Tensor, instances: Tensor) -> Tensor:
        """Tissue with hematoxylin in the nuclei of a fluorescence image, and eosin or an antibody's brown around them.

        Args:
            gray: fluorescence (b, 1, s, s), 0 to 1.
            instances: the nuclei's ids (b, s, s), 0 background.

        Returns:
            (b, 3, s, s).
        """
        brown, mask, own = self._draw_nuclei(instances)
        strength = self._each(gray, 0.5, 1.6) * torch.where(brown, self._each(gray, *COUNTERSTAIN), 1.0)
        nuclei = strength * self._paint_nuclei(gray, mask, own)
        tissue = self._paint_tissue(gray, mask)
        haze = self._each(gray, high=0.35) * strength * tissue  # hematoxylin outside of the nuclei
        other = torch.where(brown, self._bind(tissue, mask, own), self._paint_eosin(gray, mask, tissue))
        first, second = self._draw_dyes(brown.flatten(1))[..., None, None].unbind(1)
        return torch.exp(-((nuclei + haze) * first * 1.2 + other * second))

    def _draw_nuclei(self, instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether an antibody is seen (b, 1, 1, 1), where nuclei are and a number of each, both (b, 1, s, s)."""
        brown = self.draws.coin(ANTIBODY, len(instances), 1, 1, 1)
        numbers = self.draws.uniform(len(instances), NUMBERS)
        own = torch.gather(numbers, 1, (instances % NUMBERS).flatten(1).long()).view(instances.shape)
        return brown, (instances > 0)[:, None].float(), own[:, None]

    def _each(self, image: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A number for each image, (b, 1, 1, 1)."""
        return self.draws.uniform(len(image), 1, 1, 1, low=low, high=high)

    def _clouds(self, image: Tensor, *grids: int) -> Tensor:
        return self.draws.clouds(len(image), image.shape[-1], grids)

    def _draw_dyes(self, brown: Tensor) -> Tensor:
        """Absorption of hematoxylin and of the other dye, (b, 2, 3); ``brown`` is (b, 1)."""
        first, pink, dab = (brown.new_tensor(dye, dtype=torch.float32) for dye in (HEMATOXYLIN, EOSIN, DAB))
        usual = torch.stack([first.expand(len(brown), 3), torch.where(brown, dab, pink)], 1)
        return F.normalize((usual + self.draws.normal(*usual.shape) * DYE_SPREAD).clamp_min(0.02), dim=2)

    def _paint_nuclei(self, gray: Tensor, mask: Tensor, own: Tensor) -> Tensor:
        """Amount of hematoxylin: each nucleus darker or paler, with clumps of chromatin, a rim and a soft edge."""
        imaged = (gray / F.max_pool2d(gray, 9, 1, 4).clamp_min(0.05)).clamp(0, 1.2) - 0.8  # chromatin as it was imaged
        clumps = self._clouds(gray, 32, 64, 128)
        chromatin = 1 + self._each(gray, high=0.8) * imaged + self._each(gray, high=0.3) * clumps
        rim = mask - _mean(mask, 2)
        chromatin = chromatin * self._each(gray, 0.5, 1.0) + self._each(gray, high=1.2) * rim
        darkness = 1 + self._each(gray, 0.2, 1.2) * (own - 0.5)
        return _mean(mask, 1) * darkness * chromatin.clamp_min(0.2)

    def _paint_tissue(self, gray: Tensor, mask: Tensor) -> Tensor:
        """Density of what lies around the nuclei: uneven, with wavy fibres, gaps, and in some a pale ring."""
        tissue = 0.5 + 0.25 * self._clouds(gray, 3, 8, 24, 64, 128)
        side = gray.shape[-1]
        rows, columns = torch.meshgrid(*[torch.arange(side, device=gray.device) / side] * 2, indexing="ij")
        angle = self._each(gray, high=math.pi)
        along = (rows * angle.cos() + columns * angle.sin()) * self._each(gray, *FIBRES) * math.pi
        waves = (along + self._each(gray, *BEND) * self._clouds(gray, 3, 6, 12)).sin().abs()
        where = torch.sigmoid(4 * self._clouds(gray, 2, 4))
        tissue = tissue + self._each(gray, high=0.6) * where * (waves - 0.6)
        gaps = torch.sigmoid(12 * (self._clouds(gray, 4, 8, 16, 48) - self._each(gray, 0.3, 2.5)))
        ring = self._each(gray, -0.6, 0.6).clamp_min(0) * _mean(mask, 2)
        return (tissue * (1 - ring)).clamp_min(0.05) * (1 - gaps * (1 - mask))

    def _paint_eosin(self, gray: Tensor, mask: Tensor, tissue: Tensor) -> Tensor:
        """Amount of eosin, with blood cells; less of it in nuclei."""
        blood = torch.sigmoid(6 * (self._clouds(gray, 12, 24) - 1.6)) * self._each(gray, high=0.8)
        return (self._each(gray, 0.1, 1.1) * tissue + blood) * (1 - 0.5 * _mean(mask, 1))

    def _bind(self, tissue: Tensor, mask: Tensor, own: Tensor) -> Tensor:
        """Amount of an antibody's brown in tissue of that density: here and there in the cytoplasm, which spares nuclei
        more or less, and in the membranes around them; or in some of the nuclei.
        """
        here = torch.sigmoid(4 * self._clouds(mask, 2, 5, 12) + self._each(mask, -3, 3))
        cytoplasm = self._each(mask, -0.5, 3.5).clamp_min(0) * tissue * (1 - self._each(mask) * _mean(mask, 1))
        around = _mean(F.max_pool2d(mask, 2 * SHELL + 1, 1, SHELL), SHELL)
        membrane = self._each(mask, -1.5, 2.0).clamp_min(0) * (4 * around * (1 - around)) ** 2
        positive = (own * 7 % 1 < self._each(mask, -0.5, 0.8)).float() * _mean(mask, 1) * self._each(mask, 0.3, 1.5)
        return here * (cytoplasm + membrane) + positive


def _basis(dyes: Tensor) -> Tensor:
    """Two dyes (b, 2, 3) and a third direction that neither has a part in, (b, 3, 3)."""
    rest = F.normalize(torch.linalg.cross(dyes[:, 0], dyes[:, 1]), dim=1)
    return torch.cat([F.normalize(dyes, dim=2), rest[:, None]], 1)


def _mean(image: Tensor, reach: int) -> Tensor:
    """Mean of the square around each pixel, so many pixels to each side."""
    return F.avg_pool2d(F.pad(image, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)
