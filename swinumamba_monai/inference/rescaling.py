# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells of a size that the network has not learnt: the image is resized before, its output after."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor

from swinumamba_monai.instances import find_cells
from swinumamba_monai.option_values import check_value

logger = logging.getLogger(__name__)

KNOWN_DIAMETERS = (9.0, 64.0)  # pixels; nuclei from 7 to 64 pixels across were in the training
SMALL, LARGE = 16.0, 30.0  # the diameters that smaller and larger ones are brought to
LEAST_ZOOM, LARGEST_ZOOM = 1 / 8, 4.0
FIRST_LOOK = 1024  # pixels of the longer side that is looked at to measure cells; larger images are made smaller
FEW = 3  # cells; where fewer are found, the image is looked at in a third and in three times its size, too


class RescalingInferer(Inferer):
    """Run another inferer on the image in the size in which its cells are as large as those of the training.

    Args:
        inferer: inferer that gives an output (b, c, h, w) for an image (b, c, h, w).
        diameter: diameter of the cells, in pixels; ``"auto"`` measures it in the output for the image as it is; None
            leaves every image as it is, and so do diameters from 9 to 64.

    Raises:
        InputError: ``diameter`` is something else.
    """

    def __init__(self, inferer: Inferer, diameter: float | str | None = None) -> None:
        check_value("diameter", diameter, None)
        self.inferer = inferer
        self.diameter = diameter

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """The output of the network, of the size of the images (b, c, h, w); the mean size of a batch decides."""

        def output_at(zoom: float) -> Tensor:
            return self.inferer(_resized(inputs, zoom), network, *args, **kwargs)

        if self.diameter is None:
            return output_at(1)
        diameter = self.diameter if self.diameter != "auto" else _measure(output_at, inputs.shape[2:])
        zoom = wanted_zoom(diameter)
        if zoom == 1:
            return output_at(1)
        logger.info("cells of %.0f pixels: the image is resized by %.2f", diameter, zoom)
        return F.interpolate(output_at(zoom).float(), inputs.shape[2:], mode="bilinear", align_corners=False)


def wanted_zoom(diameter: float | None) -> float:
    """The factor of an image with cells of this diameter in pixels, None if there is none.

    >>> wanted_zoom(20), wanted_zoom(4), wanted_zoom(120), wanted_zoom(None)
    (1.0, 4.0, 0.25, 1.0)
    """
    smallest, largest = KNOWN_DIAMETERS
    if diameter is None or smallest <= diameter <= largest:
        return 1.0
    return float(np.clip((SMALL if diameter < smallest else LARGE) / diameter, LEAST_ZOOM, LARGEST_ZOOM))


def median_diameter(ids: np.ndarray) -> float | None:
    """The median diameter in pixels of circles as large as the cells (H, W), 0 background; None without cells."""
    return diameter_of(np.bincount(ids.ravel())[1:])


def diameter_of(area: np.ndarray) -> float | None:
    """The same of the numbers of pixels of the cells; those without any do not count."""
    return float(np.median(2 * np.sqrt(area[area > 0] / np.pi))) if area.any() else None


def _measure(output_at: Callable[[float], Tensor], shape: tuple[int, int]) -> float | None:
    """The median diameter of the cells of an image, in its own pixels."""
    first = min(1.0, FIRST_LOOK / max(shape))
    looks = [_look(output_at, first)]
    if looks[0][0] < FEW:
        looks += [
            _look(output_at, first * factor) for factor in (1 / 3, 3) if max(shape) * first * factor <= FIRST_LOOK
        ]
    return max(looks, key=lambda look: look[0])[1]


def _look(output_at: Callable[[float], Tensor], zoom: float) -> tuple[int, float | None]:
    """How many cells there are in the image at a zoom, and their diameter in pixels of the image as it is."""
    ids = find_cells(output_at(zoom)[0])
    diameter = median_diameter(ids)
    return int(ids.max(initial=0)), None if diameter is None else diameter / zoom


def _resized(image: Tensor, zoom: float) -> Tensor:
    if zoom == 1:
        return image
    size = [max(8, round(side * zoom)) for side in image.shape[2:]]
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=zoom < 1)
