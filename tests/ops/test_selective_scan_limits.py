# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The portable scan at its limits: derivatives, extreme steps, long sequences, and what torch does to it."""

from __future__ import annotations

import math

import pytest
import torch
from scan_inputs import NAMES, SMALL_CHUNK, assert_near, double, grouped, image_map, run, sequence

from swinumamba_monai.ops import cross_scan_2d, portable, selective_scan, selective_scan_ref

STEPS = (1e4, 50.0, 1.0, 1e-4, 1e-30, 0.0, -50.0, -1e4)


class TestDerivatives:
    def test_gradcheck_sequence(self, small_chunks):
        leaves = [t.requires_grad_() for t in sequence(b=1, d=2, l=SMALL_CHUNK + 2, n=2, g=2).values()]

        def scan(*tensors):
            return selective_scan(**dict(zip(NAMES, tensors)), delta_softplus=True, backend="portable")

        assert torch.autograd.gradcheck(scan, leaves)

    def test_gradcheck_map(self, small_chunks):
        leaves = [t.requires_grad_() for t in image_map(b=1, h=2, w=3, d=2, n=2).values()]
        assert torch.autograd.gradcheck(lambda *tensors: cross_scan_2d(*tensors, backend="portable"), leaves)

    @pytest.mark.parametrize("wanted", NAMES)
    def test_one_input_alone(self, wanted, small_chunks):
        """A frozen network asks for the gradient of one input; the others must not be needed for it."""
        inputs = sequence()
        inputs[wanted].requires_grad_()
        selective_scan(**inputs, delta_softplus=True, backend="portable").square().sum().backward()
        leaf = inputs[wanted].detach().clone().requires_grad_()
        selective_scan_ref(**{**inputs, wanted: leaf}, delta_softplus=True).square().sum().backward()
        torch.testing.assert_close(inputs[wanted].grad, leaf.grad, rtol=1e-11, atol=1e-11)

    def test_second_order_is_refused(self):
        inputs = sequence()
        u = inputs["u"].requires_grad_()
        out = selective_scan(**inputs, delta_softplus=True, backend="portable")
        (first,) = torch.autograd.grad(out.square().sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match=r"selective_scan_backward.*no autograd formula"):
            first.square().sum().backward()


