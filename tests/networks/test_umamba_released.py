# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""U-Mamba's two networks have the size, the names and the checkpoints of the released code."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from small_umamba import BOTH, build, image, released

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import UMambaBot, UMambaEnc
from swinumamba_monai.pretrained import load_pretrained


class TestPublishedSize:
    """On the meta device, where a network is built without its memory."""

    COUNTS = pytest.mark.parametrize(
        ("cls", "in_channels", "out_channels", "roi_size", "parameters"),
        [
            (UMambaBot, 1, 14, (320, 320), 63_344_180),
            (UMambaBot, 3, 8, (384, 640), 63_335_696),
            (UMambaBot, 3, 3, (512, 512), 86_150_037),
            (UMambaEnc, 1, 14, (320, 320), 67_333_428),
            (UMambaEnc, 3, 8, (384, 640), 67_324_944),
            (UMambaEnc, 3, 3, (512, 512), 91_835_029),
        ],
    )

    @COUNTS
    def test_parameters(self, cls, in_channels, out_channels, roi_size, parameters):
        with torch.device("meta"):
            net = cls(in_channels, out_channels, roi_size=roi_size)
        assert sum(p.numel() for p in net.parameters()) == parameters

    @BOTH
    def test_names_and_shapes_are_the_released_ones(self, cls, reference_dir):
        manifest = json.loads((reference_dir / "manifests" / f"{cls.__name__}_v1_AbdomenMRI.json").read_text())
        with torch.device("meta"):
            state = cls(1, 14).state_dict()
        assert {name: list(t.shape) for name, t in state.items()} == {
            entry["name"]: entry["shape"] for entry in manifest["entries"]
        }

    def test_flops(self, empty_scans):
        """fvcore's rule and 9·B·L·D·N + B·L·D a scan; the paper prints what is left without two of the projections."""

        def scan_flops(inputs, outputs):
            batch, length, groups, channels = get_shape(inputs[0])
            return batch * length * groups * channels * (9 * get_shape(inputs[2])[-1] + 1)

        net = UMambaEnc(1, 14, scan_backend="portable")
        flops = FlopCountAnalysis(net, torch.zeros(1, 1, 320, 320)).tracer_warnings("none")
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops.set_op_handle("swinumamba::selective_scan", scan_flops)
        with torch.no_grad():
            counts = flops.by_module()
        assert round(counts[""] / 1e9, 4) == 51.4941
        projections = sum(n for name, n in counts.items() if name.endswith(("x_proj", "out_proj")))
        assert round((counts[""] - projections) / 1e9, 4) == 49.8999


class TestReleasedCheckpoints:
    @BOTH
    def test_names_are_the_releases(self, cls, reference_dir):
        manifest = json.loads((reference_dir / "manifests" / f"{cls.__name__}_v1_AbdomenMRI.json").read_text())
        names = {name for entry in manifest["entries"] for name in (entry["name"], *entry["aliases"])}
        with torch.device("meta"):
            state = cls(1, 14).state_dict()
        assert len(names) == manifest["num_keys_in_official_state_dict"] and released(state).keys() == names

    @BOTH
    @pytest.mark.parametrize("every_name", [True, False])
    def test_trainer_file_loads(self, cls, every_name, tmp_path):
        """Made like nnU-Net's checkpoint_final.pth; and with DDP's prefix in front of the names."""
        net, twin, x = build(cls).eval(), build(cls, seed=1).eval(), image(1, 1, 8, 12)
        weights = released(net.state_dict()) if every_name else net.state_dict()
        torch.save(
            {
                "network_weights": {"module." + name: tensor for name, tensor in weights.items()},
                "logging": {"mean_fg_dice": [np.float64(0.5)]},
                "_best_ema": np.float64(0.5),
                "current_epoch": 1000,
                "trainer_name": "nnUNetTrainer" + cls.__name__,
                "inference_allowed_mirroring_axes": (0, 1),
            },
            tmp_path / "checkpoint_final.pth",
        )
        report = load_pretrained(twin, tmp_path / "checkpoint_final.pth", strict=True)
        assert torch.equal(twin(x), net(x))
        assert set(report.loaded) == net.state_dict().keys() and not report.missing
        assert report.skipped.keys() == weights.keys() - net.state_dict().keys()

    @BOTH
    def test_load_state_dict_is_strict(self, cls):
        net, twin, x = build(cls).eval(), build(cls, seed=1).eval(), image(1, 1, 8, 12)
        weights = released(net.state_dict())
        twin.load_state_dict(weights)
        assert torch.equal(twin(x), net(x))
        with pytest.raises(RuntimeError, match="Unexpected key"):
            twin.load_state_dict({**weights, "decoder.encoder.other.weight": torch.zeros(1)})

    def test_other_networks_are_refused(self):
        net, other = build(UMambaBot), build(UMambaEnc)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(InputError, match="is not of this network"):
            load_pretrained(net, {"network_weights": released(other.state_dict())})
        with pytest.raises(InputError, match="does not fit the network"):
            load_pretrained(net, {"network_weights": released(build(UMambaBot, base_channels=8).state_dict())})
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
