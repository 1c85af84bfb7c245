# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Replayed launches give what launching gives: to the bit where nothing is added in another order."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from swinumamba_monai.networks import SwinUMamba, SwinUMambaD, cuda_graphs

SMALL = {"feature_size": 16, "depths": (1, 1, 1, 1)}
NETWORKS = [(SwinUMambaD, {"decoder_depths": (1, 1, 1)}), (SwinUMamba, {})]


def pair(network_type, options, **more) -> tuple[nn.Module, nn.Module]:
    """A network that replays, and its twin that does not."""
    torch.manual_seed(0)
    network = network_type(1, 3, **SMALL, **options, **more)
    twin = network_type(1, 3, **SMALL, **options, **more, cuda_graphs=False)
    twin.load_state_dict(network.state_dict())
    return network, twin


class TestAnywhere:
    """What holds without a GPU."""

    @pytest.mark.parametrize("network_type, options", NETWORKS)
    def test_nothing_is_recorded_on_a_cpu(self, network_type, options):
        network, twin = pair(network_type, options, drop_path_rate=0.0)
        x = torch.randn(1, 1, 32, 32)
        for _ in range(cuda_graphs.CALLS_BEFORE + 2):
            assert all(torch.equal(a, b) for a, b in zip(network(x), twin(x)))
        assert not network._graphs._graphs
        assert twin._graphs is None

    @pytest.mark.parametrize("copy", [deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
    def test_copies_begin_empty(self, copy):
        network, _ = pair(*NETWORKS[0], use_checkpoint=True)
        network._graphs._calls["anything"] = 1
        copied = copy(network)
        assert not copied._graphs._calls
        assert copied._graphs.training is False
        assert copied._graphs._lock is not network._graphs._lock

    def test_a_recording_that_comes_back_to_its_network_runs_it(self, monkeypatch):
        graphs, layer, x = cuda_graphs.CUDAGraphs(), nn.Linear(2, 2), torch.ones(1, 2)
        seen = []

        class Graph:
            def __init__(self, network, forward, x):
                seen.append(graphs._is_recording)
                graphs.run(network, forward, x)  # which would wait for itself, or record without end
                raise RuntimeError("nothing to record on")

        monkeypatch.setattr(cuda_graphs, "_TrainingGraph", Graph)
        monkeypatch.setattr(cuda_graphs.CUDAGraphs, "_can_replay", lambda *_: True)
        for _ in range(cuda_graphs.CALLS_BEFORE + 1):
            (y,) = graphs.run(layer, lambda x: [layer(x)], x)
        assert seen == [True] and not graphs._is_recording and torch.equal(y, layer(x))

    def test_when_recording_begins(self, monkeypatch):
        """At once for the first kind that is trained with, else at the third call."""
        graphs, layer = cuda_graphs.CUDAGraphs(), nn.Linear(2, 2)
        recorded = []

        class Graph:
            is_valid = staticmethod(lambda: True)
            is_busy = staticmethod(lambda: False)

            def __init__(self, network, forward, x):
                recorded.append((len(x), torch.is_grad_enabled()))
                self.replay = forward

        for kind in ("_Graph", "_TrainingGraph"):
            monkeypatch.setattr(cuda_graphs, kind, Graph)
        monkeypatch.setattr(cuda_graphs.CUDAGraphs, "_can_replay", lambda *_: True)
        calls = [(1, False), (1, True), (2, True), (1, False), (2, True), (1, False), (1, True), (2, True)]
        when = []
        for size, is_training in calls:
            with torch.set_grad_enabled(is_training):
                graphs.run(layer, lambda x: [layer(x)], torch.ones(size, 2))
            when.append(len(recorded))
        assert recorded == [(1, True), (1, False), (2, True)] and when == [0, 1, 1, 1, 1, 2, 2, 3]

    def test_what_is_recorded_is_the_function_that_was_given(self):
        """Not the network's own forward; with stand-ins in the places of its parameters."""
        layer = nn.Linear(2, 2)
        bound = cuda_graphs._Bound(layer, lambda x: [2 * layer(x)])
        stand_ins = {name: p.detach().zero_() for name, p in bound.named_parameters()}
        (y,) = torch.func.functional_call(
            bound, {n: torch.ones_like(p) for n, p in stand_ins.items()}, torch.ones(1, 2)
        )
        assert torch.equal(y, torch.full((1, 2), 6.0))

    def test_a_meta_tensor_stays_one(self):
        network, _ = pair(*NETWORKS[0])
        x = MetaTensor(torch.randn(1, 1, 20, 24), meta={"filename_or_obj": "scan.nii.gz"})
        y = network.eval()(x)
        assert isinstance(y, MetaTensor)
        assert y.meta["filename_or_obj"] == "scan.nii.gz"
        assert torch.equal(y.as_tensor(), network(x.as_tensor()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestReplay:
    def pair(self, network_type, options, **more):
        network, twin = pair(network_type, options, **more)
        return network.cuda(), twin.cuda()

    @pytest.mark.parametrize("amp", [False, True])
    @pytest.mark.parametrize("network_type, options", NETWORKS)
    def test_inference_sees_new_weights(self, network_type, options, amp):
        network, twin = self.pair(network_type, options)
        network.eval(), twin.eval()
        for call in range(6):
            with torch.no_grad():
                for parameter in (*network.parameters(), *twin.parameters()):
                    parameter.mul_(1.01)
            x = torch.randn(2, 1, 50, 40, device="cuda")
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=amp):
                assert torch.equal(network(x), twin(x))
            assert len(network._graphs._graphs) == (call >= cuda_graphs.CALLS_BEFORE)
            recorded = [head for graph in network._graphs._graphs.values() for head in graph.heads]
            assert not any(head.requires_grad for head in recorded), "nothing is kept for a backward"

    @pytest.mark.parametrize("network_type, options", NETWORKS)
    def test_heads_asked_for_after_a_recording(self, network_type, options):
        network, twin = self.pair(network_type, options)
        network.eval(), twin.eval()
        x = torch.randn(2, 1, 50, 40, device="cuda")
        with torch.inference_mode():
            for heads_in_eval in (False, True, False):
                network.heads_in_eval = twin.heads_in_eval = heads_in_eval
                for _ in range(cuda_graphs.CALLS_BEFORE + 2):
                    torch.testing.assert_close(network(x), twin(x), rtol=0, atol=0)

    @pytest.mark.parametrize("amp", [False, True])
    @pytest.mark.parametrize("network_type, options", NETWORKS)
    def test_training(self, network_type, options, amp, monkeypatch):
        """Six steps with drop path end at the same weights, to the bit.

        One image under autocast: of more the finest head adds up gradients in the dtype of the weights that autocast
        keeps, and a recording keeps none.
        """
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        networks = self.pair(network_type, options)
        optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-3) for network in networks]
        for step in range(6):
            x = torch.randn(1 if amp else 2, 1, 50, 40, device="cuda")
            for network, optimizer in zip(networks, optimizers):
                torch.manual_seed(step)
                with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                    loss = sum(head.float().square().mean() for head in network(x))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert networks[0]._graphs._graphs
        for (name, a), b in zip(networks[0].named_parameters(), networks[1].parameters()):
            assert torch.equal(a, b), name

    def recorded(self) -> tuple[nn.Module, nn.Module, torch.Tensor]:
        network, twin = self.pair(*NETWORKS[0], drop_path_rate=0.0)
        x = torch.randn(2, 1, 32, 32, device="cuda")
        for _ in range(cuda_graphs.CALLS_BEFORE + 1):
            network(x)[0].sum().backward()
        network.zero_grad()
        assert network._graphs._graphs
        return network, twin, x

    @staticmethod
    def assert_gradients_agree(network: nn.Module, twin: nn.Module) -> None:
        for a, b in zip(network.parameters(), twin.parameters()):
            expected = torch.zeros_like(b) if b.grad is None else b.grad  # None: of a head that the loss does not use
            tolerance = 1e-4 * expected.abs().max().item()
            torch.testing.assert_close(a.grad, expected, rtol=1e-4, atol=tolerance)

    def test_two_forwards_before_a_backward(self):
        network, twin, x = self.recorded()
        for net in (network, twin):
            (net(x)[0].square().sum() + net(2 * x)[0].square().sum()).backward()
        self.assert_gradients_agree(network, twin)

    def test_accumulated_gradients(self):
        network, twin, x = self.recorded()
        for net in (network, twin):
            for factor in (1, 2, 3):
                net(factor * x)[0].square().sum().backward()
        self.assert_gradients_agree(network, twin)

    def test_a_forward_without_backward_is_forgotten(self):
        network, twin, x = self.recorded()
        network(x)
        a, b = network(x)[0], twin(x)[0]
        assert type(a.grad_fn).__name__.startswith("_Replay")
        assert torch.equal(a, b)

    def test_a_late_second_backward_is_refused(self):
        network, _, x = self.recorded()
        loss = network(x)[0].sum()
        loss.backward(retain_graph=True)
        network(x)[0].sum().backward()
        with pytest.raises(RuntimeError, match="cuda_graphs=False"):
            loss.backward()

    def test_hooks_and_moved_weights(self):
        network, twin, x = self.recorded()
        seen = []
        handle = network.decoder.register_forward_hook(lambda *_: seen.append(1))
        network(x)
        handle.remove()
        assert seen == [1]
        network.load_state_dict({k: v.clone() + 0.01 for k, v in twin.state_dict().items()}, assign=True)
        twin.load_state_dict(network.state_dict())
        assert torch.equal(network(x)[0], twin(x)[0])

    def test_frozen_weights_get_no_gradient(self):
        network, _, x = self.recorded()
        network.vssm_encoder.requires_grad_(False)
        for _ in range(3):
            network(x)[0].sum().backward()
        assert all(p.grad is None for p in network.vssm_encoder.parameters())
        assert network.decoder.seg_layers[-1].weight.grad is not None
