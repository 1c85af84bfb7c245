# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of predicted cells: image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from monai.utils import convert_to_numpy
from skimage.segmentation import find_boundaries

MAX_SIDE = 512  # pixels
WIDTH = 3.6  # inches, of a panel
TITLE = 0.3  # inches, of a line above a panel
UNMATCHED = 1.0, 1.0, 1.0


@dataclass(frozen=True)
class Case:
    """One row of the picture, small enough to keep until the end of an evaluation.

    Args:
        name: of the image file.
        image: grey or RGB values of shape (h, w, 3), uint8.
        truth: instance ids of shape (h, w).
        pred: predicted instance ids of shape (h, w).
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray


def make_case(name: str, image: torch.Tensor, truth: np.ndarray, pred: np.ndarray) -> Case:
    """Shrink an image and its cells to at most 512 pixels a side.

    Args:
        name: of the image file.
        image: any intensities, shape (C, H, W): the first three channels are shown as RGB, else the first as grey.
        truth: instance ids of shape (H, W).
        pred: predicted instance ids of shape (H, W).
    """
    step = -(-max(truth.shape) // MAX_SIDE)
    truth, pred = truth[::step, ::step].copy(), pred[::step, ::step].copy()  # a view would keep the whole map alive
    channels = torch.as_tensor(convert_to_numpy(image[:3] if image.shape[0] >= 3 else image[:1])).float()
    small = torch.nn.functional.interpolate(channels[None], size=truth.shape, mode="area")[0].permute(1, 2, 0).numpy()
    # Normalised intensities have no fixed range; a few bright pixels must not make the rest black.
    low, high = np.percentile(small, (0.5, 99.5))
    grey = np.clip((small - low) / max(high - low, 1e-6), 0, 1)
    return Case(name, np.broadcast_to((255 * grey).astype(np.uint8), (*truth.shape, 3)), truth, pred)


def draw_cases(path: Path, cases: Sequence[Case], titles: Sequence[str], heading: str) -> None:
    """Write the picture.

    Args:
        path: PNG file to write.
        cases: its rows.
        titles: what stands above the prediction of every row.
        heading: what stands above the picture.
    """
    heights = [WIDTH * case.truth.shape[0] / case.truth.shape[1] for case in cases]
    figure = Figure(figsize=(3 * WIDTH, sum(heights) + TITLE * (len(cases) + 1)), layout="constrained")
    figure.suptitle(heading, fontsize=10)
    rows = figure.subplots(len(cases), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, case, title in zip(rows, cases, titles, strict=True):
        palette = _palette(case.truth.max())
        show = _paint(case.image, case.truth, palette), _paint(case.image, case.pred, _matching(case, palette))
        for axis, pixels, text in zip(axes, (case.image, *show), (case.name, "truth", title), strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(text, fontsize=9)
            axis.set_axis_off()
    figure.savefig(path, dpi=150)


def _palette(count: int) -> np.ndarray:
    """A colour per id; the golden ratio keeps the hues of neighbouring ids apart."""
    hue = np.arange(count + 1) * 0.618034 % 1
    return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), np.full_like(hue, 0.95)], axis=-1))


def _matching(case: Case, palette: np.ndarray) -> np.ndarray:
    """A colour per predicted id: that of the cell of the truth it shares most pixels with."""
    both = (case.pred > 0) & (case.truth > 0)
    pairs, pixels = np.unique(np.stack([case.pred[both], case.truth[both]]), axis=1, return_counts=True)
    colours = np.tile(UNMATCHED, (case.pred.max() + 1, 1))
    for index in np.argsort(pixels):  # the largest overlap comes last, and stays
        colours[pairs[0, index]] = palette[pairs[1, index]]
    return colours


def _paint(image: np.ndarray, ids: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Cells over the image without its colours, darkened: filled half-transparently, with a solid rim."""
    painted = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * (0.6 / 255)
    cells = ids > 0
    opacity = np.where(find_boundaries(ids, mode="inner"), 1.0, 0.55)[cells, None]
    painted[cells] = (1 - opacity) * painted[cells] + opacity * colours[ids[cells]]
    return painted
