# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions, in the published and in a corrected reading."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "case_scores": ["CaseMetric", "CaseScores", "Column"],
        "cells": ["CELL_COLUMNS", "CellCounts", "CellF1", "CellF1Metric", "cell_counts"],
        "segmentation": ["DiceNSD", "DiceNSDMetric", "corrected_scores", "published_scores"],
    },
)
