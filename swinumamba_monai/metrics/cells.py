# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cell F1 at an IoU threshold, as the published evaluation script counts it.

The script is ``evaluation/compute_cell_metric.py`` of U-Mamba, which Swin-UMamba's Microscopy table was made with. Its
reading differs from a textbook's in four ways, all kept here:

- Cells that touch the 2-pixel frame of the image are left out, of truth and prediction alike.
- An image without predicted cells counts no false negatives, and its F1 is 0 even if the truth is empty too.
- An image of 25 million pixels or more is cut in tiles of 2000 pixels, each with a frame of its own, so cells on a cut
  are left out. At its lower and right edge the image is padded, which keeps cells there, unless a tile ends there.
- Precision and recall divide by the numbers of cells. On a large image TP + FN can be less than these, because tiles
  without predicted cells count no false negatives.

Two mishaps of the script on large images are not kept: predicted ids beyond 65535 wrap around when the truth is a
16-bit file, and counting the cells on the frame stops with an error.

The script prints numbers rounded by ``numpy.round(value, 4)``, and the mean of the rounded F1; nothing is rounded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_numpy
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.segmentation import relabel_sequential

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.instances import class_map, classes_to_instances

FRAME = 2  # pixels
LARGE_IMAGE = 25_000_000  # pixels
TILE = 2000  # pixels a side

CELL_COLUMNS = ("true_num", "pred_num", "tp", "fp", "fn", "precision", "recall", "f1", "dice")


@dataclass(frozen=True)
class CellCounts:
    """What was counted in one image.

    Args:
        true_num: cells of the truth.
        pred_num: predicted cells.
        tp: predicted cells that match a cell of the truth.
        fp: predicted cells that match none.
        fn: cells of the truth that nothing matches (see the module's docstring for when they are not counted).
        dice: overlap of cell pixels, whatever cell they belong to, cells on the frame included; 1 if both are empty.
    """

    true_num: int
    pred_num: int
    tp: int
    fp: int
    fn: int
    dice: float

    @property
    def precision(self) -> float:
        return self.tp / self.pred_num if self.tp else 0.0

    @property
    def recall(self) -> float:
        return self.tp / self.true_num if self.tp else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.tp else 0.0

    def row(self) -> list[float]:
        """The numbers in the order of ``CELL_COLUMNS``."""
        return [float(getattr(self, column)) for column in CELL_COLUMNS]


def cell_counts(
    truth: np.ndarray, pred: np.ndarray, threshold: float = 0.5, count_border_cells: bool = False
) -> CellCounts:
    """Compare predicted cells with the truth.

    Args:
        truth: instance ids of shape (H, W), integers, 0 background; ids may have gaps.
        pred: predicted instance ids, likewise.
        threshold: a pair of cells can match from this IoU on, the threshold included. A cell matches at most one other.
        count_border_cells: count the cells that touch the frame too.

    Raises:
        InputError: for images that are not of the same two-dimensional shape, or a threshold outside (0, 1].
    """
    if truth.ndim != 2 or truth.shape != pred.shape:
        raise InputError(f"Truth of shape {truth.shape} and prediction of shape {pred.shape} must be the same (H, W).")
    _check_threshold(threshold)
    counts = sum(_count(*pair, threshold, count_border_cells) for pair in _tiles(truth, pred))
    return CellCounts(*counts.tolist(), dice=_dice(truth > 0, pred > 0))


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
        return np.array([true_num, 0, 0, 0, 0])
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
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[ids]


def _dice(truth: np.ndarray, pred: np.ndarray) -> float:
    total = np.count_nonzero(truth) + np.count_nonzero(pred)
    return float(2 * np.count_nonzero(truth & pred) / total) if total else 1.0


