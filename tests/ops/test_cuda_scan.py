# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The scan's CUDA kernels, emulated, compute what the equations say in float64: the output and every gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cuda_cases import (
    TOLERANCES,
    assert_equal,
    assert_like_float64,
    assert_near,
    doubling_cross_scan,
    leaves,
    map_inputs,
    output_and_gradients,
    sequence_inputs,
)

from swinumamba_monai.ops import cross_scan_2d, cross_scan_2d_ref, selective_scan, selective_scan_ref
from swinumamba_monai.ops.cuda import scan as cuda_scan
from swinumamba_monai.ops.cuda.scan import LOG2_E
from swinumamba_monai.ops.cuda.scan_layout import CHUNK, TUNING, TWO_LAUNCHES, Segments

pytestmark = pytest.mark.usefixtures("emulator")
TILE = TUNING.tile

# batch, height, width, channels, states: one position, primes, one less than a tile, a tile, a chunk and one more; 1, 2
# and 4 states in a thread, and surplus ones; channels one at a time and four at a time, in one block and in two
MAPS = [
    (1, 1, 1, 1, 2),
    (3, 5, 3, 5, 3),
    (1, 1, TILE, 17, 8),
    (2, 3, 11, 20, 16),
    (1, CHUNK - 1, 1, 36, 8),
    (1, 8, 4, 64, 16),
    (1, 2, 17, 20, 13),
]
SEQUENCES = [(1, 1, 1, 1, 1), (2, TILE + 1, 2, 5, 3), (1, CHUNK, 3, 20, 16), (1, 2 * CHUNK + 1, 2, 4, 8)]


def exact(dtype=torch.float32):
    return TOLERANCES[dtype]


@pytest.mark.parametrize("sizes", MAPS, ids=str)
def test_map(sizes):
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, map_inputs(*sizes, seed=sum(sizes)), exact())


def test_the_truth_of_long_maps():
    """What test_gpu.py compares large maps with is what the equations say."""
    inputs = {name: t.double() for name, t in map_inputs(2, 5, 7, 4, 3).items()}
    assert_like_float64(doubling_cross_scan, cross_scan_2d_ref, inputs, 1e-12)


def test_numbers_never_seen_before():
    """Other numbers in each run; the seed that failed is in the message."""
    seed = torch.seed() % 2**32
    inputs = map_inputs(2, 5, 7, 20, 16, seed=seed)
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, inputs, exact(), note=f"(seed {seed})")


@pytest.mark.parametrize("sizes", [(1, 5, 7, 5, 3), (1, 5, 14, 4, 1)], ids=str)
@pytest.mark.parametrize("direction", range(4))
def test_each_direction_alone(direction, sizes):
    """A direction whose C and D are zero gives nothing, so a direction that goes astray is not hidden by the others."""
    inputs = map_inputs(*sizes, seed=direction)
    others = torch.arange(4) != direction
    inputs["C"][..., others, :] = 0
    inputs["D"][others] = 0
    actual = assert_like_float64(cross_scan_2d, cross_scan_2d_ref, inputs, exact())
    assert actual["delta"][..., others, :].abs().max() == 0
    assert actual["delta"][..., direction, :].abs().min() > 0


@pytest.mark.parametrize("sizes", [(2, 5, 7, 20, 16), (2, 11, 7, 36, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, sizes):
    inputs = map_inputs(*sizes, dtype=dtype)
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, inputs, exact(dtype))


@pytest.mark.parametrize(
    "segments, count",
    [
        (Segments(CHUNK), 4),
        (Segments(2 * CHUNK), 2),
        (Segments(3 * CHUNK), 2),
        (Segments(99), 1),
        (Segments(CHUNK, lead=CHUNK), 3),
        (Segments(CHUNK, lead=2 * CHUNK), 2),
    ],
    ids=str,
)
def test_segments(emulator, monkeypatch, segments, count):
    """Sequences of 99 positions: the last segment is shorter than the others, the first may be longer, or all."""
    monkeypatch.setattr(cuda_scan, "choose_segments", lambda *sizes: segments)
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, map_inputs(1, 11, 9, 20, 16), exact())
    for kernel in ("scan_forward", "scan_backward"):
        assert {grid[2] for grid in emulator.grids(kernel)} == {count}
    assert bool(emulator.grids("scan_chain_states")) == (count > 1)


