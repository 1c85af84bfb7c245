# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions, as the published scripts compute them, and the report of an evaluation."""

from swinumamba_monai.metrics.cells import CELL_COLUMNS, CellCounts, CellF1, CellF1Metric, cell_counts
from swinumamba_monai.metrics.report import EvaluationReport

__all__ = ["CELL_COLUMNS", "CellCounts", "CellF1", "CellF1Metric", "EvaluationReport", "cell_counts"]
