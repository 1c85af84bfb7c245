# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the operators do about autocast, which changes the precision of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


def without_autocast(op: Callable) -> Callable:
    """Autocast would run the matrix products of an operator's body in half precision; the states are float32."""

    @wraps(op)
    def run(first: Tensor, *others):
        with torch.autocast(first.device.type, enabled=False):
            return op(first, *others)

    return run


def to_autocast_dtype(x: Tensor) -> Tensor:
    """What autocast does to the input of a matrix product."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device_type))
