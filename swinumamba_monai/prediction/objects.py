# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a prediction found, as a table, and what about it is to be looked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from skimage.measure import regionprops_table

from swinumamba_monai.data.files.limits import MAX_CHANNELS
from swinumamba_monai.data.sampling.intensity import Look, ground_of, has_one_hue, is_red, look_of
from swinumamba_monai.errors import listed
from swinumamba_monai.inference.rescaling import KNOWN_DIAMETERS, diameter_of

SURE = 0.5  # the least mean score that is trusted; all 53 validation images of DSB-2018 have more than 0.55
FAR_OFF = 2  # times the diameter that was given, by which the median cell may be larger or smaller
# Where the ground of a gray image lies between its dark and its bright end. Of the 445 gray images in training and
# validation of DSB-2018 none is between 0.13 and 0.9; fluorescence in uneven light stays below 0.37, relief has 0.45.
DARK_GROUND, BRIGHT_GROUND = 0.4, 0.5
# By how much two thousandths of the values, those at the ends, may widen the spread of an image that is measured by it:
# that of 15 abdominal MRI and 27 endoscopic frames they widen by nothing in three digits.
WIDENED = 1.1
MANY = 1_000_000  # number of values that tell what is usual in an image
RED = 0.25  # share of the cells that may be red on a bright ground
DARK = 0.5  # share of the cells that may be darker than what is around them on a dark ground
PROPERTIES = ("label", "area", "centroid", "bbox", "intensity_mean")


def object_table(
    labels: np.ndarray,
    image: np.ndarray,
    scores: np.ndarray,
    names: Mapping[int, str] | None = None,
    channel: int | None = None,
) -> dict[str, np.ndarray]:
    """A row for every object, as :func:`skimage.measure.regionprops_table` makes it; ``pandas.DataFrame`` takes it.

    Args:
        labels: number of the object at every pixel (H, W) or voxel (X, Y, Z), 0 is background.
        image: image of that shape, perhaps with channels as a last axis.
        scores: certainty of each object, 0 to 1, shape (n,) for the numbers 1 to n.
        names: names of the classes, where the numbers are classes and not cells.
        channel: number of the channel that was named, from 0, or None; unless it is the last of four channels, that is
            an alpha, which has no column.

    Returns:
        columns of one length: ``label``, ``area`` in pixels, ``centroid-0``, ... (rows, columns), ``bbox-0``, ...
        (first row and column, and those behind the last), ``intensity_mean`` (``intensity_mean-0``, ... for channels),
        ``score`` from 0 to 1, and ``name`` of classes.
    """
    if image.ndim > labels.ndim and image.shape[-1] == MAX_CHANNELS and channel != MAX_CHANNELS - 1:
        image = image[..., :3]
    table = regionprops_table(labels, image, properties=PROPERTIES)
    table["score"] = np.asarray(scores, np.float32)[table["label"] - 1]
    if names is not None:
        table["name"] = np.array([names.get(number, f"class {number}") for number in table["label"].tolist()], str)
    return table


