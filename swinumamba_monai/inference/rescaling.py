# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells of a size that the network has not learnt: it is shown the image in another size.

What it says of an image that was made smaller is brought back to the size of the image. What it says of one that was
made larger stays so until the cells are found in it: where cells are a few pixels wide, the ways to their centres are
too short to be told apart.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch import Tensor

from swinumamba_monai.inference.free_memory import free_memory
from swinumamba_monai.instances import find_cells
from swinumamba_monai.option_values import check_value

logger = logging.getLogger(__name__)

AUTO = "auto"
KNOWN_DIAMETERS = (9.0, 64.0)  # pixels; nuclei from 7 to 64 pixels across were in the training
SMALL, LARGE = 16.0, 30.0  # the diameters that smaller and larger ones are brought to
LEAST_ZOOM, LARGEST_ZOOM = 1 / 8, 4.0
MOST_PIXELS = 4096**2  # number of pixels of an image that was made larger because of what was found in it
A_PIXEL = 112  # bytes that one of them takes, with flows, the most of all targets; measured as for MemoryNeed
FIRST_LOOK = 1024  # pixels of the sides of the part of an image in which cells are measured: where most of them are
FEW = 3  # cells; where fewer are found, the image is looked at in a third of its size, too
CENTRE = 170  # pixels of the sides of what is looked at in three times its size where nothing is found: a window then


class RescalingInferer(Inferer):
    """Run another inferer on the image in the size in which its cells are as large as those of the training.

    Args:
        inferer: inferer that gives an output (b, c, h, w) for an image (b, c, h, w).
        diameter: diameter of the cells, in pixels; ``"auto"`` measures it in the output for the image as it is, and
            takes the output for another size if more is found in it; None leaves every image as it is. Diameters from 9
            to 64 leave it, too.
        keep_larger: whether the output for an image that was made larger stays as large, for
            :class:`~swinumamba_monai.instances.FlowsToInstancesd` to find the cells there, and :class:`AtImageSized`.

    Raises:
        InputError: ``diameter`` is something else.
    """

    def __init__(self, inferer: Inferer, diameter: float | str | None = None, keep_larger: bool = False) -> None:
        check_value("diameter", diameter, None)
        self.inferer = inferer
        self.diameter = diameter
        self.keep_larger = keep_larger

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """The output of the network for images (b, c, h, w); with ``auto`` the first one decides.

        It has the size of the images, or with ``keep_larger`` that in which the network saw them.
        """

        def output_of(image: Tensor, zoom: float) -> Tensor:
            return self.inferer(_resized(image, zoom), network, *args, **kwargs)

        if self.diameter == AUTO:
            output, zoom = _best_output(inputs, output_of)
        else:
            zoom = wanted_zoom(self.diameter)
            output = output_of(inputs, zoom)
        if zoom == 1 or (zoom > 1 and self.keep_larger):
            return output
        return F.interpolate(output.float(), inputs.shape[2:], mode="bilinear", align_corners=False)


