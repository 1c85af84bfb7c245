# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The summary of a run: a table with a row for each image, in which a stopped run finds what is finished."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import explained
from swinumamba_monai.formulas import as_cell, from_cell

COLUMNS = ("name", "image", "objects", "area_mean", "score_mean", "warnings", "error")


def read_summary(path: Path) -> dict[str, dict[str, str]]:
    """The rows by name, without those that a stopped run has left half written; none where there is no such file.

    Raises:
        InputError: another program has written the file in a form of its own.
    """
    if not path.is_file():
        return {}
    advice = "save it as CSV in UTF-8 with commas, or delete it, and the images are predicted again"
    with (
        explained(f"{path} cannot be read as this command has written it", advice, UnicodeDecodeError, csv.Error),
        path.open(newline="", encoding="utf-8-sig") as file,
    ):
        table = csv.DictReader(file)
        if table.fieldnames != list(COLUMNS):
            raise csv.Error(f"its columns are {table.fieldnames}")
        rows = [row for row in table if set(row) == set(COLUMNS) and None not in row.values()]
    rows = [{column: from_cell(text) for column, text in row.items()} for row in rows]
    return {row["name"]: row for row in rows}


def write_summary(path: Path, rows: Mapping[str, Mapping[str, object]]) -> None:
    """Write the table whole.

    Args:
        path: path of the file.
        rows: cells of each row by column, by the name of the image.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(map(_cells, rows.values()))


def add_row(path: Path, row: Mapping[str, object]) -> None:
    """Write one row more at the end of the table.

    Args:
        path: path of the file, which exists.
        row: cells by column.
    """
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(_cells(row))


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    return {column: as_cell(value) for column, value in row.items()}


def columns_of(table: Mapping[str, np.ndarray], doubts: Sequence[str]) -> dict[str, object]:
    """What the row of an image says of its objects.

    Args:
        table: columns of :func:`~swinumamba_monai.prediction.objects.object_table` by name.
        doubts: why the answer is not to be trusted, a phrase each.
    """
    columns: dict[str, object] = {"objects": len(table["label"]), "warnings": "; ".join(doubts)}
    if columns["objects"]:
        columns |= {f"{of}_mean": as_text(table[of].mean(dtype=float)) for of in ("area", "score")}
    return columns


def as_text(value: object) -> str:
    """A number as short as it can be, with at most four digits behind the point."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, (float, np.floating)) else str(value)
