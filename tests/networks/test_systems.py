# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every system by its name, at toy size: shapes, any image, gradients, wrong arguments, a state dict there and back."""

from __future__ import annotations

import pytest
import torch

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SYSTEMS, build_network

ROI = (64, 64)
TOY = {
    "nnUNet": {"base_channels": 4},
    "SegResNet": {"init_filters": 8},
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12},
    "SwinUMamba": {"feature_size": 8, "depths": (1, 1, 1, 1), "d_state": 4},
    "SwinUMambaD": {"feature_size": 8, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "d_state": 4},
    "UMambaBot": {"base_channels": 4},
    "UMambaEnc": {"base_channels": 4},
    "NNFormer": {"feature_size": 8, "num_heads": (1, 1, 1, 1)},
}
EVERY = pytest.mark.parametrize("name", SYSTEMS)


def build(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, in_channels=2, out_channels=3, roi_size=ROI, **{**TOY[name], **options})


@EVERY
def test_shapes_and_gradients(name):
    network = build(name, deep_supervision=True)
    output = network(torch.randn(2, 2, *ROI))
    assert isinstance(output, list) == SYSTEMS[name].deep_supervision
    heads = output if SYSTEMS[name].deep_supervision else [output]
    assert heads[0].shape == (2, 3, *ROI)
    sizes = [head.shape[2] for head in heads]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes), "finest first"
    sum(head.square().mean() for head in heads).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    idle = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert all("norm_cross_attn" in n for n in idle), idle  # MONAI's UNETR builds them and never calls them


@EVERY
def test_one_output_without_deep_supervision(name):
    network = build(name)
    assert network.train()(torch.randn(2, 2, *ROI)).shape == (2, 3, *ROI)


@EVERY
@pytest.mark.parametrize("size", [(64, 64), (50, 37)], ids=str)
def test_image_of_any_size(name, size):
    network = build(name, deep_supervision=True).eval()
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (1, 3, *size)


@EVERY
def test_state_dict_there_and_back(name):
    network, other = build(name, deep_supervision=True).eval(), build(name).eval()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(network.state_dict())  # the heads of deep supervision are there either way
    x = torch.randn(1, 2, *ROI)
    with torch.no_grad():
        assert torch.equal(network(x), other(x))


@EVERY
def test_wrong_input(name):
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\)"):
        build(name).eval()(torch.zeros(1, 1, *ROI))


def test_wrong_name():
    with pytest.raises(ValueError, match=r"^network_name must be one of nnUNet, .*, got 'UNet'\.$"):
        build_network("UNet", in_channels=1, out_channels=2, roi_size=ROI)
    with pytest.raises(ValueError, match="a switch must be True or False, got 'no'"):
        build_network("nnUNet", in_channels=1, out_channels=2, roi_size=ROI, deep_supervision="no")


@pytest.mark.parametrize("switch", [True, "True", "true", False, "False", "false"])
def test_deep_supervision_as_text(switch):
    """As the command line hands it over."""
    output = build("nnUNet", deep_supervision=switch).train()(torch.randn(2, 2, *ROI))
    assert isinstance(output, list) == (str(switch).lower() == "true")


@pytest.mark.parametrize("roi_size", [(64,), (64, 0), (64, 64, 64), (64, 2.5)], ids=str)
def test_wrong_roi_size(roi_size):
    with pytest.raises(ValueError, match="roi_size must be two positive integers"):
        build_network("SegResNet", in_channels=1, out_channels=2, roi_size=roi_size)


def test_a_script_is_refused_with_the_command_and_a_trace_is_not():
    net = build_network("SwinUMambaD", in_channels=1, out_channels=2, roi_size=(32, 32), depths=(1, 1, 1, 1))
    with pytest.raises(InputError, match=r'--use_trace True --input_shape "\[1,1,64,64\]" to ckpt_export'):
        torch.jit.script(net)
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(torch.jit.trace(net.eval(), image)(image), net(image))
