# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes of labels, and the scores that a metric gives one case."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from swinumamba_monai.metrics import DiceNSDMetric


def scores_of(metric: DiceNSDMetric, pred: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    return dict(zip(metric.names, metric(y_pred=[pred], y=[truth])[0].tolist(), strict=True))


def random_labels(shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """Labels 0 to 3, in blocks so that classes have an inside."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, [-(-n // 4) for n in shape])
    labels = np.kron(coarse, np.ones((4,) * len(shape), int))[tuple(map(slice, shape))].astype(np.uint8)
    for shift in (0, 1):
        moved = np.roll(labels, shift, axis=0)
        moved[rng.random(shape) < 0.01] = 0
        yield moved
