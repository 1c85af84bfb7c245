# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cell F1 at an IoU threshold, in two readings.

``published`` counts as ``evaluation/compute_cell_metric.py`` of U-Mamba, which Swin-UMamba's Microscopy table was made
with. It differs from a textbook's reading in four ways, all kept here:

- Cells that touch the 2-pixel frame of the image are left out, of truth and prediction alike.
- An image without predicted cells counts no false negatives, and its F1 is 0 even if the truth is empty too.
- An image of 25 million pixels or more is cut in tiles of 2000 pixels, each with a frame of its own, so cells on a cut
  are left out. At its lower and right edge the image is padded, which keeps cells there, unless a tile ends there.
- Precision and recall divide by the numbers of cells. On a large image TP + FN can be less than these, because tiles
  without predicted cells count no false negatives.

Two mishaps of the script on large images are not kept: predicted ids beyond 65535 wrap around when the truth is a
16-bit file, and counting the cells on the frame stops with an error.

The script prints numbers rounded by ``numpy.round(value, 4)``, and the mean of the rounded F1; nothing is rounded here.

``corrected`` keeps the frame, which is the benchmark's rule and an option, and nothing else: an image of any size is
counted in one piece, every cell of the truth that nothing matches is a false negative, and an image without cells in
truth and prediction scores 1. On smaller images the F1 differs from the published one only there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.utils import convert_to_numpy
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.segmentation import relabel_sequential

from swinumamba_monai.cells import class_map, classes_to_instances, keep_cells
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics.case_scores import CORRECTED, PUBLISHED, CaseMetric, CaseScores, Column, dice

FRAME = 2  # pixels
LARGE_IMAGE = 25_000_000  # pixels
TILE = 2000  # pixels a side

COUNTS = ("true_num", "pred_num", "tp", "fp", "fn")
CELL_COLUMNS = (*COUNTS, "precision", "recall", "f1", "dice")

# The published numbers have the plain names. Dice has one reading, to which nothing needs correction.
_COLUMNS = tuple(
    Column(name if reading == PUBLISHED else f"{name}_{reading}", name, reading, "cell", name in COUNTS)
    for reading, names in ((PUBLISHED, CELL_COLUMNS), (CORRECTED, CELL_COLUMNS[:-1]))
    for name in names
)


@dataclass(frozen=True)
class CellCounts:
    """What was counted in one image.

    Args:
        true_num: number of cells of the truth.
        pred_num: number of predicted cells.
        tp: number of predicted cells that match a cell of the truth.
        fp: number of predicted cells that match none.
        fn: number of cells of the truth that nothing matches (see the module's docstring for when they do not count).
        dice: overlap of cell pixels, whatever cell they belong to, cells on the frame included; 1 if both are empty.
        of_nothing: precision, recall and F1 of an image without cells in truth and prediction.
    """

    true_num: int
    pred_num: int
    tp: int
    fp: int
    fn: int
    dice: float
    of_nothing: float = 0.0

    @property
    def precision(self) -> float:
        return self._share(self.pred_num)

    @property
    def recall(self) -> float:
        return self._share(self.true_num)

    @property
    def f1(self) -> float:
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def _share(self, cells: int) -> float:
        if self.true_num == self.pred_num == 0:
            return self.of_nothing
        return self.tp / cells if self.tp else 0.0

    def row(self) -> list[float]:
        """The numbers in the order of ``CELL_COLUMNS``."""
        return [float(getattr(self, column)) for column in CELL_COLUMNS]


