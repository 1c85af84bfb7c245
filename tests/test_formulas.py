# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""No cell of a table begins like a formula, whatever a spreadsheet divides its lines at."""

from __future__ import annotations

import csv
import itertools

import pytest

from swinumamba_monai.formulas import as_cell, from_cell
from swinumamba_monai.reports.tables import write_csv

WIDE = "\uff1d\uff0b\uff0d\uff20"
PARTS = ("a", "=", "'", ";", "\t", "\n", '"', " ", WIDE[0])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", [*"=+-@", *WIDE])
def test_no_cell_begins_like_a_formula(start, separator, tmp_path):
    names = [
        f"{start}1",
        f"a;{start}1",
        f"a\t{start}1",
        f"a; {start}1",
        f'a;"{start}1"',
        f"a\r{start}1",
        f"a\n{start}1",
    ]
    write_csv(tmp_path, "table", [{"name": name, f"{start}b": 1, f"c;{start}d": 1} for name in names])
    text = (tmp_path / "table.csv").read_text(encoding="utf-8")
    cells = [cell for line in csv.reader(text.splitlines(), delimiter=separator) for cell in line]
    assert len(cells) > len(names)
    assert not [cell for cell in cells if cell.strip(' "').startswith(start)]


def test_every_text_comes_back():
    for length in range(6):
        for parts in itertools.product(PARTS, repeat=length):
            assert from_cell(as_cell("".join(parts))) == "".join(parts)


@pytest.mark.parametrize("value", ["image-1", "a=b", "1 - 2; x", 3, -0.5, None, "it's"])
def test_other_values_stay(value):
    assert as_cell(value) == value
