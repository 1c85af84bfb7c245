# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of few channels in the forms that a GPU has them, on a CPU, against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swinumamba_monai.networks.unetr_blocks import Conv2d, adopt_convolutions
from swinumamba_monai.ops.cuda import convolution
from swinumamba_monai.ops.cuda.convolution import conv2d_cuda

# channels in and out, side of the kernel, stride, padding, whether there is a bias, height and width of the map
CASES = [
    (3, 48, 3, 1, 1, False, 12, 20),  # by pairs of pixels
    (48, 48, 3, 1, 1, False, 3, 2),
    (96, 48, 3, 1, 1, False, 1, 2),  # by the kernels for the gradient
    (48, 96, 3, 1, 1, False, 5, 4),
    (5, 7, 3, 1, 1, False, 4, 7),  # an odd width has no pairs
    (3, 48, 1, 1, 0, False, 6, 5),
    (1, 48, 7, 2, 3, True, 12, 9),
    (48, 14, 1, 1, 0, True, 4, 4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_like_torch(case, monkeypatch):
    monkeypatch.setattr(convolution, "BY_PAIRS", (torch.float64,))
    inputs, outputs, side, stride, padding, has_bias, height, width = case
    draw = torch.Generator().manual_seed(0)
    shapes = {"x": (2, inputs, height, width), "weight": (outputs, inputs, side, side)}
    if has_bias:
        shapes["bias"] = (outputs,)
    given = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes.values()]
    bias = given[2] if has_bias else None
    expected = F.conv2d(given[0], given[1], bias, stride, padding)
    found = conv2d_cuda(given[0], given[1], bias, (stride, stride), (padding, padding))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    dy = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    gradients, wanted = (torch.autograd.grad(y, given, dy) for y in (found, expected))
    torch.testing.assert_close(gradients, wanted, rtol=0, atol=1e-11)


def test_adopting_changes_no_parameter_and_draws_none():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Sequential(nn.Conv2d(4, 2, 1, bias=False)))
    state, x = torch.get_rng_state(), torch.ones(1, 3, 5, 5)
    before, y = dict(block.named_parameters()), block(x)
    adopt_convolutions(block, "portable")
    assert [type(m) for m in block.modules() if isinstance(m, nn.Conv2d)] == [Conv2d, Conv2d]
    assert {name: id(p) for name, p in block.named_parameters()} == {name: id(p) for name, p in before.items()}
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(block(x), y)
