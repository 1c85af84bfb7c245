# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds the scan on an NVIDIA GPU, each in one launch: kernels/conv.cu, norm.cu and pack.cu."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .device import ELEMENTS, alignment, count_multiprocessors
from .nvrtc import load_kernels, params_type
from .row_sums import sum_rows

__all__ = [
    "NormGradients",
    "conv_silu",
    "conv_silu_backward",
    "layer_norm",
    "layer_norm_backward",
    "pack",
    "split_conv_parameters",
]

THREADS = 256
WARPS = 8
CONV_VECTOR = 2  # channels that a thread of conv.cu has at the most; more take too many registers
RUN = 4  # pixels of a row that it has
ROWS = (4, 2, 1)  # rows that it may have of them
BUSY_BLOCKS = 2  # of a multiprocessor that patches are cut for; fewer leave it waiting
LANES = 32  # threads of a block of it with different channels, at the most


_ConvParams = params_type("ConvParams", "x dy taps y dparameters", "height width channels patches lanes")
_NormParams = params_type(
    "NormParams", "x gate dy weight bias y statistics dx dgate dparameters", "rows channels", ("eps", ctypes.c_double)
)
_PackParams = params_type(
    "PackParams",
    "in_proj out_proj x_proj dt A_logs conv_weight conv_bias packed A taps",
    "in_rows model channels rank width zeros BC",
)


