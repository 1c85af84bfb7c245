# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Closed contours made by formulas, and which of them is seen at a pixel.

A contour is a polygon around its middle: its vertices lie at equal angles, at the radii that a Fourier series gives,
each displaced by chance. The shapes of an image are of a few kinds, as the cells of a tissue are. They overlap, or lie
within one another, and the plane that they lie in may be bent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.nuclei.draws import Draws

__all__ = [
    "CONTOURS",
    "KINDS",
    "NUM_CLASSES",
    "TEXTURES",
    "Shapes",
    "draw_places",
    "draw_shapes",
    "locate",
    "log_uniform",
    "paint",
    "rows_of",
]


class Contour(NamedTuple):
    """A form of contours.

    Args:
        fewest, most: vertices.
        swell: amplitude of the waves of :data:`SWELLS` periods around, as a share of the mean radius.
        lobes: amplitude of one wave of :data:`LOBES` periods, as a share of the mean radius.
        rough: standard deviation of a vertex's displacement.
    """

    fewest: int
    most: int
    swell: float
    lobes: float
    rough: float


CONTOURS = {
    "corners": Contour(3, 6, 0.0, 0.0, 0.12),
    "smooth": Contour(96, 96, 0.12, 0.0, 0.0),
    "lobed": Contour(96, 96, 0.05, 0.3, 0.0),
    "jagged": Contour(14, 40, 0.08, 0.0, 0.2),
}
TEXTURES = ("noise", "stripes", "spots", "rings")
STYLES = len(CONTOURS) * len(TEXTURES)  # number of a style: of its contour × 4 + of its texture
NUM_CLASSES = 1 + STYLES  # 0 is the ground
SWELLS, LOBES = (2, 3, 4, 5), (5, 10)  # the second: from, to before
RADII = (0.3, 2.0)  # a vertex lies between them, as shares of the mean radius

SHAPES, KINDS = 24, 4  # numbers of shapes of an image and of their kinds, at most
MEDIAN_RADIUS = (0.035, 0.25)  # median radius of an image's shapes, as a share of its side
LEAST_RADIUS = 0.015
RADIUS_SPREAD, STRETCH_SPREAD = 0.3, 0.35  # standard deviations of logarithms
COVERAGE = (0.3, 1.5)  # area of the shapes as a share of the image's, where SHAPES are enough
NESTED, NESTED_SIZE = 0.25, (0.2, 0.6)  # share of shapes within another, and their radius as a share of that one's
AT_ONCE = 6  # shapes that are painted together: a GPU has fewer launches, and little more memory to hold
FAR = -9.0  # where the shapes are that an image lacks
GROUND_RADIUS = 0.7
BENT, BEND = 0.6, 0.03  # share of images whose plane is bent, and how far at most, as a share of the side


class Shapes(NamedTuple):
    """The shapes of a batch of images, n of each; the first is the ground, and later ones lie over earlier ones.

    Each has a plane of its own, in which its mean radius is about 1 and its vertices lie at the angles 0, 2π / count, …

    Args:
        centre: rows and columns in pixels, (b, n, 2).
        matrix: linear map from offsets in the image to places in the shape's plane, (b, n, 2, 2).
        radii: radii of the vertices in that plane, (b, n, most vertices); those after the last count for nothing.
        count: number of vertices, (b, n).
        kind: number of the shape's kind, (b, n); 0 is the ground.
        style: number of the contour × 4 + number of the texture of each kind, (b, :data:`KINDS` + 1).
    """

    centre: Tensor
    matrix: Tensor
    radii: Tensor
    count: Tensor
    kind: Tensor
    style: Tensor

    @property
    def classes(self) -> Tensor:
        """Of the shapes, (b, n): 0 for the ground, else 1 + the style's number."""
        return torch.where(self.kind > 0, 1 + self.style.gather(1, self.kind), 0)

    @property
    def radius(self) -> Tensor:
        """Their mean radii in pixels, (b, n)."""
        (one, two), (three, four) = (row.unbind(-1) for row in self.matrix.unbind(-2))
        return (one * four - two * three) ** -0.5


