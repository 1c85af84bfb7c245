# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's networks in the paper's configurations: their size, nnU-Net's plan, and images of any size."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet

from swinumamba_monai.networks import UNETR, NNUNet, SegResNet, SwinUNETR
from swinumamba_monai.nnunet_pooling import pad_for_pooling


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestPooling:
    @pytest.mark.parametrize(
        ("size", "padded", "poolings"),
        [
            ((320, 320), (320, 320), (6, 6)),
            ((384, 640), (384, 640), (6, 6)),
            ((512, 512), (512, 512), (7, 7)),
            ((8, 8), (8, 8), (1, 1)),
            ((7, 7), (7, 7), (0, 0)),
            ((100, 37), (112, 40), (4, 3)),  # the long axis goes on alone while it has 12 pixels: 100, 50, 25, 13, 7
        ],
    )
    def test_rule(self, size, padded, poolings):
        got = pad_for_pooling(size)
        assert (tuple(got[0]), tuple(got[1])) == (padded, poolings)

    def test_long_pixels_are_not_pooled(self):
        assert tuple(pad_for_pooling((64, 64), (1.0, 5.0))[1]) == (4, 3)


class TestNNUNet:
    @pytest.mark.parametrize(
        ("in_channels", "out_channels", "roi_size", "stages", "monai", "with_biases"),
        [
            (1, 14, (320, 320), 7, 33.4814, 33.4899),
            (3, 8, (384, 640), 7, 33.4729, 33.4815),
            (3, 3, (512, 512), 8, 46.3161, 46.3272),
        ],
    )
    def test_parameters(self, in_channels, out_channels, roi_size, stages, monai, with_biases):
        """Both counts of facts.md, in millions, to the last digit that it gives."""
        for conv_bias, millions in ((False, monai), (True, with_biases)):
            with torch.device("meta"):
                network = NNUNet(in_channels, out_channels, roi_size, conv_bias=conv_bias)
            assert len(network.strides) == stages
            assert round(count(network) / 1e6, 4) == millions

    @pytest.mark.parametrize("conv_bias", [False, True])
    def test_equals_monai(self, conv_bias):
        """The finest logits are DynUNet's; biases that start at 0 change nothing."""
        ours = NNUNet(1, 3, (32, 128), base_channels=4, conv_bias=conv_bias).eval()
        theirs = DynUNet(
            2, 1, 3, [3] * 5, [1, 2, 2, 2, (1, 2)], [2, 2, 2, (1, 2)], [4, 8, 16, 32, 64], deep_supervision=True,
            deep_supr_num=3,
        ).eval()  # fmt: skip
        weights = {name: value for name, value in theirs.state_dict().items() if not name.startswith("skip_layers.")}
        loaded = ours.load_state_dict(weights, strict=False)
        assert not loaded.unexpected_keys
        assert all(name.endswith(".bias") for name in loaded.missing_keys) and bool(loaded.missing_keys) == conv_bias
        x = torch.randn(2, 1, 32, 128)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)
        heads, stacked = ours.train()(x), theirs.train()(x)
        for head, raised in zip(heads, stacked.unbind(1), strict=True):
            torch.testing.assert_close(
                torch.nn.functional.interpolate(head, (32, 128)), raised, rtol=0, atol=1e-5
            )  # float32 sums, some twenty layers

    def test_heads_keep_their_resolutions(self):
        heads = NNUNet(1, 3, (64, 64), base_channels=4)(torch.randn(1, 1, 50, 37))
        assert [tuple(head.shape[2:]) for head in heads] == [(50, 37), (25, 19), (13, 10), (7, 5)]

    def test_an_axis_is_pooled_as_often_as_planned(self):
        network = NNUNet(1, 3, (32, 256), base_channels=2)
        assert network.step == [8, 32] and len(network.strides) == 6
        assert network.eval()(torch.randn(1, 1, 32, 256)).shape == (1, 3, 32, 256)

    def test_too_small(self):
        with pytest.raises(ValueError, match=r"^roi_size must have a side of at least 16 pixels .*\(8, 12\)\.$"):
            NNUNet(1, 3, (8, 12))


class TestMONAI:
    @pytest.mark.parametrize(
        ("in_channels", "out_channels", "roi_size", "unetr", "segresnet", "swinunetr"),
        [
            (1, 14, (320, 320), 87.4446, 6.2989, 25.1386),
            (3, 8, (384, 640), 88.2681, 6.2993, 25.1396),
            (3, 3, (512, 512), 88.3172, 6.2991, 25.1394),
        ],
    )
    def test_parameters(self, in_channels, out_channels, roi_size, unetr, segresnet, swinunetr):
        with torch.device("meta"):
            counts = count(UNETR(in_channels, out_channels, roi_size)), count(SegResNet(in_channels, out_channels))
        counts += (count(SwinUNETR(in_channels, out_channels)),)  # MONAI reads numbers from its tensors
        assert [round(n / 1e6, 4) for n in counts] == [unetr, segresnet, swinunetr]

    def test_unetr_says_what_it_cannot(self):
        with pytest.raises(ValueError, match=r"^roi_size must consist of multiples of 16 for UNETR, got \(32, 40\)\.$"):
            UNETR(1, 3, (32, 40))
        network = UNETR(1, 3, (32, 48), hidden_size=24, mlp_dim=24, num_heads=2, feature_size=4)
        with pytest.raises(ValueError, match="images up to 32×48, got 33×48; use a sliding window"):
            network(torch.zeros(1, 1, 33, 48))
