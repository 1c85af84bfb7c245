# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Views of images on the device: random crops in the images' own proportions, colours, mixtures of two images, and the
one view that an evaluation takes.

Images are (b, 3, side, side), 0 black and 1 white; a network is given what :func:`normalized` makes of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.nuclei.draws import Draws

from .packed import Images

__all__ = ["Batch", "RandomViews", "cut", "middle_views", "normalized"]

AREA = (0.2, 1.0)  # share of an image's area that a crop shows
STRETCH = 4 / 3  # a crop is so much wider than high at most, or higher than wide
GRAY = 0.15  # share of gray views
SATURATION = (0.5, 1.3)
GAMMA_SPREAD = 0.2  # standard deviation of its logarithm
CAST_SPREAD = 0.1  # standard deviation of the logarithm of each channel's gain
MIXED = 0.5  # share of mixed batches: half of them have a rectangle of another image, half are sums of two
MIDDLE = 0.9  # share of the shorter side that an evaluation's view shows
SEEDS = 1_000_003  # distance between the random numbers of two seeds: more than the steps of a training
FLAT = 1e-3  # standard deviation of a channel below which it counts as one colour


def cut(pixels: Tensor, centre: Tensor, extent: Tensor, side: int) -> Tensor:
    """Crops of square images, linearly interpolated.

    Args:
        pixels: (b, 3, s, s) uint8.
        centre: centre of each crop, across and down, (b, 2), -1 to 1.
        extent: width and height of each crop as a share of the image's, (b, 2); a negative width mirrors it.
        side: side of the crops, in pixels.

    Returns:
        (b, 3, side, side), 0 to 1.
    """
    matrix = torch.cat([torch.diag_embed(extent), centre[..., None]], 2)
    grid = F.affine_grid(matrix, [len(pixels), 3, side, side], align_corners=False)
    return F.grid_sample(pixels.float() / 255, grid, padding_mode="reflection", align_corners=False)


def middle_views(images: Images, numbers: Tensor, side: int) -> Tensor:
    """The largest square in the middle of each image, but for a rim.

    Args:
        images: the images.
        numbers: which of them, (b,).
        side: side of the views, in pixels.
    """
    aspect = images.aspects[numbers]
    extent = MIDDLE * torch.stack([(1 / aspect).clamp_max(1), aspect.clamp_max(1)], 1)
    return cut(images.pixels[numbers], torch.zeros_like(extent), extent, side)


def normalized(image: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 in each channel of each image, as the bundles give frames to a network."""
    spread, mean = torch.std_mean(image, (2, 3), correction=0, keepdim=True)
    return (image - mean) / torch.where(spread > FLAT, spread, 1.0)


class Batch(NamedTuple):
    """A batch of views.

    Args:
        image: (b, 3, side, side), 0 to 1.
        label: (b,).
        other: label of the image that was mixed in, (b,).
        share: share of the first image, 0-dimensional; 1 where nothing was mixed in.
    """

    image: Tensor
    label: Tensor
    other: Tensor
    share: Tensor


class RandomViews:
    """Batches of random views of the images for training; each epoch shows every image once.

    Args:
        images: the images, on the device.
        seed: seed of the random numbers; a seed and a step's number decide on its batch.
        batch_size: number of views.
    """

    def __init__(self, images: Images, seed: int, batch_size: int) -> None:
        self.images = images
        self.seed = seed
        self.batch_size = batch_size
        self.numbers = images.numbers(held_out=False)
        self.steps_per_epoch = len(self.numbers) // batch_size
        self._order: tuple[int, Tensor] = (-1, self.numbers)

    @torch.no_grad()
    def batch(self, step: int, side: int) -> Batch:
        """The views of a step, counted from 0, of so many pixels a side."""
        draws = Draws(self.numbers.device, self.seed * SEEDS + step)
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            shuffler = torch.Generator().manual_seed(self.seed * SEEDS + epoch)
            order = torch.randperm(len(self.numbers), generator=shuffler)
            self._order = epoch, self.numbers[order.to(self.numbers.device)]
        numbers = self._order[1][place * self.batch_size :][: self.batch_size]
        aspect = self.images.aspects[numbers]
        image = cut(self.images.pixels[numbers], *draw_crops(draws, aspect), side)
        return mix(draws, recolour(draws, image), self.images.labels[numbers])


def draw_crops(draws: Draws, aspect: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and extents of random crops, as :func:`cut` takes them.

    Args:
        draws: random numbers.
        aspect: width over height of each image, (b,).
    """
    count = len(aspect)
    area = draws.uniform(count, low=AREA[0], high=AREA[1])
    reach = math.log(STRETCH)
    shape = torch.exp(draws.uniform(count, low=-reach, high=reach)) / aspect  # of the crop, in the square
    extent = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], 1).clamp_max(1)
    centre = (draws.uniform(count, 2) * 2 - 1) * (1 - extent)
    mirror = torch.where(draws.coin(0.5, count), -1.0, 1.0)
    return centre, torch.stack([extent[:, 0] * mirror, extent[:, 1]], 1)


def recolour(draws: Draws, image: Tensor) -> Tensor:
    """Another light and other colours; some views are gray."""
    count = len(image)
    gray = (image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    saturation = draws.uniform(count, 1, 1, 1, low=SATURATION[0], high=SATURATION[1])
    saturation = torch.where(draws.coin(GRAY, count, 1, 1, 1), 0.0, saturation)
    image = (gray + (image - gray) * saturation).clamp(0, 1)
    image = image ** torch.exp(draws.normal(count, 1, 1, 1) * GAMMA_SPREAD)
    cast = torch.exp(draws.normal(count, 3, 1, 1) * CAST_SPREAD)
    return (image * torch.where(saturation > 0, cast, 1.0)).clamp(0, 1)


def mix(draws: Draws, image: Tensor, label: Tensor) -> Batch:
    """Now and then a batch of views that each hold two images: mixup and CutMix."""
    *_, height, width = image.shape
    other = torch.randperm(len(image), generator=draws.generator, device=draws.device)
    share = draws.uniform(1)
    half = (1 - share).sqrt() / 2  # of the rectangle's sides, as a share of the view's
    rows, columns = ((torch.arange(side, device=image.device) + 0.5) / side for side in (height, width))
    centre = draws.uniform(2)
    inside = ((rows - centre[0]).abs() < half)[:, None] & ((columns - centre[1]).abs() < half)
    weight = torch.where(draws.coin(0.5, 1), share, (~inside).float())  # of the view's own image, at each pixel
    weight = torch.where(draws.coin(MIXED, 1), weight.expand(height, width), 1.0)
    return Batch(image * weight + image[other] * (1 - weight), label, label[other], weight.mean())
