# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The summary of a run: a table with a row for each image, in which a stopped run finds what is finished."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data.files.dicom_series import SERIES_SUFFIX, find_named
from swinumamba_monai.data.files.numbered import file_and_number
from swinumamba_monai.data.files.volumes import volume_path
from swinumamba_monai.errors import InputError, explained
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


def is_there(image: str) -> bool:
    """Whether there is the file of an image, or the one that it is a part of, or a DICOM series of that name."""
    path, _ = file_and_number(volume_path(image))
    if path.suffix == SERIES_SUFFIX:
        with suppress(InputError):
            return bool(find_named(path).files)
    return path.exists()


def rows_that_count(
    rows: Mapping[str, dict[str, str]], names: Mapping[str, str], overwrite: bool
) -> dict[str, dict[str, str]]:
    """The rows of earlier runs that still say something: of results, and of failures whose files are there.

    The failure of an image that this run calls otherwise says nothing any more: its row gets the new name.

    Args:
        rows: rows by name.
        names: images of this run by name.
        overwrite: whether this run takes the place of what there is of its images.

    Raises:
        InputError: there are results of other images with the names of these, or of these with other names.
    """
    called = {os.path.abspath(image): name for name, image in names.items()}
    advice = "give another output folder, or --overwrite"
    counting = {}
    for name, row in rows.items():
        was, image = row["image"], names.get(name)
        now = name if image else called.get(os.path.abspath(was))  # what this run calls it; None if it is another's
        if (overwrite and now) or (row["error"] and (now not in (None, name) or not is_there(was))):
            continue
        if not row["error"] and image and os.path.realpath(was) != os.path.realpath(image):
            raise InputError(
                f"the output folder holds results of {was}, and {image} would have the same names; {advice}."
            )
        if not row["error"] and now and now != name:
            raise InputError(
                f"the output folder holds results of {was} as {name}, and with the images given now it would be {now}; "
                f"{advice}."
            )
        counting[name] = row
    return counting


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
