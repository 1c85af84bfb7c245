# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The VMamba classifier: the published checkpoint's names, and the encoder's features."""

from __future__ import annotations

import json

import pytest
import torch
from small_umamba import image

from swinumamba_monai.networks import SwinUMambaD, VMambaClassifier
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.weight_files import read_checkpoint

TINY = {"depths": (1, 1, 1, 1), "feature_size": 8, "d_state": 4, "drop_path_rate": 0.0, "scan_backend": "portable"}


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return VMambaClassifier(**{"num_classes": 5, **TINY, **changes})


def test_names_and_shapes_of_the_published_checkpoint(reference_dir):
    manifest = json.loads((reference_dir / "manifests" / "vmamba_tiny_v0_ckpt_model.json").read_text())
    with torch.device("meta"):
        net = VMambaClassifier()
    own = {name: list(w.shape) for name, w in net.state_dict().items()}
    assert own == {entry["name"]: list(entry["shape"]) for entry in manifest["entries"]}
    assert len(own) == 212
    assert sum(p.numel() for p in net.parameters()) == 22_893_448


def test_a_checkpoint_loads_whole(tmp_path):
    one, two, x = build(), build(seed=1), image(1, 3, 32, 64)
    torch.save({"model": one.state_dict()}, tmp_path / "vmamba.pth")
    two.load_state_dict(read_checkpoint(tmp_path / "vmamba.pth")["model"], strict=True)
    with torch.no_grad():
        assert torch.equal(one.eval()(x), two.eval()(x))


def test_features_are_those_of_the_encoder(tmp_path):
    classifier, x = build().eval(), image(1, 3, 32, 64)
    torch.save({"model": classifier.state_dict()}, tmp_path / "vmamba.pth")
    net = SwinUMambaD(3, 2, decoder_depths=(1, 1, 1), **TINY).eval()
    report = load_pretrained(net, tmp_path / "vmamba.pth")
    assert report.kind == "VMamba checkpoint" and len(report.skipped) == 8
    encoder = net.vssm_encoder
    encoder.patch_embed.load_state_dict(classifier.patch_embed.state_dict())  # left out on purpose (section III-C)
    with torch.no_grad():
        actual, expected = classifier.features(x), encoder(x)
        assert len(actual) == len(expected) == 4
        assert all(torch.equal(a, e) for a, e in zip(actual, expected))


@pytest.mark.parametrize("size", [(50, 37), (33, 64), (1, 1)], ids=str)
def test_the_encoder_alone_takes_any_size(size):
    """Its maps are those that it makes within a network, which continues the image before."""
    net = SwinUMambaD(1, 2, decoder_depths=(1, 1, 1), **TINY).eval()
    x, within = image(1, 1, *size), []
    handle = net.vssm_encoder.register_forward_hook(lambda module, inputs, maps: within.extend(maps))
    with torch.no_grad():
        net(x)
        handle.remove()
        alone = net.vssm_encoder(x)
    assert [m.shape[1] * side for m, side in zip(alone, (4, 8, 16, 32))] == [-(-size[0] // 32) * 32] * 4
    assert len(alone) == len(within) == 4 and all(torch.equal(a, w) for a, w in zip(alone, within))


def test_every_parameter_gets_a_gradient():
    net = build()
    logits = net(image(2, 3, 64, 32))
    assert logits.shape == (2, 5)
    (logits**2).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_trace():
    net, x = build().eval(), image(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(net, x)(2 * x), net(2 * x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{"in_channels": 0}, {"num_classes": 1.5}], ids=["in_channels", "num_classes"])
def test_wrong_argument(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(**changes)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 33, 32), (3, 32, 32), (1, 3, 0, 32)])
def test_wrong_input(shape):
    with pytest.raises(ValueError, match="expected an input of shape"):
        build()(torch.zeros(shape))
