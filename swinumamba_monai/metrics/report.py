# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: a row per image, a summary and a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, convert_to_numpy, string_list_all_gather

from swinumamba_monai import __version__
from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics.cells import CELL_COLUMNS, CellF1, read_ids
from swinumamba_monai.metrics.figures import Case, draw_cases, make_case

COUNTS = CELL_COLUMNS[:5]


class EvaluationReport:
    """Handler that writes the results of an evaluation, when it is complete, into one folder.

    - ``metrics.csv``: a row per image with its file name, the ``CELL_COLUMNS``, and a column for every other per-image
      number that a metric left in ``engine.state.metric_details``.
    - ``summary.json``: mean, standard deviation over images and number of images of each of these columns (an image
      whose value is nan is left out), and how cells were counted.
    - ``predictions.png``: the first images with truth and prediction, a colour per cell.

    In a config, among the handlers of a ``SupervisedEvaluator`` whose metrics are ``@validate#key_metric``::

        {"_target_": "swinumamba_monai.metrics.EvaluationReport",
         "output_dir": "@output_dir",
         "cell_metric": "@validate#key_metric#val_cell_f1",
         "class_names": {"val_mean_dice": ["interior", "boundary"]}}

    With several processes the rows of all are written, by the first one, with the pictures of its own images. A sampler
    that repeats images to give every process as many (``even_divisible=True``) repeats their rows too.

    Args:
        output_dir: folder to write into; made if absent.
        cell_metric: the evaluator's :class:`CellF1`, which knows the threshold and which predictions it compared.
        class_names: for a metric with one value per class, names of the classes, which become part of the column names
            ("val_mean_dice_interior"); without them classes are numbered from 0.
        num_figures: rows of the picture; with 0 there is none.
    """

    def __init__(
        self,
        output_dir: PathLike,
        cell_metric: CellF1,
        class_names: Mapping[str, Sequence[str]] | None = None,
        num_figures: int = 6,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.cell_metric = cell_metric
        self.class_names = class_names or {}
        self.num_figures = num_figures
        self._names: list[str] = []
        self._cases: list[Case] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._names, self._cases = [], []

    def _collect(self, engine: Engine) -> None:
        images = [item["image"] for item in engine.state.batch]
        for image, pred, truth in zip(images, *self.cell_metric.pairs(engine), strict=True):
            name = _file_name(image)
            self._names.append(name)
            if len(self._cases) < self.num_figures and idist.get_rank() == 0:
                pred_ids = self.cell_metric.metric_fn.read_pred(pred)
                self._cases.append(make_case(name, image, read_ids(truth), pred_ids))

    def __call__(self, engine: Engine) -> None:
        names = string_list_all_gather(self._names)
        cell_rows = self.cell_metric.metric_fn.get_buffer()
        if idist.get_rank() > 0:
            return
        columns = dict(zip(CELL_COLUMNS, convert_to_numpy(cell_rows).T, strict=True))
        for metric, values in engine.state.metric_details.items():
            if metric != self.cell_metric.name:
                columns.update(self._columns_of(metric, convert_to_numpy(values), len(names)))
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._write_table(names, columns)
        self._write_summary(columns)
        if self._cases:
            self._write_figure(columns)

    def _columns_of(self, metric: str, values: np.ndarray, num_images: int) -> dict[str, np.ndarray]:
        if len(values) != num_images:
            raise InputError(f"Metric '{metric}' has {len(values)} rows for {num_images} images, not one each.")
        values = values.reshape(num_images, -1)
        num_classes = values.shape[1]
        if metric not in self.class_names and num_classes == 1:
            return {metric: values[:, 0]}
        classes = self.class_names.get(metric, range(num_classes))
        if len(classes) != num_classes:
            raise InputError(f"Metric '{metric}' has {num_classes} classes, but class_names gives it {len(classes)}.")
        return {f"{metric}_{name}": column for name, column in zip(classes, values.T, strict=True)}

    def _write_table(self, names: Sequence[str], columns: Mapping[str, np.ndarray]) -> None:
        with replacing(self.output_dir / "metrics.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["name", *columns])
            table.writerows(zip(names, *(_as_text(*column) for column in columns.items()), strict=True))

    def _write_summary(self, columns: Mapping[str, np.ndarray]) -> None:
        counting = self.cell_metric.metric_fn
        summary = {
            "swinumamba_monai": __version__,
            "reading": "published",
            "threshold": counting.threshold,
            "count_border_cells": counting.count_border_cells,
            "std_ddof": 1,
            "columns": {name: _summary_of(values) for name, values in columns.items()},
        }
        with replacing(self.output_dir / "summary.json") as path:
            path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def _write_figure(self, columns: Mapping[str, np.ndarray]) -> None:
        shown = len(self._cases)  # the first rows: those of the first process come first
        titles = [
            f"prediction: F1 {f1:.3f} ({tp:.0f} right, {fp:.0f} wrong, {fn:.0f} missed)"
            for f1, tp, fp, fn in zip(*(columns[name][:shown] for name in ("f1", "tp", "fp", "fn")), strict=True)
        ]
        counting = self.cell_metric.metric_fn
        heading = (
            f"F1 at IoU {counting.threshold:g}, cells at the border {'' if counting.count_border_cells else 'not '}"
            "counted. A predicted cell has the colour of the true cell it overlaps most, or is white."
        )
        with replacing(self.output_dir / "predictions.png") as path:
            draw_cases(path, self._cases, titles, heading)


def _file_name(image: object) -> str:
    name = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    if name is None:
        raise InputError("An image of the batch does not know its file name: load it with LoadImaged to report on it.")
    return Path(name).name


def _as_text(column: str, values: np.ndarray) -> list[str]:
    return [f"{value:.0f}" if column in COUNTS else f"{value:.6f}" for value in values]


def _summary_of(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean, sample standard deviation and number of what is not nan; None where there are too few."""
    values = values[~np.isnan(values)].astype(np.float64)
    return {
        "mean": float(values.mean()) if len(values) > 0 else None,
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "n": len(values),
    }
