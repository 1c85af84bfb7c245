# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Norm and gate in one pass agree with torch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from swinumamba_monai.ops.backends import find_backend
from swinumamba_monai.ops.cpu.norm_gate import norm_gate_jit

pytest.importorskip("numba")

SHAPES = [(1, 1, 1, 1), (2, 1, 5, 3), (1, 4, 1, 64), (2, 2, 2, 17), (1, 7, 11, 192)]


def norm_gate_reference(y, gate, weight, bias):
    return F.layer_norm(y, y.shape[-1:], weight, bias, 1e-5) * F.silu(gate)


def random_inputs(batch, height, width, channels):
    """Float32 leaves; the gate is half of a map, as in_proj leaves it, unless there is one channel."""
    generator = torch.Generator().manual_seed(channels)
    y, gate = torch.randn(batch, height, width, 2 * channels, generator=generator).chunk(2, dim=-1)
    weight, bias = torch.randn(2, channels, generator=generator)
    return [t.detach().requires_grad_() for t in (y.contiguous(), gate, weight, bias)]


def output_and_gradients(function, inputs):
    y = function(*inputs)
    dy = torch.arange(y.numel(), dtype=torch.float64).cos().view(y.shape)
    return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_torch(shape):
    inputs = random_inputs(*shape)
    expected = output_and_gradients(norm_gate_reference, [t.detach().double().requires_grad_() for t in inputs])
    scale = expected[0].abs().max().clamp(min=1.0)  # gradients of y that cancel are as exact as what cancels in them
    for result, truth in zip(output_and_gradients(norm_gate_jit, inputs), expected):
        assert result.shape == truth.shape
        assert result.dtype == torch.float32
        assert (result - truth).abs().max() <= 1e-5 * torch.maximum(truth.abs().max(), scale)


@pytest.mark.parametrize("index", [0, 1])
def test_reads_what_lies_anywhere(index):
    inputs = random_inputs(2, 3, 4, 5)
    inputs[index] = inputs[index].detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    torch.testing.assert_close(norm_gate_jit(*inputs), norm_gate_reference(*inputs))


def test_does_not_depend_on_threads():
    inputs = random_inputs(2, 9, 8, 40)
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            runs.append(output_and_gradients(norm_gate_jit, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(a.equal(b) for a, b in zip(runs[0], other))


@pytest.mark.parametrize("large", [100.0, 1e6])
def test_extreme_values(large):
    x = torch.tensor([-large, large, 0.0, 1.0]).expand(1, 2, 2, 4)
    ones, zeros = torch.ones(4), torch.zeros(4)
    torch.testing.assert_close(norm_gate_jit(x, x, ones, zeros), norm_gate_reference(x, x, ones, zeros))


def test_operator_is_registered_correctly():
    torch.library.opcheck(torch.ops.swinumamba.norm_gate_jit.default, (*random_inputs(1, 3, 4, 5), 1e-5))


def test_what_the_loops_would_misread_is_refused():
    y, gate, weight, bias = (t.detach() for t in random_inputs(1, 3, 4, 5))
    with pytest.raises(ValueError, match="float32"):
        norm_gate_jit(y.double(), gate.double(), weight.double(), bias.double())
    with pytest.raises(ValueError, match="does not fit"):
        norm_gate_jit(y, gate[:, 1:], weight, bias)
    with pytest.raises(ValueError, match="does not fit"):
        norm_gate_jit(y, gate, weight[1:], bias)


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "auto"), (torch.float32, "portable"), (torch.float64, "auto")]
)
def test_the_dispatched_operator_is_the_same_everywhere(dtype, backend):
    inputs = [t.detach().to(dtype) for t in random_inputs(1, 3, 4, 5)]
    expected = norm_gate_reference(*(t.double() for t in inputs)).to(dtype)
    torch.testing.assert_close(find_backend(backend, inputs[0]).norm_gate(*inputs, 1e-5), expected)