def cell_counts(
    truth: np.ndarray,
    pred: np.ndarray,
    threshold: float = 0.5,
    count_border_cells: bool = False,
    reading: str = PUBLISHED,
) -> CellCounts:
    """Compare predicted cells with the truth.

    Args:
        truth: instance ids of shape (H, W), integers, 0 background; ids may have gaps.
        pred: predicted instance ids of the same shape and kind.
        threshold: IoU from which on, itself included, two cells can match; a cell matches at most one other.
        count_border_cells: whether the cells that touch the frame count too.
        reading: "published" or "corrected", see the module's docstring.

    Raises:
        InputError: the images are not of the same two-dimensional shape, or the threshold is outside (0, 1].
    """
    if truth.ndim != 2 or truth.shape != pred.shape:
        raise InputError(f"Truth of shape {truth.shape} and prediction of shape {pred.shape} must be the same (H, W).")
    _check_threshold(threshold)
    if reading == CORRECTED:
        counts, of_nothing = _count(truth, pred, threshold, count_border_cells), 1.0
    else:
        tiles = [_count(*tile, threshold, count_border_cells) for tile in _tiles(truth, pred)]
        # What is left of a tile without predicted cells is the number of its true ones.
        counts, of_nothing = sum(tile if tile[1] else tile * [1, 0, 0, 0, 0] for tile in tiles), 0.0
    return CellCounts(*counts.tolist(), dice=dice(truth > 0, pred > 0, of_nothing=1.0), of_nothing=of_nothing)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError(f"The IoU threshold must lie in (0, 1], not at {threshold}.")


