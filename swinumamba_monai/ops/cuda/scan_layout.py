# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How the work of ``kernels/scan.cu`` is laid out: what it is compiled with, its blocks, and segments of sequences."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch

from .device import ELEMENTS

CHUNK = 32  # positions between two states that are kept for the backward; half where shared memory is short
STATE_LANES = 4  # threads that share the states of a channel
# Shared memory with which a chunk of the backward would leave a multiprocessor with one block of four warps.
SHORT_KIB = 99


class Tuning(NamedTuple):
    """What the kernels are compiled with, and how their work is cut; found by measurement on an H200.

    Args:
        tile: positions that a block of the forward prepares at a time; half where shared memory is short.
        stages: tiles on their way from memory.
        unrolled: positions of the forward that the compiler sees at a time.
        subtile: positions between two states that the backward keeps for itself.
        forward_warps: number of warps of a block, at the most. Few, so that multiprocessors get about as many each.
        backward_warps: number of warps of a block, at the most. They add up dB and dC, and what blocks give is added up
            in memory.
        forward_room: number of warps that shall fit a multiprocessor, which limits the registers of a thread.
        backward_room: number of warps that shall fit a multiprocessor in the backward.
        forward_busy: number of warps of a multiprocessor below which fewer take as long.
        backward_busy: number of warps of a multiprocessor below which fewer take as long in the backward.
        uneven: whether the backward may cut a sequence in two of different lengths; up to 9 % faster.
    """

    tile: int = 16
    stages: int = 2
    unrolled: int = 8
    subtile: int = 4
    forward_warps: int = 4
    backward_warps: int = 4
    forward_room: int = 12
    backward_room: int = 12
    forward_busy: int = 8
    backward_busy: int = 6
    uneven: bool = True


TUNING = Tuning()
# The first pass over segments, relative to the pass that gives the results; and two launches, in positions of a warp.
FIRST_PASS = {"forward": 0.75, "backward": 0.35}
TWO_LAUNCHES = 1500
WORTH_IT = 0.95  # share of the time that uneven segments must be better than, for the estimate is not exact


def find_chunk(shared_kib: int) -> int:
    """Positions between two states that are kept, by the shared memory that a block may have."""
    return CHUNK if shared_kib > SHORT_KIB else CHUNK // 2