class AtImageSized(MapTransform):
    """Postprocessing: bring maps (c, H, W) to the size of the image (C, h, w) that they are of.

    Args:
        keys: keys of the maps.
        image_key: key of the image.
        allow_missing_keys: whether absent maps are passed over, instead of being an error.
    """

    def __init__(self, keys: KeysCollection, image_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        result = dict(data)
        size = result[self.image_key].shape[1:]
        for key in self.key_iterator(result):
            if result[key].shape[1:] != size:
                result[key] = F.interpolate(result[key][None], size, mode="bilinear", align_corners=False)[0]
        return result


def wanted_zoom(diameter: float | None) -> float:
    """The factor of an image with cells of this diameter in pixels, None if there is none.

    >>> wanted_zoom(20), wanted_zoom(4), wanted_zoom(120), wanted_zoom(None)
    (1.0, 4.0, 0.25, 1.0)
    """
    smallest, largest = KNOWN_DIAMETERS
    if diameter is None or smallest <= diameter <= largest:
        return 1.0
    return float(np.clip((SMALL if diameter < smallest else LARGE) / diameter, LEAST_ZOOM, LARGEST_ZOOM))


def diameter_of(area: np.ndarray) -> float | None:
    """The median diameter in pixels of circles as large as the cells, by the numbers of their pixels (n,); or None."""
    return float(np.median(2 * np.sqrt(area[area > 0] / np.pi))) if area.any() else None


def _best_output(inputs: Tensor, output_of: Callable[[Tensor, float], Tensor]) -> tuple[Tensor, float]:
    """The output for the images in the size in which the network finds most, and the zoom to that."""
    output = output_of(inputs, 1)
    part = _fullest(output[0])
    first = _look(output[0], part)
    looks = [first]
    if first.count < FEW and inputs.min() < inputs.max():
        looks.append(_look(output_of(inputs, 1 / 3)[0], zoom=1 / 3))
        if not first.count and (closer := _look(output_of(_centre(inputs), 3)[0], zoom=3)).count >= FEW:
            looks.append(closer)
    diameter = max(looks, key=lambda look: look.sure).diameter
    zoom = wanted_zoom(diameter)
    if zoom > 1:
        zoom = _limited(zoom, inputs.shape[2:].numel())
    if zoom == 1:
        return output, 1
    logger.info("cells of %.0f pixels: the image is looked at again, resized by %.2f", diameter, zoom)
    other = output_of(inputs, zoom)
    return (other, zoom) if _look(other[0], part, zoom).sure > first.sure else (output, 1)


def _limited(zoom: float, pixels: int) -> float:
    """The zoom, or a smaller one for an image of so many pixels to stay below MOST_PIXELS and fit into memory."""
    largest = math.sqrt(MOST_PIXELS / pixels)
    free = free_memory()
    if free is not None and (fitting := math.sqrt(free / A_PIXEL / pixels)) < min(zoom, largest):
        logger.warning(
            "memory is too short to look at the small cells %.1f times as large: %.1f", zoom, max(1.0, fitting)
        )
        largest = fitting
    return max(1.0, min(zoom, largest))


@dataclass(frozen=True)
class _Look:
    """What is found in a part of an image: how many cells, the sum of their pixels times scores, their diameter.

    Pixels are those of the image as it is.
    """

    count: int
    sure: float
    diameter: float | None


def _look(output: Tensor, part: tuple[slice, slice] | None = None, zoom: float = 1) -> _Look:
    """Find the cells in the output (c, h, w) for the image at a zoom; ``part`` is a part of the image as it is."""
    if part is not None:
        rows, columns = (slice(round(zoom * side.start), round(zoom * side.stop)) for side in part)
        output = output[:, rows, columns]
    ids, scores = find_cells(output)
    area = np.bincount(ids.ravel())[1:] / zoom**2
    return _Look(len(area), float((area * scores).sum()), diameter_of(area))


def _fullest(output: Tensor) -> tuple[slice, slice]:
    """The rows and columns of a part of an output (c, h, w) in which most pixels belong to cells."""
    inside = output[1] > output[0]
    tiles = [
        tuple(slice(start, start + FIRST_LOOK) for start in corner)
        for corner in itertools.product(*(range(0, side, FIRST_LOOK) for side in inside.shape))
    ]
    return max(tiles, key=lambda tile: int(inside[tile].sum()))


def _centre(image: Tensor) -> Tensor:
    """The middle of images (b, c, h, w)."""
    starts = [max(0, (side - CENTRE) // 2) for side in image.shape[2:]]
    rows, columns = (slice(start, start + CENTRE) for start in starts)
    return image[:, :, rows, columns]


def _resized(image: Tensor, zoom: float) -> Tensor:
    if zoom == 1:
        return image
    size = [max(8, round(side * zoom)) for side in image.shape[2:]]
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=zoom < 1)