class CellF1Metric(CumulativeIterationMetric):
    """Mean over images of the cell F1, MONAI's way: call it on every batch, then :meth:`aggregate`.

    A call takes lists of channel-first tensors, or batch-first tensors: ``y_pred`` (3, H, W) scores or one-hot, or
    (1, H, W) class indices, as :func:`~swinumamba_monai.inference.class_map` reads them; ``y`` (1, H, W) instance ids.
    The buffer holds a row per image with the ``CELL_COLUMNS``.

    Args:
        threshold: IoU from which on two cells can match.
        count_border_cells: count the cells that touch the 2-pixel frame too.
        pred_instances: ``y_pred`` is (1, H, W) instance ids already, for instance of ``ClassesToInstancesd``.

    Raises:
        InputError: for a threshold outside (0, 1], and for predictions and truths that do not fit the above.
    """

    def __init__(self, threshold: float = 0.5, count_border_cells: bool = False, pred_instances: bool = False) -> None:
        super().__init__()
        _check_threshold(threshold)
        self.threshold = threshold
        self.count_border_cells = count_border_cells
        self.pred_instances = pred_instances

    def read_pred(self, pred: torch.Tensor) -> np.ndarray:
        """Instance ids of shape (H, W) of a prediction."""
        return read_ids(pred) if self.pred_instances else classes_to_instances(class_map(pred))

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        rows = [
            cell_counts(read_ids(truth), self.read_pred(pred), self.threshold, self.count_border_cells).row()
            for pred, truth in zip(y_pred, y, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64)  # float32 would change digits that the script prints

    def aggregate(self) -> torch.Tensor:
        """Mean F1 over all images of all ranks, a tensor without dimensions."""
        rows = self.get_buffer()
        if rows is None:
            raise InputError("There is no mean F1 of no images: call the metric before aggregate().")
        return rows[:, CELL_COLUMNS.index("f1")].mean()


def read_ids(ids: torch.Tensor) -> np.ndarray:
    """Instance ids of shape (H, W), int32, of a (1, H, W) tensor of whole numbers of any type."""
    if ids.ndim != 3 or ids.shape[0] != 1:
        raise InputError(f"Instance ids must be of shape (1, H, W), not {tuple(ids.shape)}.")
    whole = ids[0].to(torch.int32)
    if (whole != ids[0]).any():
        raise InputError("Instance ids must be whole numbers: interpolate instance maps with mode 'nearest' only.")
    return convert_to_numpy(whole)


class CellF1(IgniteMetricHandler):
    """The cell F1 as a (key) metric of a MONAI evaluator.

    In a config::

        {"_target_": "swinumamba_monai.metrics.CellF1",
         "output_transform": "$monai.handlers.from_engine(['pred', 'instances'])"}

    MONAI keeps keys that only the dataset knows, such as "instances", in ``engine.state.batch``, out of the reach of
    ``output_transform``. Here it gets the keys of both, batch and output. The evaluator has to decollate, as it does
    unless told otherwise.

    Args:
        threshold: see :class:`CellF1Metric`, as the next two.
        count_border_cells: count the cells that touch the frame too.
        pred_instances: the prediction is instance ids already.
        output_transform: picks predictions and instance ids.
        save_details: keep the rows of ``CELL_COLUMNS`` in ``engine.state.metric_details``.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        count_border_cells: bool = False,
        pred_instances: bool = False,
        output_transform: Callable = lambda x: x,
        save_details: bool = True,
    ) -> None:
        super().__init__(
            metric_fn=CellF1Metric(threshold, count_border_cells, pred_instances),
            output_transform=output_transform,
            save_details=save_details,
        )

    @property
    def name(self) -> str | None:
        """The name it was attached under."""
        return self._name

    def pairs(self, engine: Engine) -> tuple:
        """Predictions and truths of the current batch."""
        items = zip(engine.state.batch, engine.state.output, strict=True)
        return self._output_transform([{**source, **result} for source, result in items])

    def iteration_completed(self, engine: Engine) -> None:
        self.update(self.pairs(engine))
