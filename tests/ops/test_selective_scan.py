# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The portable scan against the equations: values and gradients, on any strides and in any precision."""

from __future__ import annotations

import math

import pytest
import torch
from scan_inputs import SMALL_CHUNK, assert_near, double, grouped, image_map, run, sequence

from swinumamba_monai.ops import cross_scan_2d, cross_scan_2d_ref, portable, selective_scan, selective_scan_ref
from swinumamba_monai.ops.reference import scan_orders


class TestEquations:
    """The reference itself, by hand: everything else is compared with it."""

    def test_two_steps(self):
        one = torch.ones(1, 1, dtype=torch.float64)
        y = selective_scan_ref(
            u=torch.tensor([[[1.0, 2.0]]], dtype=torch.float64),
            delta=torch.tensor([[[0.5, 1.0]]], dtype=torch.float64),
            A=-one,
            B=torch.tensor([[[2.0, 3.0]]], dtype=torch.float64),
            C=torch.tensor([[[1.0, -1.0]]], dtype=torch.float64),
            D=0.5 * one[0],
        )
        # h1 = 0.5 * 2 * 1 = 1;  h2 = exp(-1) * 1 + 1 * 3 * 2
        expected = [1 + 0.5, -(math.exp(-1) + 6) + 1]
        torch.testing.assert_close(y[0, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)

    def test_orders_of_the_four_directions(self):
        assert scan_orders(2, 3).tolist() == [
            [0, 1, 2, 3, 4, 5],
            [0, 3, 1, 4, 2, 5],
            [5, 4, 3, 2, 1, 0],
            [5, 2, 4, 1, 3, 0],
        ]

    @pytest.mark.parametrize("backend", ["portable", "reference"])
    def test_four_prefix_sums(self, backend):
        """Without decay and with Δ = B = C = 1, a direction and its reverse give the sum of the map and the pixel."""
        inputs = image_map(b=1, n=1)
        for name in ("B", "C"):
            inputs[name].fill_(1)
        for name in ("A", "D", "delta"):
            inputs[name].zero_()
        inputs["delta_bias"].fill_(math.log(math.e - 1))  # softplus of it is 1
        x = inputs["x"]
        y = cross_scan_2d(**inputs, backend=backend)
        torch.testing.assert_close(y, 2 * (x.sum((1, 2), keepdim=True) + x), rtol=0, atol=1e-12)


SHAPES = [
    {"l": 1},
    {"l": SMALL_CHUNK},
    {"l": SMALL_CHUNK + 1},
    {"l": 4 * SMALL_CHUNK},
    {"l": 23, "n": 1},
    {"l": 23, "n": 8, "g": 4},
    {"l": 23, "n": 16, "g": 1},
    {"l": 17, "g": 0},  # B and C without a group axis
    {"b": 1, "d": 1, "l": 7, "g": 1},
    {"b": 3, "d": 12, "l": 31, "g": 4},
]


class TestPortableIsReference:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("softplus", [True, False])
    def test_sequence(self, shape, softplus, small_chunks):
        inputs = sequence(**shape)
        if not softplus:  # Δ is positive, as softplus would make it
            inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
        expected = run(selective_scan_ref, inputs, delta_softplus=softplus)
        assert_near(run(selective_scan, inputs, delta_softplus=softplus, backend="portable"), expected, 1e-12)
        single = {name: t.float() for name, t in inputs.items()}
        expected = run(selective_scan_ref, double(single), delta_softplus=softplus)
        assert_near(run(selective_scan, single, delta_softplus=softplus, backend="portable"), expected, 1e-5)

    @pytest.mark.parametrize("length", [1, 2, 3, 16, 24, 35, 36, 40])
    def test_one_state_of_a_channel(self, length, monkeypatch):
        """Blocks of 1 to 6 positions that go ahead together, with and without some left over, in chunks of 16 to 40."""
        inputs = sequence(l=length, n=1)
        expected = run(selective_scan_ref, inputs, delta_softplus=True)
        for chunk in (16, 25, 40):
            monkeypatch.setattr(portable, "MIN_CHUNK", chunk)
            monkeypatch.setattr(portable, "CHUNK_ELEMENTS", 1)
            assert_near(run(selective_scan, inputs, delta_softplus=True, backend="portable"), expected, 1e-12)

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (3, 5), (8, 8)], ids=str)
    @pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
    def test_map(self, size, dtype, tolerance, small_chunks):
        inputs = image_map(h=size[0], w=size[1], dtype=dtype)
        expected = run(cross_scan_2d_ref, double(inputs))
        assert_near(run(cross_scan_2d, inputs, backend="portable"), expected, tolerance)

    def test_usual_chunks(self):
        """3 * 8 * 1024 states a position: two chunks, at the constants that users run with."""
        inputs = sequence(b=8, d=96, l=25, n=16, g=1)
        _, chunk_states = portable._forward(*grouped(inputs), True)
        assert len(chunk_states) == 2
        expected = run(selective_scan_ref, inputs, delta_softplus=True)
        assert_near(run(selective_scan, inputs, delta_softplus=True, backend="portable"), expected, 1e-12)

    @pytest.mark.parametrize("absent", [("D",), ("delta_bias",), ("D", "delta_bias")], ids=str)
    def test_optional_inputs(self, absent, small_chunks):
        inputs = {name: t for name, t in sequence().items() if name not in absent}
        expected = run(selective_scan_ref, inputs, delta_softplus=True)
        assert_near(run(selective_scan, inputs, delta_softplus=True, backend="portable"), expected, 1e-12)

    @pytest.mark.parametrize("scan, inputs", [(selective_scan, sequence()), (cross_scan_2d, image_map())])
    def test_strided_inputs(self, scan, inputs, small_chunks):
        """Every input, and the gradient of the output, as a view with strides of its own."""

        def scattered(t):
            return torch.stack([t, torch.full_like(t, torch.nan)], dim=-1).transpose(0, -2)[..., 0].transpose(0, -1)

        strided = {name: scattered(t) if t.ndim > 1 else torch.stack([t, t], -1)[:, 0] for name, t in inputs.items()}
        leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
        views = {name: t.requires_grad_() for name, t in strided.items()}
        options = {"delta_softplus": True} if scan is selective_scan else {}
        for tensors in (leaves, views):
            out = scan(**tensors, **options, backend="portable")
            (out.transpose(1, 2)[:, ::2] ** 2).sum().backward()
        for name, view in views.items():
            assert not view.is_contiguous() or view.numel() == 1
            assert torch.equal(view, inputs[name])
            torch.testing.assert_close(view.grad, leaves[name].grad, rtol=1e-12, atol=1e-12)

    def test_mixed_precision_follows_float64(self):
        """One float64 input is enough for float64 states; the result has the dtype of u."""
        inputs = sequence()
        inputs["u"] = inputs["u"].float()
        out = selective_scan(**inputs, delta_softplus=True, backend="portable")
        assert out.dtype == torch.float32
        expected = selective_scan_ref(**double(inputs), delta_softplus=True)
        assert torch.equal(out, expected.float())

    @pytest.mark.parametrize("scan, make", [(selective_scan, sequence), (cross_scan_2d, image_map)])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_inputs_are_left_alone(self, scan, make, batch):
        inputs = make(b=batch)
        before = {name: t.clone() for name, t in inputs.items()}
        leaves = {name: t.requires_grad_() for name, t in inputs.items()}
        scan(**leaves, backend="portable").sum().backward()
        for name, t in leaves.items():
            assert torch.equal(t, before[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_reference():
    inputs = {name: t.cuda() for name, t in image_map(h=9, w=7, dtype=torch.float32).items()}
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    out = cross_scan_2d(**leaves, backend="portable")
    out.square().sum().backward()
    exact = {name: t.double().requires_grad_() for name, t in inputs.items()}
    expected = cross_scan_2d_ref(**exact)
    expected.square().sum().backward()
    assert_near({"out": out.detach()}, {"out": expected.detach()}, 1e-5)
    assert_near({k: t.grad for k, t in leaves.items()}, {k: t.grad for k, t in exact.items()}, 1e-5)
