# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Networks that a command is given by name."""

from __future__ import annotations

from collections.abc import Sequence

from swinumamba_monai.errors import InputError, shown


def check_systems(names: Sequence[str] | None) -> list[str]:
    """Names of networks; all for None.

    Raises:
        InputError: one of them is unknown; the sentence lists them.
    """
    from swinumamba_monai.networks import SYSTEMS

    wrong = [name for name in names or () if name not in SYSTEMS]
    if wrong:
        raise InputError(f"there is no network '{wrong[0]}'; choose from {', '.join(SYSTEMS)}.")
    return list(names or SYSTEMS)


def check_encoders(names: Sequence[str] | None) -> list[str]:
    """Names of VMamba's encoders; all but the paper's for None.

    Raises:
        InputError: one of them is unknown; the sentence lists them.
    """
    from swinumamba_monai.networks import ENCODERS

    wrong = [name for name in names or () if name not in ENCODERS]
    if wrong:
        raise InputError(f"there is no encoder '{shown(wrong[0])}'; choose from {', '.join(ENCODERS)}.")
    return list(ENCODERS)[1:] if names is None else list(names)
