# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of whole networks and encoders: every accepted kind gives the values of the file."""

from __future__ import annotations

import json
import logging
import zipfile

import pytest
import safetensors.torch
import torch
from small_weights import BOTH, ENCODER, as_vmamba, assert_holds, build, nnunet_checkpoint, refused, saved, weights

from swinumamba_monai.networks import SwinUMamba
from swinumamba_monai.pretrained import load_pretrained


class TestWholeNetworks:
    @BOTH
    @pytest.mark.parametrize("wrap", [None, "model", "network_weights", "state_dict"])
    @pytest.mark.parametrize("as_file", [False, True])
    def test_containers(self, cls, wrap, as_file, tmp_path):
        net, expected = build(cls), weights(cls)
        content = {wrap: expected, "epoch": 3} if wrap else expected
        report = load_pretrained(net, saved(tmp_path / "model.pt", content) if as_file else content)
        assert_holds(net, expected)
        assert report.kind == "Swin-UMamba checkpoint"
        assert set(report.loaded) == set(expected) and report.skipped == {} and report.missing == ()
        assert str(report) == f"Swin-UMamba checkpoint: {len(expected)} tensors loaded, 0 skipped, 0 left as they were"

    @BOTH
    @pytest.mark.parametrize("as_string", [False, True])
    def test_safetensors(self, cls, as_string, tmp_path):
        net, expected, path = build(cls), weights(cls), tmp_path / "model.safetensors"
        safetensors.torch.save_file(expected, path)
        load_pretrained(net, str(path) if as_string else path)
        assert_holds(net, expected)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefixes_of_ddp_and_compile(self, prefix):
        net, expected = build(), weights()
        load_pretrained(net, {"network_weights": {prefix + name: w for name, w in expected.items()}})
        assert_holds(net, expected)

    @pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
    def test_file_of_nnunet(self, options, tmp_path):
        """What nnU-Net's trainer writes: a log of numpy numbers, plans, a device, an optimiser state."""
        net, expected = build(), weights()
        path = saved(tmp_path / "checkpoint_best.pth", nnunet_checkpoint(expected), **options)
        assert load_pretrained(net, path).kind == "Swin-UMamba checkpoint"
        assert_holds(net, expected)

    @pytest.mark.parametrize("numpy_name", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
    def test_file_of_either_numpy(self, numpy_name, tmp_path):
        """NumPy 2 renamed the function that its pickled numbers name; the released checkpoints are of NumPy 1."""
        net, expected = build(), weights()
        path = saved(tmp_path / "model.pth", nnunet_checkpoint(expected))
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                if name.endswith("data.pkl"):
                    old = b"numpy._core.multiarray" if b"numpy._core.multiarray" in data else b"numpy.core.multiarray"
                    assert old in data
                    data = data.replace(old, numpy_name)
                archive.writestr(name, data)
        load_pretrained(net, path)
        assert_holds(net, expected)

    def test_half_precision(self):
        net, expected = build(), {name: w.bfloat16() for name, w in weights().items()}
        load_pretrained(net, expected)
        assert_holds(net, expected)
        assert {p.dtype for p in net.parameters()} == {torch.float32}

    def test_parameters_with_gradients(self):
        """A dict of parameters is not tied to the network afterwards."""
        net, other = build(), build(seed=1)
        load_pretrained(net, dict(other.named_parameters()))
        expected = {name: p.detach().clone() for name, p in other.named_parameters()}
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        assert_holds(net, expected)
        assert all(p.requires_grad and p.grad_fn is None for p in net.parameters())

    def test_the_report_is_logged_with_the_file(self, tmp_path, caplog):
        path = saved(tmp_path / "model.pt", weights())
        with caplog.at_level(logging.INFO, "swinumamba_monai.pretrained"):
            report = load_pretrained(build(), path)
        assert [record.getMessage() for record in caplog.records] == [f"{path}: {report}"]


class TestEncoders:
    @BOTH
    def test_encoder_of_our_pretraining(self, cls):
        net = build(cls)
        before = {name: w.clone() for name, w in net.state_dict().items()}
        expected = {name: w for name, w in weights(cls).items() if name.startswith(ENCODER)}
        report = load_pretrained(net, {"model": {**expected, "head.weight": torch.zeros(3)}})
        assert report.kind == "pretrained encoder"
        assert set(report.loaded) == set(expected)
        assert report.skipped == {"head.weight": "of the pretraining alone"}
        assert set(report.missing) == set(before) - set(expected)
        assert_holds(net, {**before, **expected})

    @BOTH
    @pytest.mark.parametrize("wrap", [True, False])
    def test_vmamba(self, cls, wrap):
        net = build(cls)
        before = {name: w.clone() for name, w in net.state_dict().items()}
        state = weights(cls)
        content = {"model": as_vmamba(state)} if wrap else as_vmamba(state)
        report = load_pretrained(net, content)
        expected = {n: w for n, w in state.items() if n.startswith(ENCODER) and "patch_embed" not in n}
        assert len(expected) == 5 * 13 + 3 * 3  # blocks and patch mergings
        assert report.kind == "VMamba checkpoint"
        assert set(report.loaded) == set(expected)
        assert set(report.missing) == set(before) - set(expected)
        assert {name: reason for name, reason in report.skipped.items() if "patch_embed" not in name} == {
            name: "classification head" for name in ("norm.weight", "norm.bias", "head.weight", "head.bias")
        }
        assert sum("patch embedding" in reason for reason in report.skipped.values()) == 4
        assert_holds(net, {**before, **expected})

    def test_vmamba_with_blocks_to_spare(self):
        """A network with fewer blocks takes the first ones, and the report says so."""
        net, state = build(depths=(1, 1, 1, 1)), weights()
        report = load_pretrained(net, as_vmamba(state))
        spare = {name for name, reason in report.skipped.items() if reason == "the network has no such block"}
        assert len(spare) == 13 and all(name.startswith("layers.2.blocks.1.") for name in spare)

    @BOTH
    def test_vmamba_tiny_in_full_size(self, cls, reference_dir):
        """The names and shapes of the published ImageNet checkpoint, each tensor with a value of its own."""
        manifest = json.loads((reference_dir / "manifests" / "vmamba_tiny_v0_ckpt_model.json").read_text())
        content = {e["name"]: torch.full(e["shape"], 1e-3 * i) for i, e in enumerate(manifest["entries"])}
        with torch.device("meta"):
            net = cls(in_channels=1, out_channels=14)
        report = load_pretrained(net.to_empty(device="cpu"), {"model": content})
        assert len(content) == 212 and len(report.loaded) == 204 and len(report.skipped) == 8
        encoder = {name for name, _ in net.named_parameters() if name.startswith(ENCODER) and "patch_embed" not in name}
        assert set(report.loaded) == encoder
        state = net.state_dict()
        pairs = {
            "layers.0.blocks.0.ln_1.weight": "layers.0.blocks.0.ln_1.weight",
            "layers.2.blocks.8.self_attention.A_logs": "layers.2.blocks.8.self_attention.A_logs",
            "layers.0.downsample.reduction.weight": "downsamples.0.reduction.weight",
            "layers.2.downsample.norm.bias": "downsamples.2.norm.bias",
        }
        for theirs, ours in pairs.items():
            assert torch.equal(state[ENCODER + ours], content[theirs])

    @pytest.mark.parametrize("kind", ["VMamba checkpoint", "pretrained encoder"])
    def test_strict_wants_a_whole_network(self, kind):
        state = weights()
        encoder = {name: w for name, w in state.items() if name.startswith(ENCODER)}
        net = build()
        with refused(net, f"is a {kind}"):
            load_pretrained(net, as_vmamba(state) if kind.startswith("V") else encoder, strict=True)
        assert load_pretrained(net, state, strict=True).missing == ()


class TestPretrainedDecoder:
    @pytest.mark.parametrize("kind", ["VMamba checkpoint", "pretrained encoder"])
    def test_stages_with_the_same_channels(self, kind):
        """The decoder's stages come coarsest first; of the encoder's third stage, with two blocks, one fits."""
        net, state = build(), weights()
        before = {name: w.clone() for name, w in net.state_dict().items()}
        encoder = {name: w for name, w in state.items() if name.startswith(ENCODER)}
        report = load_pretrained(net, as_vmamba(state) if kind.startswith("V") else encoder, decoder=True)
        copies = {
            name.replace(f"{ENCODER}layers.{stage}.blocks.0.", f"decoder.stages.{2 - stage}.blocks.0."): weight
            for stage in range(3)
            for name, weight in encoder.items()
            if name.startswith(f"{ENCODER}layers.{stage}.blocks.0.")
        }
        assert len(copies) == 3 * 13
        assert {name for name in report.loaded if name.startswith("decoder.")} == copies.keys()
        assert f"{kind}, for the decoder too: " in str(report)
        assert_holds(net, copies)
        rest = {n: w for n, w in before.items() if n.startswith("decoder.") and n not in copies}
        assert rest.keys() == {name for name in report.missing if name.startswith("decoder.")}
        assert_holds(net, rest)

    def test_a_deeper_decoder_takes_more(self):
        net, state = build(decoder_depths=(2, 1, 1)), weights()
        load_pretrained(net, as_vmamba(state), decoder=True)
        name = "layers.2.blocks.1.self_attention.A_logs"
        assert_holds(net, {f"decoder.stages.0.blocks.1.{name.split('.', 4)[4]}": state[ENCODER + name]})

    def test_refused(self):
        net = build()
        with refused(net, "decoder cannot be pretrained", "which has a decoder of its own"):
            load_pretrained(net, weights(), decoder=True)
        with refused(net, "a pretrained decoder needs a file"):
            load_pretrained(net, None, decoder=True)
        other = build(SwinUMamba)
        with refused(other, "the network has no such decoder"):
            load_pretrained(other, as_vmamba(weights(SwinUMamba)), decoder=True)
