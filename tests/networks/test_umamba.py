# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""U-Mamba's two networks: sizes, computation and what torch does to them; the released numbers: test_golden.py."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from small_umamba import BOTH, NOT_COUNTS, build, image, released

from swinumamba_monai.networks import Mamba, UMambaBot, UMambaEnc
from swinumamba_monai.networks.residual_unet import ResidualBlock

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def loss_of(heads):
    return sum((head.float() ** 2).mean() for head in heads)


SIZES = {2: [(1, 1), (1, 7), (5, 3), (4, 4), (8, 12), (13, 21)], 3: [(1, 1, 1), (3, 5, 9), (4, 8, 12)]}


class TestSizes:
    @BOTH
    @pytest.mark.parametrize("size", SIZES[2] + SIZES[3], ids=str)
    def test_every_size(self, cls, size):
        net, x = build(cls, spatial_dims=len(size)), image(2, 1, *size)
        heads = net(x)
        assert isinstance(heads, list)
        assert [tuple(h.shape) for h in heads] == [(2, 3, *(math.ceil(side / s) for side in size)) for s in (1, 2)]
        single = net.eval()(x)
        assert isinstance(single, torch.Tensor) and torch.equal(single, heads[0])

    @BOTH
    def test_padding_repeats_the_border(self, cls):
        net, x = build(cls).eval(), image(1, 1, 10, 11)
        by_hand = torch.cat([x, x[:, :, -1:].expand(-1, -1, 2, -1)], dim=2)
        by_hand = torch.cat([by_hand, by_hand[..., -1:]], dim=3)
        assert torch.equal(net(x), net(by_hand)[:, :, :10, :11])

    @BOTH
    def test_a_pixel_at_the_bottleneck_gets_a_neighbour(self, cls):
        net, x = build(cls).eval(), image(1, 1, 4, 4)
        by_hand = torch.cat([x, x[..., -1:].expand(-1, -1, -1, 4)], dim=3)
        assert torch.equal(net(x), net(by_hand)[..., :4])

    @BOTH
    def test_anisotropic_plan(self, cls):
        """As nnU-Net plans for thick slices: the first stages leave the first axis as it is."""
        strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
        net = build(cls, spatial_dims=3, strides=strides, kernel_size=kernels)
        heads = net(image(1, 1, 5, 9, 11))
        assert [tuple(head.shape[2:]) for head in heads] == [(5, 9, 11), (5, 5, 6)]
        assert net.encoder.stages[0].blocks[0].conv1.conv.weight.shape[2:] == (1, 3, 3)

    @pytest.mark.parametrize(("roi_size", "stages"), [((320, 320), 7), ((512, 512), 8), ((16, 64), 4), ([64] * 3, 5)])
    def test_plan(self, roi_size, stages):
        with torch.device("meta"):
            net = UMambaBot(1, 2, spatial_dims=len(roi_size), roi_size=roi_size)
        assert len(net.encoder.stages) == stages
        assert all(side % step == 0 for side, step in zip(roi_size, net.step))
        assert net.channels[-1] == min(32 * 2 ** (stages - 1), 512 if len(roi_size) == 2 else 320)

    @pytest.mark.parametrize("shape", [(1, 8), (1, 2, 8, 8), (1, 2, 8, 8, 8), (1, 1, 0, 8), (1, 1, 8, 0, 8)], ids=str)
    def test_wrong_volume(self, shape):
        with pytest.raises(ValueError) as error:
            build(UMambaBot, spatial_dims=3)(torch.zeros(shape))
        assert str(error.value) == f"expected an input of shape (b, 1, d, h, w), got {shape}."