def test_little_shared_memory(emulator):
    """Ampere's and Ada's GPUs for workstations: chunks of half the length, in one piece and in segments."""
    emulator.monkeypatch.setattr(cuda_scan, "count_shared_kib", lambda device: 99)
    for multiprocessors in (1, 1000):
        emulator.set_multiprocessors(multiprocessors)
        assert_like_float64(cross_scan_2d, cross_scan_2d_ref, map_inputs(1, 11, 9, 20, 16), exact())
    assert emulator.macros("scan.cu", "CHUNK")[-1] == CHUNK // 2
    assert emulator.grids("scan_backward")[-1][2] == 4, "99 positions in segments of 32 at the least"


def test_more_multiprocessors_get_more_segments(emulator):
    for multiprocessors, segments in ((1, 1), (1000, 4)):
        emulator.set_multiprocessors(multiprocessors)
        results = output_and_gradients(cross_scan_2d, leaves(map_inputs(2, 11, 9, 20, 16)))
        assert emulator.grids("scan_forward")[-1][2] == emulator.grids("scan_backward")[-1][2] == segments
        assert all(t.isfinite().all() for t in results.values())


def segments_on_an_h100(emulator, batch, height, width, channels):
    """Segments of the scan of a map with 16 states in bfloat16, forward and backward, and what the first has more."""
    emulator.set_multiprocessors(132)
    emulator.monkeypatch.setattr(cuda_scan, "TWO_LAUNCHES", TWO_LAUNCHES)
    u, rows = torch.empty(1, 1, 1, 1, dtype=torch.bfloat16), (4, batch, height * width)
    inputs = (u.expand(1, *rows[1:], channels), u.expand(*rows, channels), torch.empty(4, channels, 16))
    inputs += (u.expand(*rows, 16), u.expand(*rows, 16), torch.empty(4, channels))
    scans = [
        cuda_scan._Scan(cuda_scan.ScanInputs(*inputs), (height, width), True, way) for way in ("forward", "backward")
    ]
    return [(scan.segments, scan.params.lead) for scan in scans]


@pytest.mark.parametrize(
    "batch, height, width, channels, least, most",
    [
        (16, 80, 80, 192, 1, 1),  # the first stage at 16 × 320×320
        (16, 20, 20, 768, 1, 1),
        (1, 80, 80, 192, 8, 24),
        (1, 10, 10, 1536, 1, 1),
    ],
    ids=str,
)
def test_an_h100_takes_a_batch_whole_and_cuts_what_is_alone(emulator, batch, height, width, channels, least, most):
    for segments, lead in segments_on_an_h100(emulator, batch, height, width, channels):
        assert least <= segments <= most and lead == 0


@pytest.mark.parametrize("sizes, share", [((13, 96, 160), 0.79), ((12, 128, 128), 0.73)], ids=str)
def test_an_h100_with_a_block_more_here_than_there(emulator, sizes, share):
    """The first stage at 13 × 384×640 has 312 blocks, at 12 × 512×512 288: 2 or 3 for each of 132 multiprocessors.

    48 with 3 longer segments take 3 · 0.79, the other 84 take 2 · 0.79 and 312 / 84 · 0.21; 3 · 0.73 the 24 of the
    second, and 2 · 0.73 + 288 / 108 · 0.27.
    """
    length = sizes[1] * sizes[2]
    (forward, _), (backward, lead) = segments_on_an_h100(emulator, *sizes, 192)
    assert (forward, backward) == (1, 2)
    segments = cuda_scan.choose_segments(6 * 4 * sizes[0], 4, TUNING.backward_busy, 0.35, TWO_LAUNCHES, length, 132, 3)
    first = segments.lead + segments.positions
    assert first % CHUNK == 0 and first / length == pytest.approx(share, abs=0.01) and lead == segments.lead
    emulator.monkeypatch.setattr(cuda_scan, "TUNING", TUNING._replace(uneven=False))
    assert segments_on_an_h100(emulator, *sizes, 192) == [(1, 0), (1, 0)]


