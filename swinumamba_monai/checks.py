# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: one sentence that names the argument and what is allowed, a ``ValueError``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def is_count(value: object) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_counts(value: object, length: int) -> bool:
    """Whether a value is a sequence of ``length`` positive integers."""
    return isinstance(value, Sequence) and len(value) == length and all(map(is_count, value))


def require(name: str, value: object, ok: bool, allowed: str) -> None:
    """Let a value pass, or say what is allowed.

    Args:
        name: name of the argument.
        value: value that was given.
        ok: whether it may be that.
        allowed: end of the sentence "NAME must be ...".

    Raises:
        ValueError: not ``ok``.

    >>> require("depth", -1, False, "a positive integer")
    Traceback (most recent call last):
    ValueError: depth must be a positive integer, got -1.
    """
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def require_counts(**arguments: object) -> None:
    """Every argument must be a positive integer, or a ``ValueError`` names it."""
    for name, value in arguments.items():
        require(name, value, is_count(value), "a positive integer")


def require_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """The argument must be one of some words, or a ``ValueError`` lists them."""
    words = list(allowed)
    require(name, value, value in words, f"one of {', '.join(words)}")


def require_rate(name: str, value: object) -> None:
    """The argument must be a probability below 1, or a ``ValueError`` names it."""
    require(name, value, isinstance(value, (int, float)) and 0 <= value < 1, "a number in [0, 1)")
