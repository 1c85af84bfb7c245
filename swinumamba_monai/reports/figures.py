# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: image, truth and prediction side by side, and the scores as box plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.utils import convert_to_numpy

from swinumamba_monai.metrics.case_scores import CORRECTED, PUBLISHED, Column
from swinumamba_monai.painting import display_range, paint, palette

MAX_SIDE = 512  # side of a kept picture, pixels
WIDTH = 3.6  # width of a panel of image, truth or prediction, inches
TITLE = 0.3  # height of a line of text, inches
OPACITY = 0.55  # opacity of a cell or class; its rim is opaque
UNMATCHED = 1.0, 1.0, 1.0
READING_COLOURS = {PUBLISHED: "#c8c8c8", CORRECTED: "#7fb2dd", "": "#a9d3a4"}


@dataclass(frozen=True)
class Case:
    """One row of a picture, small enough to keep until the end of an evaluation.

    Args:
        name: name of the image file, and the slice if it is a volume.
        image: grey or RGB values of shape (h, w, 3), uint8.
        truth: instance ids or class indices of shape (h, w).
        pred: predicted instance ids or class indices of shape (h, w).
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray


def make_case(name: str, image: torch.Tensor, truth: np.ndarray, pred: np.ndarray) -> Case:
    """Shrink an image and its labels to at most 512 pixels a side; of a volume, the slice with most errors.

    Args:
        name: name of the image file.
        image: any intensities, shape (C, H, W) or (C, H, W, D): the first three channels are shown as RGB, else the
            first as grey. It may be of another size than the labels, but has to show the same field.
        truth: instance ids or class indices of shape (H, W) or (H, W, D).
        pred: predicted instance ids or class indices of the same shape.
    """
    if truth.ndim == 3:
        errors, labelled = (where.sum(axis=(0, 1)) for where in (truth != pred, truth > 0))
        index = int((errors if errors.any() else labelled).argmax())
        name = f"{name}, slice {index + 1} of {truth.shape[2]}"
        # The image may be on the network's grid.
        image = image[..., min(index * image.shape[-1] // truth.shape[2], image.shape[-1] - 1)]
        # The first axis of a volume runs across the body, which pictures show from left to right.
        image = torch.rot90(torch.as_tensor(convert_to_numpy(image)), dims=(1, 2))
        truth, pred = np.rot90(truth[..., index]), np.rot90(pred[..., index])
    step = -(-max(truth.shape) // MAX_SIDE)
    truth, pred = truth[::step, ::step].copy(), pred[::step, ::step].copy()  # a view would keep the whole map alive
    channels = torch.as_tensor(convert_to_numpy(image[:3] if image.shape[0] >= 3 else image[:1])).float()
    small = torch.nn.functional.interpolate(channels[None], size=truth.shape, mode="area")[0].permute(1, 2, 0).numpy()
    low, span = display_range(small)
    grey = np.clip((small - low) / span, 0, 1)
    return Case(name, np.broadcast_to((255 * grey).astype(np.uint8), (*truth.shape, 3)), truth, pred)


def panel_figure(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[Sequence[str]],
    width: float,
    heading: str = "",
    num_lines: int = 2,
    square: bool = False,
) -> Figure:
    """A figure with a picture in every panel.

    Args:
        rows: pictures of every row, (h, w, 3) or (h, w), in [0, 1] or uint8; None leaves a panel empty.
        titles: titles of the panels of the first rows, a list a row.
        width: width of a panel in inches.
        heading: text above all rows.
        num_lines: lines of text in the figure, each of which adds to its height.
        square: whether panels are square; else a row is as high as its first picture of that width.
    """
    heights = [width if square else width * row[0].shape[0] / row[0].shape[1] for row in rows]
    size = len(rows[0]) * width, sum(heights) + TITLE * num_lines
    figure = Figure(figsize=size, layout="constrained")
    if heading:
        figure.suptitle(heading, fontsize=10)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis, picture in zip(grid.flat, (picture for row in rows for picture in row), strict=True):
        axis.set_axis_off()
        if picture is not None:
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for axis, title in zip(grid.flat, (title for row in titles for title in row), strict=False):
        axis.set_title(title, fontsize=9)
    return figure


def draw_cases(
    path: Path, cases: Sequence[Case], titles: Sequence[str], heading: str, class_names: Sequence[str] | None = None
) -> None:
    """Write a picture of cases.

    Args:
        path: PNG file to write.
        cases: cases to show, one a row.
        titles: text above the prediction of every case.
        heading: text above the picture.
        class_names: names of the labels 1, 2, ..., each of which has its colour; None if labels are instances, where a
            prediction has the colour of the true one that it overlaps most.
    """
    rows = [(case.image, *painted_case(case, class_names)) for case in cases]
    names = [(case.name, "truth", title) for case, title in zip(cases, titles, strict=True)]
    figure = panel_figure(rows, names, WIDTH, heading, num_lines=len(cases) + 2)
    if class_names:
        colours = palette(len(class_names))[1:]
        patches = [Patch(color=colour, label=name) for colour, name in zip(colours, class_names, strict=True)]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 7), fontsize=8)
    figure.savefig(path, dpi=150)


def draw_scores(path: Path, columns: Mapping[Column, np.ndarray], heading: str) -> None:
    """Write box plots: a panel per score, a group per class, a box per reading, a point per case.

    The box reaches from the first to the third quartile with the median in it, the whiskers to the last case within 1.5
    times its height; the diamond is the mean.

    Args:
        path: PNG file to write.
        columns: the scores of all cases; counts, nan and infinite values, and columns without any other are left out.
        heading: text above the picture.
    """
    boxes = {column: values[np.isfinite(values)] for column, values in columns.items() if not column.is_count}
    boxes = {column: values for column, values in boxes.items() if len(values)}
    scores = dict.fromkeys(column.score for column in boxes)
    labels = {score: list(dict.fromkeys(c.label for c in boxes if c.score == score)) for score in scores}
    widest = max(map(len, labels.values()), default=1)
    figure = Figure(figsize=(2 + max(4, 0.9 * widest), 2.8 * max(len(labels), 1) + 0.5), layout="constrained")
    figure.suptitle(heading, fontsize=10)
    panels = figure.subplots(max(len(labels), 1), 1, squeeze=False)[:, 0]
    jitter = np.random.default_rng(0)
    for axis, (score, places) in zip(panels, labels.items(), strict=False):
        own = list(dict.fromkeys(column.reading for column in boxes if column.score == score))
        width = 0.8 / len(own)
        for column, values in boxes.items():
            if column.score != score:
                continue
            x = places.index(column.label) + width * (own.index(column.reading) - (len(own) - 1) / 2)
            axis.boxplot(
                [values],
                positions=[x],
                widths=0.85 * width,
                manage_ticks=False,
                showfliers=False,  # every case is drawn anyway
                showmeans=True,
                patch_artist=True,
                boxprops={"facecolor": READING_COLOURS[column.reading]},
                medianprops={"color": "black"},
                meanprops={"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgecolor": "black"},
            )
            axis.plot(x + jitter.uniform(-0.25, 0.25, len(values)) * width, values, "k.", markersize=2.5, alpha=0.5)
        axis.set_xticks(range(len(places)), [place.replace("_", " ") for place in places], rotation=30, ha="right")
        axis.set_xlim(-0.6, len(places) - 0.4)
        if all(values.max() <= 1 for column, values in boxes.items() if column.score == score):
            axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel(score)
        axis.grid(axis="y", alpha=0.3)
    if readings := [reading for reading in dict.fromkeys(column.reading for column in boxes) if reading]:
        patches = [Patch(facecolor=READING_COLOURS[reading], edgecolor="black", label=reading) for reading in readings]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    figure.savefig(path, dpi=150)


def painted_case(case: Case, class_names: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction over the image without its colours, darkened; without names of labels these are cells."""
    colours = palette(len(class_names) if class_names else case.truth.max())
    grey = np.repeat(case.image.mean(axis=2, keepdims=True), 3, axis=2) * (0.6 / 255)
    truth, pred = grey, grey.copy()
    paint(truth, case.truth, colours, OPACITY)
    paint(pred, case.pred, colours if class_names else _matching(case, colours), OPACITY)
    return truth, pred


def _matching(case: Case, colours: np.ndarray) -> np.ndarray:
    """A colour per predicted id: that of the cell of the truth it shares most pixels with."""
    both = (case.pred > 0) & (case.truth > 0)
    pairs, pixels = np.unique(np.stack([case.pred[both], case.truth[both]]), axis=1, return_counts=True)
    matched = np.tile(UNMATCHED, (case.pred.max() + 1, 1))
    for index in np.argsort(pixels):  # the largest overlap comes last, and stays
        matched[pairs[0, index]] = colours[pairs[1, index]]
    return matched
