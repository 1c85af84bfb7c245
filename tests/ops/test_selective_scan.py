# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The portable scan against the equations: values, gradients, precision, memory, and what torch does to it."""

from __future__ import annotations

import math

import pytest
import torch

from swinumamba_monai.ops import cross_scan_2d, cross_scan_2d_ref, portable, selective_scan, selective_scan_ref
from swinumamba_monai.ops.reference import scan_orders

STEPS = (1e4, 50.0, 1.0, 1e-4, 1e-30, 0.0, -50.0, -1e4)
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
SMALL_CHUNK = 5


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of five positions, so that short sequences meet every boundary."""
    monkeypatch.setattr(portable, "MIN_CHUNK", SMALL_CHUNK)
    monkeypatch.setattr(portable, "CHUNK_ELEMENTS", 1)


def sequence(b=2, d=8, l=13, n=4, g=2, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:  # noqa: E741
    """Inputs of ``selective_scan`` with decays between 0 and 1; the first four letters as in ops/reference.py."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    B_shape = (b, g, n, l) if g else (b, n, l)
    return {
        "u": normal(b, d, l),
        "delta": normal(b, d, l) - 1,
        "A": -4 * torch.rand(d, n, generator=draw, dtype=torch.float64).to(dtype),
        "B": normal(*B_shape),
        "C": normal(*B_shape),
        "D": normal(d),
        "delta_bias": normal(d),
    }


def image_map(b=2, h=3, w=5, d=4, n=3, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:
    """Inputs of ``cross_scan_2d``."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    return {
        "x": normal(b, h, w, d),
        "delta": normal(b, h, w, 4, d) - 1,
        "A": -4 * torch.rand(4, d, n, generator=draw, dtype=torch.float64).to(dtype),
        "B": normal(b, h, w, 4, n),
        "C": normal(b, h, w, 4, n),
        "D": normal(4, d),
        "delta_bias": normal(4, d),
    }


def run(scan, inputs, **options) -> dict[str, torch.Tensor]:
    """The output, and the gradients of a fixed projection of it (exact in every dtype), under the inputs' names."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    out = scan(**leaves, **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (out.double() * direction.double()).sum().backward()
    return {"out": out.detach(), **{name: t.grad for name, t in leaves.items()}}


def assert_near(actual, expected, tolerance):
    """Every entry within ``tolerance`` of the largest expected value."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert actual[name].isfinite().all(), name
        error = (actual[name].double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.2e}"


def double(inputs):
    return {name: t.double() for name, t in inputs.items()}


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


def grouped(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """A sequence with one group in the layout of the operator: positions before channels."""
    u, delta, A, B, C, D, bias = (inputs[name] for name in NAMES)
    return [
        *(t.transpose(1, 2).unsqueeze(2) for t in (u, delta)),
        A.unsqueeze(0),
        *(t.permute(0, 3, 1, 2) for t in (B, C)),
        *(t.unsqueeze(0) for t in (D, bias)),
    ]


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
