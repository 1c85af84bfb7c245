# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables and figures computed here: complexity, results of runs, effective receptive fields."""

from .complexity import COMPLEXITY_COLUMNS, COMPLEXITY_NOTES, SIZES, Complexity, Size, complexity_rows, count
from .published import SETTINGS, PublishedRow, published_rows
from .speed import SPEED_COLUMNS, draw_speed, speed_notes, speed_rows
from .tables import markdown, write_table

__all__ = [
    "COMPLEXITY_COLUMNS",
    "COMPLEXITY_NOTES",
    "SETTINGS",
    "SIZES",
    "SPEED_COLUMNS",
    "Complexity",
    "PublishedRow",
    "Size",
    "complexity_rows",
    "count",
    "draw_speed",
    "markdown",
    "published_rows",
    "speed_notes",
    "speed_rows",
    "write_table",
]
