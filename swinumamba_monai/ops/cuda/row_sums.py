# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The sum of what the blocks of a kernel found of a parameter's gradient, in one launch and a fixed order."""

from __future__ import annotations

from torch import Tensor

from .nvrtc import load_kernels, params_type

COLUMNS = 32  # number of columns of a block
MOST_WARPS = 32

_SumParams = params_type("SumParams", "parts sums", "rows columns")


def sum_rows(parts: Tensor) -> Tensor:
    """``parts.sum(0)`` of a contiguous float32 tensor.

    It is for hundreds of short rows, for which torch's own sum, made for long ones, takes several times as long.

    Args:
        parts: (rows, ...), on the device of the kernels.

    Returns:
        the other axes.
    """
    if len(parts) == 1:
        return parts[0]
    sums = parts.new_empty(parts.shape[1:])
    threads = 32 * min(MOST_WARPS, len(parts))
    params = _SumParams(parts.data_ptr(), sums.data_ptr(), len(parts), sums.numel())
    blocks = -(-sums.numel() // COLUMNS)
    load_kernels("row_sums.cu", {"ELEMENT": 0, "VECTOR": 1}).launch(
        "sum_rows", (blocks, 1, 1), threads, 4 * threads, params
    )
    return sums
