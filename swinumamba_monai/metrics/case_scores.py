# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the metrics of all tasks have in common: a row of named numbers for every case."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics.metric import reinit__is_reduced
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric

from swinumamba_monai.errors import InputError, check_known

PUBLISHED, CORRECTED = "published", "corrected"
MEAN = "mean"  # label of the mean over classes


@dataclass(frozen=True)
class Column:
    """One of the numbers of a case.

    Args:
        name: heading of a table's column, unlike that of any other.
        score: name of what is measured, such as "dsc".
        reading: "published" as the published script computes it, "corrected", or empty where there is only one.
        label: name of the class, or "mean" for the mean over classes.
        is_count: whether it is a whole number, and no score between 0 and 1.
    """

    name: str
    score: str
    reading: str = ""
    label: str = MEAN
    is_count: bool = False


def dice(truth: np.ndarray, pred: np.ndarray, of_nothing: float = float("nan")) -> float:
    """DSC of two boolean masks of one shape; ``of_nothing`` if both are empty."""
    total = np.count_nonzero(truth) + np.count_nonzero(pred)
    return 2 * np.count_nonzero(truth & pred) / total if total else of_nothing


class CaseScores(CumulativeIterationMetric):
    """A metric of MONAI's kind whose buffer holds a row per case, with the numbers of ``columns``.

    A call takes lists of channel-first tensors, or batch-first tensors; then :meth:`aggregate`.

    Args:
        columns: the numbers of a row, in order.
        key: name of the column whose mean :meth:`aggregate` gives, and by which cases are better or worse.

    Raises:
        InputError: there is no such column.
    """

    class_names: Sequence[str] | None = None  # names of a prediction's labels 1, 2, ...; None if labels are instances

    def __init__(self, columns: Sequence[Column], key: str) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.names = [column.name for column in self.columns]
        check_known("score", [key], self.names)
        self.key = key

    @abstractmethod
    def score(self, pred: torch.Tensor, truth: torch.Tensor) -> Sequence[float]:
        """The numbers of one case, prediction and truth with channels first, in the order of ``columns``."""

    @abstractmethod
    def labels(self, pred: torch.Tensor, truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction as whole numbers of shape (H, W) or (H, W, D), for a picture."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What has to be known to compare the numbers with others."""

    @abstractmethod
    def caption(self, row: Mapping[str, float]) -> str:
        """The scores of a case in a few words."""

    @abstractmethod
    def heading(self) -> str:
        """A sentence on how the scores of the captions are to be read."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        rows = [self.score(pred, truth) for pred, truth in zip(y_pred, y, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)  # float32 would change digits that the published scripts print

    def means(self) -> dict[str, float]:
        """Mean of every column over the cases of all ranks, leaving out nan; an InputError before the first case."""
        rows = self.get_buffer()
        if rows is None:
            raise InputError(f"There is no mean {self.key} of no images: call the metric before aggregate().")
        return dict(zip(self.names, rows.nanmean(dim=0).tolist(), strict=True))

    def aggregate(self) -> torch.Tensor:
        """Mean of the key column, a tensor without dimensions."""
        return torch.tensor(self.means()[self.key], dtype=torch.float64)


class CaseMetric(IgniteMetricHandler):
    """A :class:`CaseScores` as a (key) metric of a MONAI evaluator.

    MONAI keeps keys that only the dataset knows, such as "instances", in ``engine.state.batch``, out of the reach of
    ``output_transform``. Here it gets the keys of both, batch and output. The evaluator has to decollate, as it does
    unless told otherwise.

    Args:
        output_transform: function that picks predictions and truths.
        save_details: whether the rows are kept in ``engine.state.metric_details``.
        every_mean: whether ``engine.state.metrics`` gets the mean of every column too, as NAME_COLUMN, for the log.
        settings: arguments of :attr:`scores`.
    """

    scores: type[CaseScores]  # what computes the rows
    metric_fn: CaseScores

    def __init__(
        self,
        *,
        output_transform: Callable = lambda x: x,
        save_details: bool = True,
        every_mean: bool = False,
        **settings: object,
    ) -> None:
        super().__init__(self.scores(**settings), output_transform=output_transform, save_details=save_details)
        self.every_mean = every_mean
        self.rows: list[dict[str, float]] = []  # of the current batch

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

    @reinit__is_reduced
    def update(self, output: Sequence) -> None:
        y_pred, y = output
        rows = self.metric_fn(y_pred, y).tolist()
        self.rows = [dict(zip(self.metric_fn.names, row, strict=True)) for row in rows]

    def completed(self, engine: Engine, name: str) -> None:
        super().completed(engine, name)
        if self.every_mean:
            engine.state.metrics.update({f"{name}_{key}": mean for key, mean in self.metric_fn.means().items()})
