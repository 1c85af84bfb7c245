# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Any system in any bundle: by name, with the overlays, and one that was added a moment ago."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from bundle_runs import BUNDLES, NETWORK, PRETRAIN, SHORT, config_files, load_weights, refusal, run
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss
from torch import nn

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import ENCODERS, SYSTEMS, SwinUMambaD, System, find_encoder
from swinumamba_monai.networks.encoders import name_encoder
from swinumamba_monai.overlays import OVERLAYS
from swinumamba_monai.training import HalvingDeepSupervisionLoss, MaskedImageModel

CPU = "$torch.device('cpu')"
SMALLER = {"device": CPU, "num_workers": 0, "roi_size": [64, 64]}
BASELINES = {path.stem for path in OVERLAYS.values() if path.parent.name == "baselines"}
ABLATIONS = OVERLAYS.keys() - BASELINES


def parse(bundle: str, kind: str, *overlays: str, **override) -> ConfigParser:
    """A bundle's config with overlays, whose network has shapes but no values."""
    parser = ConfigParser()
    parser.read_config([*config_files(bundle, kind), *(str(OVERLAYS[name]) for name in overlays)])
    parser.update({"device": "$torch.device('meta')", "bundle_root": "nowhere", **override})
    return parser


def content(parser: ConfigParser, name: str):
    with parser.get_parsed_content("device"):
        return parser.get_parsed_content(name)


class TestOverlays:
    def test_every_baseline_is_a_system_with_its_recipe(self):
        """And every system but ours, whose recipe is the bundles' own, has one."""
        assert SYSTEMS.keys() - BASELINES == {"SwinUMambaD", "SwinUMamba"}
        assert BASELINES <= SYSTEMS.keys()
        for name in BASELINES:
            config = json.loads(OVERLAYS[name].read_text())
            assert config["network_name"] == name and config["max_epochs"] == 1000

    def test_one_recipe_of_nnunet(self):
        recipes = [json.loads(OVERLAYS[name].read_text()) for name in ("nnUNet", "UMambaBot", "UMambaEnc")]
        for recipe in recipes:
            recipe.pop("network_name")
        assert recipes[0] == recipes[1] == recipes[2]

    @pytest.mark.parametrize("name", sorted(BASELINES))
    def test_baseline(self, name):
        small = {"network_def#feature_size": 12, "device": CPU} if name == "SwinUNETR" else {}  # needs values
        parser = parse("endoscopy", "train", name, **small)
        network = content(parser, "network_def")
        assert type(network) is type(content(parse("endoscopy", "inference", name, **small), "network_def"))
        optimizer, scheduler = content(parser, "optimizer"), content(parser, "lr_scheduler")
        (group,) = optimizer.param_groups
        rates = {"nnUNet": 0.01, "UMambaBot": 0.01, "UMambaEnc": 0.01, "SwinUNETR": 8e-4, "NNFormer": 3e-4}
        assert group["lr"] == rates.get(name, 1e-4)
        assert len(group["params"]) == len(list(network.parameters()))
        for _ in range(500):  # half of the training
            optimizer.step()
            scheduler.step()
        left = {"UNETR": 0.5, "SwinUNETR": (8e-4 + 1e-6) / 2 / 8e-4}.get(name, 0.5**0.9)
        assert group["lr"] / group["initial_lr"] == pytest.approx(left)

    @pytest.mark.parametrize("bundle", BUNDLES)
    def test_ablations_of_the_structure(self, bundle):
        counts = {}
        for name in ("from_scratch", "symmetric_decoder", "symmetric_encoder", "block_vim", "block_mamba"):
            network = content(parse(bundle, "train", name), "network_def")
            assert type(network) is SwinUMambaD
            counts[name] = sum(p.numel() for p in network.parameters())
        if bundle == "abdomen_mri":  # the structures of Table IV
            millions = [round(counts[name] / 1e6, 4) for name in ("symmetric_decoder", "symmetric_encoder")]
            assert millions == [35.8682, 19.1273]
        assert counts["block_mamba"] < counts["block_vim"] < counts["from_scratch"] < counts["symmetric_decoder"]

    def test_ablations_of_the_training(self):
        assert content(parse("endoscopy", "train", "no_deep_supervision"), "network_def").deep_supervision is False
        file = "nowhere/models/vssmtiny_dp01_ckpt_epoch_292.pth"
        parser = parse("endoscopy", "train", "pretrained_decoder")
        assert (content(parser, "pretrained"), content(parser, "pretrained_decoder")) == (file, True)
        for kind in ("train", "pretrain"):
            assert content(parse("endoscopy", kind, "from_imagenet"), "pretrained") == file
            assert content(parse("endoscopy", kind, "from_imagenet", "from_scratch"), "pretrained") is None
        medical = parse("endoscopy", "train", "from_medical", ckpt_dir="medical")
        assert content(medical, "pretrained") == "medical/pretrained_encoder.pt"


class TestWrongNames:
    def test_no_such_system(self, dataset_of, tmp_path):
        options = {**SMALLER, "dataset_dir": str(dataset_of("endoscopy")), "network_name": "UNet"}
        assert "SwinUMambaD" in refusal("endoscopy", "train", tmp_path, **options)

    def test_no_encoder_to_pretrain(self, dataset_of, tmp_path):
        with pytest.raises(InputError, match="Tenth has no VMamba encoder; choose SwinUMambaD or"):
            MaskedImageModel(Tenth(1, 2))
        options = {"dataset_dir": str(dataset_of("endoscopy")), "network_name": "SegResNet", "num_workers": 0}
        assert "SegResNet cannot be built" in refusal("endoscopy", "pretrain", tmp_path, **options)

    def test_no_such_option(self, dataset_of, tmp_path):
        options = {**SMALLER, "dataset_dir": str(dataset_of("endoscopy")), "network_def#widht": 3}
        assert "unexpected keyword argument 'widht'" in refusal("endoscopy", "train", tmp_path, **options)

    def test_a_pretrained_decoder_needs_a_file(self, dataset_of, tmp_path):
        options = {**SHORT, "dataset_dir": str(dataset_of("endoscopy")), "pretrained_decoder": True}
        assert "give one to pretrained" in refusal("endoscopy", "train", tmp_path, **options)


