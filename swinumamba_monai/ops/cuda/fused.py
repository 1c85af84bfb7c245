# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds the scan on an NVIDIA GPU, each in one launch: kernels/conv.cu and norm.cu."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from .device import ELEMENTS, alignment, count_multiprocessors, divide_channels
from .nvrtc import load_kernels, params_type
from .row_sums import sum_rows

THREADS = 256
ROW_LANES = (32, 16, 8)  # threads that may have a row of norm.cu
ROW_ITEMS = 4  # vectors that each of them has at the most, unless a warp has the row
CONV_VECTOR = 2  # channels that a thread of conv.cu has at the most; more take too many registers
RUN = 4  # pixels of a row that it has
ROWS = (4, 2, 1)  # rows that it may have of them
BUSY_BLOCKS = 2  # number of blocks of a multiprocessor that patches are cut for; fewer leave it waiting


_ConvParams = params_type("ConvParams", "x dy taps y dparameters", "height width channels patches lanes")
_NormParams = params_type(
    "NormParams", "x gate dy weight bias y statistics dx dgate dparameters", "rows channels", ("eps", ctypes.c_double)
)


class _Conv:
    """How the work of kernels/conv.cu is laid out for maps (b, h, w, c): see Patch there, and Team in common.cuh.

    Args:
        maps: maps that are read or written, the first of them being the input.
        rounds: number of patches that each team of a full GPU shall have, or more, unless patches of one row are fewer.
    """

    def __init__(self, *maps: Tensor, rounds: int) -> None:
        batch, height, width, channels = maps[0].shape
        vector = min(CONV_VECTOR, alignment(channels, *maps))
        self.lanes, self.columns, self.teams = divide_channels(channels // vector, THREADS)
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
        taps: weights of the nine taps and the bias, (10, c), contiguous float32, as :func:`.packing.pack` gives them.

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
        gradient of x; that of taps, (10, c) float32.
    """
    dsum = torch.empty_like(dy)
    conv = _Conv(x, dy, dsum, rounds=8)  # so that the teams, which go on and on, have nearly as much to do
    blocks = min(conv.blocks, 2 * conv.most_blocks)
    dparameters = taps.new_empty(blocks, 10, x.shape[-1])
    conv.launch("conv_silu_backward", blocks, conv.shared_bytes, x=x, dy=dy, taps=taps, y=dsum, dparameters=dparameters)
    return _convolve("conv_transposed", dsum, taps), sum_rows(dparameters)


def divide_row(vectors: int) -> tuple[int, int]:
    """Threads that have a row of so many vectors, and vectors of each: few threads shall have nothing to do."""
    fitting = [lanes for lanes in ROW_LANES if lanes == max(ROW_LANES) or vectors <= ROW_ITEMS * lanes]
    lanes = max(fitting, key=lambda lanes: (vectors / (-(-vectors // lanes) * lanes), lanes))
    return lanes, -(-vectors // lanes)


class _Norm:
    """How the work of kernels/norm.cu is laid out for rows (rows, d): see RowTeam there.

    Args:
        x: the rows.
        weight: (d,), float32.
        bias: (d,), float32.
        others: further maps that are read or written as x is.
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> None:
        rows, channels = x.shape
        vector = alignment(channels, x, weight, bias, *others)
        lanes, items = divide_row(-(-channels // vector))
        self.teams = THREADS // lanes
        self.blocks = -(-rows // self.teams)
        defines = {"ELEMENT": ELEMENTS[x.dtype], "VECTOR": vector, "LANES": lanes, "ITEMS": items}
        self.kernels = load_kernels("norm.cu", defines)
        self.tensors = {"x": x, "weight": weight, "bias": bias}
        self.sizes = {"rows": rows, "channels": channels}

    def launch(self, suffix: str, blocks: int, gate: Tensor | None, eps: float = 0.0, **tensors: Tensor | None) -> None:
        tensors = {**self.tensors, "gate": gate, **tensors}
        params = _NormParams(**{name: t.data_ptr() for name, t in tensors.items() if t is not None}, **self.sizes)
        params.eps = eps
        name = ("layer_norm" if gate is None else "layer_norm_gate") + suffix
        shared_bytes = 4 * self.teams * self.sizes["channels"] if suffix else 0
        self.kernels.launch(name, (blocks, 1, 1), THREADS, shared_bytes, params)


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
    norm = _Norm(x, weight, bias, *(() if gate is None else (gate,)))
    norm.launch("", norm.blocks, gate=gate, y=y, statistics=statistics, eps=eps)
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
    norm = _Norm(x, weight, bias, dy, *(() if gate is None else (gate,)))
    blocks = min(norm.blocks, 4 * count_multiprocessors(x.device))
    dparameters = weight.new_empty(blocks, 2, x.shape[1])
    norm.launch(
        "_backward", blocks, gate=gate, dy=dy, statistics=statistics, dx=dx, dgate=dgate, y=y, dparameters=dparameters
    )
    return NormGradients(dx, dgate, y, sum_rows(dparameters))
