# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Crops of cells on the device: all training images lie in its memory, and a batch is cut from them there, scaled,
turned, mirrored and stretched at random.

Places are rows and columns in pixels, (0, 0) the middle of an image's first pixel. A view is a crop that is chosen: an
image, where in it the crop's middle lies, and the matrix that takes offsets from the crop's middle to offsets in the
image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import regionprops_table
from torch import Tensor

from swinumamba_monai.data import ToRGB, read_image, read_instances
from swinumamba_monai.data.sampling.intensity import Look, NormalizeLook, look_of
from swinumamba_monai.instances.flows import flow_targets

from .draws import Draws
from .looks import BRIGHTFIELD, FLUORESCENCE, STAINED, RandomLooks

__all__ = ["Atlas", "RandomCrops", "Sample", "Views", "make_sample", "read_sample"]

LEVELS = 4  # number of sizes of an image: full, a half, a quarter and an eighth
LIMIT = 1.5  # normalised images are kept from -LIMIT to LIMIT, as bytes,
IMAGE_STEPS, FLOW_STEPS = 85, 127  # so many to 1; and flows as bytes too

SHARES = {FLUORESCENCE: 0.58, STAINED: 0.36, BRIGHTFIELD: 0.06}  # shares of the crops
AREA_POWER = 0.35  # larger images come a little more often
NEAR, NEAR_SPREAD = 0.6, 0.3  # share of crops whose scale is near 1, and the standard deviation of its logarithm
DIAMETERS = (7, 64)  # pixels: in the other crops the image's median cell has a diameter between them
SCALES = (0.25, 5)
FILLED, LEAST_SIDE = 0.8, 0.6  # share of crops of which the image's longer side covers at least so much
STRETCH_SPREAD = 0.08  # standard deviation of the logarithm of height over width, halved
ANY_ANGLE = 0.7  # share of crops at any angle; the others are turned by quarters
AT_A_CELL, AROUND = 0.5, 0.8  # share of crops for which a cell is chosen, and the part of the side where it may lie
INSIDE = 0.9  # share of half a crop's side: so far from the border its middle stays, where the image is large enough
NO_CELLS = 20.0  # pixels, the diameter that is taken for the cells of an image without any


class Sample(NamedTuple):
    """A training image and what crops of it need.

    Args:
        levels: the normalised image at each of its sizes, (h, w, 3) uint8, 0 for -1.5 and 255 for 1.5.
        instances: the cells' ids, (H, W) int32, 0 background.
        flows: directions to the cells' centres along rows and columns, (H, W, 2) int8, 127 for 1.
        centres: the cells' places, (n, 2) float32.
        diameter: diameter of a circle of the median cell's area, in pixels.
        modality: a key of :data:`SHARES`.
    """

    levels: list[np.ndarray]
    instances: np.ndarray
    flows: np.ndarray
    centres: np.ndarray
    diameter: float
    modality: int


def read_sample(item: Mapping[str, str]) -> Sample:
    """The sample of an item of a microscopy dataset's ``datalist.json``."""
    return make_sample(read_image(item["image"]), read_instances(item["label"]))


def make_sample(image: np.ndarray, instances: np.ndarray) -> Sample:
    """
    Args:
        image: (H, W) or (H, W, C), of any numeric type.
        instances: instance ids (H, W), int32, 0 background.
    """
    colours = ToRGB()(torch.from_numpy(np.atleast_3d(image).astype(np.float32)).movedim(-1, 0))
    normalized = NormalizeLook()(colours).as_subclass(Tensor)
    # true of all 664 images of DSB-2018: fluorescence is mostly dark, brightfield mostly bright
    uncoloured = BRIGHTFIELD if normalized.median() > 0 else FLUORESCENCE
    modality = STAINED if look_of(colours) is Look.BRIGHT else uncoloured
    levels = []
    for _ in range(LEVELS):
        level = ((normalized.clamp(-LIMIT, LIMIT) + LIMIT) * IMAGE_STEPS).round().byte()
        levels.append(level.movedim(0, -1).numpy())
        normalized = F.avg_pool2d(normalized[None], 2, ceil_mode=True, count_include_pad=False)[0]
    flows = np.round(flow_targets(instances)[1:] * FLOW_STEPS).astype(np.int8)
    cells = regionprops_table(instances, properties=("centroid", "equivalent_diameter_area"))
    centres = np.stack([cells["centroid-0"], cells["centroid-1"]], 1).astype(np.float32)
    diameter = float(np.median(cells["equivalent_diameter_area"])) if len(centres) else NO_CELLS
    return Sample(levels, instances, np.moveaxis(flows, 0, -1), centres, diameter, modality)


