# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Numbered pixels in colours over an image, and the range of brightness that a picture of any image shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from skimage.color import hsv2rgb
from skimage.segmentation import find_boundaries

GREEN, MAGENTA = (0.1, 1.0, 0.1), (1.0, 0.1, 1.0)
MAX_PICTURE = 4096**2  # pixels; of larger images the picture shows every second pixel of a side, every third, ...


def display_range(image: np.ndarray) -> tuple[float, float]:
    """The value of intensities that is shown black, and how far above it white lies.

    Intensities have no fixed range, and a few bright pixels must not make the rest black: black is the 0.5 % quantile,
    white the 99.5 % one.
    """
    low, high = np.percentile(image, (0.5, 99.5))
    return low, max(high - low, 1e-6)


def palette(count: int) -> np.ndarray:
    """A colour for every number from 0 to ``count``, RGB in [0, 1], shape (count + 1, 3)."""
    hue = np.arange(count + 1) * 0.618034 % 1  # the golden ratio keeps the hues of neighbouring numbers apart
    return hsv2rgb(np.stack([hue, np.full_like(hue, 0.85), np.full_like(hue, 0.95)], axis=-1))


def paint(picture: np.ndarray, numbers: np.ndarray, colours: np.ndarray, opacity: float) -> None:
    """Fill numbered pixels half-transparently, with an opaque rim; 0 is not painted.

    Args:
        picture: image of shape (H, W, 3), float, in the units of the colours; it is changed.
        numbers: instance ids or classes of shape (H, W).
        colours: colour of each number, shape (numbers, 3).
        opacity: opacity of what lies inside the rim, from 0 to 1.
    """
    painted = numbers > 0
    alpha = np.where(find_boundaries(numbers, mode="inner"), 1.0, opacity)[painted, None]
    picture[painted] = (1 - alpha) * picture[painted] + alpha * colours[numbers[painted]]


def picture_step(shape: Sequence[int]) -> int:
    """The n of the every n-th pixel of each side that a picture of an image of this shape (H, W) shows.

    The number of pixels decides, not the longer side: of a strip of 64 rows every 25th would show nothing.

    >>> picture_step((4096, 4096)), picture_step((64, 100_000)), picture_step((20_000, 20_000))
    (1, 1, 5)
    """
    return max(1, math.ceil(math.sqrt(math.prod(shape) / MAX_PICTURE)))


def outlined(image: np.ndarray, labels: np.ndarray, one_colour: bool) -> np.ndarray:
    """A picture (H, W, 3), uint8, of an image with the outlines of what was found in it.

    Args:
        image: gray or colour image (H, W) or (H, W, C), stretched from its 0.5 % to its 99.5 % quantile; of a volume
            (X, Y, Z) or (X, Y, Z, C) the slice along Z is shown in which most was found.
        labels: numbers of that shape without the channels, 0 is background.
        one_colour: whether all outlines are green, which shows on gray and on stains, or magenta around what is green
            itself, as GFP often is; else every number has a colour.
    """
    if labels.ndim == 3:
        best = (labels > 0).sum((0, 1)).argmax()
        image, labels = image[:, :, best], labels[:, :, best]
    step = picture_step(labels.shape)
    image, labels = image[::step, ::step], labels[::step, ::step]
    channels = image[..., :3] if image.ndim == 3 else image[..., None]
    if channels.shape[-1] == 2:  # red and green, as the network sees them
        channels = np.concatenate([channels, np.zeros_like(channels[..., :1])], -1)
    low, span = display_range(channels)
    picture = np.clip((channels - low) * (255 / span), 0, 255) * np.ones(3)
    if one_colour:
        red, green, blue = (np.bincount(labels.ravel(), channel.ravel()) for channel in np.moveaxis(picture, -1, 0))
        colours = np.where((green > 2 * np.maximum(red, blue))[:, None], MAGENTA, GREEN)
    else:
        colours = palette(labels.max())
    paint(picture, labels, 255 * colours, opacity=0)
    return np.rint(picture).astype(np.uint8)
