# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution and SiLU in one pass agree with torch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from swinumamba_monai.ops.backends import find_backend
from swinumamba_monai.ops.cpu.conv_silu import conv_silu_jit

pytest.importorskip("numba")

SHAPES = [(1, 1, 1, 1), (2, 1, 5, 3), (1, 4, 1, 64), (2, 2, 2, 17), (3, 3, 2, 8), (1, 7, 11, 192)]


def conv_silu_reference(x, weight, bias):
    return F.silu(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1])).permute(0, 2, 3, 1)


def random_inputs(batch, height, width, channels):
    """Float32; the map is half of a larger one, as in_proj leaves it."""
    generator = torch.Generator().manual_seed(channels)
    _, x = torch.randn(batch, height, width, 2 * channels, generator=generator).chunk(2, dim=-1)
    return [x, *(torch.randn(channels, *rest, generator=generator) for rest in ((1, 3, 3), ()))]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_torch(shape, with_bias):
    x, weight, bias = random_inputs(*shape)
    bias = bias if with_bias else None
    truth = conv_silu_reference(x.double(), weight.double(), bias.double() if with_bias else None)
    result = conv_silu_jit(x, weight, bias)
    assert result.shape == truth.shape
    assert result.dtype == torch.float32
    assert (result - truth).abs().max() <= 1e-6 * truth.abs().max().clamp(min=1.0)


def test_reads_what_lies_anywhere():
    x, weight, bias = random_inputs(2, 3, 4, 5)
    x = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    weight = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    torch.testing.assert_close(conv_silu_jit(x, weight, bias), conv_silu_reference(x, weight, bias))


def test_does_not_depend_on_threads():
    inputs = random_inputs(2, 9, 8, 40)
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            runs.append(conv_silu_jit(*inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(other.equal(runs[0]) for other in runs[1:])


def test_operator_is_registered_correctly():
    torch.library.opcheck(torch.ops.swinumamba.conv_silu_jit.default, tuple(random_inputs(1, 3, 4, 5)))


def test_what_the_loops_would_misread_is_refused():
    x, weight, bias = random_inputs(1, 3, 4, 5)
    with pytest.raises(ValueError, match="float32"):
        conv_silu_jit(x.double(), weight.double(), bias.double())
    with pytest.raises(ValueError, match="do not fit"):
        conv_silu_jit(x, weight[1:], bias)
    with pytest.raises(ValueError, match="do not fit"):
        conv_silu_jit(x, weight, bias[1:])


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_gradients_are_those_of_torch(wanted):
    inputs = random_inputs(1, 3, 4, 5)
    inputs[wanted].requires_grad_()
    results = [
        torch.autograd.grad(function(*inputs).square().sum(), inputs[wanted])[0]
        for function in (find_backend("numba", inputs[0]).conv_silu, conv_silu_reference)
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "auto"), (torch.float32, "portable"), (torch.float64, "auto")]
)
def test_the_dispatched_operator_is_the_same_everywhere(dtype, backend):
    inputs = [t.to(dtype) for t in random_inputs(1, 3, 4, 5)]
    expected = conv_silu_reference(*(t.double() for t in inputs)).to(dtype)
    torch.testing.assert_close(find_backend(backend, inputs[0]).conv_silu(*inputs), expected)
