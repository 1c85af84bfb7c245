# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Networks and devices that a command is given by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swinumamba_monai.errors import InputError

if TYPE_CHECKING:
    import torch


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


def find_device(name: str | None) -> torch.device:
    """The device of that name; for None a GPU if there is one, else the CPU.

    Raises:
        InputError: it cannot be used.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return device
