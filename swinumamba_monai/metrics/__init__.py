# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions, in the published and in a corrected reading."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    "swinumamba_monai",  # not the name of this package: the bundles look for the report of an evaluation here
    submod_attrs={
        "metrics.case_scores": ["CaseMetric", "CaseScores", "Column"],
        "metrics.cells": ["CELL_COLUMNS", "CellCounts", "CellF1", "CellF1Metric", "cell_counts"],
        "metrics.segmentation": ["DiceNSD", "DiceNSDMetric", "corrected_scores", "published_scores"],
        "reports.evaluation": ["EvaluationReport"],
    },
)