def draw_shapes(draws: Draws, batch: int, size: int) -> Shapes:
    """Random shapes for so many images of so many pixels a side."""
    each = batch, SHAPES
    style = _below(draws, STYLES, batch, KINDS + 1)
    kind = 1 + _below(draws, 1 + _below(draws, KINDS, batch, 1), *each)
    median = log_uniform(draws, MEDIAN_RADIUS, batch, 1)
    radius = median * torch.exp(draws.normal(*each) * RADIUS_SPREAD)
    centre = draws.uniform(*each, 2)
    outer = _below(draws, SHAPES, *each)
    nested = draws.coin(NESTED, *each)
    nested &= ~nested.gather(1, outer)  # the outer one stays where it is
    rows, around = rows_of(outer), radius.gather(1, outer)
    inner = centre[rows, outer] + (draws.uniform(*each, 2) - 0.5) * around[..., None]
    centre = torch.where(nested[..., None], inner, centre)
    radius = torch.where(nested, around * draws.uniform(*each, low=NESTED_SIZE[0], high=NESTED_SIZE[1]), radius)
    radius = radius.clamp_min(LEAST_RADIUS)
    number = draws.uniform(batch, 1, low=COVERAGE[0], high=COVERAGE[1]) / (math.pi * median**2)
    there = torch.arange(SHAPES, device=draws.device) < number.clamp_min(1)
    centre = torch.where(there[..., None], centre, FAR)
    # mostly the larger ones lie behind, or little would be seen of the others
    order = (radius * torch.exp(draws.normal(*each) * RADIUS_SPREAD)).argsort(1, descending=True)
    centre, radius, kind = centre[rows, order], radius[rows, order], kind[rows, order]

    stretch = torch.exp(draws.normal(*each) * STRETCH_SPREAD)
    angle = draws.uniform(*each, high=2 * math.pi)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 2).unflatten(2, (2, 2))
    matrix = torch.stack([stretch, 1 / stretch], 2)[..., None] * turn / (radius * size)[..., None, None]
    radii, count = _draw_radii(draws, style.gather(1, kind) // len(TEXTURES))

    ground = torch.full((batch, 1, 2), 0.5, device=draws.device)
    plane = torch.eye(2, device=draws.device).expand(batch, 1, 2, 2) / (GROUND_RADIUS * size)
    return Shapes(
        torch.cat([ground, centre], 1) * size - 0.5,
        torch.cat([plane, matrix], 1),
        torch.cat([torch.ones_like(radii[:, :1]), radii], 1),
        torch.cat([torch.full_like(count[:, :1], radii.shape[2]), count], 1),
        torch.cat([torch.zeros_like(kind[:, :1]), kind], 1),
        style,
    )


def _draw_radii(draws: Draws, contour: Tensor) -> tuple[Tensor, Tensor]:
    """Radii of the vertices, (b, n, most), and how many of them there are, (b, n), for contours of numbers (b, n)."""
    fewest, most, *amplitudes = torch.tensor(list(CONTOURS.values()), device=draws.device)[contour].unbind(2)
    swell, lobes, rough = (amplitude[..., None] for amplitude in amplitudes)
    count = (fewest + _below(draws, most - fewest + 1, *contour.shape)).long()
    vertices = torch.arange(max(form.most for form in CONTOURS.values()), device=draws.device)
    angle = 2 * math.pi * vertices / count[..., None]

    def wave(periods: int | Tensor) -> Tensor:
        return torch.cos(periods * angle + draws.uniform(*contour.shape, 1, high=2 * math.pi))

    radii = 1 + rough * draws.normal(*angle.shape)
    radii = radii + lobes * wave(LOBES[0] + _below(draws, LOBES[1] - LOBES[0], *contour.shape, 1))
    radii = radii + sum(swell * draws.normal(*contour.shape, 1) * wave(periods) for periods in SWELLS)
    return radii.clamp(*RADII), count


def draw_places(draws: Draws, batch: int, size: int) -> Tensor:
    """Where an image's pixels lie in the plane of its shapes, rows and columns, (b, size, size, 2); some are bent."""
    steps = torch.arange(size, dtype=torch.float32, device=draws.device)
    places = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), 2)
    reach = draws.uniform(batch, 1, 1, 1, high=BEND * size) * draws.coin(BENT, batch, 1, 1, 1)
    return places + reach * draws.clouds(2 * batch, size, (3, 6)).view(batch, 2, size, size).movedim(1, -1)


def locate(shapes: Shapes, number: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Places in the planes of shapes.

    Args:
        shapes: the shapes.
        number: which shape is meant at each pixel, (b, h, w); or (b, k, 1, 1) for the same k shapes at all pixels.
        places: result of :func:`draw_places`, (b, h, w, 2); or (b, 1, h, w, 2).

    Returns:
        the places (..., h, w, 2), and how far out they are (..., h, w): 0 in the middle, 1 on the contour.
    """
    rows = rows_of(number)
    down, across = (places - shapes.centre[rows, number])[..., None].unbind(-2)
    own = down * shapes.matrix[rows, number, :, 0] + across * shapes.matrix[rows, number, :, 1]
    count = shapes.count[rows, number]
    wedge = 2 * math.pi / count  # between two vertices
    angle = torch.atan2(own[..., 1], own[..., 0]) % (2 * math.pi)
    first = torch.minimum((angle / wedge).long(), count - 1)
    one, other = (shapes.radii[rows, number, vertex] for vertex in (first, (first + 1) % count))
    past = angle - first * wedge
    edge = one * other * wedge.sin() / (one * past.sin() + other * (wedge - past).sin())  # in this direction
    return own, torch.hypot(*own.unbind(-1)) / edge


def paint(shapes: Shapes, places: Tensor) -> Tensor:
    """The number of the shape that is seen at each pixel, (b, h, w): the last whose contour contains it."""
    owner = torch.zeros(places.shape[:3], dtype=torch.int64, device=places.device)
    numbers = torch.arange(1, shapes.kind.shape[1], device=places.device)
    for some in numbers.view(1, -1, 1, 1).expand(len(places), -1, 1, 1).split(AT_ONCE, 1):
        _, out = locate(shapes, some, places[:, None])
        owner = torch.maximum(owner, torch.where(out < 1, some, 0).amax(1))
    return owner


def rows_of(number: Tensor) -> Tensor:
    """The number of the image beside each number of (b, ...), as (b, 1, ...)."""
    return torch.arange(len(number), device=number.device).view(-1, *[1] * (number.ndim - 1))


def _below(draws: Draws, end: int | Tensor, *shape: int) -> Tensor:
    """Whole numbers from 0 to before ``end``, which no float32 below 1 times ``end`` is rounded to."""
    return (draws.uniform(*shape) * end).long()


def log_uniform(draws: Draws, ends: tuple[float, float], *shape: int) -> Tensor:
    """Numbers between two ends whose logarithms are equally likely."""
    low, high = map(math.log, ends)
    return torch.exp(draws.uniform(*shape, low=low, high=high))