class Views(NamedTuple):
    """A batch of crops that are chosen.

    Args:
        sample: number of the sample of each, (b,), int64.
        matrix: linear map from offsets in the crop to offsets in the image, (b, 2, 2).
        centre: place in the image of the crop's middle, (b, 2).
    """

    sample: Tensor
    matrix: Tensor
    centre: Tensor


class Atlas:
    """Samples of all sizes on a device, each kind of their pixels one after the other.

    Args:
        samples: one at least, with at least one cell among them.
        device: device that they are put on.
    """

    def __init__(self, samples: Sequence[Sample], device: torch.device) -> None:
        def put(values: object, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

        levels = [level for sample in samples for level in sample.levels]
        shapes = np.array([level.shape[:2] for level in levels])
        self.colours = put(np.concatenate([level.reshape(-1, 3) for level in levels]), torch.uint8)
        self.instances = put(np.concatenate([sample.instances.ravel() for sample in samples]), torch.int32)
        self.flows = put(np.concatenate([sample.flows.reshape(-1, 2) for sample in samples]), torch.int8)
        # of every level the first pixel, height and width: (samples, LEVELS, 3)
        table = np.concatenate([_starts(shapes.prod(1))[:, None], shapes], 1)
        self.levels = put(table.reshape(len(samples), LEVELS, 3))
        self.sides = self.levels[:, 0, 1:]  # of the samples
        self.first_pixel = put(_starts([sample.instances.size for sample in samples]))
        self.centres = put(np.concatenate([sample.centres for sample in samples]), torch.float32)
        counts = [len(sample.centres) for sample in samples]
        self.first_cell, self.num_cells = put(_starts(counts)), put(counts)
        self.diameter = put([sample.diameter for sample in samples], torch.float32)
        self.modality = put([sample.modality for sample in samples])

    def image(self, views: Views, side: int) -> Tensor:
        """The crops (b, 3, side, side): linear interpolation, in the level of the image that has their scale.

        0 is the dark end of the image and 1 its bright end. What lies outside is mirrored.
        """
        scale = torch.linalg.det(views.matrix).abs() ** -0.5
        level = (0.3 - torch.log2(scale)).floor().clamp(0, LEVELS - 1).long()
        start, *sides = self.levels[views.sample, level][..., None, None].unbind(1)
        places = ((_places(views, side) + 0.5) / 2.0 ** level[:, None, None, None] - 0.5).unbind(1)
        places = [_mirrored(place, length) for place, length in zip(places, sides)]
        image = sum(share[..., None] * self.colours[pixel] for pixel, share in _around(start, places, sides))
        return ((image / IMAGE_STEPS - LIMIT + 1) / 2).permute(0, 3, 1, 2)

    def truth(self, views: Views, side: int) -> tuple[Tensor, Tensor]:
        """What is true in the crops.

        Returns:
            the cells' ids (b, side, side), int32, of the nearest pixels; and the target (b, 4, side, side) of
            :class:`~swinumamba_monai.instances.flows.FlowLoss`. Its first channel goes from 0 to 1 over a pixel at a
            cell's edge, the flow is turned with the crop, and the last channel is 1 inside of the image and 0 outside,
            where all the others are 0.
        """
        start = self.first_pixel[views.sample][:, None, None]
        sides = self.sides[views.sample][..., None, None].unbind(1)
        places = _places(views, side).unbind(1)
        known = torch.stack([(at > -0.5) & (at < length - 0.5) for at, length in zip(places, sides)]).all(0)
        places = [torch.minimum(at.clamp_min(0), length - 1) for at, length in zip(places, sides)]
        row, column = (at.round().long() for at in places)
        nearest = self.instances[start + row * sides[1] + column] * known
        inside = flow = torch.zeros((), device=known.device)
        for pixel, share in _around(start, places, sides):
            there = self.instances[pixel]
            inside = inside + share * (there > 0)
            same = share * ((there == nearest) & (nearest > 0))  # the flow of another cell says nothing about this one
            flow = flow + same[..., None] * self.flows[pixel]
        flow = torch.einsum("bij,bhwj->bihw", torch.linalg.inv(views.matrix), flow)
        flow = F.normalize(flow, dim=1, eps=1e-6)
        return nearest, torch.cat([(inside * known)[:, None], flow, known[:, None]], 1)


def _starts(counts: Sequence[int]) -> np.ndarray:
    """Where each of so many things begins, when all follow each other."""
    return np.cumsum(counts) - counts


def _places(views: Views, side: int) -> Tensor:
    """Places in the image of a crop's pixels, (b, 2, side, side)."""
    steps = torch.arange(side, device=views.matrix.device) - (side - 1) / 2
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"))
    return torch.einsum("bij,jhw->bihw", views.matrix, offsets) + views.centre[:, :, None, None]


def _mirrored(place: Tensor, length: Tensor) -> Tensor:
    """Places along an axis, those outside reflected at its first and last pixel."""
    period = 2 * (length - 1).clamp_min(1)
    place = place.abs() % period
    return torch.minimum(torch.minimum(place, period - place), length - 1)


def _around(start: Tensor, places: Sequence[Tensor], sides: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around places inside of images, by their numbers in the atlas, and the share of each."""
    rows, columns = (
        ((low, 1 - (place - low)), (torch.minimum(low + 1, length - 1), place - low))
        for place, length in zip(places, sides)
        for low in [place.long()]
    )
    for row, row_share in rows:
        for column, column_share in columns:
            yield start + row * sides[1] + column, row_share * column_share


class RandomCrops:
    """Batches of random crops with random looks.

    Args:
        atlas: the images that they are cut from.
        side: side of the crops, in pixels.
        seed: seed of the random numbers.
    """

    def __init__(self, atlas: Atlas, side: int, seed: int) -> None:
        self.atlas = atlas
        self.side = side
        self.draws = Draws(atlas.colours.device, seed)
        self.looks = RandomLooks(self.draws)
        self.weight = atlas.sides.prod(1).float() ** AREA_POWER
        for modality, share in SHARES.items():
            of_it = atlas.modality == modality
            self.weight[of_it] *= share / self.weight[of_it].sum()

    @torch.no_grad()
    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images (size, 3, side, side), as a network is given them, and targets (size, 4, side, side)."""
        views = self.draw_views(size)
        instances, target = self.atlas.truth(views, self.side)
        image = self.atlas.image(views, self.side)
        return self.looks(image, instances, self.atlas.modality[views.sample]), target

    def draw_views(self, size: int) -> Views:
        """So many random views."""
        draws, atlas = self.draws, self.atlas
        sample = torch.multinomial(self.weight, size, replacement=True, generator=draws.generator)
        sides = atlas.sides[sample].float()
        scale = self._draw_scale(sample, sides)  # pixels of the crop to a pixel of the image
        stretch = torch.exp(draws.normal(size) * STRETCH_SPREAD)
        angle = draws.uniform(size, high=2 * math.pi)
        any_angle = draws.coin(ANY_ANGLE, size)
        quarters = torch.randint(0, 4, (size,), generator=draws.generator, device=draws.device)
        angle = torch.where(any_angle, angle, quarters * (math.pi / 2))
        flip = torch.where(draws.coin(0.5, size), -1.0, 1.0)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(size, 2, 2)
        matrix = turn * torch.stack([1 / (scale * stretch), flip * stretch / scale], 1)[:, None]
        reach = self.side / scale[:, None]  # side of the crop in the image
        centre = self._draw_centre(sample, sides, reach)
        margin = torch.minimum(INSIDE * reach / 2, sides / 2)
        return Views(sample, matrix, torch.maximum(torch.minimum(centre, sides - 1 - margin), margin))

    def _draw_scale(self, sample: Tensor, sides: Tensor) -> Tensor:
        draws, size = self.draws, len(sample)
        near = torch.exp(draws.normal(size) * NEAR_SPREAD)
        low, high = map(math.log, DIAMETERS)
        wide = torch.exp(draws.uniform(size, low=low, high=high)) / self.atlas.diameter[sample]
        scale = torch.where(draws.coin(NEAR, size), near, wide).clamp(*SCALES)
        return torch.maximum(scale, LEAST_SIDE * self.side / sides.amax(1) * draws.coin(FILLED, size))

    def _draw_centre(self, sample: Tensor, sides: Tensor, reach: Tensor) -> Tensor:
        """Somewhere around a random cell, or anywhere."""
        draws, size, count = self.draws, len(sample), self.atlas.num_cells[sample]
        number = torch.minimum((draws.uniform(size) * count).long(), (count - 1).clamp_min(0))
        cell = (self.atlas.first_cell[sample] + number).clamp_max(len(self.atlas.centres) - 1)
        around = self.atlas.centres[cell] + (draws.uniform(size, 2) - 0.5) * reach * AROUND
        anywhere = torch.stack([draws.uniform(size) for _ in range(2)], 1) * (sides - 1)
        chosen = draws.coin(AT_A_CELL, size) & (count > 0)
        return torch.where(chosen[:, None], around, anywhere)
