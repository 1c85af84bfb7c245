# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from swinumamba_monai.cli import main
from swinumamba_monai.errors import InputError
from swinumamba_monai.reports import compare, comparison_text


def write(path: Path, columns: Mapping[str, Sequence[float]], names: Sequence[str] | None = None) -> Path:
    """A table as EvaluationReport writes it."""
    count = len(next(iter(columns.values())))
    rows = zip(names or [f"case{i}.png" for i in range(count)], *columns.values(), strict=True)
    lines = [",".join(["name", *columns]), *(",".join([name, *(f"{v:.6f}" for v in values)]) for name, *values in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with the same cases in another order, and a column each that the other has not."""
    a = write(tmp_path / "a.csv", {"f1": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.3, 0.2], "old": [0] * 8})
    b = write(
        tmp_path / "b.csv",
        {"new": [0] * 8, "f1": [0.25, 0.4, 1.0, 0.95, 0.9, 0.7, 0.65, 0.51]},
        [f"case{i}.png" for i in reversed(range(8))],
    )
    return a, b


def test_signed_rank_test_of_cases_matched_by_name(runs: tuple[Path, Path]) -> None:
    (item,) = compare(*runs)
    # Differences 0.01, 0.05, 0, 0.1, 0.05, 0, 0.1, 0.05, all but two of them above zero.
    differences = np.array([0.01, 0.05, 0, 0.1, 0.05, 0, 0.1, 0.05])
    assert (item.column, item.n, item.ties, item.left_out) == ("f1", 8, 2, 0)
    assert (item.mean_a, item.mean_b) == pytest.approx((0.625, 0.67))
    assert item.mean_difference == pytest.approx(differences.mean())
    assert item.interval[0] < item.mean_difference < item.interval[1]
    (swapped,) = compare(*runs[::-1])
    assert (swapped.mean_difference, swapped.p_value) == pytest.approx((-item.mean_difference, item.p_value))


def test_p_is_the_share_of_sign_patterns_that_are_as_extreme(tmp_path: Path) -> None:
    differences = np.array([0.05, -0.02, 0.11, 0.07, -0.01, 0.09, 0.13, 0.04])
    a = write(tmp_path / "a.csv", {"f1": [0.5] * 8})
    b = write(tmp_path / "b.csv", {"f1": 0.5 + differences})
    ranks = np.abs(differences).argsort().argsort() + 1
    sums = np.array([sum(rank for rank, up in zip(ranks, signs) if up) for signs in product((0, 1), repeat=8)])
    observed = ranks[differences > 0].sum()
    extreme = np.abs(sums - ranks.sum() / 2) >= abs(observed - ranks.sum() / 2)
    assert compare(a, b)[0].p_value == pytest.approx(extreme.mean())


def test_rounding_of_the_files_makes_no_ranks(tmp_path: Path) -> None:
    # In binary 0.3 - 0.2 and 0.2 - 0.1 differ. Equal differences share a rank: 0.1 five times and -0.1 once.
    a = write(tmp_path / "a.csv", {"f1": [0.1, 0.2, 0.3, 0.6, 0.8, 0.5]})
    b = write(tmp_path / "b.csv", {"f1": [0.2, 0.3, 0.4, 0.7, 0.9, 0.4]})
    c = write(tmp_path / "c.csv", {"f1": [0.0] * 6})
    d = write(tmp_path / "d.csv", {"f1": [0.25] * 5 + [-0.25]})
    assert compare(a, b)[0].p_value == compare(c, d)[0].p_value


def test_cases_without_a_value_are_left_out(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", {"dsc": [np.nan, 0.2, 0.3, 0.4], "none": [np.nan] * 4})
    b = write(tmp_path / "b.csv", {"dsc": [0.1, np.nan, 0.3, 0.5], "none": [np.nan] * 4})
    (item,) = compare(a, b)
    assert (item.column, item.n, item.left_out, item.ties) == ("dsc", 2, 2, 1)
    assert item.mean_difference == pytest.approx(0.05)
    text = comparison_text([item])
    assert "left out: dsc (2)" in text and "Fewer than 6 unequal cases cannot give p < 0.05: dsc." in text


def test_nothing_differs(tmp_path: Path, runs: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    (item, _) = compare(runs[0], runs[0])
    assert (item.p_value, item.ties, item.interval) == (None, 8, (0, 0))
    assert main(["compare", str(runs[0]), str(runs[0])]) == 0
    assert "Nothing differs" in capsys.readouterr().out
    empty = write(tmp_path / "empty.csv", {"f1": [np.nan]})
    assert main(["compare", str(empty), str(empty)]) == 0
    assert "nothing to compare" in capsys.readouterr().out


def test_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0.4, 0.6, (2, 30))
    paths = [
        write(tmp_path / f"{i}.csv", {"f1": v[0], "dice": v[1], "same": [1] * 30}) for i, v in enumerate((a, a + 0.1))
    ]
    assert main(["compare", *map(str, paths)]) == 0
    heading, f1, _, same, *remarks = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["column", "n", "ties"]
    assert f1.split()[:3] == ["f1", "30", "0"] and "+0.1000" in f1
    assert same.split()[1:3] == ["30", "30"] and same.endswith("-")
    assert "not corrected for 2 columns" in " ".join(remarks)
    assert main(["compare", *map(str, paths), "--columns", "dice"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines()[1:] if line]
    assert line.startswith("dice ")


def test_single_case(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.csv", {"f1": [0.5]}), write(tmp_path / "b.csv", {"f1": [0.6]})
    (item,) = compare(a, b)
    assert (item.n, item.interval, item.p_value) == (1, None, 1)
    assert "Fewer than 6" in comparison_text([item])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "other.csv cannot be read"),
        ("", "no table of cases"),
        ("name,f1\n", "no table of cases"),
        ("case,f1\ncase0.png,0.5\n", "no table of cases"),
        ("name,f1\n" + "case0.png,0.5\n" * 2, "case 'case0.png' more than once"),
        ("name,f1\ncase0.png,good\n", "one number per column for case 'case0.png'"),
        ("name,f1\ncase0.png\n", "one number per column"),
        ("name,f1\ncase0.png,0.5,0.6\n", "one number per column"),
        ("name,dsc\n" + "".join(f"case{i}.png,0.5\n" for i in range(8)), "do not share any column"),
        (
            "name,f1\n" + "".join(f"case{i}.png,0.5\n" for i in range(2, 10)),
            "different cases: only .*a.csv has case0.png, ",
        ),
        ("name,f1\n" + "".join(f"case{i}.png,0.5\n" for i in range(2)), "case4.png and 3 more"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_do_not_match(
    tmp_path: Path, runs: tuple[Path, Path], content: str | bytes | None, message: str, capsys: pytest.CaptureFixture
) -> None:
    other = tmp_path / "other.csv"
    if content is not None:
        other.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        compare(runs[0], other)
    assert main(["compare", str(runs[0]), str(other)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_seed_that_is_none(runs: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *map(str, runs), "--seed", "-1"]) == 1
    assert capsys.readouterr().err == "error: the seed of the bootstrap must be from 0 to 4294967295, not -1.\n"


def test_columns_that_are_not_shared(runs: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="do not share old; they share f1"):
        compare(*runs, columns=["f1", "old"])
