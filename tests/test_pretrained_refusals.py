# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of other networks and damaged files are refused with one sentence, and nothing in a file is run."""

from __future__ import annotations

import argparse
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from small_weights import BOTH, ENCODER, as_vmamba, assert_holds, build, nnunet_checkpoint, refused, saved, weights

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.weight_files import read_checkpoint


class TestOtherNetworksAreRefused:
    @BOTH
    @pytest.mark.parametrize(
        "change, expected",
        [
            ({"out_channels": 4}, "check in_channels, out_channels"),
            ({"in_channels": 3}, "check in_channels, out_channels"),
            ({"in_channels": 3, "out_channels": 4}, "check in_channels, out_channels"),
            ({"feature_size": 16}, "check in_channels, out_channels"),
            ({"d_state": 8}, "check in_channels, out_channels"),
            ({"depths": (1, 1, 3, 1)}, "the network has no vssm_encoder.layers.2.blocks.2"),
            ({"depths": (1, 1, 1, 1)}, "lacks vssm_encoder.layers.2.blocks.1"),
        ],
        ids=str,
    )
    def test_other_arguments(self, cls, change, expected, tmp_path):
        net = build(cls)
        path = saved(tmp_path / "other.pt", {"network_weights": weights(cls, **change)})
        with refused(net, str(path), expected):
            load_pretrained(net, path, strict=True)
        if not {"in_channels", "out_channels"} & change.keys():
            with refused(net, str(path), expected):
                load_pretrained(net, path)

    def test_the_other_class(self):
        with refused(net := build(SwinUMambaD), "is not of this network: the network has no stem.0.weight"):
            load_pretrained(net, weights(SwinUMamba))
        with refused(net := build(SwinUMamba), "is not of this network: the network has no decoder."):
            load_pretrained(net, weights(SwinUMambaD))

    def test_one_tensor_missing(self):
        state = weights()
        del state["decoder.seg_layers.0.bias"]
        with refused(net := build(), "lacks decoder.seg_layers.0.bias"):
            load_pretrained(net, state)

    @pytest.mark.parametrize(
        "change, expected", [({"depths": (1, 1, 3, 1)}, "lacks"), ({"feature_size": 16}, "does not fit")], ids=str
    )
    def test_vmamba_of_another_size(self, change, expected):
        with refused(net := build(**change), expected):
            load_pretrained(net, as_vmamba(weights()))

    def test_encoder_for_other_channels(self):
        encoder = {name: w for name, w in weights(in_channels=3).items() if name.startswith(ENCODER)}
        report = load_pretrained(net := build(), encoder)
        assert report.skipped == {"vssm_encoder.patch_embed.proj.weight": "takes images of another number of channels"}
        assert_holds(net, {name: w for name, w in encoder.items() if name not in report.skipped})

    @pytest.mark.parametrize("value, expected", [(torch.nan, "NaN"), (torch.inf, "NaN or infinity")])
    @pytest.mark.parametrize("name", ["decoder.seg_layers.0.bias", "vssm_encoder.layers.0.blocks.0.self_attention.Ds"])
    def test_diverged_weights(self, value, expected, name):
        state = weights()
        state[name][-1] = value
        with refused(net := build(), f"{name} holds {expected}"):
            load_pretrained(net, state)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64], ids=str)
    def test_numbers_that_are_no_weights(self, dtype):
        """Quantised or truncated weights would load, and predict nonsense."""
        name = "decoder.seg_layers.0.weight"
        state = weights()
        state[name] = state[name].to(dtype)
        with refused(net := build(), f"{name} is {dtype}"):
            load_pretrained(net, state)


