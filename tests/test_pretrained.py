# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Loading weights: every accepted kind gives the values of the file, everything else is refused and changes nothing."""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD, build_network
from swinumamba_monai.pretrained import load_pretrained

BOTH = pytest.mark.parametrize("cls", [SwinUMambaD, SwinUMamba], ids=lambda cls: cls.__name__)
ENCODER = "vssm_encoder."


def build(cls=SwinUMambaD, seed=0, **changes):
    torch.manual_seed(seed)
    options = {"in_channels": 1, "out_channels": 3, "depths": (1, 1, 2, 1), "feature_size": 8, "d_state": 4}
    if cls is SwinUMambaD:
        options["decoder_depths"] = (1, 1, 1)
    return cls(**{**options, **changes})


def weights(cls=SwinUMambaD, **changes) -> dict[str, torch.Tensor]:
    """The state dict of another network of the same kind."""
    return build(cls, seed=1, **changes).state_dict()


def as_vmamba(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder's weights under VMamba's names, with the classifier's norm and head."""
    renamed = {}
    for name, weight in state.items():
        if name.startswith(ENCODER):
            first, *rest = name.removeprefix(ENCODER).split(".")
            if first == "downsamples":
                first, rest = "layers", [rest[0], "downsample", *rest[1:]]
            renamed[".".join([first, *rest])] = weight
    extra = {
        "norm.weight": torch.ones(64),
        "norm.bias": torch.ones(64),
        "head.weight": torch.ones(1000, 64),
        "head.bias": torch.ones(1000),
    }
    return {**renamed, **extra}


def assert_holds(net, expected: dict[str, torch.Tensor]):
    state = net.state_dict()
    for name, value in expected.items():
        assert torch.equal(state[name], value.to(state[name].dtype)), name


def saved(path: Path, content, **options) -> Path:
    torch.save(content, path, **options)
    return path


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


def nnunet_checkpoint(state):
    numbers = [np.float64(0.5), np.float32(0.25), np.int64(7), np.int32(3), np.bool_(True), 1.5, None]
    return {
        "network_weights": state,
        "optimizer_state": {
            "state": {0: {"step": torch.tensor(1.0)}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}],
        },
        "grad_scaler_state": {"scale": 65536.0},
        "logging": {"mean_fg_dice": numbers, "lrs": [1e-4]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 250,
        "init_args": {"plans": {"patch_size": [320, 320]}, "fold": "all", "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainerSwinUMambaD",
        "inference_allowed_mirroring_axes": (0, 1),
    }


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


@contextmanager
def refused(net, *expected: str):
    """One sentence of class InputError that says what is ``expected``, and not a bit of the network changed."""
    before = {name: w.clone() for name, w in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert message.endswith(".") and "\n" not in message
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], w) for name, w in before.items())
