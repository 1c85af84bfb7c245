# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A device that is given by name."""

from __future__ import annotations

import torch

from swinumamba_monai.errors import InputError


def find_device(name: str | int | torch.device | None) -> torch.device:
    """The device of that name; for None a GPU if there is one, else the CPU. An InputError if it cannot be used."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name is None else name)
        torch.zeros(1, device=device).item()  # which a meta device cannot
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device '{name}' cannot be used: {str(error).splitlines()[0].partition('. ')[0]}") from error
    return device
