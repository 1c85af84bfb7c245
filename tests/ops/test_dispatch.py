# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which backend scans, what is said about it, and the layouts that mamba_ssm is called with."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
import torch

from swinumamba_monai.ops import BACKENDS, cross_scan_2d, dispatch, selective_scan, selective_scan_ref

LOGGER = "swinumamba_monai.ops.dispatch"


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    """Each test starts without a choice from the environment and with an empty log."""
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    dispatch._log_once.cache_clear()


def tiny_sequence() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "u": torch.randn(2, 6, 9),
        "delta": torch.randn(2, 6, 9),
        "A": -torch.rand(6, 3),
        "B": torch.randn(2, 2, 3, 9),
        "C": torch.randn(2, 2, 3, 9),
        "D": torch.randn(6),
        "delta_bias": torch.randn(6),
    }


def tiny_map() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "x": torch.randn(2, 3, 5, 4),
        "delta": torch.randn(2, 3, 5, 4, 4),
        "A": -torch.rand(4, 4, 3),
        "B": torch.randn(2, 3, 5, 4, 3),
        "C": torch.randn(2, 3, 5, 4, 3),
        "D": torch.randn(4, 4),
        "delta_bias": torch.randn(4, 4),
    }


class TestNames:
    @pytest.mark.parametrize("scan, inputs", [(selective_scan, tiny_sequence()), (cross_scan_2d, tiny_map())])
    def test_unknown_argument(self, scan, inputs):
        with pytest.raises(ValueError, match=r"^backend must be one of .*portable.*, got 'cuda'\.$"):
            scan(**inputs, backend="cuda")

    def test_unknown_variable(self, monkeypatch):
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "fastest")
        with pytest.raises(ValueError, match=r"^SWINUMAMBA_BACKEND must be one of .*portable.*, got 'fastest'\.$"):
            selective_scan(**tiny_sequence())

    def test_every_name_is_listed(self):
        assert {"auto", "portable", "mamba_ssm", "reference"} <= set(BACKENDS)
        with pytest.raises(ValueError) as error:
            dispatch.check_backend_name("x")
        assert all(name in str(error.value) for name in BACKENDS)


class TestChoice:
    def test_the_argument_comes_before_the_variable(self, monkeypatch):
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "reference")
        assert dispatch.choose_backend("auto", "cpu", torch.float32) == "reference"
        assert dispatch.choose_backend("portable", "cpu", torch.float32) == "portable"
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "")
        assert dispatch.choose_backend("auto", "mps", torch.float32) == "portable"

    def test_the_choice_reaches_the_scan(self, monkeypatch):
        called = []
        reference, portable = dispatch.selective_scan_ref, dispatch._GROUPED_SCANS["portable"]

        def spy(name, scan):
            return lambda *args, **options: called.append(name) or scan(*args, **options)

        monkeypatch.setattr(dispatch, "selective_scan_ref", spy("reference", reference))
        monkeypatch.setitem(dispatch._GROUPED_SCANS, "portable", spy("portable", portable))
        selective_scan(**tiny_sequence(), backend="portable")
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "reference")
        selective_scan(**tiny_sequence())
        assert called == ["portable", "reference"]

    @pytest.mark.parametrize("scan, inputs", [(selective_scan, tiny_sequence()), (cross_scan_2d, tiny_map())])
    def test_mamba_on_the_cpu(self, scan, inputs):
        with pytest.raises(RuntimeError, match=r"'mamba_ssm' cannot be used: .* needs a CUDA device, not 'cpu'.*\.$"):
            scan(**inputs, backend="mamba_ssm")

    def test_mamba_from_the_variable_on_the_cpu(self, monkeypatch):
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "mamba_ssm")
        with pytest.raises(RuntimeError, match="needs a CUDA device"):
            selective_scan(**tiny_sequence())

    def test_mamba_has_no_float64(self):
        with pytest.raises(RuntimeError, match="no float64 kernel"):
            dispatch.choose_backend("mamba_ssm", "cuda", torch.float64)


