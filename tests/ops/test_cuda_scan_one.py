# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels for channels with one state, emulated, compute what the equations say in float64.

Some of ``test_cuda_scan.py`` is of both kernels: there a size that ends in 1 has one state.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cuda_cases import (
    TOLERANCES,
    assert_equal,
    assert_like_float64,
    leaves,
    map_inputs,
    output_and_gradients,
    sequence_inputs,
)

from swinumamba_monai.ops import cross_scan_2d, cross_scan_2d_ref, selective_scan, selective_scan_ref
from swinumamba_monai.ops.cuda import scan as cuda_scan
from swinumamba_monai.ops.cuda import scan_one

pytestmark = pytest.mark.usefixtures("emulator")

# batch, height, width, channels: a position; less than a warp's 16, just these, and one more; less than the 64 of four
# warps, and more than two times as many; channels one at a time and four at a time, in one block and in two
MAPS = [(1, 1, 1, 1), (2, 3, 5, 5), (1, 4, 4, 20), (1, 1, 17, 36), (2, 9, 7, 4), (1, 11, 13, 36), (1, 13, 5, 33)]
SEQUENCES = [(2, 17, 2, 5), (1, 65, 3, 36), (1, 130, 1, 4)]


@pytest.mark.parametrize("sizes", MAPS, ids=str)
def test_map(emulator, sizes):
    inputs = map_inputs(*sizes, 1, seed=sum(sizes))
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, inputs, TOLERANCES[torch.float32])
    assert {file for file, _ in emulator.loaded} - {"row_sums.cu"} == {"scan_one.cu", "merge.cu"}


@pytest.mark.parametrize("multiprocessors, warps", [(1, [4, 4]), (8, [16, 8]), (1000, [16, 8])])
def test_few_blocks_have_many_warps(emulator, multiprocessors, warps):
    emulator.set_multiprocessors(multiprocessors)
    inputs = map_inputs(1, 17, 19, 20, 1)
    assert_like_float64(cross_scan_2d, cross_scan_2d_ref, inputs, TOLERANCES[torch.float32])
    assert [emulator.macros("scan_one.cu", f"{way}_WARPS")[0] for way in ("FORWARD", "BACKWARD")] == warps


def test_no_more_warps_than_have_positions():
    assert scan_one._shape("forward", 4, 100, 132) == (8, 2)
    assert scan_one._shape("forward", 4, 10, 132) == (4, 4)


@pytest.mark.parametrize("sizes", SEQUENCES, ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_sequence(sizes, softplus):
    scan, reference = (partial(f, delta_softplus=softplus) for f in (selective_scan, selective_scan_ref))
    assert_like_float64(scan, reference, sequence_inputs(*sizes, 1, seed=sum(sizes)), TOLERANCES[torch.float32])


@pytest.mark.parametrize("states", [1, 4])
def test_B_and_C_of_other_strides(states):
    """As they lie side by side in a projection, and each on its own."""
    inputs = map_inputs(1, 3, 7, 4, states)
    expected = output_and_gradients(cross_scan_2d, leaves(inputs))
    both = torch.cat([inputs["B"], inputs["C"]], dim=-1)
    for B, C in (both.chunk(2, dim=-1), (both[..., :states], inputs["C"])):
        assert_equal(output_and_gradients(cross_scan_2d, leaves({**inputs, "B": B, "C": C})), expected)


@pytest.mark.parametrize("size", [[], [3, 7]], ids=["sequence", "map"])
@pytest.mark.parametrize("keep", [False, True])
def test_operators_are_registered_correctly(size, keep):
    inputs = map_inputs(2, 3, 7, 4, 1)
    delta, B, C = (inputs[name].permute(3, 0, 1, 2, 4).flatten(2, 3) for name in ("delta", "B", "C"))
    u = inputs["x"].flatten(1, 2)[None]
    u = u if size else u.expand(4, -1, -1, -1).contiguous()
    tensors = (u, delta, inputs["A"], B, C, torch.ones(4, 4), inputs["delta_bias"])
    tensors = [t.detach().requires_grad_(keep) for t in tensors]
    torch.library.opcheck(torch.ops.swinumamba.scan_cuda.default, (*tensors, size, True, keep))
    if keep:
        y, states = torch.ops.swinumamba.scan_cuda(*tensors, size, True, keep)
        assert states.shape == (2, 4, 2, 4, 1), "two chunks of 21 positions"
        saved = [t.detach() for t in (y, states, *tensors)]
        torch.library.opcheck(torch.ops.swinumamba.scan_cuda_backward.default, (*saved, size, True))


def test_the_gradient_of_delta_may_take_its_place():
    inputs = map_inputs(1, 11, 13, 4, 1)
    delta, B, C = (inputs[name].permute(3, 0, 1, 2, 4).flatten(2, 3) for name in ("delta", "B", "C"))
    scanned = cuda_scan.ScanInputs(
        inputs["x"].flatten(1, 2)[None], delta.contiguous(), inputs["A"][..., :1], B, C, inputs["delta_bias"]
    )
    y, states = cuda_scan.scan_forward(scanned, (11, 13), True, True)
    results = []
    for in_place in (False, True):
        delta = scanned.delta.clone()
        ddelta = delta if in_place else torch.empty_like(delta)
        given = scanned._replace(delta=delta)
        dBC = torch.empty(1, 11 * 13, 4, 2, 1)
        du, sums = cuda_scan.scan_backward(y[:1], states, given, (11, 13), True, ddelta=ddelta, dBC=dBC)
        results.append({"du": du, "dBC": dBC, "sums": sums, "ddelta": ddelta})
    assert_equal(*results)
