# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures computed here: complexity, results of runs, effective receptive fields."""

from .complexity import COMPLEXITY_COLUMNS, COMPLEXITY_NOTES, SIZES, Complexity, Size, complexity_rows, count
from .erf import effective_receptive_field, energy_within, load_inputs, write_erf
from .published import SETTINGS, PublishedRow, published_rows
from .results import RESULT_COLUMNS, RESULT_NOTES, Evaluation, read_evaluation, result_tables, write_results
from .speed import SPEED_COLUMNS, draw_speed, speed_notes, speed_rows
from .tables import markdown, write_csv, write_table

__all__ = [
    "COMPLEXITY_COLUMNS",
    "COMPLEXITY_NOTES",
    "RESULT_COLUMNS",
    "RESULT_NOTES",
    "SETTINGS",
    "SIZES",
    "SPEED_COLUMNS",
    "Complexity",
    "Evaluation",
    "PublishedRow",
    "Size",
    "complexity_rows",
    "count",
    "draw_speed",
    "effective_receptive_field",
    "energy_within",
    "load_inputs",
    "markdown",
    "published_rows",
    "read_evaluation",
    "result_tables",
    "speed_notes",
    "speed_rows",
    "write_csv",
    "write_erf",
    "write_results",
    "write_table",
]
