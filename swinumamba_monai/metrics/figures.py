# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: image, truth and prediction side by side, and the scores as box plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from monai.utils import convert_to_numpy
from skimage.segmentation import find_boundaries

from swinumamba_monai.metrics.case_scores import CORRECTED, PUBLISHED, Column

MAX_SIDE = 512  # pixels
WIDTH = 3.6  # inches, of a panel
TITLE = 0.3  # inches, of a line above a panel
UNMATCHED = 1.0, 1.0, 1.0
READING_COLOURS = {PUBLISHED: "#c8c8c8", CORRECTED: "#7fb2dd", "": "#a9d3a4"}


@dataclass(frozen=True)
class Case:
    """One row of a picture, small enough to keep until the end of an evaluation.

    Args:
        name: of the image file, and the slice if it is a volume.
        image: grey or RGB values of shape (h, w, 3), uint8.
        truth: instance ids or class indices of shape (h, w).
        pred: likewise, predicted.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    pred: np.ndarray


def make_case(name: str, image: torch.Tensor, truth: np.ndarray, pred: np.ndarray) -> Case:
    """Shrink an image and its labels to at most 512 pixels a side; of a volume, the slice with most errors.

    Args:
        name: of the image file.
        image: any intensities, shape (C, H, W) or (C, H, W, D): the first three channels are shown as RGB, else the
            first as grey. It may be of another size than the labels, but has to show the same field.
        truth: instance ids or class indices of shape (H, W) or (H, W, D).
        pred: likewise, predicted.
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
    # Normalised intensities have no fixed range; a few bright pixels must not make the rest black.
    low, high = np.percentile(small, (0.5, 99.5))
    grey = np.clip((small - low) / max(high - low, 1e-6), 0, 1)
    return Case(name, np.broadcast_to((255 * grey).astype(np.uint8), (*truth.shape, 3)), truth, pred)


def draw_cases(
    path: Path,
    cases: Sequence[Case],
    titles: Sequence[str],
    heading: str,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a picture of cases.

    Args:
        path: PNG file to write.
        cases: its rows.
        titles: what stands above the prediction of every row.
        heading: what stands above the picture.
        class_names: of the labels 1, 2, ..., each of which has its colour; None if labels are instances, where a
            prediction has the colour of the true one that it overlaps most.
    """
    heights = [WIDTH * case.truth.shape[0] / case.truth.shape[1] for case in cases]
    figure = Figure(figsize=(3 * WIDTH, sum(heights) + TITLE * (len(cases) + 2)), layout="constrained")
    figure.suptitle(heading, fontsize=10)
    rows = figure.subplots(len(cases), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, case, title in zip(rows, cases, titles, strict=True):
        palette = _palette(case.truth.max() if class_names is None else len(class_names))
        pred_palette = palette if class_names else _matching(case, palette)
        show = _paint(case.image, case.truth, palette), _paint(case.image, case.pred, pred_palette)
        for axis, pixels, text in zip(axes, (case.image, *show), (case.name, "truth", title), strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(text, fontsize=9)
            axis.set_axis_off()
    if class_names:
        patches = [Patch(color=colour, label=name) for colour, name in zip(palette[1:], class_names, strict=True)]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 7), fontsize=8)
    figure.savefig(path, dpi=150)


def draw_methods(path: Path, rows: Sequence[tuple[Mapping[str, Case], Sequence[str] | None]]) -> None:
    """Write a picture that compares the predictions of several networks for the same cases.

    Args:
        path: PNG file to write.
        rows: for each case what every network made of it, by the network's name, and the names of its classes as in
            :func:`draw_cases`. The columns are image, truth, and the networks of all rows in their first order.
    """
    methods = list(dict.fromkeys(name for cases, _ in rows for name in cases))
    side = 1.8  # inches
    figure = Figure(figsize=(side * (len(methods) + 2), side * len(rows) + TITLE * 2), layout="constrained")
    axes = figure.subplots(len(rows), len(methods) + 2, squeeze=False)
    for axis, text in zip(axes[0], ["image", "truth", *methods], strict=True):
        axis.set_title(text, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (cases, class_names) in zip(axes, rows, strict=True):
        for column, method in enumerate(methods, start=2):
            case = cases.get(method)
            if case is None:
                continue
            palette = _palette(case.truth.max() if class_names is None else len(class_names))
            pred_palette = palette if class_names else _matching(case, palette)
            row[0].imshow(case.image, interpolation="nearest")
            row[1].imshow(_paint(case.image, case.truth, palette), interpolation="nearest")
            row[column].imshow(_paint(case.image, case.pred, pred_palette), interpolation="nearest")
    figure.savefig(path, dpi=150)


def draw_scores(path: Path, columns: Mapping[Column, np.ndarray], heading: str) -> None:
    """Write box plots: a panel per score, a group per class, a box per reading, a point per case.

    The box reaches from the first to the third quartile with the median in it, the whiskers to the last case within 1.5
    times its height; the diamond is the mean.

    Args:
        path: PNG file to write.
        columns: the scores of all cases; counts, nan and infinite values, and columns without any other are left out.
        heading: what stands above the picture.
    """
    boxes = {column: values[np.isfinite(values)] for column, values in columns.items() if not column.is_count}
    boxes = {column: values for column, values in boxes.items() if len(values)}
    labels = {score: list(dict.fromkeys(c.label for c in boxes if c.score == score)) for score in _unique(boxes)}
    widest = max(map(len, labels.values()), default=1)
    figure = Figure(figsize=(2 + max(4, 0.9 * widest), 2.8 * max(len(labels), 1) + 0.5), layout="constrained")
    figure.suptitle(heading, fontsize=10)
    panels = figure.subplots(max(len(labels), 1), 1, squeeze=False)[:, 0]
    jitter = np.random.default_rng(0)
    for axis, (score, places) in zip(panels, labels.items(), strict=False):
        readings = list(dict.fromkeys(column.reading for column in boxes if column.score == score))
        width = 0.8 / len(readings)
        for column, values in boxes.items():
            if column.score != score:
                continue
            x = places.index(column.label) + width * (readings.index(column.reading) - (len(readings) - 1) / 2)
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
    readings = [reading for reading in _unique(boxes, "reading") if reading]
    if readings:
        patches = [Patch(facecolor=READING_COLOURS[reading], edgecolor="black", label=reading) for reading in readings]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)
    figure.savefig(path, dpi=150)


def _unique(columns: Mapping[Column, np.ndarray], attribute: str = "score") -> list[str]:
    """The values of an attribute in their first order."""
    return list(dict.fromkeys(getattr(column, attribute) for column in columns))


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