class TestPrecision:
    @pytest.mark.parametrize("softplus, delta", [(True, t) for t in STEPS] + [(False, t) for t in STEPS if t >= 0])
    def test_extreme_steps(self, softplus, delta, small_chunks):
        """A float32 exponent Δ A is off by its 24th bit, its exponential by |Δ A| times as much: hence 1e-4."""
        inputs = sequence(dtype=torch.float32)
        inputs["delta"] = torch.full_like(inputs["delta"], delta)
        inputs["delta_bias"] *= 1e-3 * delta
        inputs["delta_bias"].abs_()
        expected = run(selective_scan_ref, double(inputs), delta_softplus=softplus)
        assert_near(run(selective_scan, inputs, delta_softplus=softplus, backend="portable"), expected, 1e-4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_inputs(self, dtype, small_chunks):
        """States and sums are float32, so a half precision result is the exact one of its inputs, rounded once."""
        inputs = sequence(l=64, n=16)
        weights = ("A", "D", "delta_bias")
        halves = {name: t.to(torch.float32 if name in weights else dtype) for name, t in inputs.items()}
        expected = run(selective_scan_ref, double(halves), delta_softplus=True)
        actual = run(selective_scan, halves, delta_softplus=True, backend="portable")
        for name, t in halves.items():
            assert actual[name].dtype == t.dtype
        assert_near(actual, expected, torch.finfo(dtype).eps)
        assert_near({name: actual[name] for name in weights}, {name: expected[name] for name in weights}, 1e-5)

    def test_autocast_does_not_reach_the_states(self):
        inputs = sequence(dtype=torch.float32)
        expected = run(selective_scan, inputs, delta_softplus=True, backend="portable")
        with torch.autocast("cpu", torch.bfloat16):
            actual = run(selective_scan, inputs, delta_softplus=True, backend="portable")
        for name, want in expected.items():
            assert torch.equal(actual[name], want), name


class TestLength:
    def test_a_hundred_thousand_steps(self):
        """A geometric series: h after t steps of Δ B u = 1 is (1 - a^t) / (1 - a)."""
        length, rate = 100_000, 1e-4
        A = torch.full((1, 1), -rate, requires_grad=True)
        ones = torch.ones(1, 1, length)
        u = ones.clone().requires_grad_()
        y = selective_scan(u, ones, A, ones, ones, backend="portable")
        a = math.exp(-rate)
        for t in (1, 10_000, length):
            assert y[0, 0, t - 1].item() == pytest.approx((1 - a**t) / (1 - a), rel=1e-3)
        y[0, 0, -1].backward()
        assert u.grad[0, 0, 0].item() == pytest.approx(a ** (length - 1), rel=1e-2)
        assert A.grad.isfinite().all()

    def test_states_of_the_whole_sequence_never_exist(self, monkeypatch):
        batch, channels, length, n = 2, 32, 20_000, 16
        all_states = batch * channels * length * n
        largest = []
        in_one_chunk = portable._states

        def measure(*args):
            decay, states = in_one_chunk(*args)
            largest.append(states.numel())
            return decay, states

        monkeypatch.setattr(portable, "_states", measure)
        kept = []
        inputs = sequence(batch, channels, length, n, 1, torch.float32)
        inputs = {name: t.requires_grad_() for name, t in inputs.items()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            out = selective_scan(**inputs, delta_softplus=True, backend="portable")
        out.sum().backward()
        assert max(largest) <= portable.CHUNK_ELEMENTS == all_states // 78.125
        inputs_alone = sum(t.numel() for t in inputs.values())
        assert sum(kept) - inputs_alone <= all_states / 200

    def test_large_batches_keep_a_sixteenth(self):
        batch, channels, n = 4096, 96, 16
        with torch.device("meta"):
            u, B = torch.empty(batch, 40, 1, channels), torch.empty(batch, 40, 1, n)
            A, D = torch.empty(1, channels, n), torch.empty(1, channels)
        _, chunk_states = torch.ops.swinumamba.selective_scan(u, u, A, B, B, D, D, True)
        assert chunk_states.shape == (3, batch, 1, channels, n)  # 40 positions: 16, 16 and 8


class TestTorchTools:
    @pytest.mark.parametrize("shape", [{"l": 1}, {"l": 12}], ids=str)
    def test_opcheck(self, shape, small_chunks):
        args = [t.float().detach().requires_grad_() for t in grouped(sequence(g=1, **shape))]
        torch.library.opcheck(torch.ops.swinumamba.selective_scan.default, (*args, True))
        args = [t.detach() for t in args]
        y, chunk_states = portable._forward(*args, True)
        torch.library.opcheck(torch.ops.swinumamba.selective_scan_backward.default, (y, chunk_states, *args, True))

    def test_wrong_shapes_are_named(self):
        good = sequence(g=2)
        wrong = {
            "delta": good["delta"][:, :, 1:],
            "A": good["A"][1:],
            "B": good["B"][:, :, 1:],
            "C": good["C"][..., 1:],
            "D": good["D"][1:],
            "delta_bias": good["delta_bias"][None],
        }
        for name, t in wrong.items():
            with pytest.raises(ValueError, match=rf"\b{name}\b"):
                selective_scan(**{**good, name: t})
        three = good["B"][:, :1].repeat(1, 3, 1, 1)
        with pytest.raises(ValueError, match="groups"):
            selective_scan(**{**good, "B": three, "C": three})
        with pytest.raises(ValueError, match="l > 0"):
            selective_scan(**sequence(l=0))
