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
from typing import NamedTuple

import torch
from torch import Tensor

from swinumamba_monai.ops.autocast import without_autocast
from swinumamba_monai.ops.autograd import register_backward

from . import scan_one
from .device import ELEMENTS, alignment, count_multiprocessors, count_shared_kib
from .nvrtc import load_kernels, on_its_device, params_type, why_nvrtc_is_unavailable
from .row_sums import sum_rows
from .scan_layout import FIRST_PASS, STATE_LANES, TUNING, TWO_LAUNCHES, choose_segments, find_chunk, make_layout

MAX_STATES = 16  # of a channel
LOG2_E = math.log2(math.e)


def why_cuda_is_unavailable(device_type: str, dtype: torch.dtype, d_state: int) -> str | None:
    """The reason why the kernels cannot run on such tensors, or None if they can.

    Args:
        device_type: type of the tensors' device, such as "cuda".
        dtype: dtype of the tensors.
        d_state: number of states of each channel.
    """
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
    "batch groups channels d_state length height width segment segments lead four_directions keep_states",
)
_MergeParams = params_type("MergeParams", "parts skip weight merged", "groups rows channels")


class ScanInputs(NamedTuple):
    """What is scanned, shaped as in the module's text: u, delta, B and C of one dtype and with contiguous channels and
    states, A and delta_bias contiguous float32.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    delta_bias: Tensor


class _Scan:
    """The sizes of one scan, and the launches of its kernels.

    Args:
        inputs: what is scanned.
        size: height and width of the map whose four directions the groups are, or None for sequences.
        delta_softplus: whether delta passes through softplus.
        way: "forward" or "backward", for which sequences are cut.
    """

    def __init__(self, inputs: ScanInputs, size, delta_softplus: bool, way: str) -> None:
        u, delta, A, B, C, _ = inputs
        self.groups, self.batch, self.length, self.channels = delta.shape
        self.d_state = A.shape[-1]
        self.sequences = self.groups * self.batch
        self.layout = make_layout(
            self.channels, self.d_state, u.dtype, alignment(self.channels, u, delta), alignment(self.d_state, B, C),
            delta_softplus, count_shared_kib(u.device), TUNING,
        )  # fmt: skip
        self.states = self.layout.states
        segments = choose_segments(
            self.layout.blocks[way] * self.sequences, self.layout.warps[way], getattr(TUNING, f"{way}_busy"),
            FIRST_PASS[way], TWO_LAUNCHES, self.length, count_multiprocessors(u.device),
            self.layout.fitting[way] if TUNING.uneven and way == "backward" else 0,
        )  # fmt: skip
        self.segments = segments.count(self.length)
        height, width = size or (1, self.length)
        self.kernels = load_kernels("scan.cu", self.layout.macros)
        self.kept = inputs._asdict()
        self.params = _ScanParams(
            u_group=u.stride(0) if u.shape[0] > 1 else 0, u_batch=u.stride(1), u_position=u.stride(2),
            delta_group=delta.stride(0), delta_batch=delta.stride(1), delta_position=delta.stride(2),
            BC_group=B.stride(0), BC_batch=B.stride(1), BC_position=B.stride(2),
            batch=self.batch, groups=self.groups, channels=self.channels, d_state=self.d_state, length=self.length,
            height=height, width=width, segment=segments.positions, segments=self.segments, lead=segments.lead,
            four_directions=size is not None,
            **{name: t.data_ptr() for name, t in self.kept.items()},
        )  # fmt: skip

    def launch(self, kernel: str, way: str) -> None:
        grid = (self.layout.blocks[way], self.sequences, self.segments)
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


def samples_that_fill(groups: int, channels: int, d_state: int, device: torch.device) -> int:
    """Samples that are enough to keep the GPU busy without cutting sequences.

    Args:
        groups: number of groups.
        channels: number of channels of a group.
        d_state: number of states of each channel.
        device: the GPU.
    """
    warps = groups * -(-channels * (1 if d_state == 1 else STATE_LANES) // 32)
    return -(-TUNING.forward_busy * count_multiprocessors(device) // warps)


def count_chunks(length: int, d_state: int, device: torch.device) -> int:
    """States that are kept of a sequence for the backward.

    Args:
        length: number of positions.
        d_state: number of states of each channel.
        device: the GPU.
    """
    return -(-length // (scan_one.CHUNK if d_state == 1 else find_chunk(count_shared_kib(device))))


def scan_forward(inputs: ScanInputs, size: tuple[int, int] | None, delta_softplus: bool, keep_states: bool):
    """Scan every group on its own.

    Args:
        inputs: what is scanned.
        size: height and width of the map whose four directions the groups are, or None for sequences.
        delta_softplus: whether delta passes through softplus.
        keep_states: whether a backward will follow.

    Returns:
        y without the skip D u, (g, b, l, d); the state before each chunk, (b, g, chunks, d, n), or an empty tensor.
    """
    delta = inputs.delta
    if inputs.A.shape[-1] == 1:
        return scan_one.forward(inputs, size, delta_softplus, keep_states)
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
    dy: Tensor,
    states: Tensor,
    inputs: ScanInputs,
    size: tuple[int, int] | None,
    delta_softplus: bool,
    ddelta: Tensor,
    dBC: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`scan_forward`.

    Args:
        dy: gradient of y, laid out like u: (g or 1, b, l, d).
        states: second result of the forward, the state before each chunk.
        inputs: inputs of the forward, as are the arguments that follow.
        ddelta: memory that the gradient of delta is written to, laid out like delta; it may be delta itself.
        dBC: memory that the gradients of B and C are written to, (b, l, g, 2, n) of their dtype with any strides; it
            may be that of B and C.

    Returns:
        du, (g, b, l, d); (g, (n + 2) * d) float32, which :func:`split_parameters` takes apart.
    """
    delta = inputs.delta
    if inputs.A.shape[-1] == 1:
        return scan_one.backward(dy, states, inputs, size, delta_softplus, ddelta, dBC)
    scan = _Scan(inputs, size, delta_softplus, "backward")
    scan.give(dy=dy, states=states)
    scan.chain_segments("gradients")
    blocks = scan.layout.blocks["backward"]
    du = delta.new_empty(delta.shape)
    dparameters = scan.new(scan.segments * scan.batch, scan.groups, (scan.d_state + 2) * scan.channels)
    parts = delta.new_empty(blocks, scan.batch, scan.length, scan.groups, 2, scan.states)  # torch adds up in float32
    scan.give(du=du, ddelta=ddelta, dBC=parts, dparameters=dparameters)
    scan.launch("scan_backward", "backward")
    torch.sum(parts[..., : scan.d_state], 0, out=dBC)
    return du, sum_rows(dparameters)


