# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures made by formulas, with masks: contours with textures, painted back to front, on the device.

Nobody drew or photographed any of it, so no terms bind the weights that learn from it. That networks learn from such
pictures what serves them elsewhere was reported for classification by Kataoka et al. ("Pre-training without natural
images", ACCV 2020: FractalDB; "Replacing labeled real-image datasets with auto-generated contours", CVPR 2022) and for
segmentation by Shinoda et al. ("SegRCDB: semantic segmentation via formula-driven supervised learning", ICCV 2023). The
formulas here are our own.

A shape's class is the form of its contour (:mod:`.contours`) and of its texture: noise with a spectrum, stripes, spots,
or rings from the middle to the contour. Shapes of one kind share class, colours and the numbers of the texture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.nuclei.draws import Draws
from benchmarks.nuclei.looks import blurred

from .contours import (
    KINDS,
    NUM_CLASSES,
    TEXTURES,
    Shapes,
    draw_places,
    draw_shapes,
    locate,
    log_uniform,
    paint,
    rows_of,
)
from .views import normalized

__all__ = ["NUM_CLASSES", "make_images"]

EXPONENT = (0.5, 3.5)  # exponent of the power spectrum of a kind's noise: fine to soft
WAVELENGTH = (0.02, 0.2)  # wavelength of stripes and spots, as a share of the side
TURNS = (0.4, 3.5)  # rings from a shape's middle to its contour
SHARPNESS = (0.8, 5.0)  # sharpness of stripes and spots
CONTRAST, GROUND_CONTRAST = (0.03, 0.3), 0.6  # half of a texture's range; the ground's as a share of it
RIM, RIM_WIDTH = 0.2, (0.05, 0.25)  # a contour may be brighter or darker
SLOPE, DRIFT = 0.12, 0.05  # standard deviations: light from one side, and what a shape differs by from its kind
COLOURED, SATURATION, COLOUR_SPREAD = 0.6, (0.2, 1.0), 0.3
LIGHT, GAMMA_SPREAD, BLUR, NOISE = 0.2, 0.25, (0.4, 2.0), 0.12


def make_images(batch: int, size: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and masks.

    Args:
        batch: number of images.
        size: length of their sides, in pixels.
        generator: generator of the random numbers, on the device; the same state gives the same images on the same kind
            of it.
        device: device of the results.

    Returns:
        images (batch, 3, size, size), float32, of mean 0 and standard deviation 1 in each channel of each; and the
        class of each pixel, (batch, 1, size, size), int64, from 0, the ground, to :data:`NUM_CLASSES` - 1.

    Raises:
        ValueError: the generator is of another kind of device.
    """
    device = torch.device(device)
    if generator.device.type != device.type:
        raise ValueError(f"the generator is on {generator.device}, and images are wanted on {device}; make one there.")
    with torch.no_grad():
        draws = Draws(device, generator)
        shapes, places = draw_shapes(draws, batch, size), draw_places(draws, batch, size)
        owner = paint(shapes, places)
        coloured = draws.coin(COLOURED, batch, 1, 1)
        image = _photograph(draws, _colour(draws, shapes, owner, places, coloured), coloured[..., None])
        return normalized(image), shapes.classes[rows_of(owner), owner][:, None]


def _colour(draws: Draws, shapes: Shapes, owner: Tensor, places: Tensor, coloured: Tensor) -> Tensor:
    """The shapes' colours and textures, (b, 3, h, w), about 0 to 1; ``coloured`` (b, 1, 1) says which are not gray."""
    batch, size = owner.shape[:2]
    kinds, rows, kind = (batch, KINDS + 1), rows_of(owner), shapes.kind[rows_of(owner), owner]
    own, out = locate(shapes, owner, places)
    noise = _noise(draws, draws.uniform(*kinds, low=EXPONENT[0], high=EXPONENT[1]), size)
    noise = noise.gather(1, kind[:, None])[:, 0]
    waves = shapes.radius / (log_uniform(draws, WAVELENGTH, *kinds).gather(1, shapes.kind) * size)
    phase = 2 * math.pi * (own * waves[rows, owner][..., None] + draws.uniform(*waves.shape, 2)[rows, owner])
    sharpness = log_uniform(draws, SHARPNESS, *kinds)[rows, kind]
    stripes = torch.tanh(sharpness * phase[..., 0].sin())
    spots = torch.tanh(sharpness * (phase.cos().sum(-1) - 0.5))
    turns = draws.uniform(*kinds, low=TURNS[0], high=TURNS[1])[rows, kind]
    rings = torch.cos(2 * math.pi * (turns * out + draws.uniform(*kinds)[rows, kind]))
    textures = torch.stack([0.6 * noise, stripes, spots, rings], 1)
    style = shapes.style[rows, kind] % len(TEXTURES)
    texture = textures.gather(1, style[:, None])[:, 0] + 0.2 * noise

    saturation = draws.uniform(batch, 1, 1, low=SATURATION[0], high=SATURATION[1]) * coloured
    middle = draws.uniform(*kinds, 1) + saturation * COLOUR_SPREAD * draws.normal(*kinds, 3)
    contrast = draws.uniform(*kinds, 1, low=CONTRAST[0], high=CONTRAST[1])
    contrast = contrast * (1 + saturation * draws.normal(*kinds, 3))
    contrast[:, 0] *= GROUND_CONTRAST * draws.uniform(batch, 1)
    rim = RIM * draws.normal(*kinds)
    rim[:, 0] = 0.0
    width = draws.uniform(*kinds, low=RIM_WIDTH[0], high=RIM_WIDTH[1])
    light = rim[rows, kind] * torch.exp(-(((1 - out) / width[rows, kind]) ** 2))
    light = light + (SLOPE * draws.normal(*kinds))[rows, kind] * own[..., 0].clamp(-1, 1)
    light = light + (DRIFT * draws.normal(*waves.shape))[rows, owner]
    image = middle[rows, kind] + contrast[rows, kind] * texture[..., None] + light[..., None]
    return image.movedim(-1, 1)


def _noise(draws: Draws, exponent: Tensor, size: int) -> Tensor:
    """Noise (b, k, size, size) of standard deviation 1 whose power falls with the frequency to the powers (b, k)."""
    rows, columns = torch.fft.fftfreq(size, device=draws.device), torch.fft.rfftfreq(size, device=draws.device)
    frequency = torch.hypot(rows[:, None], columns)
    frequency[0, 0] = math.inf  # no mean
    spectrum = torch.fft.rfft2(draws.normal(*exponent.shape, size, size))
    noise = torch.fft.irfft2(spectrum * frequency ** (-exponent[..., None, None] / 2), (size, size))
    return noise / noise.std((2, 3), keepdim=True)


def _photograph(draws: Draws, image: Tensor, coloured: Tensor) -> Tensor:
    """Uneven light, gamma, focus and noise."""
    batch, _, *side = image.shape
    image = (image * (1 + LIGHT * draws.uniform(batch, 1, 1, 1) * draws.clouds(batch, side[0], (2, 3)))).clamp(0, 1.2)
    image = image ** torch.exp(draws.normal(batch, 1, 1, 1) * GAMMA_SPREAD)
    image = blurred(image, draws.uniform(batch, low=BLUR[0], high=BLUR[1]))
    noise = draws.normal(batch, 1, *side)
    noise = torch.where(coloured, draws.normal(*image.shape), noise)
    return image + noise * NOISE * draws.uniform(batch, 1, 1, 1) ** 2