@pytest.mark.parametrize(
    "tuning",
    [
        {"tile": 32, "stages": 1, "unrolled": 4, "subtile": 8},
        {"stages": 3, "forward_warps": 2, "backward_warps": 4},
        {"forward_warps": 6, "backward_warps": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("states", [16, 2])
def test_every_tuning_computes_the_same(emulator, tuning, states):
    emulator.tune(**tuning)
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, map_inputs(1, 7, 9, 68, states), exact())


@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_sequence(sizes, softplus):
    scan, reference = (partial(f, delta_softplus=softplus) for f in (selective_scan, selective_scan_ref))
    assert_like_float64(scan, reference, sequence_inputs(*sizes, seed=sum(sizes)), exact())


def test_sequence_without_skip_and_bias():
    inputs = sequence_inputs(2, 9, 2, 4, 3)
    del inputs["D"], inputs["delta_bias"]
    assert_like_float64(selective_scan, selective_scan_ref, inputs, exact())


def every_second(t):
    """The same numbers with gaps between all of them."""
    return torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0]


def from_an_odd_address(t):
    """The same numbers, contiguous, but not where four of them may be loaded at once."""
    memory = t.new_empty(t.numel() + 1)
    return memory[1:].view(t.shape).copy_(t)


LAYOUTS = {
    "gaps": every_second,
    "gaps between rows": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "reversed axes": lambda t: t.permute(*range(t.ndim)[::-1]).contiguous().permute(*range(t.ndim)[::-1]),
    "odd address": from_an_odd_address,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout):
    inputs = map_inputs(2, 3, 5, 4, 4)
    changed = {name: layout(t) for name, t in inputs.items()}
    actual = output_and_gradients(cross_scan_2d, leaves(changed))
    assert_near(actual, output_and_gradients(cross_scan_2d_ref, leaves(inputs, torch.float64)), exact())


def test_odd_addresses_are_read_one_by_one(emulator):
    inputs = map_inputs(1, 3, 5, 4, 4)
    cross_scan_2d(**inputs)
    cross_scan_2d(**{name: from_an_odd_address(t) for name, t in inputs.items()})
    assert emulator.macros("scan.cu", "VECTOR") == emulator.macros("merge.cu", "VECTOR") == [4, 1]


def test_repeated_samples():
    """A map whose samples are one and the same memory: each has a gradient of its own."""
    one = map_inputs(1, 3, 5, 4, 4)
    maps = ("x", "delta", "B", "C")

    def repeated(scan, **inputs):
        return scan(**{name: t.expand(3, *t.shape[1:]) if name in maps else t for name, t in inputs.items()})

    assert_like_float64(partial(repeated, cross_scan_2d), partial(repeated, cross_scan_2d_ref), one, exact())


@pytest.mark.parametrize("sizes", [(1, 7, 5, 4, 4), (1, 7, 11, 4, 1)], ids=str)
@pytest.mark.parametrize("step", [-50.0, 0.0, 50.0])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_steps_of_any_size(dtype, step, sizes):
    inputs = map_inputs(*sizes, dtype=dtype)
    inputs["delta"].fill_(step)
    inputs["delta_bias"].zero_()
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, inputs, exact(dtype))


def test_steps_of_all_sizes_without_softplus():
    """Without softplus a step is what was given; 0 keeps the state, 50 forgets it."""
    inputs = sequence_inputs(1, 45, 1, 4, 4)
    del inputs["delta_bias"]
    inputs["delta"] = torch.tensor([50.0, 0.0, 1e-30, 1.0, 1e-4]).repeat(36).view(1, 4, 45).contiguous()
    assert_like_float64(selective_scan, selective_scan_ref, inputs, exact())


@pytest.mark.parametrize("sizes", [(2, 7, 5, 20, 16), (2, 9, 11, 20, 1)], ids=str)
def test_repeated_runs_agree_bit_for_bit(emulator, sizes):
    emulator.set_multiprocessors(3)
    inputs = leaves(map_inputs(*sizes))
    assert_equal(output_and_gradients(cross_scan_2d, inputs), output_and_gradients(cross_scan_2d, inputs))