def split_parameters(dparameters: Tensor, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """dA, (g, d, n), ddelta_bias and dD, (g, d), of what :func:`scan_backward` returned."""
    channels = dparameters.shape[1] // (d_state + 2)
    dA, dbias, dD = dparameters.split([channels * d_state, channels, channels], dim=1)
    return dA.unflatten(1, (channels, d_state)), dbias, dD


def merge(parts: Tensor, skip: Tensor, weight: Tensor, merged: Tensor) -> Tensor:
    """Write ``(parts + weight * skip).sum(0)`` in one pass: parts (g, b, l, d), weight (g, d), the others (b, l, d)."""
    groups, *_, channels = parts.shape
    vector = alignment(channels, parts, skip, weight, merged)
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
    y, states = scan_forward(ScanInputs(u, delta, A, B, C, delta_bias), tuple(size) or None, delta_softplus, keep)
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
    inputs = ScanInputs(u, delta, A, B, C, delta_bias)
    groups, batch, length, _ = delta.shape
    dBC = B.new_empty(batch, length, groups, 2, A.shape[-1])
    du, dparameters = scan_backward(dy, states, inputs, tuple(size) or None, delta_softplus, ddelta, dBC)
    return _skip(du, dy, D, size), ddelta, dBC, dparameters


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
