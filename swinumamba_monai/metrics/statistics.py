# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Mean, spread and bootstrap interval over cases."""

from __future__ import annotations

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Ends of the 95 % percentile interval of the mean when cases are drawn again 9999 times; None for under two.

    It says how far the mean would move with other cases of the same kind, not with other seeds of the training; with
    fewer than about 20 cases it comes out too narrow.

    Args:
        values: one number per case, all finite.
        seed: seed of the draws.
    """
    if len(values) < 2:
        return None
    low, high = stats.bootstrap(
        (np.asarray(values, np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,  # at once, to bound the memory
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=seed,
    ).confidence_interval
    return float(low), float(high)


def summarize_cases(values: np.ndarray, seed: int = 0) -> dict[str, object]:
    """Summary of one column of a table of cases.

    Args:
        values: one number per case; nan and infinite ones are left out.
        seed: seed of the bootstrap.

    Returns:
        ``mean``, ``std`` (of the sample, ddof 1), ``n``, and ``interval``, the ends of :func:`bootstrap_interval`; None
        where there are too few values.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    interval = bootstrap_interval(values, seed)
    return {
        "mean": float(values.mean()) if len(values) > 0 else None,
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "n": len(values),
        "interval": list(interval) if interval else None,
    }


def bootstrap_settings(seed: int = 0) -> dict[str, object]:
    """How the intervals were made, for a report."""
    how = {"statistic": "mean", "drawn_with_replacement": "cases", "method": "percentile"}
    return {**how, "confidence": CONFIDENCE, "resamples": RESAMPLES, "seed": seed}
