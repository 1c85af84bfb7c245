# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What :mod:`.evidence` adds to the workflows of a bundle: a meter of the training, and some predictions to look at."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import ImageMetaKey

from swinumamba_monai.atomic import replacing
from swinumamba_monai.reports.figures import Case, make_case

from .record import hardware

__all__ = ["KeepCases", "TrainingMeter", "load_kept_cases"]


SETTLED = 10  # iterations until a training needs as much memory as it will


class TrainingMeter:
    """Handler that writes how long the epochs of a training took, and the most memory that torch reserved.

    Counted is the time from an epoch's start to the end of its last iteration: with its data, without validations and
    checkpoints. Memory counts from the tenth iteration on, when a network whose launches are recorded has no use any
    more for what it took before. A resumed training goes on counting where the last whole epoch ended.

    Args:
        path: JSON file with the class of the "network", the "seconds" of every epoch, "peak_bytes", None on a CPU, and
            the "hardware".
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seconds: dict[str, float] = {}
        self.peak_bytes: int | None = None

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, a trainer whose dataloader is set."""
        engine.add_event_handler(Events.STARTED, self._restore)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)

    def _restore(self, engine: Engine) -> None:
        self.network = type(engine.network).__name__
        self.hardware = hardware(engine.state.device)
        self._settled = engine.state.iteration + SETTLED
        if engine.state.epoch > 0 and self.path.exists():
            before = json.loads(self.path.read_text())
            self.peak_bytes = before["peak_bytes"]
            self.seconds = {
                epoch: seconds for epoch, seconds in before["seconds"].items() if int(epoch) <= engine.state.epoch
            }

    def _start(self, engine: Engine) -> None:
        self._begin = time.perf_counter()

    def _finish(self, engine: Engine) -> None:
        if engine.state.iteration == self._settled and torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if engine.state.iteration % engine.state.epoch_length:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_reserved())
        self.seconds[str(engine.state.epoch)] = time.perf_counter() - self._begin
        content = {"network": self.network, "seconds": self.seconds, "peak_bytes": self.peak_bytes}
        content["hardware"] = self.hardware
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(content))


class KeepCases:
    """Handler that keeps image, truth and prediction of the first cases of an evaluation.

    Args:
        path: npz file, read by :func:`load_kept_cases`.
        metric: key metric of the evaluator, which knows what is compared.
        count: number of cases.
    """

    def __init__(self, path: str, metric, count: int = 2) -> None:
        self.path = Path(path)
        self.metric = metric
        self.count = count
        self.cases: list[Case] = []

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _keep(self, engine: Engine) -> None:
        for item, pred, truth in zip(engine.state.batch, *self.metric.pairs(engine)):
            if len(self.cases) < self.count:
                name = Path(item["image"].meta[ImageMetaKey.FILENAME_OR_OBJ]).name
                self.cases.append(make_case(name, item["image"], *self.metric.metric_fn.labels(pred, truth)))

    def _write(self, engine: Engine) -> None:
        arrays = {f"{i}_{part}": getattr(case, part) for i, case in enumerate(self.cases) for part in PARTS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            np.savez_compressed(temporary, **arrays)


PARTS = ("name", "image", "truth", "pred")


def load_kept_cases(path: Path) -> list[Case]:
    """The cases that :class:`KeepCases` wrote."""
    with np.load(path) as arrays:
        count = len(arrays.files) // len(PARTS)
        return [Case(str(arrays[f"{i}_name"]), *(arrays[f"{i}_{part}"] for part in PARTS[1:])) for i in range(count)]