class Segments(NamedTuple):
    """How sequences are cut.

    Args:
        positions: positions of a segment, a multiple of CHUNK unless there is one.
        lead: positions that the first has more than the others, a multiple of CHUNK.
    """

    positions: int
    lead: int = 0

    def count(self, length: int) -> int:
        """Segments of a sequence with ``length`` positions."""
        return -(-(length - self.lead) // self.positions)


@cache
def choose_segments(
    blocks: int,
    warps: int,
    busy: int,
    first_pass: float,
    launches: int,
    length: int,
    multiprocessors: int,
    fitting: int = 0,
) -> Segments:
    """Cut sequences where that pays: segments fill multiprocessors, but what they start with takes another pass.

    A pass takes as long as the multiprocessor with the most blocks, in proportion to its warps, but not less than
    ``busy`` of them. So a batch that leaves some multiprocessors idle is cut only if that saves more than the pass.

    Where all blocks run at once, some multiprocessors have n of them, some n + 1, and the former wait for the latter in
    the end. If they have room for another, each sequence is cut in two, the later segment so short that the former get
    through all of these meanwhile. The other pass goes over the later segment alone, in the backward.

    Args:
        blocks: number of thread blocks of uncut sequences.
        warps: number of warps of a block.
        busy: warps of a multiprocessor below which fewer take as long.
        first_pass: the work of the other pass, relative to the main one.
        launches: cost of its launches, in positions of a warp.
        length: positions.
        multiprocessors: number of the GPU's multiprocessors.
        fitting: blocks that a multiprocessor has room for; 0 where segments must be alike.
    """
    best, best_cost = Segments(length), math.inf
    for segments in range(1, min(-(-length // CHUNK), -(-2 * busy * multiprocessors // (blocks * warps)) + 1) + 1):
        positions = length if segments == 1 else -(-length // (segments * CHUNK)) * CHUNK
        count = -(-length // positions)
        busiest = -(-blocks * count // multiprocessors) * warps
        cost = positions * max(busiest, busy)
        if count > 1:
            cost = cost * (1 + first_pass) + launches
        if cost < best_cost:
            best, best_cost = Segments(positions), cost
    fewer, more = divmod(blocks, multiprocessors)  # blocks of each, and those with one more
    if more and fewer and fewer < fitting:
        others = multiprocessors - more
        first = int(length * blocks / (others + blocks)) // CHUNK * CHUNK
        positions = -(-(length - first) // CHUNK) * CHUNK
        cost = (first + first_pass * positions) * max((fewer + 1) * warps, busy) + launches
        if cost < WORTH_IT * best_cost and first > positions:
            best = Segments(positions, first - positions)
    return best


class Layout(NamedTuple):
    """How the scan of some kind of tensors is laid out; in dictionaries one number for each way.

    Args:
        states: number of states of a channel, with surplus ones.
        warps: number of warps of a block.
        blocks: number of blocks for the channels of a sequence.
        fitting: blocks that a multiprocessor has room for.
        shared_bytes: size of the shared memory of a block, in bytes.
        macros: what the kernels are compiled with.
    """

    states: int
    warps: dict[str, int]
    blocks: dict[str, int]
    fitting: dict[str, int]
    shared_bytes: dict[str, int]
    macros: dict[str, int]


@cache
def make_layout(
    channels: int, d_state: int, dtype: torch.dtype, vector: int, matrix_vector: int, delta_softplus: bool,
    shared_kib: int, tuning: Tuning,
) -> Layout:  # fmt: skip
    """Choose the warps of a block: as many as keep a multiprocessor full, idle as few as possible.

    Args:
        channels: number of channels of a group.
        d_state: states of a channel.
        dtype: dtype of the maps.
        vector: neighbouring channels that a thread may load at a time.
        matrix_vector: neighbouring states of B or C that a thread may load at a time.
        delta_softplus: whether delta passes through softplus.
        shared_kib: shared memory that a block may have, in KiB; a multiprocessor has one more, and so costs a block.
        tuning: numbers found by measurement.
    """
    states = max(STATE_LANES, 1 << (d_state - 1).bit_length())
    lane_states = states // STATE_LANES
    needed = -(-channels * STATE_LANES // 32)  # warps for the channels of a sequence
    size, chunk = dtype.itemsize, find_chunk(shared_kib)

    def matrix_elements(warps: int, positions: int) -> int:
        """Places for B and C on their way: all threads have some, though some may move nothing."""
        rows = 1 << (32 * warps * matrix_vector // (2 * states)).bit_length() - 1
        return positions // min(rows, positions) * 32 * warps * matrix_vector

    def forward_bytes(warps: int, tile: int) -> int:
        """The size of ``ForwardMemory`` in scan_forward.cuh, which says what the terms are."""
        columns = warps * 32 // STATE_LANES
        floats = 2 * tile * columns * 2 + 2 * tile * 2 * states + warps * tile * 40
        moved = tuning.stages * (2 * tile * columns + matrix_elements(warps, tile))
        return -(-(4 * floats + size * moved) // 16) * 16

    def backward_bytes(warps: int, _: int) -> int:
        """The size of ``BackwardMemory``."""
        columns = warps * 32 // STATE_LANES
        starts = chunk // tuning.subtile * 32 * lane_states
        shares = chunk * 2 * states
        floats = chunk * (4 * columns + 8) + chunk * 2 * states + warps * (starts + shares)
        moved = 3 * chunk * columns + matrix_elements(warps, chunk) + 32 * warps * lane_states
        return -(-(4 * floats + size * moved) // 16) * 16

    def choose(most: int, room: int, count_bytes, tiles: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Warps of a block, how many such blocks fit a multiprocessor, the shared memory of one, and its tile."""
        found = []
        for tile in tiles:
            for warps in range(1, min(most, needed) + 1):
                shared = count_bytes(warps, tile)
                fitting = min(room // warps, (shared_kib + 1 << 10) // (shared + 1024))
                if shared <= shared_kib << 10 and fitting:
                    used = needed / (-(-needed // warps) * warps)
                    found.append((fitting * warps * used, tile, warps, fitting, shared))
        _, tile, *others = max(found)
        return *others, tile

    tiles = tuple(tile for tile in (16, 32) if tile <= min(tuning.tile, chunk))
    warps, fitting, shared_bytes = {}, {}, {}
    warps["forward"], fitting["forward"], shared_bytes["forward"], tile = choose(
        tuning.forward_warps, tuning.forward_room, forward_bytes, tiles
    )
    warps["backward"], fitting["backward"], shared_bytes["backward"], _ = choose(
        tuning.backward_warps, tuning.backward_room, backward_bytes, (0,)
    )
    macros = {
        "ELEMENT": ELEMENTS[dtype],
        "VECTOR": vector,
        "MATRIX_VECTOR": matrix_vector,
        "DELTA_SOFTPLUS": int(delta_softplus),
        "LANE_STATES": lane_states,
        "STATE_LANES": STATE_LANES,
        "SURPLUS_STATES": int(states > d_state),
        "TILE": tile,
        "STAGES": tuning.stages,
        "UNROLLED": tuning.unrolled,
        "CHUNK": chunk,
        "SUBTILE": tuning.subtile,
    }
    for way, room in (("forward", tuning.forward_room), ("backward", tuning.backward_room)):
        macros[f"{way.upper()}_WARPS"] = warps[way]
        macros[f"{way.upper()}_BLOCKS"] = max(1, room // warps[way])
        macros[f"{way.upper()}_BYTES"] = shared_bytes[way]
    blocks = {way: -(-needed // count) for way, count in warps.items()}
    return Layout(states, warps, blocks, fitting, shared_bytes, macros)
