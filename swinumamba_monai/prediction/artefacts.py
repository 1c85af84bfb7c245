# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells that are none: letters and scale bars that a program drew into the image, and saturated specks; what lies
between membranes.

A microscope shows no edge sharper than its focus: light falls off over some pixels. What was drawn, smoothed or not,
has the bare ground two pixels from where it has its full value. And nuclei that shine are brighter than their ground.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.measure import regionprops

FULL = 0.01  # share of the image's range: what is so little below an object's brightest pixel has its full value
# Share of an object's pixels of full value, at the least; the outlines of letters are wider than their lines.
SHARE = 0.1
PIXELS = 12  # number of pixels that have the full value, at the least; nuclei of a few pixels have no other edge
CONTRAST = 0.7  # share of the image's range from the ground to the full value, at the least
BARE = 0.05  # share of this contrast by which the pixels beside stand out from the ground, at the most
BESIDE, GROUND = 2, (4, 6)  # distances in pixels from those of the full value
AROUND = 4  # pixels from a cell that are around it, unless they are of another


def artefact_cells(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Numbers of the cells that look drawn or are saturated specks, bright or dark.

    Of the true nuclei in the 478 training and 53 validation images of DSB-2018 none looks so, nor does what the shipped
    network finds in the validation images; nor do the nuclei of these in images of half the size.

    Args:
        labels: number of the cell at every pixel (H, W), integers, 0 is background.
        image: finite numbers (H, W) or (H, W, C); of four channels the last is an alpha.

    Returns:
        numbers in rising order, shape (n,).
    """
    channels = np.atleast_3d(image)[..., :3].astype(np.float32)
    return np.union1d(_drawn_bright(labels, channels.max(-1)), _drawn_bright(labels, -channels.min(-1)))


def dark_cells(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Numbers of the cells that are darker, on average, than what is around them.

    In fluorescence nuclei are not: of the true ones in an image of DSB-2018 (432 gray images on a dark ground in
    training and validation) at most 6 % are, and at most 17 % with few photons, out of focus, or at a smaller size.

    Args:
        labels: number of the cell at every pixel (H, W), integers, 0 is background.
        image: finite numbers (H, W) or (H, W, C), of which the brightest channel counts; of four the last is an alpha.

    Returns:
        numbers in rising order, shape (n,).
    """
    light = np.pad(np.atleast_3d(image)[..., :3].max(-1).astype(np.float32), AROUND, "edge")
    labels, dark = np.pad(labels, AROUND), []
    for cell in regionprops(labels):
        near = tuple(slice(side.start - AROUND, side.stop + AROUND) for side in cell.slice)
        inside = labels[near] == cell.label
        around = ndimage.binary_dilation(inside, iterations=AROUND) & (labels[near] == 0)
        if around.any() and light[near][inside].mean() < light[near][around].mean():
            dark.append(cell.label)
    return np.array(dark, int)


def _drawn_bright(labels: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The same of those that are brighter than their ground in one channel (H, W)."""
    span, margin = float(np.ptp(light)), GROUND[1]
    labels, light = np.pad(labels, margin), np.pad(light, margin, "edge")
    drawn = []
    for cell in regionprops(labels):
        box, inside = cell.slice, cell.image
        brightest = light[box][inside].max()
        full = inside & (light[box] >= brightest - FULL * span)
        if full.sum() < max(PIXELS, SHARE * inside.sum()):
            continue
        around = light[tuple(slice(side.start - margin, side.stop + margin) for side in box)]
        distance = ndimage.distance_transform_cdt(~np.pad(full, margin), "chessboard")
        ground = np.median(around[(distance >= GROUND[0]) & (distance <= GROUND[1])])
        contrast, beside = brightest - ground, np.median(around[distance == BESIDE]) - ground
        if 0 < CONTRAST * span <= contrast and beside <= BARE * contrast:
            drawn.append(cell.label)
    return np.array(drawn, int)
