# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution, norm and packing on a GPU, emulated, against torch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cuda_cases import TOLERANCES, Draw, assert_equal, assert_near

from swinumamba_monai.ops.cuda import fused as cuda_fused
from swinumamba_monai.ops.cuda import packing
from swinumamba_monai.ops.cuda.scan import LOG2_E, merge, split_parameters

pytestmark = pytest.mark.usefixtures("emulator")
HALVES = [torch.bfloat16, torch.float16]

# batch, height, width, channels: runs of 4 pixels that fit a row, do not, and exceed it; channels one at a time and
# four at a time, in one block and in two
MAPS = [(1, 1, 1, 1), (2, 3, 5, 5), (1, 4, 8, 20), (3, 2, 3, 17), (1, 2, 6, 132), (1, 5, 1, 36)]


def conv_silu_reference(x, weight, bias):
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])
    return F.silu(x).permute(0, 2, 3, 1)


def taps(weight, bias):
    return torch.cat([weight.flatten(1).t(), bias[None]])


def check_convolution(sizes, dtype):
    draw = Draw(sum(sizes), dtype)
    channels = sizes[-1]
    x, dy = draw.normal(*sizes), draw.normal(*sizes)
    weight, bias = draw.parameter(channels, 1, 3, 3), draw.parameter(channels)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = conv_silu_reference(*exact)
    names = ("out", "x", "weight", "bias")
    expected = dict(zip(names, (y.detach(), *torch.autograd.grad(y, exact, dy.double()))))
    out = cuda_fused.conv_silu(x, taps(weight, bias))
    dx, dparameters = cuda_fused.conv_silu_backward(dy, x, taps(weight, bias))
    actual = dict(zip(names, (out, dx, dparameters[:9].t().reshape(weight.shape), dparameters[9])))
    assert out.dtype == dx.dtype == dtype and dparameters.dtype == torch.float32
    assert_near(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("sizes", MAPS, ids=str)
def test_convolution(sizes):
    check_convolution(sizes, torch.float32)


@pytest.mark.parametrize("rows", cuda_fused.ROWS)
@pytest.mark.parametrize("sizes", [(2, 3, 5, 5), (2, 9, 7, 20)], ids=str)
def test_convolution_by_patches(emulator, monkeypatch, sizes, rows):
    """Patches that a map holds a whole number of, does not, and that are higher than it."""
    monkeypatch.setattr(cuda_fused, "ROWS", (rows,))
    check_convolution(sizes, torch.bfloat16)
    assert set(emulator.macros("conv.cu", "ROWS")) == {rows}


@pytest.mark.parametrize("height, rows", [(8, 1), (20, 2), (40, 4)])
def test_patches_are_as_high_as_keeps_the_gpu_busy(emulator, height, rows):
    """A multiprocessor runs two blocks of 25 teams, so it wants 50 patches; a row of 24 pixels is six of them."""
    cuda_fused.conv_silu(torch.zeros(1, height, 24, 20), torch.zeros(10, 20))
    assert emulator.macros("conv.cu", "ROWS") == [rows]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_convolution_in_half_precision(dtype):
    check_convolution((2, 3, 5, 20), dtype)


def test_convolution_over_many_blocks(emulator):
    """Parts of the parameters' gradients are added up in the same order in each run."""
    emulator.set_multiprocessors(7)
    check_convolution((3, 9, 13, 20), torch.float32)
    (grid,) = emulator.grids("conv_silu_backward")
    assert grid[0] > 1


# rows, channels: fewer rows than a block has warps, and more; channels that one warp holds at once, and does not
ROWS = [(1, 1), (7, 5), (9, 20), (19, 33), (3, 132), (8, 64)]


def check_norm(sizes, dtype, gated):
    draw = Draw(sum(sizes), dtype)
    channels = sizes[1]
    x, gate, dy = draw.normal(*sizes) + 3, draw.normal(*sizes) if gated else None, draw.normal(*sizes)
    weight, bias = draw.parameter(channels), draw.parameter(channels)
    given = {"x": x, "gate": gate, "weight": weight, "bias": bias}
    exact = {name: t.double().requires_grad_() for name, t in given.items() if t is not None}
    y = F.layer_norm(exact["x"], (channels,), exact["weight"], exact["bias"], 1e-5)
    y = y * F.silu(exact["gate"]) if gated else y
    expected = dict(zip(exact, torch.autograd.grad(y, tuple(exact.values()), dy.double())), out=y.detach())
    out, statistics = cuda_fused.layer_norm(x, gate, weight, bias, 1e-5)
    dx, dgate, again, dparameters = cuda_fused.layer_norm_backward(dy, statistics, x, gate, weight, bias)
    actual = {"x": dx, "gate": dgate, "weight": dparameters[0], "bias": dparameters[1], "out": out}
    assert_near({name: t for name, t in actual.items() if t is not None}, expected, TOLERANCES[dtype])
    assert out.dtype == dx.dtype == dtype
    if gated:
        assert_near({"again": again}, {"again": out}, TOLERANCES[dtype])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sizes", ROWS, ids=str)
def test_norm(sizes, gated):
    check_norm(sizes, torch.float32, gated)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_norm_in_half_precision(dtype):
    check_norm((9, 20), dtype, gated=True)


def test_norm_over_many_blocks(emulator):
    emulator.set_multiprocessors(3)
    check_norm((501, 5), torch.float32, gated=True)
    assert emulator.grids("layer_norm_gate_backward") == [(12, 1, 1)]


def test_narrow_rows_share_a_warp(emulator):
    """24 vectors of four channels: four rows of a warp, eight threads with three vectors each; 250 fill a warp best."""
    check_norm((5, 96), torch.bfloat16, gated=True)
    assert {(macros["LANES"], macros["ITEMS"]) for _, macros in emulator.loaded} == {(8, 3)}
    assert [cuda_fused.divide_row(vectors) for vectors in (1, 48, 250, 768)] == [(8, 1), (16, 3), (32, 8), (32, 24)]


def test_silu_of_any_size():
    """No infinity times zero where the exponential leaves the range of float32."""
    x = torch.tensor([-3e38, -1e4, -100.0, -88.0, -1e-30, 0.0, 88.0, 100.0, 1e4]).view(1, 1, 9, 1)
    weight, bias = torch.zeros(1, 1, 3, 3), torch.zeros(1)
    weight[..., 1, 1] = 1
    actual = cuda_fused.conv_silu(x, taps(weight, bias))
    torch.testing.assert_close(actual.double(), F.silu(x.double()), rtol=1e-5, atol=1e-36)
    dx, _ = cuda_fused.conv_silu_backward(torch.ones_like(x), x, taps(weight, bias))
    exact = x.double().requires_grad_()
    expected = torch.autograd.grad(F.silu(exact).sum(), exact)[0]
    torch.testing.assert_close(dx.double(), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("padded_rank, with_bias", [(3, True), (8, False)])
def test_packed_weights(padded_rank, with_bias, dtype):
    model, d, n, rank = 5, 6, 3, 3
    draw = Draw(0)
    in_proj, out_proj, dt = draw.normal(2 * d, model), draw.normal(model, d), draw.normal(4, d, rank)
    x_proj, A_logs = draw.normal(4, rank + 2 * n, d), draw.normal(4 * d, n)
    weight, bias = draw.normal(d, 1, 3, 3), draw.normal(d) if with_bias else None
    packed = packing.pack(in_proj, out_proj, x_proj, dt, A_logs, weight, bias, padded_rank, dtype)
    surplus = padded_rank - rank
    low_rank_last = F.pad(torch.cat([x_proj[:, rank:], x_proj[:, :rank]], dim=1), (0, 0, 0, surplus))
    expected = [in_proj, out_proj, low_rank_last.flatten(0, 1), F.pad(dt, (0, surplus))]
    for actual, want in zip(packed, expected):
        assert actual.equal(want.to(dtype))
    torch.testing.assert_close(packed[4], -A_logs.exp().view(4, d, n) * LOG2_E)
    assert packed[5].equal(taps(weight, torch.zeros(d) if bias is None else bias))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_gradients_of_packed_weights(dtype, gated):
    """The gradient of what is a sum over all packed weights, each times its own number, which autograd knows too."""
    model, d, n, rank, zeros, parts, width = 5, 6, 3, 2, 1, 7, 4
    draw = Draw(1, dtype)
    in_proj, gate, out_proj = draw.normal(d, model), draw.normal(d, model) if gated else None, draw.normal(model, d)
    x_proj, dt = draw.normal(4, 2 * n - zeros + width, d), draw.normal(4, parts, d, width)
    taps, scan, norm = draw.parameter(10, d), draw.parameter(4, (n + 2) * d), draw.parameter(2, d)
    A_logs = draw.parameter(4 * d, n)
    unpacked = packing.unpack(in_proj, gate, x_proj, dt, out_proj, taps, scan, A_logs, norm, rank, zeros)
    dA, ddt_bias, dD = split_parameters(scan, n)
    expected = [
        in_proj if gate is None else torch.cat([in_proj, gate]),
        taps[:9].t(),
        taps[9],
        torch.cat([x_proj[:, 2 * n : 2 * n + rank], x_proj[:, : 2 * n]], dim=1),
        dt.double().sum(1)[..., zeros : zeros + rank],
        ddt_bias,
        dA.flatten(0, 1) * (-LOG2_E * A_logs.double().exp()),
        dD,
        norm,
        out_proj,
    ]
    expected = torch.cat([t.double().flatten() for t in expected])
    assert unpacked.dtype == torch.float32
    torch.testing.assert_close(unpacked.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("channels", [5, 20])
def test_merge(channels, dtype):
    draw = Draw(channels, dtype)
    parts, skip, weight = draw.normal(4, 2, 35, channels), draw.normal(2, 35, channels), draw.parameter(4, channels)
    merged = merge(parts, skip, weight, torch.empty_like(skip))
    expected = (parts.double() + weight.double()[:, None, None] * skip.double()).sum(0)
    assert_near({"merged": merged}, {"merged": expected}, TOLERANCES[dtype])
    assert_equal({"": merge(parts, skip, weight, torch.empty_like(skip))}, {"": merged})
