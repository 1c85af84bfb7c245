# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of an SS2D as its kernels take them, and their gradients back again: kernels/pack.cu."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .device import ELEMENTS, alignment
from .nvrtc import load_kernels, params_type

THREADS = 256

_PackParams = params_type(
    "PackParams",
    "in_proj out_proj x_proj dt A_logs conv_weight conv_bias packed A taps",
    "in_rows model channels rank width zeros BC",
)
_UnpackParams = params_type(
    "UnpackParams",
    "in_proj gate x_proj dt out_proj taps scan A_logs norm unpacked",
    "in_rows model channels rank width zeros BC parts",
)


def pack(
    in_proj: Tensor,
    out_proj: Tensor,
    x_proj: Tensor,
    dt: Tensor,
    A_logs: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    width: int,
    dtype: torch.dtype,
    zeros: int = 0,
) -> tuple[Tensor, ...]:
    """The weights of an SS2D as its products, its scan and its convolution take them, in one launch.

    Args:
        in_proj: (2d or d, model), contiguous float32 as all.
        out_proj: (model, d).
        x_proj: (4, r + 2n, d), the rows of the low rank first.
        dt: (4, d, r).
        A_logs: (4 * d, n).
        conv_weight: (d, 1, 3, 3).
        conv_bias: (d,), or None.
        width: columns of the resulting dt, at least ``zeros`` + r.
        dtype: dtype of the matrices.
        zeros: columns of zeros before those of dt, which meet what the last rows of B and C give.

    Returns:
        in_proj; out_proj; x_proj, (4 * (2n - zeros + width), d), the rows of B and C first; dt, (4, d, width);
        A times log2(e), (4, d, n) float32; the convolution's taps, (10, d) float32, for :func:`.fused.conv_silu`.
    """
    directions, channels, rank = dt.shape
    model, BC = len(out_proj), x_proj.shape[1] - rank
    shapes = (directions * (BC - zeros + width), channels), (directions, channels, width)
    sizes = [in_proj.numel(), out_proj.numel(), *map(math.prod, shapes)]
    packed = in_proj.new_empty(sum(sizes), dtype=dtype)
    A = A_logs.new_empty(directions, channels, A_logs.shape[1])
    taps = conv_weight.new_empty(10, channels)
    tensors = (in_proj, out_proj, x_proj, dt, A_logs, conv_weight, conv_bias, packed, A, taps)
    params = _PackParams(
        *(None if t is None else t.data_ptr() for t in tensors), len(in_proj), model, channels, rank, width, zeros, BC
    )
    vector = alignment(channels, in_proj, out_proj, x_proj)
    elements = packed.numel() + A.numel() + taps.numel()
    load_kernels("pack.cu", {"ELEMENT": ELEMENTS[dtype], "VECTOR": vector}).launch(
        "pack", (-(-elements // (vector * THREADS)), 1, 1), THREADS, 0, params
    )
    matrices = zip(packed.split(sizes), (in_proj.shape, out_proj.shape, *shapes))
    return *(part.view(shape) for part, shape in matrices), A, taps


def unpack(
    in_proj: Tensor,
    gate: Tensor | None,
    x_proj: Tensor,
    dt: Tensor,
    out_proj: Tensor,
    taps: Tensor,
    scan: Tensor,
    A_logs: Tensor,
    norm: Tensor,
    rank: int,
    zeros: int = 0,
) -> Tensor:
    """The gradients of an SS2D's parameters from those of what :func:`pack` made of them, in one launch.

    Args:
        in_proj: (d, model), contiguous in the dtype of the maps, as are all but the float32 ones.
        gate: (d, model), the gradient of the rest of in_proj; or None.
        x_proj: (4, 2n - zeros + width, d).
        dt: (4, parts, d, width), which is added up over the parts.
        out_proj: (model, d).
        taps: (10, d) float32.
        scan: (4, (n + 2) * d) float32, as :func:`.scan.scan_backward` gives it.
        A_logs: (4 * d, n) float32, the parameter itself.
        norm: (2, d) float32.
        rank: r, the columns of dt that are wanted.
        zeros: columns before them, see :func:`pack`.

    Returns:
        float32, one after another: in_proj, weight and bias of the convolution, x_proj with the low rank first, dt
        (4, d, r), its bias, A_logs, D, weight and bias of the norm, out_proj.
    """
    d, model = in_proj.shape
    width, BC = dt.shape[3], 2 * A_logs.shape[1]
    in_rows = d if gate is None else 2 * d
    directions = 4 * (rank + BC + rank + 1 + BC // 2 + 1)
    unpacked = taps.new_empty(d * (9 + 1 + directions + 2 + model) + in_rows * model)
    tensors = (in_proj, gate, x_proj, dt, out_proj, taps, scan, A_logs, norm, unpacked)
    params = _UnpackParams(
        *(None if t is None else t.data_ptr() for t in tensors),
        in_rows, model, d, rank, width, zeros, BC, dt.shape[1],
    )  # fmt: skip
    load_kernels("pack.cu", {"ELEMENT": ELEMENTS[in_proj.dtype], "VECTOR": 1}).launch(
        "unpack", (-(-unpacked.numel() // THREADS), 1, 1), THREADS, 0, params
    )
    return unpacked
