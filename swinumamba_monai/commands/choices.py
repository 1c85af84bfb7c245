# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Networks that a command is given by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from swinumamba_monai.errors import InputError, shown


def check_systems(names: Sequence[str] | None) -> list[str]:
    """Names of networks; all for None.

    Raises:
        InputError: one of them is unknown; the sentence lists them.
    """
    from swinumamba_monai.networks import SYSTEMS

    _check("network", names or (), SYSTEMS)
    return list(names or SYSTEMS)


def check_encoders(names: Sequence[str] | None) -> list[str]:
    """Names of VMamba's encoders; all but the paper's for None.

    Raises:
        InputError: one of them is unknown; the sentence lists them.
    """
    from swinumamba_monai.networks import ENCODERS

    _check("encoder", names or (), ENCODERS)
    return list(ENCODERS)[1:] if names is None else list(names)


def _check(kind: str, names: Sequence[str], known: Collection[str]) -> None:
    wrong = [name for name in names if name not in known]
    if wrong:
        raise InputError(f"there is no {kind} '{shown(wrong[0])}'; choose from {', '.join(known)}.")