def join_tables(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tables of slices as one, with the number of the slice, from 0 on, as a first column ``slice``."""
    lengths = [len(table["label"]) for table in tables]
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return {"slice": np.repeat(np.arange(len(tables)), lengths), **joined}


def seen_in(image: np.ndarray, channel: int | None) -> np.ndarray:
    """What the network looks at in an image, as far as it is not to be seen beside other channels.

    Args:
        image: image (H, W) or (H, W, C).
        channel: number of the channel that was named, from 0, or None.

    Returns:
        That channel (H, W) of a multiplex image, and the fourth of four; else the very image, of which the first three
        channels are seen.
    """
    beyond = channel is not None and image.ndim == 3 and (image.shape[2] > MAX_CHANNELS or channel == MAX_CHANNELS - 1)
    return image[..., channel] if beyond else image


def find_doubts(
    image: np.ndarray,
    table: Mapping[str, np.ndarray],
    of_cells: bool = False,
    given: Collection[str] = (),
    artefacts: Collection[int] = (),
    said: float | None = None,
    dark: Collection[int] = (),
) -> list[str]:
    """Why an answer is not to be trusted, a phrase each; none where nothing speaks against it.

    Args:
        image: the image (H, W) or (H, W, C), or a volume, as it was read; or every n-th pixel of an image.
        table: the objects that were found in it, with ``area`` and ``score``, and of cells their ``centroid``.
        of_cells: whether the objects are cells in an image, and not classes.
        given: names of the options that were given; none of them is advised.
        artefacts: numbers of what :func:`~swinumamba_monai.prediction.artefacts.artefact_cells` finds.
        said: diameter of the cells in pixels, where it was given.
        dark: numbers of what :func:`~swinumamba_monai.prediction.artefacts.dark_cells` finds.
    """
    doubts, area = [], table["area"]
    if not len(area) and image.min() < image.max():
        doubts.append("nothing was found, though the image is not flat")
    if not of_cells:
        return doubts + _doubts_of_spread(image)
    diameter, (smallest, largest) = diameter_of(area), KNOWN_DIAMETERS
    if "diameter" not in given and diameter is not None and not smallest <= diameter <= largest:
        doubts.append(
            f"the cells are {diameter:.0f} pixels across, but the network knows {smallest:.0f} to {largest:.0f}; "
            f"try --diameter {diameter:.0f}"
        )
    if said is not None and diameter is not None and not said / FAR_OFF <= diameter <= said * FAR_OFF:
        doubts.append(f"the cells are {diameter:.0f} pixels across, not {said:g} as --diameter says; leave that out")
    if len(area) and (score := table["score"].mean()) < SURE:
        doubts.append(f"the network is not sure of what it found (mean score {score:.2f}); look at the outlines")
    if len(artefacts):
        rows = np.isin(table["label"], artefacts)
        places = [
            f"({row:.0f}, {column:.0f})" for row, column in zip(table["centroid-0"][rows], table["centroid-1"][rows])
        ]
        doubts.append(
            f"cells at row and column {listed(places)} have one value and sharp edges, as letters, scale bars, masks "
            "and saturated specks have; look at them"
        )
    return doubts + _doubts_of_look(image, table, given, len(dark) / max(1, len(area)))


def _doubts_of_spread(image: np.ndarray) -> list[str]:
    """A few values far from all others, of an image whose brightness is measured by the spread of all of them.

    So is each channel of a volume (X, Y, Z, C). Those of a picture are colours, much alike, and are taken together.
    """
    doubts = []
    for channel in np.moveaxis(image, -1, 0) if image.ndim == 4 else [image]:
        some = channel.ravel()
        if some.size > MANY:  # not every n-th, which may all lie in one slice
            some = some[np.random.default_rng(0).integers(some.size, size=MANY)]
        low, high = np.percentile(some, (0.1, 99.9))
        spread, usual = channel.std(dtype=np.float64), some.clip(low, high).std(dtype=np.float64)
        if spread > WIDENED * usual:
            doubts.append(
                f"a few values, from {channel.min():g} to {channel.max():g}, lie so far from the others that these "
                f"have {usual / spread:.0%} of the contrast that the network knows; take them out of the image"
            )
    return doubts


def _doubts_of_look(
    image: np.ndarray, table: Mapping[str, np.ndarray], given: Collection[str], dark: float
) -> list[str]:
    """What the channels, the ground and the colours of an image of cells say against it, as in :func:`find_doubts`;
    ``dark`` is the share of the cells that are darker than what is around them.
    """
    doubts = []
    if "channel" not in given and image.shape[2:] == (4,) and np.ptp(image[..., 3]) > 0:
        doubts.append("the fourth channel is taken for transparency; if it shows cells, try --channel 3")
    channels = torch.from_numpy(np.atleast_3d(image).astype(np.float32)).permute(2, 0, 1)[:3]
    look = look_of(channels)
    if look is Look.DARK and "channel" not in given and not has_one_hue(channels):
        doubts.append("there are several colours on a dark ground, of which the brightest counts; or choose --channel")
    ground = ground_of(channels) if look is Look.GRAY else 0
    if ground > BRIGHT_GROUND and "invert" not in given:
        doubts.append("the ground is bright; if this is fluorescence shown inverted, add --invert")
    if look is Look.GRAY and ground <= DARK_GROUND and dark > DARK:
        doubts.append(
            f"{dark:.0%} of the cells are darker than what is around them, on a dark ground, as what lies between "
            "membranes is; look at the outlines"
        )
    if DARK_GROUND < ground <= BRIGHT_GROUND:
        doubts.append(
            "the ground is neither dark nor bright, as in DIC and phase contrast, which the network has not learnt; "
            "look at the outlines"
        )
    if look is Look.BRIGHT and "channel" not in given and len(table["area"]) and "intensity_mean-2" in table:
        colours = np.stack([table[f"intensity_mean-{channel}"] for channel in range(3)], 1)
        if (share := is_red(colours, channels).mean()) > RED:
            doubts.append(
                f"{share:.0%} of the cells are red or brown, as red blood cells and antibody stains are, and not blue "
                "or violet as nuclei in most stains; look at the outlines"
            )
    return doubts
