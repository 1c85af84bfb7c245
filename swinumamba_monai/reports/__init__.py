# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is written about runs: reports of evaluations, comparisons, and tables of results beside the paper's."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "comparison": ["Difference", "compare", "comparison_text", "read_cases"],
        "evaluation": ["EvaluationReport"],
        "paper_tables": ["SETTINGS", "PublishedRow", "published_rows"],
        "results": [
            "RESULT_COLUMNS",
            "RESULT_NOTES",
            "Evaluation",
            "read_evaluation",
            "result_tables",
            "write_results",
        ],
        "tables": ["markdown", "markdown_lines", "write_csv", "write_table"],
    },
)
