# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same cases against each other: a paired test per score."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.config import PathLike
from scipy import stats

from swinumamba_monai.errors import InputError, explained, listed, shown
from swinumamba_monai.metrics.statistics import bootstrap_interval

FEWEST = 6  # unequal cases from which on a two-sided p can be below 0.05: 2 / 2^6


@dataclass(frozen=True)
class Difference:
    """One score in two evaluations, B minus A.

    Args:
        column: name of the score's column.
        n: number of cases with a value in both.
        left_out: number of cases that have none in A, in B or in both.
        ties: number of cases with the same value in both.
        mean_a: mean of A over the n cases.
        mean_b: mean of B over the n cases.
        mean_difference: mean of B minus A over the n cases.
        interval: 95 % bootstrap interval of the mean difference over cases; None for fewer than two.
        p_value: p of the two-sided Wilcoxon signed-rank test without the ties; None if all are ties.
    """

    column: str
    n: int
    left_out: int
    ties: int
    mean_a: float
    mean_b: float
    mean_difference: float
    interval: tuple[float, float] | None
    p_value: float | None


def compare(a: PathLike, b: PathLike, columns: Sequence[str] | None = None, seed: int = 0) -> list[Difference]:
    """Compare the scores of two ``metrics.csv``, case by case; an item per column that both have values in.

    The test asks whether the differences lie symmetrically around 0. Cases, matched by name, have to be independent of
    each other: frames of one video or slices of one patient are not, and make p too small. It knows nothing of how two
    trainings differ by their seeds.

    Args:
        a: ``metrics.csv`` of one evaluation, as :class:`~swinumamba_monai.reports.EvaluationReport` writes it.
        b: ``metrics.csv`` of the other.
        columns: names of the columns to compare; None for all that the files share.
        seed: seed of the bootstrap.

    Raises:
        InputError: the files are no such tables, hold different cases, or do not share a column that is asked for; or
            there is no such seed.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError(f"the seed of the bootstrap must be from 0 to {(1 << 32) - 1}, not {seed}.")
    table_a, table_b = read_cases(Path(a)), read_cases(Path(b))
    only = {a: [name for name in table_a if name not in table_b], b: [name for name in table_b if name not in table_a]}
    if parts := [f"only {path} has {listed(names)}" for path, names in only.items() if names]:
        raise InputError(f"The files hold different cases: {'; '.join(parts)}. Evaluate both runs on the same section.")
    shared = [column for column in next(iter(table_a.values())) if column in next(iter(table_b.values()))]
    missing = [column for column in columns or () if column not in shared]
    if missing or not shared:
        raise InputError(
            f"{a} and {b} do not share {', '.join(missing) or 'any column'}; "
            f"they share {', '.join(shared) or 'only the names of cases'}."
        )
    differences = []
    for column in columns or shared:
        pairs = np.array([(table_a[name][column], table_b[name][column]) for name in table_a])
        differences.append(_difference(column, pairs, seed))
    return [difference for difference in differences if difference.n > 0]


def comparison_text(differences: Sequence[Difference]) -> str:
    """What :func:`compare` found, as a table for people with the sentences that belong to it."""
    if not differences:
        return "No case has a value in both files: there is nothing to compare."
    rows = [("column", "n", "ties", "mean A", "mean B", "B - A", "95 % interval", "p (Wilcoxon)")]
    for item in differences:
        interval = "[{:+.4f}, {:+.4f}]".format(*item.interval) if item.interval else "-"
        p_value = "-" if item.p_value is None else f"{item.p_value:.2g}"
        means = f"{item.mean_a:.4f}", f"{item.mean_b:.4f}", f"{item.mean_difference:+.4f}"
        rows.append((item.column, str(item.n), str(item.ties), *means, interval, p_value))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*lines, "", *_remarks(differences)])


def _remarks(differences: Sequence[Difference]) -> list[str]:
    unequal = [item for item in differences if item.ties < item.n]
    remarks = []
    if not unequal:
        remarks.append("Nothing differs: every case has the same values in both files, so there is nothing to test.")
    elif len(unequal) > 1:
        remarks.append(f"p is not corrected for {len(unequal)} columns: some fall below 0.05 by chance.")
    few = [item.column for item in unequal if item.n - item.ties < FEWEST]
    if few:
        remarks.append(f"Fewer than {FEWEST} unequal cases cannot give p < 0.05: {', '.join(few)}.")
    left_out = [f"{item.column} ({item.left_out})" for item in differences if item.left_out]
    if left_out:
        remarks.append(f"Cases without a value in one of the files are left out: {', '.join(left_out)}.")
    return remarks


def _difference(column: str, pairs: np.ndarray, seed: int) -> Difference:
    """Of one column, given as (cases, 2)."""
    valid = pairs[np.isfinite(pairs).all(axis=1)]
    # The files hold six digits. Differences that are equal in them have to be equal here: the test ranks them.
    differences = np.round(valid[:, 1] - valid[:, 0], 9)
    unequal = differences[differences != 0]
    mean_a, mean_b = valid.mean(axis=0) if len(valid) else (np.nan, np.nan)
    return Difference(
        column=column,
        n=len(valid),
        left_out=len(pairs) - len(valid),
        ties=len(valid) - len(unequal),
        mean_a=float(mean_a),
        mean_b=float(mean_b),
        mean_difference=float(mean_b - mean_a),
        interval=bootstrap_interval(differences, seed),
        p_value=float(stats.wilcoxon(unequal).pvalue) if len(unequal) else None,
    )


def read_cases(path: Path) -> dict[str, dict[str, float]]:
    """The rows of a ``metrics.csv`` by the names of their cases; an ``InputError`` for any other file."""
    advice = "give the metrics.csv that an evaluation wrote"
    with explained(f"{path} cannot be read as a table", advice), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        columns, rows = reader.fieldnames or (), list(reader)
    if "name" not in columns or not rows:
        raise InputError(f"{path} is no table of cases: {advice}.")
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        name = row.pop("name")
        if name in table:
            raise InputError(f"{path} holds case '{shown(name)}' more than once, so cases cannot be matched by name.")
        try:
            table[name] = {column: float(value) for column, value in row.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} has not one number per column for case '{shown(name)}'.") from error
    return table