class TestHeads:
    @pytest.mark.parametrize("heads", [2, 4, 7])
    def test_weights(self, heads):
        weights = HalvingDeepSupervisionLoss(nn.MSELoss()).get_weights(heads)
        assert sum(weights) == pytest.approx(1) and weights[-1] == 0
        assert all(b == pytest.approx(a / 2) for a, b in pairwise(weights[:-1]))

    def test_of_the_paper(self):
        weights = [4 / 7, 2 / 7, 1 / 7, 0]
        assert HalvingDeepSupervisionLoss(nn.MSELoss()).get_weights(4) == pytest.approx(weights)
        heads = [torch.rand(1, 2, 16 // scale, 16 // scale) for scale in (1, 2, 4, 8)]
        label = torch.rand(1, 2, 16, 16)
        given = DeepSupervisionLoss(nn.MSELoss(), weights=weights)(heads, label)
        torch.testing.assert_close(HalvingDeepSupervisionLoss(nn.MSELoss())(heads, label), given)

    def test_of_one_output(self):
        loss, pred, label = HalvingDeepSupervisionLoss(nn.MSELoss()), torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8)
        assert loss(pred, label) == loss([pred], label) == nn.MSELoss()(pred, label)


class Tenth(nn.Module):
    """What docs/adding_a_network.md asks for: one output, any size, an option."""

    def __init__(self, in_channels: int, out_channels: int, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, out_channels, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("name, option", [("Tenth", {"width": 5}), ("nnUNet", {"base_channels": 2})])
def test_another_network_goes_all_the_way(name, option, dataset_of, tmp_path, monkeypatch):
    monkeypatch.setitem(SYSTEMS, "Tenth", System("Tenth", Tenth))
    data = dataset_of("endoscopy")
    network = {"network_name": name, **{f"network_def#{key}": value for key, value in option.items()}, **SMALLER}
    options = {**SHORT, **network, "dataset_dir": str(data)}
    options = {key: value for key, value in options.items() if key not in NETWORK or key in network}
    run("endoscopy", "train", tmp_path, **options)
    run("endoscopy", "train", tmp_path, **{**options, "max_epochs": 2, "resume": True})
    assert load_weights(tmp_path / "models" / "checkpoint.pt")["epoch"] == 2
    run("endoscopy", "evaluate", tmp_path, dataset_dir=str(data), num_figures=0, **network)
    assert (tmp_path / "eval" / "metrics.csv").exists()
    run("endoscopy", "inference", tmp_path, dataset_dir=str(data), output_dir=str(tmp_path / "masks"), **network)
    assert len(list((tmp_path / "masks").glob("*_classes.png"))) == 2
    other = {**network, "network_name": "SegResNet", "network_def#init_filters": 8}
    other = {key: value for key, value in other.items() if key.removeprefix("network_def#") not in option}
    assert "is not of this network" in refusal("endoscopy", "inference", tmp_path, dataset_dir=str(data), **other)


class TestEncoder:
    @pytest.mark.parametrize("name", [name for name in ENCODERS if name != "vmamba_tiny_v0"])
    def test_overlay(self, name):
        assert json.loads(OVERLAYS[name].read_text()) == {"encoder": name}
        for kind in ("train", "pretrain", "inference"):
            network = content(parse("microscopy", kind, name), "network_def")
            assert name_encoder(find_encoder(network).state_dict()) == name

    def test_one_option_goes_all_the_way(self, dataset_of, tmp_path):
        """Pretraining, training from it, evaluation and inference; and a file of another encoder is refused."""
        data = {"dataset_dir": str(dataset_of("endoscopy")), "encoder": "vmamba_tiny_s2l5"}
        run("endoscopy", "pretrain", tmp_path, **PRETRAIN, **data)
        pretrained = {"pretrained": str(tmp_path / "models" / "pretrained_encoder.pt")}
        run("endoscopy", "train", tmp_path, **SHORT, **data, **pretrained)
        assert json.loads((tmp_path / "models" / "run.json").read_text())["encoder"] == "vmamba_tiny_s2l5"
        run("endoscopy", "evaluate", tmp_path, **NETWORK, **data, num_figures=0)
        assert (tmp_path / "eval" / "metrics.csv").exists()
        run("endoscopy", "inference", tmp_path, **NETWORK, **data, output_dir=str(tmp_path / "masks"))
        assert len(list((tmp_path / "masks").glob("*_classes.png"))) == 2
        papers = {**NETWORK, **data, "encoder": None}
        assert "is of a later version, this network's is of the first" in refusal(
            "endoscopy", "inference", tmp_path, **papers
        )

    def test_a_network_without_one(self, dataset_of, tmp_path):
        options = {**SMALLER, "dataset_dir": str(dataset_of("endoscopy")), "network_name": "nnUNet"}
        sentence = refusal("endoscopy", "train", tmp_path, encoder="vmamba_tiny_s1l8", **options)
        assert "nnUNet has no VMamba encoder" in sentence
