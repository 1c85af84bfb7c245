# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The scan of channels with one state on an NVIDIA GPU, by ``kernels/scan_one.cu``: the ways of :mod:`.scan` for it."""

from __future__ import annotations

from torch import Tensor

from .device import ELEMENTS, alignment, count_multiprocessors
from .nvrtc import load_kernels, params_type
from .row_sums import sum_rows

CHUNK = 16  # positions between two states that are kept for the backward, which a warp has
CHANNELS = 32  # number of channels of a block
# Warps of a block, and blocks that a multiprocessor shall have room for, which limits the registers of a thread; by
# measurement on an H200. More warps take a sequence in fewer steps, fewer wait less for each other: the fewest are
# taken that keep all multiprocessors busy.
SHAPES = {"forward": ((4, 4), (8, 2), (16, 1)), "backward": ((4, 3), (8, 2))}
BUSY = 8  # warps of a multiprocessor

_Params = params_type(
    "OneStateParams",
    "u delta B C dy A delta_bias y states du ddelta dBC dparameters",
    "u_group u_batch u_position delta_group delta_batch delta_position BC_group BC_batch BC_position "
    "batch groups channels length height width four_directions keep_states",
)


def _shape(way: str, blocks: int, length: int, multiprocessors: int) -> tuple[int, int]:
    """One of :data:`SHAPES`, in which no warp is without positions."""
    for shape in SHAPES[way]:
        warps = shape[0]
        if blocks * warps >= BUSY * multiprocessors or warps * CHUNK >= length:
            break
    return shape


def make_macros(blocks: int, length: int, multiprocessors: int, delta_softplus: bool) -> dict[str, int]:
    """What the kernels are compiled with, besides the element and the vector.

    Args:
        blocks: number of blocks.
        length: positions of a sequence.
        multiprocessors: number of the GPU's multiprocessors.
        delta_softplus: whether delta passes through softplus.
    """
    macros = {"DELTA_SOFTPLUS": int(delta_softplus)}
    for way in SHAPES:
        shape = _shape(way, blocks, length, multiprocessors)
        macros[f"{way.upper()}_WARPS"], macros[f"{way.upper()}_BLOCKS"] = shape
    return macros


def shared_bytes(warps: int) -> int:
    """Shared memory of a block: two stretches' maps of its warps, what these start with, and at the end three sums."""
    return 4 * CHANNELS * warps * 5


def _launch(way: str, inputs, size, delta_softplus: bool, keep: bool = False, **tensors) -> None:
    u, delta, B = inputs.u, inputs.delta, inputs.B
    groups, batch, length, channels = delta.shape
    blocks = (-(-channels // CHANNELS), groups * batch, 1)
    macros = make_macros(blocks[0] * blocks[1], length, count_multiprocessors(u.device), delta_softplus)
    warps = macros[f"{way.upper()}_WARPS"]
    own = {"ELEMENT": ELEMENTS[u.dtype], "VECTOR": alignment(channels, u, delta)}
    kernels = load_kernels("scan_one.cu", own | macros)
    height, width = size or (1, length)
    named = inputs._asdict() | tensors
    params = _Params(
        u_group=u.stride(0) if u.shape[0] > 1 else 0, u_batch=u.stride(1), u_position=u.stride(2),
        delta_group=delta.stride(0), delta_batch=delta.stride(1), delta_position=delta.stride(2),
        BC_group=B.stride(0), BC_batch=B.stride(1), BC_position=B.stride(2),
        batch=batch, groups=groups, channels=channels, length=length, height=height, width=width,
        four_directions=size is not None, keep_states=keep,
        **{name: t.data_ptr() for name, t in named.items()},
    )  # fmt: skip
    kernels.launch(f"scan_{way}", blocks, 32 * warps, shared_bytes(warps), params)


def forward(inputs, size, delta_softplus: bool, keep_states: bool) -> tuple[Tensor, Tensor]:
    """:func:`.scan.scan_forward`; the states are those before each CHUNK of this module."""
    delta = inputs.delta
    groups, batch, length, channels = delta.shape
    y = delta.new_empty(delta.shape)
    states = delta.new_empty(batch, groups, -(-length // CHUNK) if keep_states else 0, channels, 1)
    _launch("forward", inputs, size, delta_softplus, keep_states, y=y, states=states)
    return y, states


def backward(dy: Tensor, states: Tensor, inputs, size, delta_softplus: bool, ddelta: Tensor, dBC: Tensor):
    """:func:`.scan.scan_backward`."""
    delta, A = inputs.delta, inputs.A
    groups, batch, length, channels = delta.shape
    du = delta.new_empty(delta.shape)
    parts = A.new_empty(-(-channels // CHANNELS), batch, length, groups, 2, 1)
    dparameters = A.new_empty(batch, groups, 3 * channels)
    _launch(
        "backward", inputs, size, delta_softplus, dy=dy, states=states, du=du, ddelta=ddelta, dBC=parts,
        dparameters=dparameters,
    )  # fmt: skip
    dBC.copy_(parts.sum(0))
    return du, sum_rows(dparameters)