class TestComputation:
    @BOTH
    @DIMS
    def test_gradients_reach_every_parameter(self, cls, spatial_dims):
        net = build(cls, spatial_dims=spatial_dims)
        loss_of(net(image(2, 1, *(8, 12, 8)[-spatial_dims:]))).backward()
        silent = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
        assert silent == set()

    def test_mamba_replaces_each_map_of_the_encoder(self):
        """U-Mamba_Enc once more in plain words: no residual connection around Mamba, and skips that went through it."""
        net, x = build(UMambaEnc).double(), image(2, 1, 8, 12, dtype=torch.float64)
        y, skips = net.encoder.stem.convs(x), []
        for stage, layer in zip(net.encoder.stages, net.encoder.mamba_layers):
            y = stage(y)
            pixels = y.flatten(2).mT
            pixels = F.layer_norm(pixels, pixels.shape[2:], layer.norm.weight, layer.norm.bias, 1e-5)
            y = layer.mamba(pixels).mT.reshape(y.shape)
            skips.append(y)
        y = skips.pop()
        for up, stage in zip(net.decoder.transpconvs, net.decoder.stages):
            y = stage(torch.cat([up(y), skips.pop()], dim=1))
        torch.testing.assert_close(net(x)[0], net.decoder.seg_layers[-1](y), rtol=0, atol=1e-10)

    @BOTH
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(self, cls, dtype):
        """The convolutions round to 8 or 11 bits, some twenty of them; Mamba stays in float32. LayerNorm over few
        channels would enlarge the errors: hence 16 of them."""
        net, x = build(cls, base_channels=16), image(2, 1, 16, 24)
        seen = []
        for module in net.modules():
            if isinstance(module, Mamba):
                module.in_proj.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
        expected = net(x)[0]
        seen.clear()
        with torch.autocast("cpu", dtype):
            heads = net(x)
        assert set(seen) == {torch.float32} and {head.dtype for head in heads} == {dtype}
        assert (heads[0] - expected).norm() <= (0.1 if dtype == torch.bfloat16 else 0.015) * expected.norm()
        loss_of(heads).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    @BOTH
    def test_half_parameters(self, cls):
        net = build(cls).bfloat16()
        assert net(image(1, 1, 8, 12, dtype=torch.bfloat16))[0].dtype == torch.bfloat16

    @BOTH
    def test_initialisation(self, cls):
        torch.manual_seed(0)
        net = cls(1, 2, strides=(1, 2, 2))
        he = math.sqrt(2 / (1 + 1e-4) / (64 * 9))
        assert net.encoder.stages[1].blocks[1].conv1.conv.weight.std().item() == pytest.approx(he, rel=0.05)
        assert net.encoder.stages[1].blocks[1].conv1.conv.bias.abs().max() == 0
        gains = {m.conv2.norm.weight.unique().item() for m in net.modules() if isinstance(m, ResidualBlock)}
        assert gains == {0.0 if cls is UMambaEnc else 1.0}


class TestModule:
    @BOTH
    def test_trace(self, cls):
        """TorchScript by tracing, at one size; scripting cannot, because the list of heads depends on the mode."""
        net, x = build(cls).eval(), image(1, 1, 8, 12)
        with torch.no_grad():
            traced = torch.jit.trace(net, x)
            file = io.BytesIO()
            torch.jit.save(traced, file)
            file.seek(0)
            y = image(1, 1, 8, 12, seed=1)
            torch.testing.assert_close(torch.jit.load(file)(y), net(y), rtol=0, atol=1e-5)

    def test_export(self):
        net, x = build(UMambaEnc).eval(), image(1, 1, 9, 11)
        y = image(1, 1, 9, 11, seed=1)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(y), net(y), rtol=0, atol=1e-5)

    @BOTH
    def test_a_copy_takes_the_released_names(self, cls):
        net, x = build(cls).eval(), image(1, 1, 8, 12)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
        twin.load_state_dict(released(net.state_dict()))
        assert torch.equal(twin(x), net(x))


WRONG = [
    *(("base_channels", value) for value in NOT_COUNTS),
    *(("d_state", value) for value in NOT_COUNTS),
    *(("spatial_dims", value) for value in (1, 4, "2", None)),
    *(("strides", value) for value in (2, (1,), (2, 2), (1, 0), (1, (2, 2, 2)), (1, "2"), "12", [])),
    *(("kernel_size", value) for value in (2, 0, "3", (3, 3), (3, 3, 4), None)),
    *(("scan_backend", value) for value in ("gpu", "", None)),
]


class TestArguments:
    @BOTH
    @pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
    def test_wrong_argument_is_named(self, cls, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be .*got .*\.$"):
            build(cls, **{name: value})

    @BOTH
    @pytest.mark.parametrize("value", [0, True, None, "1"], ids=str)
    def test_wrong_channels_are_named(self, cls, value):
        with pytest.raises(ValueError, match=r"^in_channels must be"):
            cls(value, 2)
        with pytest.raises(ValueError, match=r"^out_channels must be"):
            cls(1, value)

    @pytest.mark.parametrize("roi_size", [(64,), (64, 64, 64), (64, 0), (4, 4), 64, "ab"], ids=str)
    def test_wrong_roi_size_is_named(self, roi_size):
        with pytest.raises(ValueError, match=r"^roi_size must be"):
            UMambaBot(1, 2, roi_size=roi_size)
