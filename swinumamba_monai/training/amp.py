# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The option ``amp`` of the bundles: mixed precision by name."""

from __future__ import annotations

import torch

from swinumamba_monai.errors import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}


def default_amp(device: torch.device | str) -> str:
    """``"bf16"`` on a GPU whose hardware has it, else ``"off"``."""
    has_it = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_it else "off"


def autocast_dtype(amp: str, device: torch.device | str) -> torch.dtype | None:
    """The dtype that ``amp`` stands for, or None for no autocast.

    Args:
        amp: ``"bf16"``, ``"fp16"`` or ``"off"``.
        device: device of the network.

    Raises:
        InputError: another name, or mixed precision without a GPU (MONAI's trainer casts on CUDA devices alone).
    """
    if amp not in DTYPES:
        raise InputError(f"amp must be one of {', '.join(DTYPES)}, got {amp!r}.")
    if DTYPES[amp] is not None and torch.device(device).type != "cuda":
        raise InputError(f"amp {amp} needs a CUDA device, but the device is {device}; use --amp off.")
    return DTYPES[amp]
