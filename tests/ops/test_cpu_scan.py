# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled loops compute what the reference computes, whatever the shapes, the values and the threads."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from swinumamba_monai.ops import backends
from swinumamba_monai.ops.cpu import scan as jit_cpu
from swinumamba_monai.ops.cpu.scan import cross_scan_2d_jit, projected_scan_2d_jit, selective_scan_jit
from swinumamba_monai.ops.reference import cross_scan_2d_ref, selective_scan_ref
from swinumamba_monai.ops.scan import projected_scan_2d

pytest.importorskip("numba")
from swinumamba_monai.ops.cpu.math import LN2, MODERATE  # imports Numba

# batch, height, width, channels, states: below, at and beyond the 64 channels and 32 positions worked on at once
MAPS = [(1, 1, 1, 1, 1), (3, 7, 5, 37, 16), (1, 4, 8, 64, 8), (1, 11, 3, 65, 11), (2, 1, 67, 131, 1)]
# batch, length, groups, channels of a group, states
SEQUENCES = [(1, 1, 1, 1, 1), (3, 31, 2, 5, 16), (2, 97, 1, 67, 11), (1, 64, 3, 64, 8), (2, 97, 2, 67, 1)]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def random_map(batch, height, width, channels, states, dtype=torch.float64):
    """Inputs of cross_scan_2d, none of them contiguous where that is possible."""
    generator = torch.Generator().manual_seed(batch * height * width * channels)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = normal(batch, channels, height, width).permute(0, 2, 3, 1)
    delta = normal(4, batch, height, width, channels).permute(1, 2, 3, 0, 4) * 2
    A = -normal(4, states, channels).exp().transpose(1, 2)
    B, C = normal(batch, height, width, 4, 2 * states + 1)[..., 1:].chunk(2, dim=-1)
    return [t.requires_grad_() for t in (x, delta, A, B, C, normal(4, channels), normal(channels, 4).t() - 1)]


def random_projected_map(batch, height, width, channels, states, rank, dtype=torch.float64):
    """Inputs of projected_scan_2d, none of them contiguous where that is possible."""
    x, _, A, B, C, D, bias = random_map(batch, height, width, channels, states, dtype)
    projected = torch.cat([B.detach()[..., :1].expand(-1, -1, -1, -1, rank).cos(), B.detach(), C.detach()], dim=-1)
    weight = torch.arange(4 * channels * rank, dtype=torch.float64).sin().view(rank, channels, 4).permute(2, 1, 0)
    projected = projected.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
    return [t.detach().requires_grad_() for t in (x, projected, weight.to(dtype), A, D, bias)]


def random_sequence(batch, length, groups, channels, states, dtype=torch.float64):
    """Inputs of selective_scan in the layout of portable.py, with a few steps that are negative without softplus."""
    generator = torch.Generator().manual_seed(batch * length * channels)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    u = normal(batch, groups, channels, length).permute(0, 3, 1, 2)
    delta = normal(batch, length, groups, channels).abs() * 0.1
    A = -normal(groups, channels, states).exp()
    B, C = normal(2, batch, groups, states, length).permute(0, 1, 4, 2, 3)
    return [t.requires_grad_() for t in (u, delta, A, B, C, normal(groups, channels), normal(groups, channels) * 0.01)]


def sequence_reference(u, delta, A, B, C, D, delta_bias, delta_softplus):
    u, delta = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (u, delta))
    B, C = (t.permute(0, 2, 3, 1) for t in (B, C))
    A, D, delta_bias = (t.flatten(0, 1) for t in (A, D, delta_bias))
    y = selective_scan_ref(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=delta_softplus)
    return y.unflatten(1, (B.shape[1], -1)).permute(0, 3, 1, 2)