def _tiles(truth: np.ndarray, pred: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if truth.size < LARGE_IMAGE:
        yield truth, pred
        return
    for top in range(0, truth.shape[0], TILE):
        for left in range(0, truth.shape[1], TILE):
            tile = np.s_[top : top + TILE, left : left + TILE]
            missing = [(0, TILE - size) for size in truth[tile].shape]
            yield np.pad(truth[tile], missing), np.pad(pred[tile], missing)


def _count(truth: np.ndarray, pred: np.ndarray, threshold: float, count_border_cells: bool) -> np.ndarray:
    """true_num, pred_num, tp, fp, fn of an image or tile."""
    truth, pred = _number(truth, count_border_cells), _number(pred, count_border_cells)
    true_num, pred_num = truth.max(), pred.max()
    if pred_num == 0:
        return np.array([true_num, 0, 0, 0, true_num])
    true_area, pred_area = np.bincount(truth.ravel()), np.bincount(pred.ravel())
    both = (truth > 0) & (pred > 0)
    # Most pairs of cells share no pixel; a sparse matrix, which adds up what falls on one place, holds the others.
    ones = np.ones(np.count_nonzero(both), np.int32)
    overlap = csr_matrix((ones, (truth[both], pred[both])), shape=(true_num + 1, pred_num + 1)).tocoo()
    iou = overlap.data / (true_area[overlap.row] + pred_area[overlap.col] - overlap.data)
    # At a threshold of 0.5 or less two cells may fit the same one, so they have to be matched, not only counted.
    fits = iou >= threshold
    pairs = csr_matrix((fits[fits], (overlap.row[fits], overlap.col[fits])), shape=overlap.shape)
    tp = np.count_nonzero(maximum_bipartite_matching(pairs) >= 0)
    return np.array([true_num, pred_num, tp, pred_num - tp, true_num - tp])


def _number(ids: np.ndarray, count_border_cells: bool) -> np.ndarray:
    """Number the cells 1 to n, leaving out those that touch the frame."""
    ids = relabel_sequential(ids)[0].astype(np.int32)
    if count_border_cells:
        return ids
    frame = np.ones(ids.shape, bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    # Not skimage's clear_border: of a cell in two pieces it would take away only the piece at the border.
    keep = np.ones(ids.max() + 1, bool)
    keep[ids[frame]] = False
    return keep_cells(ids, keep)


class CellF1Metric(CaseScores):
    """Mean over images of the cell F1, MONAI's way: call it on every batch, then :meth:`aggregate`.

    A call takes lists of channel-first tensors, or batch-first tensors: ``y_pred`` (3, H, W) scores or one-hot, or
    (1, H, W) class indices, as :func:`~swinumamba_monai.cells.class_map` reads them; ``y`` (1, H, W) instance ids.
    The buffer holds a row per image: the ``CELL_COLUMNS`` in the published reading, then in the corrected one, "f1"
    being called "f1_corrected" there. Dice, which needs no correction, is there once.

    Args:
        threshold: IoU from which on two cells can match.
        count_border_cells: whether the cells that touch the 2-pixel frame count too.
        pred_instances: whether ``y_pred`` is (1, H, W) instance ids already, for instance of ``ClassesToInstancesd``.
        key: name of the column that counts as the metric's value.
        min_size: size below which pieces of cell interior are dropped, in pixels; the published script drops none (0).
        grow: distance by which cells grow back into their boundary, in pixels; the published script's way is 0. See
            :func:`~swinumamba_monai.cells.classes_to_instances`.

    Raises:
        InputError: the threshold is outside (0, 1], or predictions and truths do not fit the above.

    >>> truth = torch.zeros(1, 1, 16, 16)
    >>> truth[..., 4:10, 4:10] = 1
    >>> metric = CellF1Metric()
    >>> row = metric(truth, truth)  # class 1 is the interior of a cell
    >>> metric.aggregate().item()
    1.0
    """

    def __init__(
        self,
        threshold: float = 0.5,
        count_border_cells: bool = False,
        pred_instances: bool = False,
        key: str = "f1",
        min_size: int = 0,
        grow: int = 0,
    ) -> None:
        super().__init__(_COLUMNS, key)
        _check_threshold(threshold)
        self.threshold = threshold
        self.count_border_cells = count_border_cells
        self.pred_instances = pred_instances
        self.min_size = min_size
        self.grow = grow

    def labels(self, pred: torch.Tensor, truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        if self.pred_instances:
            return read_ids(truth), read_ids(pred)
        return read_ids(truth), classes_to_instances(class_map(pred), self.min_size, self.grow)

    def score(self, pred: torch.Tensor, truth: torch.Tensor) -> list[float]:
        pair = self.labels(pred, truth)
        published, corrected = (
            cell_counts(*pair, self.threshold, self.count_border_cells, reading) for reading in (PUBLISHED, CORRECTED)
        )
        return [*published.row(), *corrected.row()[:-1]]

    def settings(self) -> dict[str, object]:
        names = ("threshold", "count_border_cells", "min_size", "grow")
        return {name: getattr(self, name) for name in names}

    def caption(self, row: Mapping[str, float]) -> str:
        f1, tp, fp, fn = (row[f"{name}_{CORRECTED}"] for name in ("f1", "tp", "fp", "fn"))
        return f"F1 {f1:.3f} ({tp:.0f} right, {fp:.0f} wrong, {fn:.0f} missed)"

    def heading(self) -> str:
        return (
            f"F1 at IoU {self.threshold:g}, corrected reading, cells at the border "
            f"{'' if self.count_border_cells else 'not '}counted. "
            "A predicted cell has the colour of the true cell it overlaps most, or is white."
        )


def read_ids(ids: torch.Tensor) -> np.ndarray:
    """Instance ids of shape (H, W), int32, of a (1, H, W) tensor of whole numbers of any type."""
    if ids.ndim != 3 or ids.shape[0] != 1:
        raise InputError(f"Instance ids must be of shape (1, H, W), not {tuple(ids.shape)}.")
    whole = ids[0].to(torch.int32)
    if (whole != ids[0]).any():
        raise InputError("Instance ids must be whole numbers: interpolate instance maps with mode 'nearest' only.")
    return convert_to_numpy(whole)


class CellF1(CaseMetric):
    """The cell F1 as a (key) metric of a MONAI evaluator.

    In a config::

        {"_target_": "swinumamba_monai.metrics.CellF1",
         "output_transform": "$monai.handlers.from_engine(['pred', 'instances'])"}

    Its arguments are those of :class:`CellF1Metric` and of :class:`~swinumamba_monai.metrics.case_scores.CaseMetric`.
    """

    scores = CellF1Metric
