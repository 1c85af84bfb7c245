# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A table as Markdown for people and as CSV for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.atomic import replacing, write_file
from swinumamba_monai.formulas import as_cell


def markdown_lines(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of texts, with a heading above every column, without a line break at its end.

    Args:
        heading: headings of the columns.
        rows: texts of the cells, row by row.
    """
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *rows))


def markdown(columns: Mapping[str, str], rows: Sequence[Mapping], notes: Sequence[str] = ()) -> str:
    """A Markdown table of rows with named cells.

    Args:
        columns: headings of the columns by the keys of the cells that they show.
        rows: cells by key; None and absent ones stay empty.
        notes: sentences below the table.

    >>> print(markdown({"row": "network", "f1": "F1"}, [{"row": "nnU-Net", "f1": 0.70754}]), end="")
    | network | F1 |
    | --- | --- |
    | nnU-Net | 0.7075 |
    """
    cells = ([_text(row.get(key)) for key in columns] for row in rows)
    return "\n".join([markdown_lines(list(columns.values()), cells), *(f"\n{note}" for note in notes)]) + "\n"


def write_table(
    output_dir: PathLike, name: str, columns: Mapping[str, str], rows: Sequence[Mapping], notes: Sequence[str] = ()
) -> str:
    """Write ``NAME.md``, what :func:`markdown` returns, and ``NAME.csv``, every key of every row; return the former.

    Args:
        output_dir: folder of both files, which is made if absent.
        name: name of both files without suffix.
        columns, rows, notes: see :func:`markdown`.
    """
    write_csv(output_dir, name, rows)
    text = markdown(columns, rows, notes)
    write_file(Path(output_dir) / f"{name}.md", text)
    return text


def write_csv(output_dir: PathLike, name: str, rows: Sequence[Mapping]) -> None:
    """Write ``NAME.csv`` with every key of every row, into a folder that is made if absent.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.

    Args:
        output_dir: folder of the file.
        name: name of the file without suffix.
        rows: cells by key; absent ones stay empty.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(folder / f"{name}.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, keys, lineterminator="\n")
        table.writerow({key: as_cell(key) for key in keys})
        table.writerows({key: as_cell(cell) for key, cell in row.items()} for row in rows)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
