# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Both networks as modules: sizes, modes, arguments, and everything torch does with a module."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.data import MetaTensor
from small_umamba import NOT_COUNTS, image

from swinumamba_monai.networks import SwinUMamba, SwinUMambaD

CLASSES = [SwinUMambaD, SwinUMamba]
SCALES = {SwinUMambaD: (1, 4, 8, 16), SwinUMamba: (1, 2, 4, 8)}
BOTH = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
TINY = {
    "in_channels": 1,
    "out_channels": 3,
    "depths": (1, 1, 1, 1),
    "feature_size": 8,
    "d_state": 4,
    "drop_path_rate": 0.0,
    "scan_backend": "portable",
}


def build(cls, seed=0, **changes):
    torch.manual_seed(seed)
    if cls is SwinUMambaD:
        changes = {"decoder_depths": (1, 1, 1), **changes}
    net = cls(**{**TINY, **changes})
    for name, p in net.named_parameters():  # the initial scans are next to linear: louder ones show mistakes
        if name.endswith(("in_proj.weight", "out_proj.weight")):
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return net


def loss_of(heads):
    return sum((head.float() ** 2).mean() for head in heads)


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters()}


def assert_same(actual, expected, tolerance=0.0):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * e.abs().max().item())


class TestPublishedSize:
    """Counts of the paper's configurations; on the meta device, where a network is built without its memory."""

    CONFIGURATIONS = pytest.mark.parametrize(
        "cls, task, in_channels, out_channels, parameters",
        [
            (SwinUMambaD, "AbdomenMRI", 1, 14, 27_497_720),
            (SwinUMambaD, "Endoscopy", 3, 8, 27_496_160),
            (SwinUMambaD, "Microscopy", 3, 3, 27_492_300),
            (SwinUMamba, "AbdomenMRI", 1, 14, 59_889_368),
            (SwinUMamba, "Endoscopy", 3, 8, 59_890_688),
            (SwinUMamba, "Microscopy", 3, 3, 59_887_068),
        ],
    )

    @CONFIGURATIONS
    def test_parameters(self, cls, task, in_channels, out_channels, parameters):
        with torch.device("meta"):
            net = cls(in_channels, out_channels)
        assert sum(p.numel() for p in net.parameters()) == parameters

    @CONFIGURATIONS
    def test_names_and_shapes_are_the_released_ones(
        self, cls, task, in_channels, out_channels, parameters, reference_dir
    ):
        manifest = json.loads((reference_dir / "manifests" / f"{cls.__name__}_{task}.json").read_text())
        with torch.device("meta"):
            net = cls(in_channels, out_channels)
        actual = {name: list(t.shape) for name, t in net.state_dict().items()}
        assert actual == {entry["name"]: entry["shape"] for entry in manifest["entries"]}
        assert manifest["num_params"] == parameters


SIZES = [(1, 1), (1, 7), (5, 3), (31, 33), (32, 32), (64, 96), (37, 101)]


class TestSizes:
    @BOTH
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_every_size(self, cls, size):
        net = build(cls)
        x = image(2, 1, *size)
        heads = net(x)
        assert isinstance(heads, list)
        assert [tuple(head.shape) for head in heads] == [
            (2, 3, math.ceil(size[0] / scale), math.ceil(size[1] / scale)) for scale in SCALES[cls]
        ]
        single = net.eval()(x)
        assert isinstance(single, torch.Tensor)
        assert torch.equal(single, heads[0])  # no dropout is on: the modes differ in the heads alone

    @BOTH
    def test_padding_repeats_the_border(self, cls):
        net = build(cls).eval()
        x = image(1, 1, 37, 40)
        by_hand = torch.cat([x, x[:, :, -1:].expand(-1, -1, 27, -1)], dim=2)
        by_hand = torch.cat([by_hand, by_hand[..., -1:].expand(-1, -1, -1, 24)], dim=3)
        assert torch.equal(net(x), net(by_hand)[:, :, :37, :40])


class TestBatch:
    @BOTH
    def test_elements_are_independent(self, cls):
        net = build(cls).eval()
        x = image(3, 1, 33, 40)
        out = net(x)
        for i in range(3):
            # as the golden numbers' in float32: matrix products of another size are rounded otherwise
            torch.testing.assert_close(net(x[i : i + 1]), out[i : i + 1], rtol=0, atol=4e-5)
        other = x.clone()
        other[1] = 0
        changed = net(other)
        assert torch.equal(changed[::2], out[::2]) and not torch.equal(changed[1], out[1])

    @BOTH
    def test_every_output_sees_every_pixel(self, cls):
        """Four scans of the whole map: the receptive field is the image, in both directions of both axes."""
        net = build(cls).double().eval()
        for row, column in ((0, 0), (63, 63), (0, 63)):
            x = image(1, 1, 64, 64, dtype=torch.float64).requires_grad_()
            net(x)[0, :, row, column].sum().backward()
            assert x.grad.abs().min() > 0


