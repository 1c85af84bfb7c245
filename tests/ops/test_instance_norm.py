# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Instance norm, residual sum and LeakyReLU by the CUDA kernels, emulated, against torch's operators in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cuda_cases import INSTANCE_NORMS, TOLERANCES, Draw, assert_like_float64, call_instance_norm, instance_norm_inputs

from swinumamba_monai.networks.unetr_blocks import UnetrResidualBlock
from swinumamba_monai.ops.backends import find_backend
from swinumamba_monai.ops.instance_norm import instance_norm


def by_backend(x, *arguments):
    return find_backend("auto", x).instance_norm(x, *arguments)


def check(sizes, dtype=torch.float32, without=(), slope=0.01, two=False):
    without = without if two else (*without, "residual_weight", "residual_bias")
    inputs = {name: t for name, t in instance_norm_inputs(sizes, dtype).items() if name not in without}
    functions = (
        partial(call_instance_norm, function, slope=slope, two=two) for function in (by_backend, instance_norm)
    )
    assert_like_float64(*functions, inputs, TOLERANCES[dtype])


# batch, channels, and the map: channels one at a time and four at a time, in one block and in two; one axis to three
SIZES = [(1, 1, 5), (2, 5, 3, 4), (3, 20, 7, 5), (1, 132, 2, 3), (2, 8, 2, 3, 4), (1, 33, 1, 3)]


TWO = pytest.mark.parametrize("two", [False, True], ids=["one norm", "two norms"])


@TWO
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32(emulator, sizes, two):
    check(sizes, two=two)
    launched = [name for name, _ in emulator.launched if name != "sum_rows"]
    statistics = ["instance_statistics", "instance_finish"] * (1 + two)
    assert launched == [*statistics, "instance_norm", "instance_sums", "instance_backward"]


@TWO
def test_a_residual_of_another_size_is_refused(emulator, two):
    inputs = instance_norm_inputs((2, 8, 3, 5), torch.float32)
    inputs["residual"] = inputs["residual"][:, :, :2]
    with pytest.raises(RuntimeError, match="must match"):
        call_instance_norm(by_backend, **inputs, slope=0.01, two=two)
    assert not emulator.launched


@pytest.mark.parametrize("slope", [None, 0.0, 0.3])
@pytest.mark.parametrize("without", [("residual",), ("weight", "bias"), ("residual", "weight", "bias")], ids=str)
def test_what_is_left_out(emulator, without, slope):
    check((2, 8, 3, 5), without=without, slope=slope)


@pytest.mark.parametrize("slope", [None, 0.0])
@pytest.mark.parametrize("without", [("weight", "residual_bias"), INSTANCE_NORMS], ids=str)
def test_what_two_norms_do_without(emulator, without, slope):
    check((2, 8, 3, 5), without=without, slope=slope, two=True)


@TWO
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(emulator, dtype, two):
    check((2, 20, 5, 7), dtype, two=two)


@TWO
@pytest.mark.parametrize("sizes, chunks", [((2, 12, 41, 37), 5), ((1, 12, 110, 103), 34)], ids=str)
def test_many_chunks(emulator, sizes, chunks, two):
    """Of four pixels for each of 85 teams; more of them than a block has warps, and fewer."""
    emulator.set_multiprocessors(40)
    check(sizes, two=two)
    assert emulator.grids("instance_norm")[0] == (chunks, 1, sizes[0])


def test_a_large_mean_costs_no_digits(emulator):
    """1e4 and a deviation of 1: squares of float32 would know nothing of it."""
    x = Draw(0).normal(2, 4, 30, 30) + 1e4
    exact = instance_norm(x.double())
    found = call_instance_norm(by_backend, x, slope=None, two=False)
    assert (found - exact).abs().max() < 1e-3  # float32 knows x to 5e-4
    assert (instance_norm(x) - exact).abs().max() > 0


def test_one_pixel_is_refused(emulator):
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        call_instance_norm(by_backend, torch.zeros(2, 3, 1, 1), two=False)


@pytest.mark.parametrize("channels", [(4, 4), (3, 8)])
@pytest.mark.parametrize("norm_name", ["instance", ("instance", {"affine": True}), "batch"])
def test_a_residual_block(emulator, norm_name, channels):
    """In the memory of maps whose channels come first and last, both by kernels; and by MONAI's own forward."""
    torch.manual_seed(0)
    block = UnetrResidualBlock(*channels, norm_name)
    x = torch.randn(2, channels[0], 6, 5)
    expected = super(UnetrResidualBlock, block).forward(x)
    emulator.launched.clear()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(block(x.contiguous(memory_format=memory_format)), expected)
    names = {name for name, _ in emulator.launched}
    assert names == (set() if norm_name == "batch" else {"instance_statistics", "instance_finish", "instance_norm"})
