# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of other networks and tools: what fits is taken and the rest is reported."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import safetensors.torch
import torch
from small_weights import BOTH, as_vmamba, assert_holds, build, refused, saved, weights
from torch import nn

from swinumamba_monai.networks import build_network
from swinumamba_monai.pretrained import load_pretrained


class TestTransfer:
    """A network for other classes and channels gives what fits, and the report lists what stays as it was."""

    @BOTH
    @pytest.mark.parametrize(
        "change", [{"out_channels": 4}, {"in_channels": 3}, {"in_channels": 3, "out_channels": 7}], ids=str
    )
    def test_what_fits_is_taken(self, cls, change):
        net = build(cls)
        before = {name: w.clone() for name, w in net.state_dict().items()}
        state = weights(cls, **change)
        report = load_pretrained(net, state)
        other = {name for name, w in state.items() if w.shape != before[name].shape}
        assert other and report.skipped.keys() == other == set(report.missing)
        reasons = {"in_channels": "takes images of another number of channels"}
        reasons["out_channels"] = "a head for another number of classes"
        assert set(report.skipped.values()) == {reasons[name] for name in change}
        assert_holds(net, {**state, **{name: before[name] for name in other}})

    def test_the_other_systems(self):
        for name in ("nnUNet", "SegResNet", "UMambaBot"):
            make = {"in_channels": 1, "roi_size": (32, 32)}
            net = build_network(name, out_channels=3, **make)
            state = build_network(name, out_channels=5, **make).state_dict()
            report = load_pretrained(net, state)
            assert report.loaded and report.skipped and len(report.skipped) < 0.2 * len(state)
            assert_holds(net, {n: state[n] for n in report.loaded})

    @pytest.mark.parametrize("wrapper", ["model_state_dict", "net", "network", "model_ema", "ema", "state_dict"])
    @pytest.mark.parametrize("prefix", ["model.", "net.", "network.", "ema_model.module.", "model._orig_mod."])
    def test_what_other_tools_put_around(self, wrapper, prefix):
        state = weights()
        content = {prefix + name: w for name, w in state.items()}
        content |= {"n_averaged": torch.tensor(3), f"{prefix}decoder.total_ops": torch.zeros(1), "total_params": 7}
        net = build()
        report = load_pretrained(net, {wrapper: content, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, strict=True)
        assert report.missing == () and report.skipped == {}
        assert_holds(net, state)

    def test_two_networks_under_one_name(self):
        state = weights()
        with refused(net := build(), "several networks under one name"):
            load_pretrained(net, {**state, **{f"ema.{name}": w for name, w in state.items()}})

    @pytest.mark.parametrize("prefix", ["backbone.", "student.net.", "self.net.", "segmentor."])
    @pytest.mark.parametrize("wrapper", ["params", "weights", "module", "generator"])
    def test_a_part_of_a_larger_model(self, prefix, wrapper):
        """Whatever it is called there; what else the model has is listed."""
        state = weights()
        content = {prefix + name: w for name, w in state.items()} | {"aux.0.weight": torch.ones(3)}
        net = build()
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        report = load_pretrained(net, {wrapper: content, "optimizer": optimizer}, strict=True)
        assert report.missing == () and report.skipped == {"aux.0.weight": "not of the network"}
        assert_holds(net, state)

    def test_the_encoder_of_vmamba_in_another_segmenter(self):
        """As mmsegmentation saves it, with its own decoder."""
        vmamba = as_vmamba(weights())
        content = {f"backbone.{name}": w for name, w in vmamba.items()} | {"decode_head.conv.weight": torch.ones(3)}
        net, same = build(), build()
        report = load_pretrained(net, {"meta": {"epoch": 3}, "state_dict": content})
        load_pretrained(same, {"model": vmamba})
        assert report.kind == "VMamba checkpoint" and "decode_head.conv.weight" in report.skipped
        assert_holds(net, same.state_dict())

    def test_the_weights_of_a_loss_beside_the_network(self):
        """Lightning keeps those of the whole module."""
        state = weights()
        content = {f"net.{name}": w for name, w in state.items()} | {"criterion.weight": torch.ones(3)}
        net = build()
        report = load_pretrained(net, {"state_dict": content, "pytorch-lightning_version": "2.4.0"}, strict=True)
        assert report.skipped == {"criterion.weight": "not of the network"}
        assert_holds(net, state)
        with refused(net, "the network has no vssm_encoder.lora"):
            load_pretrained(net, {**state, "vssm_encoder.lora": torch.ones(3)})

    def test_several_networks(self):
        state = weights()
        for content in (
            {"params": state, "params_ema": state},
            {f"{name}.{key}": w for name in ("student", "teacher") for key, w in state.items()},
        ):
            with refused(net := build(), "holds several networks (", "save the one that is wanted alone"):
                load_pretrained(net, content)

    def test_an_average_beside_the_network_is_named(self, caplog):
        """As timm and VMamba save it: the network itself is taken, and the log says that there was a choice."""
        state = weights()
        average = {name: torch.zeros_like(w) for name, w in state.items()}
        net = build()
        load_pretrained(net, {"state_dict": state, "state_dict_ema": average, "optimizer": {"state": {}}})
        assert_holds(net, state)
        assert "the state dict holds several networks (state_dict, state_dict_ema): state_dict is taken" in caplog.text

    def test_vmamba_of_another_version(self):
        state = {"layers.0.blocks.0.op.A_logs": torch.zeros(3, 1), "classifier.head.weight": torch.zeros(3, 3)}
        with refused(net := build(), "a VMamba checkpoint of another version"):
            load_pretrained(net, {"model": state})

    def test_files_under_another_name(self, tmp_path):
        net = build()
        state = {name: w.contiguous() for name, w in weights().items()}
        safetensors.torch.save_file(state, tmp_path / "model.pt")
        torch.save(state, tmp_path / "model.safetensors")
        safetensors.torch.save_file(state, tmp_path / "model-00001-of-00002.safetensors")
        (tmp_path / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        (tmp_path / "page.pt").write_bytes(b"\n<!DOCTYPE html><html><body>404</body></html>")
        (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
        (tmp_path / "model.pt.gz").write_bytes(gzip.compress((tmp_path / "model.safetensors").read_bytes()))
        np.savez(tmp_path / "arrays.npz", **{name: w.numpy() for name, w in state.items()})
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)), tmp_path / "script.pt")
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001.safetensors"}}')
        for name, words in (
            ("model.pt", "is a safetensors file; rename it to end in .safetensors"),
            ("model.safetensors", "is a torch file; rename it to end in .pt"),
            ("model.safetensors.index.json", "a list, perhaps of the parts"),
            ("model-00001-of-00002.safetensors", "a part of a checkpoint in several files"),
            ("lfs.safetensors", "a pointer of Git LFS"),
            ("page.pt", "a web page"),
            ("keras.h5", "an HDF5 file"),
            ("model.pt.gz", "compressed; unpack it"),
            ("arrays.npz", "an archive of other files"),
            ("script.pt", "TorchScript; save the state_dict()"),
        ):
            with refused(net, words):
                load_pretrained(net, tmp_path / name)


class TestOfOtherSystems:
    def test_whole_or_not_at_all(self, tmp_path):
        """A network without VMamba's encoder takes its own weights, under the same rules."""
        net, other = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        report = load_pretrained(net, saved(tmp_path / "net.pt", other.state_dict()), strict=True)
        assert report.kind == "whole network" and report.missing == ()
        assert_holds(net, other.state_dict())
        with refused(net, "lacks bias"):
            load_pretrained(net, {"weight": torch.zeros(2, 1, 3, 3)})
        with refused(net, "weight is (2, 1, 5, 5)"):
            load_pretrained(net, nn.Conv2d(1, 2, 5).state_dict())
        with refused(net, "is not of this network"):
            load_pretrained(net, as_vmamba(weights()))
