# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The fused loops agree with torch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from swinumamba_monai.ops.jit_cpu_fused import depthwise_conv_silu_jit, norm_gate_jit

pytest.importorskip("numba")

SHAPES = [(1, 1, 1, 1), (2, 1, 5, 3), (1, 4, 1, 64), (2, 2, 2, 17), (1, 7, 11, 192)]


def conv_silu_reference(x, weight, bias):
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(bias))
    return F.silu(x).permute(0, 2, 3, 1)


def norm_gate_reference(y, gate, weight, bias):
    return F.layer_norm(y, y.shape[-1:], weight, bias, 1e-5) * F.silu(gate)


def random_inputs(batch, height, width, channels, function):
    """Float32 leaves; the maps are halves of one map, as in_proj leaves them, unless there is one channel."""
    generator = torch.Generator().manual_seed(channels)
    halves = torch.randn(batch, height, width, 2 * channels, generator=generator).chunk(2, dim=-1)
    bias = torch.randn(channels, generator=generator)
    if function is norm_gate_jit:
        inputs = [halves[0].contiguous(), halves[1], torch.randn(channels, generator=generator), bias]
    else:
        inputs = [halves[0], torch.randn(channels, 3, 3, 1, generator=generator).permute(0, 3, 1, 2), bias]
    return [t.detach().requires_grad_() for t in inputs]


def output_and_gradients(function, inputs):
    y = function(*inputs)
    dy = torch.arange(y.numel(), dtype=torch.float64).cos().view(y.shape)
    return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


FUNCTIONS = [(depthwise_conv_silu_jit, conv_silu_reference), (norm_gate_jit, norm_gate_reference)]


@pytest.mark.parametrize(("function", "reference"), FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_torch(function, reference, shape):
    inputs = random_inputs(*shape, function)
    expected = output_and_gradients(reference, [t.detach().double().requires_grad_() for t in inputs])
    scale = expected[0].abs().max().clamp(min=1.0)
    for result, truth in zip(output_and_gradients(function, inputs), expected):
        assert result.shape == truth.shape
        assert result.dtype == torch.float32
        assert (result - truth).abs().max() <= 1e-5 * torch.maximum(truth.abs().max(), scale)


@pytest.mark.parametrize(("function", "reference"), FUNCTIONS)
def test_reads_what_lies_anywhere(function, reference):
    inputs = random_inputs(2, 3, 4, 5, function)
    inputs[0] = inputs[0].detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    torch.testing.assert_close(function(*inputs), reference(*inputs))


@pytest.mark.parametrize("function", [f for f, _ in FUNCTIONS])
def test_does_not_depend_on_threads(function):
    inputs = random_inputs(2, 9, 8, 40, function)
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            runs.append(output_and_gradients(function, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(a.equal(b) for a, b in zip(runs[0], other))


@pytest.mark.parametrize("large", [100.0, 1e6])
def test_extreme_values(large):
    x = torch.tensor([-large, large, 0.0, 1.0]).expand(1, 2, 2, 4)
    weight = torch.zeros(4, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    torch.testing.assert_close(depthwise_conv_silu_jit(x, weight, torch.zeros(4)), F.silu(x))
    ones, zeros = torch.ones(4), torch.zeros(4)
    torch.testing.assert_close(norm_gate_jit(x, x, ones, zeros), norm_gate_reference(x, x, ones, zeros))


@pytest.mark.parametrize("name", ["conv_silu_jit", "norm_gate_jit"])
def test_operators_are_registered_correctly(name):
    function = {"conv_silu_jit": depthwise_conv_silu_jit, "norm_gate_jit": norm_gate_jit}[name]
    inputs = random_inputs(1, 3, 4, 5, function)
    arguments = (*inputs, 1e-5) if function is norm_gate_jit else tuple(inputs)
    torch.library.opcheck(getattr(torch.ops.swinumamba, name).default, arguments)


def test_what_the_loops_would_misread_is_refused():
    x, weight, bias = (t.detach() for t in random_inputs(1, 3, 4, 5, depthwise_conv_silu_jit))
    with pytest.raises(ValueError, match="float32"):
        depthwise_conv_silu_jit(x.double(), weight.double(), bias.double())
    with pytest.raises(ValueError, match="does not fit"):
        depthwise_conv_silu_jit(x, weight[1:], bias)
    with pytest.raises(ValueError, match="does not fit"):
        norm_gate_jit(x, x[:, 1:], bias, bias)
