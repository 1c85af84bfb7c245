# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan on an NVIDIA GPU, by the kernels of ``kernels/scan.cu``; no CUDA build, see :mod:`.nvrtc`.

The four directions of a map are read where they lie. Maps may be float32, bfloat16 or float16; states and sums are
float32. All reductions have a fixed order, so repeated runs agree bit for bit.

Symbols as in :mod:`swinumamba_monai.ops.reference`, groups first: u (g or 1, b, l, d); delta (g, b, l, d); A (g, d, n),
here times log2(e), because the kernels compute powers of two; B, C (g, b, l, n); D, delta_bias (g, d).
"""

from __future__ import annotations

import functools
import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from swinumamba_monai.ops.autocast import without_autocast
from swinumamba_monai.ops.autograd import register_backward

from .nvrtc import load_kernels, on_its_device, params_type, why_nvrtc_is_unavailable

__all__ = [
    "alignment",
    "count_chunks",
    "cross_scan_2d_cuda",
    "merge",
    "samples_that_fill",
    "scan_backward",
    "scan_forward",
    "selective_scan_cuda",
    "split_parameters",
    "why_cuda_is_unavailable",
]

CHUNK = 32  # positions between two states that are kept for the backward; half where shared memory is short
SHORT_KIB = 99  # where a chunk of the backward would leave a multiprocessor with one block of four warps
MAX_STATES = 16  # of a channel
LOG2_E = math.log2(math.e)


class Tuning(NamedTuple):
    """What the kernels are compiled with, and how their work is cut; found by measurement on an H200.

    Args:
        tile: positions that a block of the forward prepares at a time; half where shared memory is short.
        stages: tiles on their way from memory.
        unrolled: positions of the forward that the compiler sees at a time.
        subtile: positions between two states that the backward keeps for itself.
        forward_warps: of a block, at the most. Few, so that multiprocessors get about as many each.
        backward_warps: of a block, at the most. They add up dB and dC, and what blocks give is added up in memory.
        forward_room: warps that shall fit a multiprocessor, which limits the registers of a thread.
        backward_room: the same for the backward.
        forward_busy: warps of a multiprocessor below which fewer take as long.
        backward_busy: the same for the backward.
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


TUNING = Tuning()
# The first pass over segments, relative to the pass that gives the results; and two launches, in positions of a warp.
FIRST_PASS = {"forward": 0.75, "backward": 0.35}
TWO_LAUNCHES = 1500
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def why_cuda_is_unavailable(device_type: str, dtype: torch.dtype, d_state: int) -> str | None:
    """The reason why the kernels cannot run on such tensors, or None if they can."""
    if device_type != "cuda":
        return f"the kernels need a CUDA device, not '{device_type}'"
    if dtype not in ELEMENTS:
        return f"there is no {str(dtype).removeprefix('torch.')} kernel"
    if d_state > MAX_STATES:
        return f"the kernels hold at most {MAX_STATES} states of a channel, not {d_state}"
    return why_nvrtc_is_unavailable()


_ScanParams = params_type(
    "ScanParams",
    "u delta B C dy A delta_bias y states carry decay du ddelta dBC dparameters",
    "u_group u_batch u_position delta_group delta_batch delta_position BC_group BC_batch BC_position "
    "batch groups channels d_state length height width segment segments four_directions keep_states",
)
_MergeParams = params_type("MergeParams", "parts skip weight merged", "groups rows channels")