class TestPrecision:
    """Errors are of the root mean square: where eight channels nearly agree, LayerNorm makes single pixels worse."""

    @BOTH
    @pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
    def test_near_float64(self, cls, dtype, tolerance):
        """bfloat16 keeps 8 bits, and about thirty layers each round once: a few per cent."""
        net = build(cls).bfloat16()  # weights and pixels that every dtype holds exactly
        x = image(2, 1, 33, 40, dtype=torch.bfloat16)
        expected = copy.deepcopy(net).double()(x.double())
        heads = net.to(dtype)(x.to(dtype))
        assert {head.dtype for head in heads} == {dtype} and {head.dtype for head in expected} == {torch.float64}
        for head, want in zip(heads, expected):
            assert (head - want).norm() <= tolerance * want.norm()
        loss_of(heads).backward()
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients(net).values())

    @BOTH
    def test_autocast(self, cls):
        net = build(cls)
        exact = copy.deepcopy(net).double()
        x = image(2, 1, 33, 40)
        expected = exact(x.double())
        loss_of(expected).backward()
        with torch.autocast("cpu", torch.bfloat16):
            heads = net(x)
        loss_of(heads).backward()
        for head, want in zip(heads, expected):
            assert (head - want).norm() <= 0.1 * want.norm()
        actual, want = (torch.cat([g.double().flatten() for g in gradients(n).values()]) for n in (net, exact))
        assert actual.isfinite().all()
        assert F.cosine_similarity(actual, want, dim=0) > 0.95  # a rounded LeakyReLU input may change its sign


class TestModule:
    @BOTH
    def test_channels_last(self, cls):
        net, x = build(cls).eval(), image(2, 1, 33, 40)
        expected = net(x)
        actual = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)

    @BOTH
    def test_gradient_checkpointing(self, cls):
        """The same numbers with blocks recomputed, also where drop path draws at random."""
        nets = [build(cls, use_checkpoint=flag, drop_path_rate=0.5) for flag in (False, True)]
        x = image(3, 1, 33, 40)
        kept, results = [], []
        for net in nets:
            torch.manual_seed(3)
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
                heads = net(x)
            loss_of(heads).backward()
            results.append([*heads, *gradients(net).values()])
            kept.append(sum(sizes))
        assert_same(results[1], results[0])
        assert kept[1] < kept[0]

    @BOTH
    @pytest.mark.parametrize("backend", ["portable", "auto"])
    def test_monai_tensors(self, cls, backend):
        """MONAI's data loaders hand over images that carry metadata, and so do the tensors that reach the scan."""
        net, x = build(cls, scan_backend=backend), image(2, 1, 33, 40)
        plain = net(x)
        loss_of(plain).backward()
        expected = [*plain, *(g.clone() for g in gradients(net).values())]
        net.zero_grad()
        heads = net(MetaTensor(x))
        loss_of(heads).backward()
        assert_same([h.as_tensor() for h in heads] + list(gradients(net).values()), expected)


class TestDropPath:
    def test_rates_rise_through_the_encoder_and_fall_through_the_decoder(self):
        with torch.device("meta"):
            net = SwinUMambaD(1, 2)
        encoder = [block.drop_path.drop_prob for stage in net.vssm_encoder.layers for block in stage.blocks]
        decoder = [block.drop_path.drop_prob for stage in net.decoder.stages for block in stage.blocks]
        assert encoder == pytest.approx([0.2 * i / 14 for i in range(15)])
        assert decoder == pytest.approx([0.2 * i / 5 for i in (5, 4, 3, 2, 1, 0)])

    @BOTH
    def test_only_in_training(self, cls):
        net, x = build(cls, drop_path_rate=0.9), image(4, 1, 33, 40)
        heads = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            heads.append(net(x)[0])
        assert not torch.equal(*heads)
        net.eval()
        expected = build(cls, drop_path_rate=0.0).eval()(x)
        assert torch.equal(net(x), net(x)) and torch.equal(net(x), expected)


WRONG = [
    *(("in_channels", value) for value in NOT_COUNTS),
    *(("out_channels", value) for value in NOT_COUNTS),
    *(("d_state", value) for value in NOT_COUNTS),
    *(("feature_size", value) for value in (*NOT_COUNTS, 9)),
    *(("spatial_dims", value) for value in (1, 3, "2d")),
    *(("depths", value) for value in (4, (1, 1, 1), (1, 1, 1, 1, 1), (1, 1, 0, 1), (1, 1, 1.5, 1), "1111", None)),
    *(("drop_path_rate", value) for value in (-0.1, 1.0, 2, "0.2", None, math.nan)),
    *(("scan_backend", value) for value in ("gpu", "", None, [])),
    *(("norm_name", value) for value in ("nope", None, 1, [], ("group", {"num_groups": 3}))),
]


class TestArguments:
    @BOTH
    @pytest.mark.parametrize("name, value", WRONG, ids=str)
    def test_wrong_argument_is_named(self, cls, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be .*got .*\.$"):
            build(cls, **{name: value})

    @pytest.mark.parametrize("value", [3, (1, 1), (1, 1, 1, 1), (1, 0, 1), None], ids=str)
    def test_wrong_decoder_depths_are_named(self, value):
        with pytest.raises(ValueError, match=r"^decoder_depths must be three positive integers"):
            build(SwinUMambaD, decoder_depths=value)

    @BOTH
    def test_lists_from_json(self, cls):
        assert build(cls, depths=[1, 1, 2, 1])(image(1, 1, 8, 8))[0].shape == (1, 3, 8, 8)

    @pytest.mark.parametrize(
        "cls, norm_name, kind",
        [
            (SwinUMambaD, "rms", nn.RMSNorm),
            (SwinUMamba, "batch", nn.BatchNorm2d),
            (SwinUMamba, ("group", {"num_groups": 2}), nn.GroupNorm),
        ],
        ids=str,
    )
    def test_other_norms(self, cls, norm_name, kind):
        net = build(cls, norm_name=norm_name)
        assert any(isinstance(m, kind) for m in net.modules())
        assert net(image(2, 1, 33, 40))[0].shape == (2, 3, 33, 40)
