# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Joining the channels of two maps as a GPU does it, on a CPU, against torch.cat."""

from __future__ import annotations

import pytest
import torch

from swinumamba_monai.ops.cuda.joining import dense, join_channels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [(8, 8), (16, 8), (3, 8)], ids=str)
@pytest.mark.parametrize("dim", [1, -1])
def test_like_torch(dim, channels, dtype):
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 5, c, generator=draw).to(dtype).movedim(-1, dim).requires_grad_() for c in channels]
    expected, found = torch.cat(maps, dim), join_channels(*maps, dim)
    assert torch.equal(found, expected)
    dy = torch.randn(expected.shape, generator=draw).to(dtype)
    gradients, wanted = (torch.autograd.grad(y, maps, dy) for y in (found, expected))
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))
    assert all(gradient.movedim(dim, -1).is_contiguous() for gradient in gradients)


@pytest.mark.parametrize("shape", [(1, 3, 5, 8), (2, 1, 5, 8), (2, 3, 1, 8), (3, 5, 8)], ids=str)
def test_other_sizes_are_refused_as_by_torch(shape):
    x, y = torch.ones(2, 3, 5, 8), torch.ones(shape)
    with pytest.raises(RuntimeError) as expected:
        torch.cat((x, y), -1)
    with pytest.raises(RuntimeError) as found:
        join_channels(x, y, -1)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("start, stop", [(8, 16), (0, 8), (4, 12), (8, 12)])
def test_a_part_of_the_channels(start, stop):
    """Of half precision 8 numbers are 16 bytes: a part that begins or ends elsewhere is copied number by number."""
    x = torch.randn(2, 3, 16).bfloat16()[..., start:stop]
    found = dense(x)
    assert torch.equal(found, x) and found.dtype == x.dtype and found.is_contiguous()


@pytest.mark.parametrize(
    "x", [torch.arange(33).bfloat16()[1:].view(2, 2, 8), torch.arange(8).bfloat16().view(1, 8, 1).movedim(1, -1)]
)
def test_a_map_that_lies_between_wide_numbers(x):
    """Begun behind the first number of its memory, or of a single pixel, whose strides say nothing."""
    y = torch.ones_like(x)
    assert torch.equal(join_channels(x, y, -1), torch.cat((x, y), -1))
