# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The MLP that computes what lies in it again is torch's layers, in every precision, and keeps less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from swinumamba_monai.ops.mlp import mlp


def inputs(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 6), (24, 6), (24,), (7, 24), (7,)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def plain(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def test_gradients():
    assert gradcheck(mlp, inputs(torch.float64))


@pytest.mark.parametrize("autocast", [False, True])
def test_is_the_layers(autocast):
    """Under autocast within a few roundings of bfloat16 of the largest number."""
    results = []
    for function in (mlp, plain):
        tensors = inputs()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = function(*tensors)
        results.append([y, *torch.autograd.grad(y.float().square().sum(), tensors)])
    for actual, expected in zip(*results):
        assert actual.dtype == expected.dtype
        bound = (2e-2 if autocast else 1e-6) * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


def test_without_gradients():
    with torch.no_grad():
        assert torch.equal(mlp(*inputs()), plain(*inputs()))


def test_what_it_keeps():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mlp(*inputs())
    assert [tuple(shape) for shape in kept if len(shape) == 4] == [(2, 3, 5, 6)], "its input"


def test_second_order_is_refused():
    x, *parameters = inputs(torch.float64)
    (gradient,) = torch.autograd.grad(mlp(x, *parameters).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
