# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which backend scans, what is said about it, and the layouts that mamba_ssm is called with."""

from __future__ import annotations

import logging
import pickle
import sys
from copy import deepcopy
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from swinumamba_monai.networks import SwinUMambaD, UMambaBot, UMambaEnc
from swinumamba_monai.networks.norm import LayerNorm
from swinumamba_monai.networks.vss import SS2D, VSSBlock
from swinumamba_monai.ops import BACKENDS, backends, cross_scan_2d, selective_scan, selective_scan_ref
from swinumamba_monai.ops.cuda import nvrtc

LOGGER = "swinumamba_monai.ops.backends"


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    """Each test starts without a choice from the environment and with an empty log."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    backends.log_once.cache_clear()


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
        with pytest.raises(ValueError, match=r"^backend must be one of .*portable.*, got 'gpu'\.$"):
            scan(**inputs, backend="gpu")

    def test_unknown_variable(self, monkeypatch):
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "fastest")
        with pytest.raises(ValueError, match=r"^SWINUMAMBA_BACKEND must be one of .*portable.*, got 'fastest'\.$"):
            selective_scan(**tiny_sequence())

    def test_every_name_is_listed(self):
        assert {"auto", "cuda", "numba", "portable", "mamba_ssm", "reference"} == set(BACKENDS)
        with pytest.raises(ValueError) as error:
            backends.check_backend_name("x")
        assert all(name in str(error.value) for name in BACKENDS)


class TestChoice:
    def test_the_argument_comes_before_the_variable(self, monkeypatch):
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "reference")
        assert backends.choose_backend("auto", "cpu", torch.float32) == "reference"
        assert backends.choose_backend("portable", "cpu", torch.float32) == "portable"
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "")
        assert backends.choose_backend("auto", "mps", torch.float32) == "portable"

    def test_the_choice_reaches_the_scan(self, monkeypatch):
        called = []

        def spy(name):
            record = backends.REGISTRY[name]
            scan = lambda *args: called.append(name) or record.scan(*args)  # noqa: E731
            monkeypatch.setitem(backends.REGISTRY, name, replace(record, scan=scan))

        spy("reference")
        spy("portable")
        selective_scan(**tiny_sequence(), backend="portable")
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "reference")
        selective_scan(**tiny_sequence())
        assert called == ["portable", "reference"]

    @pytest.mark.parametrize("scan, inputs", [(selective_scan, tiny_sequence()), (cross_scan_2d, tiny_map())])
    @pytest.mark.parametrize("backend", ["cuda", "mamba_ssm"])
    def test_kernels_of_a_gpu_on_the_cpu(self, scan, inputs, backend):
        with pytest.raises(RuntimeError, match=rf"'{backend}' cannot be used: .* needs? a CUDA device, not 'cpu'.*\.$"):
            scan(**inputs, backend=backend)

    def test_mamba_from_the_variable_on_the_cpu(self, monkeypatch):
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "mamba_ssm")
        with pytest.raises(RuntimeError, match="needs a CUDA device"):
            selective_scan(**tiny_sequence())

    @pytest.mark.parametrize("backend", ["cuda", "mamba_ssm"])
    def test_no_kernel_for_float64(self, backend):
        with pytest.raises(RuntimeError, match="no float64 kernel"):
            backends.choose_backend(backend, "cuda", torch.float64)

    @pytest.mark.parametrize("backend, most", [("cuda", 16), ("mamba_ssm", 256)])
    def test_no_kernel_for_so_many_states(self, backend, most):
        with pytest.raises(RuntimeError, match=f"at most {most} states of a channel, not {most + 1}; 'auto' takes one"):
            backends.choose_backend(backend, "cuda", torch.float32, most + 1)


class TestLog:
    def test_once_for_each_device(self, caplog):
        with caplog.at_level(logging.INFO, LOGGER):
            for _ in range(3):
                backends.log_backend_once("auto", "mps", torch.float32)
                backends.log_backend_once("auto", "mps", torch.bfloat16)
                backends.log_backend_once("auto", "xpu", torch.float32)
        assert [r.getMessage() for r in caplog.records] == [
            "selective scan on mps: portable",
            "selective scan on xpu: portable",
        ]

    def test_float64_is_no_matter_for_a_warning(self, caplog):
        """It is for checks, on a GPU as well."""
        with caplog.at_level(logging.INFO, LOGGER):
            assert backends.choose_backend("auto", "cuda", torch.float64) == "portable"
            backends.log_backend_once("auto", "cuda", torch.float64)
        assert [r.levelno for r in caplog.records] == [logging.INFO]


class TestFallbackOfAGPU:
    """What a CUDA device gets where the kernels cannot run, and what is said; as torch sees other machines."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch):
        """An H100 and a torch whose CUDA has NVRTC."""
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        monkeypatch.setattr(nvrtc, "_libraries", lambda: (None, None))

    def chosen_and_said(self, caplog, d_state=16):
        caplog.clear()
        with caplog.at_level(logging.INFO, LOGGER):
            choices = {backends.choose_backend("auto", "cuda", torch.bfloat16, d_state) for _ in range(3)}
            for _ in range(3):
                backends.log_backend_once("auto", "cuda", torch.bfloat16, d_state)
        (record,) = caplog.records
        return choices.pop(), record.levelno, record.getMessage()

    def test_the_kernels_where_they_run(self, caplog):
        assert self.chosen_and_said(caplog) == ("cuda", logging.INFO, "selective scan on cuda: cuda")

    def test_rocm(self, caplog, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        self.check_fallback(caplog, "the kernels are for NVIDIA GPUs")

    def test_old_gpu(self, caplog, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        self.check_fallback(caplog, "the kernels need compute capability 8.0 or newer, this GPU has 7.5")

    def test_no_nvrtc(self, caplog, monkeypatch):
        def missing():
            raise OSError("libcaffe2_nvrtc.so: no such file")

        monkeypatch.setattr(nvrtc, "_libraries", missing)
        reason = "the NVRTC library of CUDA 13.0 cannot be loaded (libcaffe2_nvrtc.so: no such file)"
        self.check_fallback(caplog, reason)

    def test_too_many_states(self, caplog):
        self.check_fallback(caplog, "the kernels hold at most 16 states of a channel, not 17", d_state=17)

    def check_fallback(self, caplog, reason, d_state=16):
        message = f"selective scan on cuda: portable; {reason}, so the scan is several times slower than it could be"
        assert self.chosen_and_said(caplog, d_state) == ("portable", logging.WARNING, message)
        with pytest.raises(RuntimeError) as error:
            backends.choose_backend("cuda", "cuda", torch.bfloat16, d_state)
        expected = f"the scan backend 'cuda' cannot be used: {reason}; 'auto' takes one that can."
        assert str(error.value) == expected


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
        record = replace(backends.REGISTRY["mamba_ssm"], why_unavailable=lambda device_type, dtype, d_state: None)
        monkeypatch.setitem(backends.REGISTRY, "mamba_ssm", record)

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


class TestBackendOfANetwork:
    """Each module finds its backend once for a device and dtype, and its layer norms have that of their network."""

    @staticmethod
    def network(**options) -> SwinUMambaD:
        small = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8, "d_state": 4}
        torch.manual_seed(0)
        return SwinUMambaD(1, 2, **small, drop_path_rate=0.0, **options)

    @pytest.fixture
    def asked(self, monkeypatch) -> list[tuple]:
        """The questions that reach :func:`choose_backend`, but for those of the log."""
        questions, find = [], backends.find_backend

        def spy(backend, x, *d_state):
            if isinstance(backend, str):
                questions.append((backend, x.dtype, *d_state))
            return find(backend, x, *d_state)

        monkeypatch.setattr(backends, "find_backend", spy)
        return questions

    def test_portable_takes_the_portable_norm_too(self, emulator):
        """Where the kernels could run: they are on the emulated GPU, and auto takes them."""
        VSSBlock(8, d_state=4)(torch.zeros(1, 4, 4, 8))
        assert {name for name, _ in emulator.launched} >= {"layer_norm", "scan_forward"}
        emulator.launched.clear()
        self.network(scan_backend="portable")(torch.zeros(1, 1, 32, 32))
        assert not emulator.launched

    @pytest.mark.parametrize("cls", [UMambaBot, UMambaEnc])
    def test_norms_of_umamba(self, emulator, cls):
        cls(1, 2, roi_size=(16, 16), base_channels=4, scan_backend="portable")(torch.zeros(1, 1, 16, 16))
        assert not emulator.launched

    def test_every_module_has_the_backend_of_its_network(self):
        names = {m.backend.name for m in self.network(scan_backend="reference").modules() if hasattr(m, "backend")}
        assert names == {"reference"}

    def test_once_for_a_module_device_and_dtype(self, asked):
        network = self.network().eval()
        modules = [m for m in network.modules() if hasattr(m, "backend")]
        with torch.no_grad():
            network(torch.zeros(1, 1, 32, 32))
            first = len(asked)
            network(torch.zeros(2, 1, 64, 32))
            assert 0 < first <= len(modules) and len(asked) == first
            network.double()(torch.zeros(1, 1, 32, 32, dtype=torch.float64))
        assert len(asked) == 2 * first

    def test_another_name_is_heard(self, monkeypatch):
        module = SS2D(4, d_state=4)
        x = torch.zeros(1, 2, 3, 4)
        module.backend.name = "portable"
        assert module.backend.find(x).name == "portable"
        module.backend.name = "auto"
        monkeypatch.setenv("SWINUMAMBA_BACKEND", "reference")
        assert module.backend.find(x).name == "reference"

    @pytest.mark.parametrize("copy", [deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
    def test_copies_begin_anew(self, copy):
        network, x = self.network(scan_backend="portable").eval(), torch.zeros(1, 1, 32, 32)
        expected = network(x)
        copied = copy(network)
        choices = [m.backend for m in copied.modules() if hasattr(m, "backend")]
        assert all(choice.name == "portable" and not choice._found for choice in choices)
        assert torch.equal(copied(x), expected)

    def test_only_scans_are_named_in_the_log(self, caplog):
        with caplog.at_level(logging.INFO, LOGGER):
            LayerNorm(4)(torch.zeros(1, 4))
            assert not caplog.records
            SS2D(4, d_state=4, scan_backend="portable")(torch.zeros(1, 2, 3, 4))
        assert [r.getMessage() for r in caplog.records] == ["selective scan on cpu: portable"]

    def test_a_choice_is_silent(self, caplog):
        with caplog.at_level(logging.INFO, LOGGER):
            backends.choose_backend("auto", "cpu", torch.float32)
        assert not caplog.records

    @pytest.mark.parametrize("backend", ["portable", "auto"])
    def test_compiles_into_one_graph(self, backend):
        module, x = SS2D(4, d_state=4, scan_backend=backend), torch.randn(1, 3, 5, 4)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), module(x))
