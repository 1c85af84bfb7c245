# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Random crops of pictures that lie on the device: turned, scaled and mirrored, with changed intensities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .packs import Picture

AT_A_CLASS = 1 / 3  # share of crops with a pixel of the foreground in their middle half
TURNED, ANGLE = 0.5, math.pi / 6  # share of crops that are turned, and by how much at the most
SCALED, SCALES = 0.5, (0.7, 1.4)
NOISY, NOISE = 0.15, 0.3  # standard deviation at the most, of images whose own is 1
COARSE, COARSENESS = 0.25, (0.5, 1.0)
CONTRAST = 0.25  # and brightness
BENT, GAMMA = 0.3, (0.7, 1.5)
PLACES = 1000  # pixels of the foreground that are kept of each picture


def z_scored(picture: Picture, device: torch.device) -> Tensor:
    """Its image with mean 0 and standard deviation 1 in each channel, (3, H, W)."""
    image = torch.from_numpy(picture.image).to(device).movedim(-1, 0).float()
    return (image - image.mean((1, 2), keepdim=True)) / image.std((1, 2), keepdim=True).clamp(min=1)


class RandomCrops:
    """Batches of crops, the same for the same seed.

    Args:
        pictures: the pictures that are learnt from.
        size: height and width of the crops in pixels.
        device: device that they are cut on.
        seed: seed of all that is random.
    """

    def __init__(self, pictures: Sequence[Picture], size: tuple[int, int], device: torch.device, seed: int) -> None:
        self.size, self.device = size, device
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.images = [z_scored(picture, device) for picture in pictures]
        self.classes = [torch.from_numpy(picture.classes).to(device)[None].float() for picture in pictures]
        self.places = [self._places(picture.classes) for picture in pictures]
        rows, columns = (torch.arange(side, device=device) - (side - 1) / 2 for side in size)
        self.offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)

    def _places(self, classes: np.ndarray) -> np.ndarray:
        places = np.argwhere(classes > 0)
        return self.random.choice(places, min(PLACES, len(places)), replace=False) if len(places) else places

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, 3, h, w) and classes (count, 1, h, w), float32."""
        crops = [self._crop(number) for number in self.random.integers(len(self.images), size=count)]
        images, classes = (torch.stack(some) for some in zip(*crops))
        return self._changed(images), classes

    def _crop(self, number: int) -> tuple[Tensor, Tensor]:
        random, image = self.random, self.images[number]
        sides = np.array(image.shape[1:])
        scale = random.uniform(*SCALES) if random.random() < SCALED else 1.0
        angle = random.uniform(-ANGLE, ANGLE) if random.random() < TURNED else 0.0
        cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
        matrix = np.array([[cosine, -sine], [sine, cosine]]) * random.choice([-1, 1], 2)
        half = np.array(self.size) / 2
        if random.random() < AT_A_CLASS and len(self.places[number]):
            centre = self.places[number][random.integers(len(self.places[number]))] + random.uniform(
                -half / 2, half / 2
            )
        else:
            centre = random.uniform(0, 1, 2) * sides
        centre = np.where(sides > 2 * half, np.clip(centre, half, np.maximum(sides - half, half)), sides / 2) - 0.5
        places = self.offsets @ torch.tensor(matrix.T, dtype=torch.float32).to(self.device, non_blocking=True)
        centre, sides = (
            torch.tensor(x, dtype=torch.float32).to(self.device, non_blocking=True) for x in (centre, sides)
        )
        grid = (((places + centre) * 2 + 1) / sides - 1).flip(-1)[None]  # of grid_sample: x, y from -1 to 1
        of_image = F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
        return of_image, F.grid_sample(self.classes[number][None], grid, mode="nearest", align_corners=False)[0]

    def _changed(self, images: Tensor) -> Tensor:
        """Intensities as another camera, scanner or stain might have given them, each image by itself."""

        def draw(low: float, high: float, share: float = 1.0, otherwise: float = 0.0) -> Tensor:
            values = torch.rand(2, len(images), 1, 1, 1, generator=self.generator, device=self.device)
            return torch.where(values[0] < share, low + (high - low) * values[1], otherwise)

        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        gamma = draw(*GAMMA, BENT, 1.0)
        images = ((images - low) / (high - low + 1e-6)).clamp(min=1e-6) ** gamma * (high - low) + low
        if self.random.random() < COARSE:
            factor = self.random.uniform(*COARSENESS)
            coarse = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True)
            images = F.interpolate(coarse, self.size, mode="bilinear")
        images = images * draw(1 - CONTRAST, 1 + CONTRAST) + draw(-CONTRAST, CONTRAST)
        noise = torch.randn(images.shape, generator=self.generator, device=self.device)
        return images + noise * draw(0, NOISE, NOISY)
