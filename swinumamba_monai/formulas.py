# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells of CSV files that no spreadsheet takes for a formula: names of files and classes may begin like one."""

from __future__ import annotations

__all__ = ["as_cell", "from_cell"]

_STARTS = ("=", "+", "-", "@", "\t", "\r")


def as_cell(value: object) -> object:
    """A value as it is written: text that begins like a formula gets an apostrophe before it.

    >>> as_cell("=1+1")
    "'=1+1"
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_STARTS) else value


def from_cell(text: str) -> str:
    """What :func:`as_cell` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_STARTS) else text
