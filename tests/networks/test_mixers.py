# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The blocks of Fig. 6 and the control without a scan, alone and in Swin-UMamba†."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swinumamba_monai.analysis.complexity import count
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.networks.mamba import MambaScan
from swinumamba_monai.networks.mixers import MIXERS, ConvMixer, MambaMixer, VimMixer, depthwise_conv_by_fft
from swinumamba_monai.ops.reference import selective_scan_ref

TYPES = pytest.mark.parametrize("block_type", list(MIXERS))
# Endoscopy, 3×384×640 and 8 classes; the first is published, the others fix our composition.
PARAMETERS = {"VSS": 27_496_160, "Vim": 24_593_120, "Mamba": 23_086_304, "Conv": 27_855_584}


def build(block_type: str, seed: int = 0, **changes) -> SwinUMambaD:
    torch.manual_seed(seed)
    options = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8, "d_state": 4}
    options |= {"drop_path_rate": 0.0, "scan_backend": "portable", **changes}
    return SwinUMambaD(1, 3, block_type=block_type, **options)


def mixer(cls: type[nn.Module], seed: int = 0, dtype=torch.float64, **options) -> nn.Module:
    """A small mixer whose scan is loud enough to be seen."""
    torch.manual_seed(seed)
    made = cls(6, 3, scan_backend="portable", **options).to(dtype)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.5)
    return made