class _Conv:
    """How the work of kernels/conv.cu is laid out for maps (b, h, w, c): see Team and Patch there.

    Args:
        maps: maps that are read or written, the first of them being the input.
        rounds: number of patches that each team of a full GPU shall have, or more, unless patches of one row are fewer.
    """

    def __init__(self, *maps: Tensor, rounds: int) -> None:
        batch, height, width, channels = maps[0].shape
        vector = min(CONV_VECTOR, alignment(channels, *maps))
        self.lanes = min(channels // vector, LANES)
        self.teams = THREADS // self.lanes
        self.columns = -(-channels // (vector * self.lanes))
        multiprocessors = count_multiprocessors(maps[0].device)
        self.most_blocks = max(1, BUSY_BLOCKS * multiprocessors // self.columns)  # that run at a time, in each column
        for rows in ROWS:
            patches = batch * -(-height // rows) * -(-width // RUN)
            if patches >= rounds * self.most_blocks * self.teams:
                break
        self.blocks = -(-patches // self.teams)
        defines = {"ELEMENT": ELEMENTS[maps[0].dtype], "VECTOR": vector, "RUN": RUN, "ROWS": rows}
        self.kernels = load_kernels("conv.cu", defines)
        self.shared_bytes = 4 * self.lanes * self.teams * vector  # that the backward takes
        self.sizes = {
            "height": height, "width": width, "channels": channels, "patches": patches, "lanes": self.lanes
        }  # fmt: skip

    def launch(self, kernel: str, blocks: int, shared_bytes: int = 0, **tensors: Tensor) -> None:
        params = _ConvParams(**{name: t.data_ptr() for name, t in tensors.items()}, **self.sizes)
        self.kernels.launch(kernel, (blocks, self.columns, 1), self.lanes * self.teams, shared_bytes, params)


def _convolve(kernel: str, x: Tensor, taps: Tensor) -> Tensor:
    y = torch.empty_like(x)
    conv = _Conv(x, y, rounds=1)
    conv.launch(kernel, conv.blocks, x=x, taps=taps, y=y)
    return y


def conv_silu(x: Tensor, taps: Tensor) -> Tensor:
    """SiLU of the depthwise 3×3 convolution with zero padding.

    Args:
        x: (b, h, w, c), contiguous.
        taps: weights of the nine taps and the bias, (10, c), contiguous float32, as :func:`pack` gives them.

    Returns:
        (b, h, w, c), contiguous.
    """
    return _convolve("conv_silu", x, taps)


def conv_silu_backward(dy: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`conv_silu`.

    Args:
        dy: gradient of the output, contiguous.
        x: input of the forward, as is taps.

    Returns:
        gradient of x; that of taps, (10, c) float32, which :func:`split_conv_parameters` takes apart.
    """
    dsum = torch.empty_like(dy)
    conv = _Conv(x, dy, dsum, rounds=8)  # so that the teams, which go on and on, have nearly as much to do
    blocks = min(conv.blocks, 2 * conv.most_blocks)
    dparameters = taps.new_empty(blocks, 10, x.shape[-1])
    conv.launch("conv_silu_backward", blocks, conv.shared_bytes, x=x, dy=dy, taps=taps, y=dsum, dparameters=dparameters)
    return _convolve("conv_transposed", dsum, taps), sum_rows(dparameters)


def split_conv_parameters(dparameters: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weight, (c, 1, 3, 3), and the bias, (c,), of what :func:`conv_silu_backward` returned."""
    return dparameters[:9].t().reshape(-1, 1, 3, 3), dparameters[9]


class NormGradients(NamedTuple):
    """What :func:`layer_norm_backward` returns.

    Args:
        x: gradient of x.
        gate: gradient of the gate; None without a gate.
        output: output of the forward, which costs little here; None where it is not wanted.
        parameters: gradients of weight and bias, (2, d) float32.
    """

    x: Tensor
    gate: Tensor | None
    output: Tensor | None
    parameters: Tensor


def layer_norm(x: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``layer_norm(x)``, or ``layer_norm(x) * silu(gate)``.

    Args:
        x: (rows, d), contiguous.
        gate: (rows, d), contiguous; or None.
        weight: (d,), float32.
        bias: (d,), float32.
        eps: number added to the variance.

    Returns:
        (rows, d), contiguous; what the backward needs, (rows, 2) float32.
    """
    y, statistics = torch.empty_like(x), weight.new_empty(len(x), 2)
    _launch_norm("", -(-len(x) // WARPS), x, gate, weight=weight, bias=bias, y=y, statistics=statistics, eps=eps)
    return y, statistics


def layer_norm_backward(
    dy: Tensor,
    statistics: Tensor,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    output: bool = False,
) -> NormGradients:
    """Gradients of :func:`layer_norm`.

    Args:
        dy: gradient of the output, contiguous.
        statistics: second result of the forward, (rows, 2) float32.
        x: input of the forward, as are gate, weight and bias.
        output: whether the output of the forward is wanted again where there is no gate.
    """
    dx = torch.empty_like(x)
    dgate = None if gate is None else torch.empty_like(x)
    y = None if gate is None and not output else torch.empty_like(x)
    blocks = min(-(-len(x) // WARPS), 4 * count_multiprocessors(x.device))
    dparameters = weight.new_empty(blocks, 2, x.shape[1])
    _launch_norm(
        "_backward", blocks, x, gate, weight=weight, bias=bias, dy=dy, statistics=statistics, dx=dx, dgate=dgate, y=y,
        dparameters=dparameters,
    )  # fmt: skip
    return NormGradients(dx, dgate, y, sum_rows(dparameters))


def _launch_norm(suffix: str, blocks: int, x: Tensor, gate: Tensor | None, eps: float = 0.0, **tensors) -> None:
    rows, channels = x.shape
    vector = alignment(channels, *(t for t in (x, gate, tensors.get("dy")) if t is not None))
    kernels = load_kernels(
        "norm.cu", {"ELEMENT": ELEMENTS[x.dtype], "VECTOR": vector, "ITEMS": -(-channels // (32 * vector))}
    )
    params = _NormParams(rows=rows, channels=channels, eps=eps)
    for name, t in {"x": x, "gate": gate, **tensors}.items():
        setattr(params, name, None if t is None else t.data_ptr())
    name = ("layer_norm" if gate is None else "layer_norm_gate") + suffix
    kernels.launch(name, (blocks, 1, 1), 32 * WARPS, 4 * WARPS * channels if suffix else 0, params)


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
        A times log2(e), (4, d, n) float32; the convolution's taps, (10, d) float32, for :func:`conv_silu`.
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
    load_kernels("pack.cu", {"ELEMENT": ELEMENTS[dtype], "VECTOR": 1}).launch(
        "pack", (-(-(packed.numel() + A.numel() + taps.numel()) // THREADS), 1, 1), THREADS, 0, params
    )
    matrices = zip(packed.split(sizes), (in_proj.shape, out_proj.shape, *shapes))
    return *(part.view(shape) for part, shape in matrices), A, taps