def output_and_gradients(function, inputs, *flags):
    y = function(*inputs, *flags)
    dy = torch.arange(y.numel(), dtype=torch.float64).cos().view(y.shape)
    return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def assert_like_reference(function, reference, inputs, *flags):
    """The output and all gradients agree with the float64 reference, relative to their largest element."""
    expected = output_and_gradients(reference, [t.detach().double().requires_grad_() for t in inputs], *flags)
    for result, truth in zip(output_and_gradients(function, inputs, *flags), expected):
        assert result.dtype == inputs[0].dtype
        assert result.shape == truth.shape
        error = (result - truth).abs().max() / truth.abs().max().clamp(min=1e-30)
        assert error < TOLERANCES[result.dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", MAPS)
def test_map_agrees_with_reference(sizes, dtype):
    assert_like_reference(cross_scan_2d_jit, cross_scan_2d_ref, random_map(*sizes, dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("sizes", "rank"), zip(MAPS, (1, 5, 4, 9, 2)))
def test_projected_map_agrees_with_reference(sizes, rank, dtype):
    reference = partial(projected_scan_2d, backend="reference")
    assert_like_reference(projected_scan_2d_jit, reference, random_projected_map(*sizes, rank, dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("delta_softplus", [True, False])
@pytest.mark.parametrize("sizes", SEQUENCES)
def test_sequence_agrees_with_reference(sizes, delta_softplus, dtype):
    assert_like_reference(selective_scan_jit, sequence_reference, random_sequence(*sizes, dtype), delta_softplus)


@pytest.mark.parametrize("states", [1, 4, 12])
@pytest.mark.parametrize("largest", [MODERATE - 1e-3, 127])
def test_decays_are_as_exact_as_float32_with_and_without_bounds(largest, states):
    exponents = torch.linspace(-largest, largest, 64)
    delta = torch.stack([torch.ones(64), exponents.abs() * LN2]).view(1, 2, 1, 64)
    u = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(delta.shape)
    A = exponents.sign().view(1, 64, 1).expand(1, 64, states)
    B = torch.ones(1, 2, 1, states)
    zeros = torch.zeros(1, 64)
    decays = selective_scan_jit(u, delta, A, B, B / states, zeros, zeros, False)[0, 1, 0]
    truth = torch.exp(delta[0, 1, 0].double() * exponents.sign())
    normal = truth > 2.0**-126
    error = (decays - truth).abs() / truth
    assert (error[normal] < 2e-7 + 1e-7 * exponents.abs()[normal]).all()  # the product of Δ and A is rounded, too
    assert (decays[~normal] <= 2.0**-126).all()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("scale", [50, 1e4])
def test_large_steps_of_both_signs(scale, dtype):
    inputs = random_map(1, 9, 5, 6, 4, dtype)
    with torch.no_grad():
        inputs[1].copy_(torch.linspace(-scale, scale, inputs[1].numel()).view(inputs[1].shape))
    assert_like_reference(cross_scan_2d_jit, cross_scan_2d_ref, inputs)


def scan_channels(u, delta, A, delta_softplus):
    """Scan of (l, d) with one state, B = C = 1 and D = delta_bias = 0."""
    ones = torch.ones(1, len(u), 1, 1, dtype=u.dtype)
    zeros = torch.zeros(1, u.shape[1], dtype=u.dtype)
    u, delta = (t[None, :, None] for t in (u, delta))
    return selective_scan_jit(u, delta, A[None, :, None], ones, ones, zeros, zeros, delta_softplus)[0, :, 0]


def test_softplus_is_accurate_for_every_argument():
    delta = torch.cat([torch.linspace(-85, 85, 9999), torch.tensor([-1e-30, 0, 1e-30, 200, 1e30])])[None]
    one = torch.ones_like(delta, requires_grad=True)
    step = scan_channels(one, delta.requires_grad_(), -one[0], True)  # y_0 = Δ_0
    slope = torch.autograd.grad(step.sum(), delta)[0]
    exact = delta.detach().double()
    torch.testing.assert_close(step.double(), exact.exp().log1p().where(exact < 40, exact), rtol=1e-5, atol=0)
    torch.testing.assert_close(slope.double(), exact.sigmoid(), rtol=1e-5, atol=0)
    small = exact.abs() < 8
    torch.testing.assert_close(step.double()[small], exact.exp().log1p()[small], rtol=1e-6, atol=0)
    assert (scan_channels(one, torch.full_like(delta, -1e4), -one[0], True) == 0).all()


def exponential(exponent):
    """exp(exponent) as the decay of the second of two positions, before which the state is 1."""
    u = torch.tensor([1024.0, 0.0])[:, None].expand(-1, len(exponent))
    delta = torch.tensor([1 / 1024, 1.0])[:, None].expand(-1, len(exponent))
    return scan_channels(u, delta, exponent, False)[1]


def test_exponential_is_accurate_for_every_argument():
    exponent = torch.linspace(-87, 88, 9999).double()
    error = (exponential(exponent.float()).double() / exponent.float().double().exp() - 1).abs()
    rounding = 2.0**-24 * exponent.abs()  # what float32 leaves open in an exponent: A log2(e) and its product with Δ
    assert (error <= 2e-7 + 2 * rounding).all()


def test_exponential_of_extreme_and_invalid_arguments():
    exponent = torch.tensor([-200.0, -1e30, -torch.inf, 200.0, torch.nan])
    expected = torch.tensor([0.0, 0.0, 0.0, torch.inf, torch.nan])
    torch.testing.assert_close(exponential(exponent), expected, equal_nan=True)


def test_half_precision_is_scanned_in_float32():
    inputs = [t.detach().bfloat16().requires_grad_() for t in random_map(1, 9, 5, 6, 4)]
    results = output_and_gradients(cross_scan_2d_jit, inputs)
    expected = output_and_gradients(cross_scan_2d_jit, [t.detach().float().requires_grad_() for t in inputs])
    for result, truth in zip(results, expected):
        assert result.dtype == torch.bfloat16
        assert (result - truth).abs().max() <= 0.01 * truth.abs().max()
    assert results[0].equal(expected[0].bfloat16())


def test_gradients_agree_with_finite_differences():
    assert gradcheck(cross_scan_2d_jit, random_map(1, 2, 3, 2, 2))
    assert gradcheck(lambda *t: selective_scan_jit(*t, True), random_sequence(1, 5, 2, 1, 2))


def test_results_do_not_depend_on_threads_or_runs():
    inputs = random_map(2, 20, 20, 130, 3, torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for number in (1, 2, 2, 5):
            torch.set_num_threads(number)
            runs.append(output_and_gradients(cross_scan_2d_jit, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        assert all(a.equal(b) for a, b in zip(runs[0], other))


def test_threads_of_a_program_may_scan_at_once():
    inputs = [t.detach() for t in random_map(1, 9, 5, 70, 4, torch.float32)]
    expected = cross_scan_2d_jit(*inputs)
    with ThreadPoolExecutor(4) as pool:
        assert all(y.equal(expected) for y in pool.map(lambda _: cross_scan_2d_jit(*inputs), range(20)))


def _scan_with_two_threads(inputs):
    torch.set_num_threads(2)
    return cross_scan_2d_jit(*inputs).tolist()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_can_scan():
    inputs = [t.detach() for t in random_map(1, 3, 3, 70, 4, torch.float32)]
    expected = cross_scan_2d_jit(*inputs).tolist()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_scan_with_two_threads, (inputs,)).get(timeout=300) == expected


def test_operator_is_registered_correctly():
    x, projected, weight, A, D, bias = random_projected_map(2, 5, 7, 3, 4, 2)
    u, delta = (t.detach().requires_grad_() for t in (x.unsqueeze(3), x.new_empty(2, 5, 7, 4, 0)))
    inputs = (u, delta, projected, weight, A, D, bias, True, True)
    torch.library.opcheck(torch.ops.swinumamba.scan_jit.default, inputs)


def test_compiles_into_one_graph():
    inputs = random_map(1, 4, 5, 3, 2)
    compiled = torch.compile(cross_scan_2d_jit, backend="aot_eager", fullgraph=True)
    expected = output_and_gradients(cross_scan_2d_jit, inputs)
    assert all(a.equal(b) for a, b in zip(output_and_gradients(compiled, inputs), expected))


@pytest.mark.parametrize("index", range(7))
def test_inputs_that_do_not_fit_are_refused(index):
    inputs = random_map(1, 4, 5, 3, 2)
    inputs[index] = torch.cat([inputs[index]] * 2, dim=-1)
    with pytest.raises(ValueError, match="must be"):
        cross_scan_2d_jit(*inputs)


def test_auto_takes_the_loops_on_the_cpu_or_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backends.choose_backend("auto", "cpu", torch.float32) == "numba"
    monkeypatch.setattr(jit_cpu, "_import_error", lambda: "numba cannot be imported")
    backends.log_once.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert backends.choose_backend("auto", "cpu", torch.float32) == "portable"
        backends.log_backend_once("auto", "cpu", torch.float32)
        backends.log_backend_once("auto", "cpu", torch.float32)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "selective scan on cpu: portable; numba cannot be imported"
    ]
    with pytest.raises(RuntimeError, match="'numba' cannot be used: numba cannot be imported"):
        backends.choose_backend("numba", "cpu", torch.float32)
    with pytest.raises(RuntimeError, match="not for 'cuda'"):
        backends.choose_backend("numba", "cuda", torch.float32)