def image(*shape, seed=1, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class TestInTheNetwork:
    @TYPES
    def test_parameters(self, block_type):
        with torch.device("meta"):
            net = SwinUMambaD(3, 8, block_type=block_type)
        assert sum(p.numel() for p in net.parameters()) == PARAMETERS[block_type]

    @pytest.mark.parametrize("block_type, gflops", [("Mamba", 28.69), ("Vim", 34.24), ("Conv", 35.22)])
    def test_flops(self, block_type, gflops, empty_scans):
        """Counted on a sixteenth of the pixels: everything is linear in them, up to how fvcore rounds einsum."""
        counted = count(SwinUMambaD(3, 8, block_type=block_type), 3, 96, 160)
        assert counted.flops * 16 / 1e9 == pytest.approx(gflops, abs=0.01)

    @TYPES
    @pytest.mark.parametrize("size", [(1, 7), (33, 40), (64, 96)], ids=str)
    def test_sizes(self, block_type, size):
        net = build(block_type)
        heads = net(image(2, 1, *size))
        assert [tuple(head.shape) for head in heads] == [
            (2, 3, -(-size[0] // scale), -(-size[1] // scale)) for scale in (1, 4, 8, 16)
        ]
        assert torch.equal(net.eval()(image(2, 1, *size)), heads[0])

    @TYPES
    def test_every_parameter_learns(self, block_type):
        net = build(block_type)
        sum((head**2).mean() for head in net(image(2, 1, 64, 64))).backward()
        silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert silent == []

    @TYPES
    def test_state_dict_and_copies(self, block_type):
        net, other, x = build(block_type).eval(), build(block_type, seed=2).eval(), image(1, 1, 32, 32)
        assert not torch.equal(net(x), other(x))
        other.load_state_dict(net.state_dict())
        assert torch.equal(net(x), other(x)) and torch.equal(net(x), copy.deepcopy(net)(x))

    @TYPES
    def test_elements_are_independent(self, block_type):
        net, x = build(block_type).eval(), image(3, 1, 32, 32)
        torch.testing.assert_close(net(x[1:2]), net(x)[1:2], rtol=0, atol=4e-5)  # as the golden numbers in float32

    @TYPES
    def test_half_precision(self, block_type):
        net, x = build(block_type).eval(), image(1, 1, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x)
        expected = net(x)
        torch.testing.assert_close(
            half.float(), expected, rtol=0, atol=0.1 * expected.abs().max().item()
        )  # 8 bits, 60 layers

    @TYPES
    def test_torchscript_by_tracing(self, block_type):
        net, x = build(block_type).eval(), image(1, 1, 32, 32)
        traced = torch.jit.trace(net, x, check_trace=False)
        torch.testing.assert_close(traced(x), net(x), rtol=0, atol=1e-6)

    @TYPES
    def test_encoder_begins_as_vmamba_does(self, block_type):
        """Linear layers of the encoder: truncated normal 0.02; what a scan starts with is Mamba's, in all of them."""
        net = build(block_type, feature_size=32)
        first = net.vssm_encoder.layers[0].blocks[0].self_attention
        weights = dict(first.named_parameters())
        projection = next(weight for name, weight in weights.items() if name.endswith("in_proj.weight"))
        assert projection.std().item() == pytest.approx(0.02, rel=0.1)
        for name, weight in weights.items():
            if "A_log" in name:
                assert torch.equal(weight[0].exp().round(), torch.arange(1.0, 5.0))
            if name.endswith(("dt_projs_bias", "dt_proj.bias")):
                steps = F.softplus(weight)
                assert 1e-4 <= steps.min() and steps.max() <= 0.1001
        assert sum("A_log" in name for name in weights) == {"VSS": 1, "Vim": 2, "Mamba": 1, "Conv": 0}[block_type]

    @pytest.mark.parametrize("wrong", ["vss", "", None, ["VSS"]])
    def test_wrong_type(self, wrong):
        with pytest.raises(ValueError, match="block_type must be one of VSS, Vim, Mamba, Conv, got"):
            SwinUMambaD(1, 3, block_type=wrong)


def mamba_by_hand(made: MambaMixer, x: torch.Tensor, scan: MambaScan) -> torch.Tensor:
    """A scan of Mamba as its paper writes it, of one direction, before gate and output: (b, l, c) to (b, d, l)."""
    sequence = F.linear(x, made.mamba.in_proj.weight).chunk(2, dim=-1)[0].transpose(1, 2)
    conv = scan.conv1d
    sequence = F.silu(F.conv1d(F.pad(sequence, (3, 0)), conv.weight, conv.bias, groups=conv.groups))
    rank, states = scan.dt_rank, scan.d_state
    low, B, C = torch.einsum("pd,bdl->bpl", scan.x_proj.weight, sequence).split([rank, states, states], 1)
    delta = torch.einsum("dr,brl->bdl", scan.dt_proj.weight, low)
    A, bias = -scan.A_log.exp(), scan.dt_proj.bias
    return selective_scan_ref(sequence, delta, A, B, C, scan.D, delta_bias=bias, delta_softplus=True)


class TestMixers:
    @pytest.mark.parametrize("cls", [MambaMixer, VimMixer])
    def test_against_mamba_by_hand(self, cls):
        made, x = mixer(cls), image(2, 3, 5, 6, dtype=torch.float64)
        sequence = x.flatten(1, 2)
        y = mamba_by_hand(made, sequence, made.mamba)
        if cls is VimMixer:
            y = y + mamba_by_hand(made, sequence.flip(1), made.backwards).flip(2)
        gate = F.silu(F.linear(sequence, made.mamba.in_proj.weight).chunk(2, dim=-1)[1])
        expected = F.linear(y.transpose(1, 2) * gate, made.mamba.out_proj.weight).view(x.shape)
        torch.testing.assert_close(made(x), expected, rtol=0, atol=1e-10 * expected.abs().max().item())

    @pytest.mark.parametrize("cls, before, after", [(MambaMixer, False, True), (VimMixer, True, True)])
    def test_what_a_pixel_changes(self, cls, before, after):
        """Mamba sees what comes first in reading order, Vim both sides."""
        made, x = mixer(cls), image(1, 4, 5, 6, dtype=torch.float64)
        other = x.clone()
        other[0, 2, 2] += 1
        changed = ((made(other) - made(x)).abs().sum(-1) > 1e-12).flatten()
        assert changed[12], "itself"
        assert changed[:12].any() == before and changed[13:].any() == after

    def test_a_convolution_reaches_as_far_as_its_kernels(self):
        made, x = mixer(ConvMixer, kernel_size=5), image(1, 9, 9, 6, dtype=torch.float64)
        other = x.clone()
        other[0, 0, 0] += 1
        changed = (made(other) - made(x)).abs().sum(-1)[0] > 1e-12
        assert changed[:4, :4].all() and not changed[4:].any() and not changed[:, 4:].any()  # 5 // 2 and 3 // 2

    @pytest.mark.parametrize("size", [(2, 3), (9, 20), (24, 40)], ids=str)
    @pytest.mark.parametrize("side", [3, 21])
    def test_convolution_by_fft(self, size, side):
        x = image(2, 4, *size, dtype=torch.float64).requires_grad_()
        weight = image(4, 1, side, side, seed=2, dtype=torch.float64).requires_grad_()
        bias = image(4, seed=3, dtype=torch.float64).requires_grad_()
        expected = F.conv2d(x, weight, bias, padding=side // 2, groups=4)
        actual = depthwise_conv_by_fft(x, weight, bias)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)  # sums of 441 numbers around 1
        dy = image(*expected.shape, seed=4, dtype=torch.float64)
        grads = [torch.autograd.grad(y, (x, weight, bias), dy) for y in (actual, expected)]
        for mine, theirs in zip(*grads):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        half = depthwise_conv_by_fft(x.detach().bfloat16(), weight.detach().bfloat16(), bias.detach().bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.double(), expected, rtol=0, atol=0.02 * expected.abs().max().item())