@cache
def _segment(
    blocks: int, warps: int, busy: int, first_pass: float, launches: int, length: int, multiprocessors: int
) -> int:
    """Cut sequences where that pays: segments fill multiprocessors, but what they start with takes another pass.

    A pass takes as long as the multiprocessor with the most blocks, in proportion to its warps, but not less than
    ``busy`` of them. So a batch that leaves some multiprocessors idle is cut only if that saves more than the pass.

    Args:
        blocks: of uncut sequences.
        warps: of a block.
        busy: warps of a multiprocessor below which fewer take as long.
        first_pass: the work of the other pass, relative to the main one.
        launches: what its launches cost, in positions of a warp.
        length: positions.
        multiprocessors: of the GPU.

    Returns:
        positions of a segment, a multiple of CHUNK unless there is one.
    """
    best, best_cost = length, math.inf
    for segments in range(1, min(-(-length // CHUNK), -(-2 * busy * multiprocessors // (blocks * warps)) + 1) + 1):
        positions = length if segments == 1 else -(-length // (segments * CHUNK)) * CHUNK
        count = -(-length // positions)
        busiest = -(-blocks * count // multiprocessors) * warps
        cost = positions * max(busiest, busy)
        if count > 1:
            cost = cost * (1 + first_pass) + launches
        if cost < best_cost:
            best, best_cost = positions, cost
    return best


def alignment(count: int, *tensors: Tensor) -> int:
    """Neighbours that a thread may load at once: 4 where every row of every tensor begins at a multiple of 4."""
    aligned = all(t.data_ptr() % (4 * t.element_size()) == 0 for t in tensors)
    return 4 if aligned and all(size % 4 == 0 for t in tensors for size in (count, *t.stride()[:-1])) else 1


def _state_lanes(d_state: int) -> int:
    """Threads that share the states of a channel."""
    return min(4, 1 << (d_state - 1).bit_length())


def samples_that_fill(groups: int, channels: int, d_state: int, device: torch.device) -> int:
    """Samples that are enough to keep the GPU busy without cutting sequences."""
    warps = groups * -(-channels * _state_lanes(d_state) // 32)
    return -(-TUNING.forward_busy * count_multiprocessors(device) // warps)


class _Layout(NamedTuple):
    """How the scan of some kind of tensors is laid out; in dictionaries one number for each way.

    Args:
        states: of a channel, with surplus ones.
        warps: of a block.
        blocks: for the channels of a sequence.
        shared_bytes: of a block.
        macros: what the kernels are compiled with.
    """

    states: int
    warps: dict[str, int]
    blocks: dict[str, int]
    shared_bytes: dict[str, int]
    macros: dict[str, int]


@cache
def _layout(
    channels: int, d_state: int, dtype: torch.dtype, vector: int, matrix_vector: int, delta_softplus: bool,
    shared_kib: int, tuning: Tuning,
) -> _Layout:  # fmt: skip
    """Choose the warps of a block: as many as keep a multiprocessor full, idle as few as possible.

    Args:
        channels: of a group.
        d_state: states of a channel.
        dtype: of the maps.
        vector: neighbouring channels that a thread may load at a time.
        matrix_vector: the same for B and C.
        delta_softplus: whether delta passes through softplus.
        shared_kib: shared memory that a block may have, in KiB; a multiprocessor has one more, and so costs a block.
        tuning: numbers found by measurement.
    """
    state_lanes = _state_lanes(d_state)
    states = max(state_lanes, 1 << (d_state - 1).bit_length())
    needed = -(-channels * state_lanes // 32)  # warps for the channels of a sequence
    size, chunk = dtype.itemsize, _chunk(shared_kib)

    def matrix_elements(warps: int, positions: int) -> int:
        """Places for B and C on their way: all threads have some, though some may move nothing."""
        rows = 1 << (32 * warps * matrix_vector // (2 * states)).bit_length() - 1
        return positions // min(rows, positions) * 32 * warps * matrix_vector

    def forward_bytes(warps: int, tile: int) -> int:
        """The size of ``ForwardMemory`` in scan.cu, which says what the terms are."""
        columns = warps * 32 // state_lanes
        floats = 2 * tile * columns * 2 + 2 * tile * 2 * states + warps * tile * 40
        moved = tuning.stages * (2 * tile * columns + matrix_elements(warps, tile))
        return -(-(4 * floats + size * moved) // 16) * 16

    def backward_bytes(warps: int, _: int) -> int:
        """The size of ``BackwardMemory``."""
        columns, lane_states = warps * 32 // state_lanes, states // state_lanes
        starts = chunk // tuning.subtile * 32 * lane_states
        parts = tuning.subtile * (32 + 32 // state_lanes) * 2
        shares = (1 if state_lanes == 4 else 8 // state_lanes) * chunk * 2 * states
        floats = chunk * columns * 4 + chunk * 2 * states + warps * (starts + parts + shares)
        moved = 3 * chunk * columns + matrix_elements(warps, chunk) + 32 * warps * lane_states
        return -(-(4 * floats + size * moved) // 16) * 16

    def choose(most: int, room: int, count_bytes, tiles: tuple[int, ...]) -> tuple[int, int, int]:
        """Warps of a block, its shared memory, and its tile."""
        found = []
        for tile in tiles:
            for warps in range(1, min(most, needed) + 1):
                shared = count_bytes(warps, tile)
                fitting = min(room // warps, (shared_kib + 1 << 10) // (shared + 1024))
                if shared <= shared_kib << 10 and fitting:
                    used = needed / (-(-needed // warps) * warps)
                    found.append((fitting * warps * used, tile, warps, shared))
        _, tile, warps, shared = max(found)
        return warps, shared, tile

    tiles = tuple(tile for tile in (16, 32) if tile <= min(tuning.tile, chunk))
    warps, shared_bytes = {}, {}
    warps["forward"], shared_bytes["forward"], tile = choose(
        tuning.forward_warps, tuning.forward_room, forward_bytes, tiles
    )
    warps["backward"], shared_bytes["backward"], _ = choose(
        tuning.backward_warps, tuning.backward_room, backward_bytes, (0,)
    )
    macros = {
        "ELEMENT": ELEMENTS[dtype],
        "VECTOR": vector,
        "MATRIX_VECTOR": matrix_vector,
        "DELTA_SOFTPLUS": int(delta_softplus),
        "LANE_STATES": states // state_lanes,
        "STATE_LANES": state_lanes,
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
    return _Layout(states, warps, {way: -(-needed // count) for way, count in warps.items()}, shared_bytes, macros)


class _Scan:
    """The sizes of one scan, and the launches of its kernels.

    Args:
        inputs: u, delta, A, B, C, delta_bias as in the module's text.
        size: height and width of the map whose four directions the groups are, or None for sequences.
        delta_softplus: whether delta passes through softplus.
        way: "forward" or "backward", for which sequences are cut.
    """

    def __init__(self, inputs, size, delta_softplus: bool, way: str) -> None:
        u, delta, A, B, C, delta_bias = inputs
        self.groups, self.batch, self.length, self.channels = delta.shape
        self.d_state = A.shape[-1]
        self.sequences = self.groups * self.batch
        self.layout = _layout(
            self.channels, self.d_state, u.dtype, alignment(self.channels, u, delta), alignment(self.d_state, B, C),
            delta_softplus, count_shared_kib(u.device), TUNING,
        )  # fmt: skip
        self.states = self.layout.states
        segment = _segment(
            self.layout.blocks[way] * self.sequences, self.layout.warps[way], getattr(TUNING, f"{way}_busy"),
            FIRST_PASS[way], TWO_LAUNCHES, self.length, count_multiprocessors(u.device),
        )  # fmt: skip
        self.segments = -(-self.length // segment)
        height, width = size or (1, self.length)
        self.kernels = load_kernels("scan.cu", self.layout.macros)
        self.kept = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "delta_bias": delta_bias}
        self.params = _ScanParams(
            u_group=u.stride(0) if u.shape[0] > 1 else 0, u_batch=u.stride(1), u_position=u.stride(2),
            delta_group=delta.stride(0), delta_batch=delta.stride(1), delta_position=delta.stride(2),
            BC_group=B.stride(0), BC_batch=B.stride(1), BC_position=B.stride(2),
            batch=self.batch, groups=self.groups, channels=self.channels, d_state=self.d_state, length=self.length,
            height=height, width=width, segment=segment, segments=self.segments,
            four_directions=size is not None,
            **{name: t.data_ptr() for name, t in self.kept.items()},
        )  # fmt: skip

    def launch(self, kernel: str, way: str) -> None:
        grid = (self.layout.blocks[way], self.segments, self.sequences)
        self.kernels.launch(kernel, grid, 32 * self.layout.warps[way], self.layout.shared_bytes[way], self.params)

    def give(self, **tensors: Tensor) -> None:
        """Hand memory to the kernels, and keep it until they are launched."""
        for name, t in tensors.items():
            setattr(self.params, name, t.data_ptr())
        self.kept.update(tensors)

    def new(self, *shape: int) -> Tensor:
        return self.kept["A"].new_empty(shape)

    def chain_segments(self, ends: str) -> None:
        """Find out what each segment starts with: ``ends`` is "states", or "gradients" for the way back."""
        if self.segments == 1:
            return
        rows = (self.sequences, self.segments, self.channels)
        self.give(carry=self.new(*rows, self.d_state), decay=self.new(*rows))
        self.launch(f"scan_end_{ends}", "forward")
        pairs = self.sequences * self.channels * self.d_state
        self.kernels.launch(f"scan_chain_{ends}", (-(-pairs // 128), 1, 1), 128, 0, self.params)


@cache
def count_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def count_shared_kib(device: torch.device) -> int:
    """Shared memory that a block may have, in KiB: of the data center's GPUs, or what all from Ampere on have."""
    return {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227}.get(
        torch.cuda.get_device_capability(device), 99
    )


def _one_state():
    """The module for channels with one state, which builds on this one."""
    from . import scan_one

    return scan_one


def _chunk(shared_kib: int) -> int:
    """Positions between two states that are kept, by the shared memory that a block may have."""
    return CHUNK if shared_kib > SHORT_KIB else CHUNK // 2


def count_chunks(length: int, d_state: int, device: torch.device) -> int:
    """States that are kept of a sequence for the backward."""
    return -(-length // (_one_state().CHUNK if d_state == 1 else _chunk(count_shared_kib(device))))


def scan_forward(inputs, size: tuple[int, int] | None, delta_softplus: bool, keep_states: bool):
    """Scan every group on its own.

    Args:
        inputs: u, delta, A, B, C, delta_bias, shaped as in the module's text; u, delta, B and C of one dtype and with
            contiguous channels and states, A and delta_bias contiguous float32.
        size: height and width of the map whose four directions the groups are, or None for sequences.
        delta_softplus: whether delta passes through softplus.
        keep_states: whether a backward will follow.

    Returns:
        y without the skip D u, (g, b, l, d); the state before each chunk, (b, g, chunks, d, n), or an empty tensor.
    """
    delta = inputs[1]
    if inputs[2].shape[-1] == 1:
        return _one_state().forward(inputs, size, delta_softplus, keep_states)
    scan = _Scan(inputs, size, delta_softplus, "forward")
    y = delta.new_empty(delta.shape)
    chunks = count_chunks(scan.length, scan.d_state, delta.device) if keep_states else 0
    states = delta.new_empty(scan.batch, scan.groups, chunks, scan.channels, scan.d_state)
    scan.chain_segments("states")
    scan.give(y=y, states=states)
    scan.params.keep_states = keep_states
    scan.launch("scan_forward", "forward")
    return y, states


def scan_backward(
    dy: Tensor, states: Tensor, inputs, size: tuple[int, int] | None, delta_softplus: bool, ddelta: Tensor
):
    """Gradients of :func:`scan_forward`.

    Args:
        dy: gradient of y, laid out like u: (g or 1, b, l, d).
        states: second result of the forward, the state before each chunk.
        inputs: inputs of the forward, as are the arguments that follow.
        ddelta: memory that the gradient of delta is written to, laid out like delta; it may be delta itself.

    Returns:
        du, (g, b, l, d); dB and dC, (b, l, g, 2, n) float32; (g, (n + 2) * d) float32, which
        :func:`split_parameters` takes apart.
    """
    delta = inputs[1]
    if inputs[2].shape[-1] == 1:
        return _one_state().backward(dy, states, inputs, size, delta_softplus, ddelta)
    scan = _Scan(inputs, size, delta_softplus, "backward")
    scan.give(dy=dy, states=states)
    scan.chain_segments("gradients")
    blocks = scan.layout.blocks["backward"]
    du = delta.new_empty(delta.shape)
    dparameters = scan.new(scan.segments * scan.batch, scan.groups, (scan.d_state + 2) * scan.channels)
    dBC = scan.new(blocks, scan.batch, scan.length, scan.groups, 2, scan.states)
    scan.give(du=du, ddelta=ddelta, dBC=dBC, dparameters=dparameters)
    scan.launch("scan_backward", "backward")
    dBC = dBC.squeeze(0) if blocks == 1 else dBC.sum(0)
    dparameters = dparameters.squeeze(0) if len(dparameters) == 1 else dparameters.sum(0)
    return du, dBC[..., : scan.d_state], dparameters


def split_parameters(dparameters: Tensor, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """dA, (g, d, n), ddelta_bias and dD, (g, d), of what :func:`scan_backward` returned."""
    channels = dparameters.shape[1] // (d_state + 2)
    dA, dbias, dD = dparameters.split([channels * d_state, channels, channels], dim=1)
    return dA.unflatten(1, (channels, d_state)), dbias, dD


def merge(parts: Tensor, skip: Tensor, weight: Tensor, merged: Tensor) -> Tensor:
    """Write ``(parts + weight * skip).sum(0)`` in one pass: parts (g, b, l, d), weight (g, d), the others (b, l, d)."""
    groups, *_, channels = parts.shape
    vector = alignment(channels, parts, skip, merged)
    kernels = load_kernels("merge.cu", {"ELEMENT": ELEMENTS[parts.dtype], "VECTOR": vector})
    tensors = (parts, skip, weight, merged)
    params = _MergeParams(*(t.data_ptr() for t in tensors), groups, skip.numel() // channels, channels)
    kernels.launch("merge", (-(-skip.numel() // (256 * vector)), 1, 1), 256, 0, params)
    return merged


@torch.library.custom_op(
    "swinumamba::scan_cuda",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, int[] size,"
    " bool delta_softplus, bool keep) -> (Tensor, Tensor)",
)
@on_its_device
@without_autocast
def _forward(u, delta, A, B, C, D, delta_bias, size, delta_softplus, keep):
    y, states = scan_forward((u, delta, A, B, C, delta_bias), tuple(size) or None, delta_softplus, keep)
    return _skip(y, u, D, size), states


def _skip(y: Tensor, u: Tensor, D: Tensor, size) -> Tensor:
    """Add D u, and the groups of a map."""
    if size:
        return merge(y, u[0], D, torch.empty_like(u[0]))[None]
    return torch.addcmul(y.float(), u, D[:, None, None]).to(y.dtype)


@_forward.register_fake
def _(u, delta, A, B, C, D, delta_bias, size, delta_softplus, keep):
    groups, batch, length, channels = delta.shape
    chunks = count_chunks(length, A.shape[-1], u.device) if keep else 0
    return u.new_empty(u.shape), delta.new_empty(batch, groups, chunks, channels, A.shape[-1])


@torch.library.custom_op(
    "swinumamba::scan_cuda_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor states, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D,"
    " Tensor delta_bias, int[] size, bool delta_softplus)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
@on_its_device
@without_autocast
def _backward(dy, states, u, delta, A, B, C, D, delta_bias, size, delta_softplus):
    u, dy = u.contiguous(), dy.contiguous()
    ddelta = torch.empty_like(delta)
    if ddelta.stride() != delta.stride():  # delta has gaps, or repeats itself; its gradient does not
        delta = delta.contiguous()
        ddelta = torch.empty_like(delta)
    inputs = (u, delta, A, B, C, delta_bias)
    du, dBC, dparameters = scan_backward(dy, states, inputs, tuple(size) or None, delta_softplus, ddelta)
    return _skip(du, dy, D, size), ddelta, dBC.to(B.dtype, copy=True), dparameters


@_backward.register_fake
def _(dy, states, u, delta, A, B, C, D, delta_bias, size, delta_softplus):
    groups, batch, length, channels = delta.shape
    d_state = A.shape[-1]
    return (
        u.new_empty(u.shape),
        torch.empty_like(delta),
        B.new_empty(batch, length, groups, 2, d_state),
        A.new_empty(groups, (d_state + 2) * channels),
    )


def _gradients(dy, states, u, delta, A, B, C, D, delta_bias, size, delta_softplus, keep):
    tensors = (states, u, delta, A, B, C, D, delta_bias)
    du, ddelta, dBC, dparameters = _backward(dy, *tensors, size, delta_softplus)
    dB, dC = dBC.permute(3, 2, 0, 1, 4)
    dA, dbias, dD = split_parameters(dparameters, dBC.shape[-1])
    return du, ddelta, dA, dB, dC, dD, dbias


register_backward(_forward, _gradients, num_options=3)


def _scan(u, delta, A, B, C, D, delta_bias, size, delta_softplus) -> Tensor:
    tensors = (u, delta, A, B, C, D, delta_bias)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (u, delta, B, C)))
    u, delta, B, C = (_rows_contiguous(t.to(dtype)) for t in (u, delta, B, C))
    if B.stride() != C.stride():  # the kernels go through both by the same steps
        B, C = B.contiguous(), C.contiguous()
    A, D, delta_bias = (t.float().contiguous() for t in (A * LOG2_E, D, delta_bias))
    return _forward(u.contiguous(), delta, A, B, C, D, delta_bias, size, delta_softplus, keep)[0].to(tensors[0].dtype)


def _rows_contiguous(t: Tensor) -> Tensor:
    """The kernels read channels and states that lie side by side."""
    return t if t.stride(-1) == 1 else t.contiguous()


def selective_scan_cuda(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    """Selective scan in the layout of :mod:`swinumamba_monai.ops.portable`: (b, l, g, d) in and out."""
    u, delta, B, C = (t.permute(2, 0, 1, 3) for t in (u, delta, B, C))
    return _scan(u, delta, A, B, C, D, delta_bias, [], delta_softplus).permute(1, 2, 0, 3)


def cross_scan_2d_cuda(x, delta, A, B, C, D, delta_bias) -> Tensor:
    """Four-direction scan of a map; the shapes are those of :func:`swinumamba_monai.ops.scan.cross_scan_2d`."""
    size = x.shape[1:3]
    delta, B, C = (t.permute(3, 0, 1, 2, 4).flatten(2, 3) for t in (delta, B, C))
    y = _scan(x.flatten(1, 2)[None], delta, A, B, C, D, delta_bias, list(size), True)
    return y.squeeze(0).unflatten(1, size)
