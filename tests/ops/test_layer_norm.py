# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""LayerNorm by the CUDA kernels, emulated, against ``F.layer_norm`` in float64; and torch's own elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cuda_cases import TOLERANCES, Draw, assert_equal, assert_like_float64, leaves, output_and_gradients

from swinumamba_monai.ops.backends import find_backend


def layer_norm(x, weight, bias):
    return find_backend("auto", x).norm(x, weight, bias, 1e-5)


def inputs(*shape, dtype=torch.float32, parameter_dtype=torch.float32):
    draw = Draw(shape[-1], dtype)
    weight, bias = draw.normal(2, shape[-1], dtype=parameter_dtype)
    return {"x": draw.normal(*shape) + 2, "weight": weight, "bias": bias}


def layer_norm_reference(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 3, 20), (2, 2, 3, 36), (1, 1, 1, 1, 33)], ids=str)
def test_float32(emulator, shape):
    assert_like_float64(layer_norm, layer_norm_reference, inputs(*shape), TOLERANCES[torch.float32])
    assert [name for name, _ in emulator.launched if name != "sum_rows"] == ["layer_norm", "layer_norm_backward"]


@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16(emulator, parameter_dtype):
    given = inputs(2, 5, 20, dtype=torch.bfloat16, parameter_dtype=parameter_dtype)
    assert_like_float64(layer_norm, layer_norm_reference, given, TOLERANCES[torch.bfloat16])


def test_autocast_stays_in_its_dtype(emulator):
    given = inputs(2, 5, 20)

    def under_autocast(**tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return layer_norm(**tensors)

    out = output_and_gradients(under_autocast, leaves(given))
    halves = {**given, "x": given["x"].bfloat16()}
    assert out["out"].dtype == torch.bfloat16 and out["x"].dtype == torch.float32
    assert_equal({**out, "x": out["x"].bfloat16()}, output_and_gradients(layer_norm, leaves(halves)))


def test_layouts(emulator):
    given = inputs(2, 5, 3, 20)
    expected = output_and_gradients(layer_norm, leaves(given))
    memory = torch.empty(given["x"].numel() + 1)
    transposed = given["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for x in (transposed, memory[1:].view(2, 5, 3, 20).copy_(given["x"])):
        torch.testing.assert_close(output_and_gradients(layer_norm, leaves({**given, "x": x})), expected)
    assert emulator.macros("norm.cu", "VECTOR")[-2:] == [1, 1]  # an odd address: one channel at a time


def test_gradients_of_some_inputs(emulator):
    given = inputs(3, 5)
    everything = output_and_gradients(layer_norm, leaves(given))
    for wanted in given:
        some = {name: t.requires_grad_(name == wanted) for name, t in leaves(given).items()}
        assert_equal(output_and_gradients(layer_norm, some), {"out": everything["out"], wanted: everything[wanted]})


def test_operators_are_registered_correctly(emulator):
    x, weight, bias = leaves(inputs(3, 20)).values()
    torch.library.opcheck(torch.ops.swinumamba.layer_norm.default, (x, weight, bias, 1e-5))
    y, statistics = torch.ops.swinumamba.layer_norm(x, weight, bias, 1e-5)
    saved = [t.detach() for t in (y, statistics, x, weight)]
    torch.library.opcheck(torch.ops.swinumamba.layer_norm_backward.default, saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_the_kernels_it_is_that_of_torch(dtype):
    given = leaves(inputs(3, 5), dtype)
    assert_equal(output_and_gradients(layer_norm, given), output_and_gradients(layer_norm_reference, given))
