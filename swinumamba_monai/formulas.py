# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells of CSV files that no spreadsheet takes for a formula: names of files and classes may begin like one.

Where a decimal comma is usual, spreadsheets divide lines at semicolons, and whoever imports a table may choose tabs:
what follows one of these begins a cell there, whatever quotation marks the file has around the whole.
"""

from __future__ import annotations

import re

_BEGINNING = r"(?:^|(?<=[;\t\r\n]))"
# Blanks and quotation marks before it are dropped by some; in Japanese, the wide forms begin a formula, too.
_FORMULA = r"""'*(?:[\t\r]|(?:[^\S\t\r\n]|")*[=+\-@＝＋－＠])"""
_TO_MARK = re.compile(f"{_BEGINNING}(?={_FORMULA})")
_MARKED = re.compile(f"{_BEGINNING}'(?={_FORMULA})")


def as_cell(value: object) -> object:
    """A value as it is written: in text, what would begin a formula gets an apostrophe before it.

    >>> as_cell("=1+1")
    "'=1+1"
    >>> as_cell("a;=1+1")
    "a;'=1+1"
    """
    return _TO_MARK.sub("'", value) if isinstance(value, str) else value


def from_cell(text: str) -> str:
    """What :func:`as_cell` was given."""
    return _MARKED.sub("", text)
