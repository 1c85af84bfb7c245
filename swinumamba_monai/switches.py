# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Switches of a config, which MONAI's command line may hand over as text."""

from __future__ import annotations

from swinumamba_monai.errors import InputError


def is_on(value: bool | str) -> bool:
    """What a switch says: ``--resume false`` arrives as the text "false", which by itself would count as true.

    Args:
        value: True, False, or one of these words, in capitals or not.

    Raises:
        InputError: anything else.
    """
    word = str(value).lower()
    if not isinstance(value, (bool, str)) or word not in ("true", "false"):
        raise InputError(f"a switch must be True or False, got {value!r}.")
    return word == "true"
