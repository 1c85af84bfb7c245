# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Both networks inside: how they are initialised, what changes the resolution, and what a compiler makes of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from small_weights import without_early_blocks
from test_swin_umamba import BOTH, CLASSES, assert_same, build, gradients, image, loss_of

from swinumamba_monai.networks import SwinUMamba, SwinUMambaD
from swinumamba_monai.networks.swin_umamba import compute_by_parts
from swinumamba_monai.networks.vss import SS2D, PatchExpanding, PatchMerging, VSSBlock


class TestInitialisation:
    """At 32 channels, so that the smallest tensor looked at has enough numbers for its spread to be known to 10 %."""

    @pytest.fixture(scope="class", params=CLASSES, ids=lambda cls: cls.__name__)
    def net(self, request):
        torch.manual_seed(0)
        return request.param(3, 8, feature_size=32, depths=(1, 1, 2, 1))

    def test_encoder_linears(self, net):
        linears = [m for m in net.vssm_encoder.modules() if isinstance(m, nn.Linear)]
        assert len(linears) == 2 * 5 + 3  # two in each block, and three patch mergings
        for linear in linears:
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)

    @pytest.mark.parametrize("net", [SwinUMambaD], indirect=True)
    def test_decoder_linears_and_convolutions_of_the_dagger(self, net):
        for linear in (m for m in net.decoder.modules() if isinstance(m, nn.Linear)):
            bound = linear.in_features**-0.5  # PyTorch's default is uniform
            assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
        convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 1 + 5 + 6 + 4  # patch embedding, one in each block, heads
        for convolution in convolutions:
            fan_in = convolution.weight[0].numel()
            he = math.sqrt(2 / (1 + 1e-4) / fan_in)
            assert convolution.weight.std().item() == pytest.approx(he, rel=0.25)
            assert convolution.bias.abs().max() == 0

    @pytest.mark.parametrize("net", [SwinUMamba], indirect=True)
    def test_convolutions_of_the_cnn(self, net):
        for convolution in (m for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 1000):
            bound = convolution.weight[0].numel() ** -0.5
            assert convolution.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
        assert net.stem[0].bias.abs().max() > 0

    def test_scan_parameters(self, net):
        blocks = [m for m in net.modules() if isinstance(m, SS2D)]
        steps = []
        for block in blocks:
            n = torch.arange(1, 17.0)
            assert torch.equal(block.A_logs, n.log().expand_as(block.A_logs))
            assert torch.equal(block.Ds, torch.ones_like(block.Ds))
            assert block.dt_projs_weight.abs().max() <= block.dt_rank**-0.5
            steps.append(F.softplus(block.dt_projs_bias).detach().flatten())
        steps = torch.cat(steps)
        assert 0.999e-3 <= steps.min() <= 1.02e-3 and 0.098 <= steps.max() <= 0.1001
        assert steps.median().item() == pytest.approx(1e-2, rel=0.1)  # log-uniform

    def test_norms(self, net):
        norms = [m for m in net.modules() if isinstance(m, (nn.LayerNorm, nn.InstanceNorm2d))]
        assert {m.eps for m in norms} == {1e-5}


class TestResolutionChanges:
    def test_merging_takes_rows_first(self):
        merge = PatchMerging(1)
        merge.norm = nn.Identity()
        with torch.no_grad():
            merge.reduction.weight.copy_(torch.tensor([[1.0, 10, 100, 1000], [0, 0, 0, 0]]))
        pixels = torch.tensor([[1.0, 2], [3, 4]]).view(1, 2, 2, 1)
        assert merge(pixels).flatten().tolist() == [1 + 30 + 200 + 4000, 0]

    def test_expanding_puts_channels_into_rows(self):
        expand = PatchExpanding(1, 1, scale=2)
        expand.norm = nn.Identity()
        with torch.no_grad():
            expand.expand.weight.copy_(torch.tensor([[1.0], [2], [3], [4]]))
        assert expand(torch.ones(1, 1, 1, 1)).view(2, 2).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("batch", [2, 5])
def test_by_parts(batch):
    """What a GPU does with the expanded map: the same numbers, and nothing of what is computed between is kept."""
    expand = PatchExpanding(6, 8, scale=4)
    inputs = [image(batch, 3, 5, 6).requires_grad_(), *expand.parameters()]

    def values(x):
        return expand.vectors(x).square().sum(-1)

    results, kept = [], []
    for run in (values, lambda x: compute_by_parts(values, x)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            out = run(inputs[0])
        results.append([out, *torch.autograd.grad(out.mean(), inputs)])
        kept.append(max(sizes))
    assert kept[0] >= batch * 3 * 5 * 16 * 8 > kept[1]
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class TestCompiler:
    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_training_step(self):
        net, x = without_early_blocks(build(SwinUMambaD)), image(2, 1, 33, 40)
        heads = net(x)
        loss_of(heads).backward()
        expected = [*heads, *(g.clone() for g in gradients(net).values())]
        net.zero_grad()
        heads = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
        loss_of(heads).backward()
        assert_same([*heads, *gradients(net).values()], expected, 1e-5)

    @BOTH
    def test_inference(self, cls):
        net, x = without_early_blocks(build(cls)).eval(), image(2, 1, 33, 40)
        with torch.no_grad():
            actual = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
            torch.testing.assert_close(actual, net(x), rtol=0, atol=1e-5)

    def test_dynamic_sizes(self, uncached_shapes):
        """A block alone: a whole network compiles with symbolic sizes too, in a minute."""
        block = VSSBlock(8, d_state=4, scan_backend="portable")
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
        with torch.no_grad():
            for size in ((5, 7), (9, 4)):
                torch.testing.assert_close(compiled(x := image(2, *size, 8)), block(x), rtol=0, atol=1e-5)
            with torch.compiler.set_stance("fail_on_recompile"):
                x = image(3, 6, 11, 8)
                torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("alone", [False, True], ids=["network", "encoder"])
    def test_a_second_size(self, alone):
        """Each size has a program of its own: Inductor fails over symbolic ones."""
        inputs = []

        def backend(program, example_inputs):
            inputs.append(example_inputs)
            return program.forward

        net = build(SwinUMambaD).eval()
        net = net.vssm_encoder if alone else without_early_blocks(net)
        compiled = torch.compile(net, fullgraph=True, backend=backend)
        for size in ((33, 40), (50, 37)):
            with torch.no_grad():
                x = image(2, 1, *size)
                for actual, expected in zip(compiled(x), net(x)):
                    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert len(inputs) == 2
        for program in inputs:
            assert not any(isinstance(i, torch.SymInt) for i in program), "an axis is symbolic"

    @BOTH
    def test_export(self, cls):
        net, x = without_early_blocks(build(cls)).eval(), image(2, 1, 33, 40)
        exported = torch.export.export(net, (x,)).module()
        y = image(2, 1, 33, 40, seed=1)
        torch.testing.assert_close(exported(y), net(y), rtol=0, atol=1e-5)
