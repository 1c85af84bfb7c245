# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/own_data.md."""

from __future__ import annotations

from doc_commands import ROOT


def rows(heading: str) -> list[str]:
    """The first cells of the tables below a heading of the page, without their heads."""
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    section = text.split(f"\n### {heading}\n")[1].split("\n### ")[0].split("\n## ")[0]
    cells, before = [], ""
    for line in section.splitlines():
        if line.startswith("| ") and before.startswith("|"):
            cells.append(line.split(" | ")[0].removeprefix("| ").strip())
        before = line
    return cells
