# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions, in the published and in a corrected reading, and the report of an evaluation."""

from swinumamba_monai.metrics.case_scores import CaseMetric, CaseScores, Column
from swinumamba_monai.metrics.cells import CELL_COLUMNS, CellCounts, CellF1, CellF1Metric, cell_counts
from swinumamba_monai.metrics.compare import Difference, compare, comparison_text, read_cases
from swinumamba_monai.metrics.report import EvaluationReport
from swinumamba_monai.metrics.segmentation import DiceNSD, DiceNSDMetric, corrected_scores, published_scores

__all__ = [
    "CELL_COLUMNS",
    "CaseMetric",
    "CaseScores",
    "CellCounts",
    "CellF1",
    "CellF1Metric",
    "Column",
    "DiceNSD",
    "DiceNSDMetric",
    "Difference",
    "EvaluationReport",
    "cell_counts",
    "compare",
    "comparison_text",
    "corrected_scores",
    "published_scores",
    "read_cases",
]