class TestLog:
    def test_once_for_each_device(self, caplog):
        with caplog.at_level(logging.INFO, LOGGER):
            for _ in range(3):
                dispatch.choose_backend("auto", "mps", torch.float32)
                dispatch.choose_backend("auto", "mps", torch.bfloat16)
                dispatch.choose_backend("auto", "xpu", torch.float32)
        assert [r.getMessage() for r in caplog.records] == [
            "selective scan on mps: portable",
            "selective scan on xpu: portable",
        ]

    def test_a_slow_choice_is_a_warning_with_its_reason(self, caplog, monkeypatch):
        monkeypatch.setattr(dispatch, "why_mamba_is_unavailable", lambda device, dtype: "mamba_ssm is on holiday")
        with caplog.at_level(logging.INFO, LOGGER):
            assert dispatch.choose_backend("auto", "cuda", torch.float32) == "portable"
            assert dispatch.choose_backend("auto", "cuda", torch.float32) == "portable"
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "portable; mamba_ssm is on holiday" in record.getMessage()


def documented_mamba(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """``selective_scan_fn`` as mamba-ssm documents it, with what its CUDA code demands of every tensor."""
    batch, channels, length = u.shape
    groups, n = B.shape[1:3]
    assert delta.shape == (batch, channels, length)
    assert A.shape == (channels, n)
    assert B.shape == C.shape == (batch, groups, n, length)
    assert channels % groups == 0
    assert D.shape == delta_bias.shape == (channels,)
    assert delta.dtype == B.dtype == C.dtype == u.dtype
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    assert all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in (u, delta, B, C))
    assert z is None and not return_last_state
    return selective_scan_ref(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=delta_softplus)


class TestMambaLayouts:
    @pytest.fixture(autouse=True)
    def stub(self, monkeypatch):
        names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
        modules = [ModuleType(name) for name in names]
        modules[-1].selective_scan_fn = documented_mamba
        for name, module in zip(names, modules):
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(dispatch, "why_mamba_is_unavailable", lambda device, dtype: None)

    @pytest.mark.parametrize("absent", [(), ("D", "delta_bias")], ids=str)
    @pytest.mark.parametrize("softplus", [True, False])
    def test_sequence(self, absent, softplus):
        inputs = {name: t.requires_grad_() for name, t in tiny_sequence().items() if name not in absent}
        self.compare(selective_scan, inputs, delta_softplus=softplus)

    def test_map(self):
        self.compare(cross_scan_2d, {name: t.requires_grad_() for name, t in tiny_map().items()})

    def compare(self, scan, inputs, **options):
        results = []
        for backend in ("mamba_ssm", "reference"):
            out = scan(**inputs, **options, backend=backend)
            results.append((out, *torch.autograd.grad(out.square().sum(), tuple(inputs.values()))))
        for actual, expected in zip(*results):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

    def test_dtypes_of_autocast(self):
        """Half precision features with float32 parameters, and a delta that autocast left in float32."""
        inputs = tiny_map()
        halves = {name: t.bfloat16() if name in ("x", "B", "C") else t for name, t in inputs.items()}
        out = cross_scan_2d(**halves, backend="mamba_ssm")
        assert out.dtype == torch.bfloat16
        expected = cross_scan_2d(**inputs, backend="reference")
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_the_real_mamba_ssm(dtype, tolerance):
    pytest.importorskip("mamba_ssm")
    inputs = {name: t.cuda().requires_grad_() for name, t in tiny_map().items()}
    results = []
    for backend in ("mamba_ssm", "reference"):
        halves = {name: t.to(dtype) if name in ("x", "delta", "B", "C") else t for name, t in inputs.items()}
        out = cross_scan_2d(**halves, backend=backend)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), tuple(inputs.values()))))
    for actual, expected in zip(*results):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()
