# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: a row per case, a table per class, a summary and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch.distributed
from ignite.engine import Engine, Events
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, convert_to_numpy, string_list_all_gather

from swinumamba_monai import __version__
from swinumamba_monai.atomic import check_output_folder, replacing, write_file
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics.case_scores import CaseMetric, Column
from swinumamba_monai.metrics.statistics import bootstrap_settings, summarize_cases
from swinumamba_monai.reports.figures import Case, draw_cases, draw_scores, make_case
from swinumamba_monai.reports.tables import write_csv
from swinumamba_monai.run_lock import RunLock

Columns = Mapping[Column, np.ndarray]
ShownCase = tuple[float, Case, str]  # score that counts, infinite without a value; pictures; caption


class EvaluationReport:
    """Handler that writes the results of an evaluation, when it is complete, into one folder.

    - ``metrics.csv``: a row per case with its file name, the columns of the metric, and a column for every other
      per-case number that a metric left in ``engine.state.metric_details``. ``compare`` reads it.
    - ``classes.csv``: a row per score, reading and class: mean, standard deviation over cases, 95 % bootstrap interval,
      number of cases with a value, and number of cases in which truth or prediction has the class.
    - ``summary.json``: the same for every column, and how it was measured.
    - ``scores.png``: box plots of the scores, per class.
    - ``predictions.png``: the first cases with truth and prediction; ``worst_cases.png``: those with the lowest scores.

    In a config, among the handlers of a ``SupervisedEvaluator`` whose metrics are ``@validate#key_metric``::

        {"_target_": "swinumamba_monai.reports.EvaluationReport",
         "output_dir": "@output_dir",
         "metric": "@validate#key_metric#val_f1",
         "class_names": {"val_dice": ["interior", "boundary"]}}

    With several processes the cases of all are written by the first one; ``predictions.png`` shows its own. A sampler
    that repeats cases to give every process as many (``even_divisible=True``) repeats their rows too.

    Args:
        output_dir: folder to write into; made if absent.
        metric: the evaluator's :class:`~swinumamba_monai.metrics.CellF1` or :class:`~swinumamba_monai.metrics.DiceNSD`,
            which knows what it compared and how.
        class_names: names of the classes of any other metric that has one value per class, by the metric's name; they
            become part of the column names ("val_dice_interior"). Without them classes are numbered from 0.
        num_figures: number of cases in a picture; with 0 there is none.
        seed: seed of the bootstrap.
        image_key: key of the image to name and show; it has to lie like the truth.
        run: record of the network and its training for ``summary.json``, which ``table results`` reads; see
            :func:`~swinumamba_monai.training.run_record`.
    """

    def __init__(
        self,
        output_dir: PathLike,
        metric: CaseMetric,
        class_names: Mapping[str, Sequence[str]] | None = None,
        num_figures: int = 6,
        seed: int = 0,
        image_key: str = "image",
        run: Mapping[str, object] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metric = metric
        self.class_names = class_names or {}
        self.num_figures = num_figures
        self.seed = seed
        self.image_key = image_key
        self.run = run
        self._lock = RunLock(self.output_dir / ".evaluation.lock")
        self._files: list[str] = []
        self._first: list[ShownCase] = []
        self._worst: list[ShownCase] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._files, self._first, self._worst = [], [], []
        if idist.get_rank() == 0:
            check_output_folder(self.output_dir)
            self._lock.take("an evaluation", "--output_dir")

    def _collect(self, engine: Engine) -> None:
        scores = self.metric.metric_fn
        images = [item[self.image_key] for item in engine.state.batch]
        for image, pred, truth, row in zip(images, *self.metric.pairs(engine), self.metric.rows, strict=True):
            self._files.append(_file_of(image))
            key = row[scores.key] if not np.isnan(row[scores.key]) else np.inf
            is_first = len(self._first) < self.num_figures
            if is_first or (self.num_figures > 0 and key < self._worst[-1][0]):
                case = make_case(Path(self._files[-1]).name, image, *scores.labels(pred, truth))
                if is_first:
                    self._first.append((key, case, scores.caption(row)))
                self._worst = self._lowest([*self._worst, (key, case, scores.caption(row))])

    def _lowest(self, cases: Iterable[ShownCase]) -> list[ShownCase]:
        return sorted(cases, key=lambda case: case[0])[: self.num_figures]

    def __call__(self, engine: Engine) -> None:
        files = string_list_all_gather(self._files)
        rows = self.metric.metric_fn.get_buffer()
        worst = [self._worst]
        if idist.get_world_size() > 1:
            worst = [None] * idist.get_world_size()
            torch.distributed.all_gather_object(worst, self._worst)
        if idist.get_rank() > 0:
            return
        columns = dict(zip(self.metric.metric_fn.columns, convert_to_numpy(rows).T, strict=True))
        for name, values in engine.state.metric_details.items():
            if name != self.metric.name:
                columns.update(self._columns_of(name, convert_to_numpy(values), len(files)))
        summary = {column: summarize_cases(values, self.seed) for column, values in columns.items()}
        write_csv(self.output_dir, "metrics", _case_rows(_short_names(files), columns))
        write_csv(self.output_dir, "classes", _class_rows(columns, summary))
        self._write_summary(summary)
        self._draw(columns, self._lowest(case for cases in worst for case in cases))
        self._lock.release()

    def _columns_of(self, metric: str, values: np.ndarray, num_cases: int) -> dict[Column, np.ndarray]:
        if len(values) != num_cases:
            raise InputError(f"Metric '{metric}' has {len(values)} rows for {num_cases} cases, not one each.")
        values = values.reshape(num_cases, -1)
        num_classes = values.shape[1]
        if metric not in self.class_names and num_classes == 1:
            return {Column(metric, metric): values[:, 0]}
        classes = self.class_names.get(metric, range(num_classes))
        if len(classes) != num_classes:
            raise InputError(f"Metric '{metric}' has {num_classes} classes, but class_names gives it {len(classes)}.")
        names = [Column(f"{metric}_{name}", metric, label=str(name)) for name in classes]
        return dict(zip(names, values.T, strict=True))

    def _write_summary(self, summary: Mapping[Column, Mapping]) -> None:
        content = {
            "swinumamba_monai": __version__,
            "run": self.run,
            **self.metric.metric_fn.settings(),
            "std_ddof": 1,
            "bootstrap": bootstrap_settings(self.seed),
            "columns": {
                column.name: {"score": column.score, "reading": column.reading, "class": column.label, **numbers}
                for column, numbers in summary.items()
            },
        }
        write_file(self.output_dir / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _draw(self, columns: Columns, worst: Sequence[ShownCase]) -> None:
        scores = self.metric.metric_fn
        num_cases = len(next(iter(columns.values())))
        with replacing(self.output_dir / "scores.png") as path:
            draw_scores(path, columns, f"{num_cases} cases; a point per case, the diamond is the mean")
        pictures = {
            "predictions.png": (self._first, scores.heading()),
            "worst_cases.png": (worst, f"The lowest {scores.key}. {scores.heading()}"),
        }
        for name, (shown, heading) in pictures.items():
            if shown:
                _, cases, captions = zip(*shown, strict=True)
                titles = [f"prediction: {caption}" for caption in captions]
                with replacing(self.output_dir / name) as path:
                    draw_cases(path, cases, titles, heading, scores.class_names)


def _case_rows(names: Sequence[str], columns: Columns) -> list[dict]:
    texts = {column.name: [_text(value, column.is_count) for value in values] for column, values in columns.items()}
    return [dict(zip(("name", *texts), row, strict=True)) for row in zip(names, *texts.values(), strict=True)]


def _class_rows(columns: Columns, summary: Mapping[Column, Mapping]) -> list[dict]:
    rows = []
    for column, numbers in summary.items():
        if column.is_count:
            continue
        low, high = numbers["interval"] or (None, None)
        row = {"score": column.score, "reading": column.reading, "class": column.label}
        spread = {"mean": numbers["mean"], "std": numbers["std"], "low": low, "high": high}
        row |= {name: _text(np.nan if number is None else number) for name, number in spread.items()}
        counts = [values for other, values in columns.items() if other.is_count and other.label == column.label]
        present = np.count_nonzero(np.any(counts, axis=0)) if counts else ""
        rows.append(row | {"n": numbers["n"], "n_present": present})
    return sorted(rows, key=lambda row: (row["score"], row["reading"]))


def _file_of(image: object) -> str:
    name = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    if name is None:
        raise InputError("An image of the batch does not know its file name: load it with LoadImaged to report on it.")
    return str(name)


def _short_names(files: Sequence[str]) -> list[str]:
    """File names, or, where different files have the same one, paths from the folder that holds all of them."""
    paths = [Path(file) for file in files]
    if len({path.name for path in paths}) == len(set(paths)):
        return [path.name for path in paths]
    top = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(top).as_posix() for path in paths]


def _text(value: float, is_count: bool = False) -> str:
    return f"{value:.0f}" if is_count else f"{value:.6f}"