@pytest.mark.parametrize("wanted", [("x",), ("A",), ("delta", "B"), ("D", "delta_bias")], ids=str)
def test_gradients_of_some_inputs(wanted):
    inputs = map_inputs(1, 5, 3, 5, 3)
    everything = output_and_gradients(cross_scan_2d, leaves(inputs))
    some = {name: t.requires_grad_(name in wanted) for name, t in leaves(inputs).items()}
    assert_equal(output_and_gradients(cross_scan_2d, some), {name: everything[name] for name in ("out", *wanted)})


def test_no_states_are_kept_without_gradients(monkeypatch):
    kept, scan_forward = [], cuda_scan.scan_forward

    def spy(*arguments):
        y, states = scan_forward(*arguments)
        kept.append(states.numel())
        return y, states

    monkeypatch.setattr(cuda_scan, "scan_forward", spy)
    inputs = leaves(map_inputs(1, 5, 7, 5, 3))
    with torch.no_grad():
        silent = cross_scan_2d(**inputs)
    assert cross_scan_2d(**inputs).equal(silent)
    assert kept == [0, 4 * 2 * 5 * 3]  # directions, chunks of 35 positions, channels, states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Maps in half precision, and a delta that autocast left in float32: all is scanned in float32."""
    inputs = map_inputs(1, 5, 7, 20, 16)
    rounded = {name: t.to(dtype) if name in ("x", "B", "C") else t for name, t in inputs.items()}

    def scan(**tensors):
        with torch.autocast("cpu", dtype):
            return cross_scan_2d(**tensors)

    actual = assert_like_float64(scan, cross_scan_2d_ref, rounded, exact(dtype))
    assert actual["out"].dtype == dtype


@pytest.mark.parametrize("size", [[], [3, 5]], ids=["sequence", "map"])
@pytest.mark.parametrize("keep", [False, True])
def test_operators_are_registered_correctly(size, keep):
    u, delta, A, B, C, delta_bias = kernel_inputs(map_inputs(2, 3, 5, 4, 4))
    u = u if size else u.expand(4, -1, -1, -1).contiguous()
    D = torch.ones(4, 4)
    inputs = [t.detach().requires_grad_(keep) for t in (u, delta, A, B, C, D, delta_bias)]
    torch.library.opcheck(torch.ops.swinumamba.scan_cuda.default, (*inputs, size, True, keep))
    if keep:
        y, states = torch.ops.swinumamba.scan_cuda(*inputs, size, True, keep)
        saved = [t.detach() for t in (y, states, *inputs)]
        torch.library.opcheck(torch.ops.swinumamba.scan_cuda_backward.default, (*saved, size, True))


def test_compiles_into_one_graph():
    inputs = leaves(map_inputs(1, 3, 5, 4, 4))
    compiled = torch.compile(cross_scan_2d, backend="aot_eager", fullgraph=True)
    assert_equal(output_and_gradients(compiled, inputs), output_and_gradients(cross_scan_2d, inputs))


def test_the_gradient_of_delta_may_take_its_place():
    inputs = kernel_inputs(map_inputs(2, 5, 7, 20, 16))
    y, states = cuda_scan.scan_forward(inputs, (5, 7), True, True)
    dy = torch.randn(1, *y.shape[1:], generator=torch.Generator().manual_seed(2))
    results = []
    for in_place in (False, True):
        delta = inputs.delta.clone(memory_format=torch.preserve_format)
        ddelta = delta if in_place else torch.empty_like(delta)
        dBC = torch.empty(2, 5 * 7, 4, 2, 16)
        du, sums = cuda_scan.scan_backward(
            dy, states, inputs._replace(delta=delta), (5, 7), True, ddelta=ddelta, dBC=dBC
        )
        results.append({"du": du, "dBC": dBC, "sums": sums, "ddelta": ddelta})
    assert_equal(*results)


def kernel_inputs(inputs):
    """u, delta, A, B, C and delta_bias of a map, as ``scan_forward`` takes them."""
    delta, B, C = (inputs[name].permute(3, 0, 1, 2, 4).flatten(2, 3) for name in ("delta", "B", "C"))
    return cuda_scan.ScanInputs(
        inputs["x"].flatten(1, 2)[None], delta, inputs["A"] * LOG2_E, B, C, inputs["delta_bias"]
    )