class MakesAFile:
    """Unpickled without care, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def damaged_files(folder: Path) -> dict[str, str]:
    """Files that are no checkpoints, each with what its message must say."""
    state = weights()
    good = saved(folder / "good.pt", {"model": state}).read_bytes()
    safetensors.torch.save_file(state, folder / "good.safetensors")
    tensors = (folder / "good.safetensors").read_bytes()
    contents = {
        "text.pt": b"epoch 3, dice 0.9\n",
        "text.safetensors": b"epoch 3, dice 0.9\n",
        "empty.pt": b"",
        "empty.safetensors": b"",
        "half.pt": good[: len(good) // 2],
        "short.pt": good[:-100],
        "half.safetensors": tensors[: len(tensors) // 2],
        "zeros.pt": bytes(4096),
        "pickle.pt": pickle.dumps({"model": {"a": 1.0}}),
        "image.pt": b"\x89PNG\r\n\x1a\n" + bytes(64),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    expected = dict.fromkeys(contents, "corrupt")
    torch.save([state], folder / "list.pt")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4)}, folder / "objects.pt")
    torch.save(build(), folder / "module.pt")
    expected |= {"list.pt": "holds a list", "tensor.pt": "holds a Tensor"}
    expected |= dict.fromkeys(("objects.pt", "module.pt"), "Python objects besides weights")
    return expected


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
class TestDamageIsRefused:
    def test_files(self, tmp_path):
        net = build()
        for name, expected in damaged_files(tmp_path).items():
            with refused(net, str(tmp_path / name), expected):
                load_pretrained(net, tmp_path / name)

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_random_damage(self, suffix, tmp_path):
        """Bytes overwritten anywhere: the reader may fail in any way, the user sees one."""
        state = {name: w for name, w in list(weights().items())[:3]}
        buffer = io.BytesIO()
        torch.save(nnunet_checkpoint(state), buffer, _use_new_zipfile_serialization=False)
        good = buffer.getvalue() if suffix == ".pt" else safetensors.torch.save(state)
        random = np.random.default_rng(0)
        outcomes = set()
        for _ in range(200):
            data = np.frombuffer(good, np.uint8).copy()
            data[random.integers(0, len(data), 5)] = random.integers(0, 256, 5)
            (tmp_path / f"model{suffix}").write_bytes(data)
            try:
                read_checkpoint(tmp_path / f"model{suffix}")
                outcomes.add("read")
            except InputError:
                outcomes.add("refused")
        assert outcomes == {"read", "refused"}

    def test_no_such_file(self, tmp_path):
        absent = tmp_path / "absent.pt"
        sentences = {absent: f"there is no checkpoint file {absent}.", tmp_path: f"{tmp_path} is a folder; give a file"}
        for path, sentence in sentences.items():
            with refused(net := build(), sentence):
                load_pretrained(net, path)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_in_a_file_is_not_run(self, legacy, tmp_path):
        bomb = MakesAFile(tmp_path / "created")
        pickle.loads(pickle.dumps(bomb))
        assert bomb.path.exists()  # so it would work
        bomb.path.unlink()
        content = {"model": weights(), "epoch": bomb}
        path = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=not legacy)
        with refused(net := build(), "Python objects besides weights"):
            load_pretrained(net, path)
        assert not bomb.path.exists()

    @pytest.mark.parametrize(
        "content, expected",
        [
            ({}, "the state dict holds no weights of a network"),
            ({"model": {}}, "holds no weights of a network"),
            ({"epoch": 3, "lr": 0.1}, "holds no weights of a network (found epoch, lr)"),
            ({"model": None}, "holds no weights of a network (found model)"),
            (
                {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(3)},
                "(its names start with conv1.weight, fc.bias)",
            ),
            ({0: torch.zeros(3)}, "(its names start with 0)"),
        ],
        ids=str,
    )
    def test_dicts_that_are_no_checkpoints(self, content, expected):
        with refused(net := build(), expected):
            load_pretrained(net, content)


def test_reading_leaves_torch_as_it_was(tmp_path):
    """The numbers of nnU-Net's log are allowed while its file is read, and not for the rest of the process."""
    path = saved(tmp_path / "model.pt", nnunet_checkpoint(weights()))
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match=r"multiarray\.scalar"):
        torch.load(path, weights_only=True)
