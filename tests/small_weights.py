# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Small networks: the options of a bundle that make one, its inference, and weights as several tools save them."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from monai.bundle import ConfigWorkflow

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD
from swinumamba_monai.prediction import find_bundle

BOTH = pytest.mark.parametrize("cls", [SwinUMambaD, SwinUMamba], ids=lambda cls: cls.__name__)
ENCODER = "vssm_encoder."
SMALL_NETWORK = {
    "network_def#feature_size": 8,
    "network_def#depths": [1, 1, 1, 1],
    "network_def#decoder_depths": [1, 1, 1],
    "network_def#d_state": 2,
    "roi_size": [64, 64],
}
ON_CPU = {"device": "$torch.device('cpu')", "num_workers": 0}


def build(cls=SwinUMambaD, seed=0, **changes):
    torch.manual_seed(seed)
    options = {"in_channels": 1, "out_channels": 3, "depths": (1, 1, 2, 1), "feature_size": 8, "d_state": 4}
    if cls is SwinUMambaD:
        options["decoder_depths"] = (1, 1, 1)
    return cls(**{**options, **changes})


def run_inference(bundle: str, **options: object) -> None:
    """Run a bundle's ``inference.json`` as MONAI does, in this process and on the CPU."""
    config = find_bundle(bundle) / "configs" / "inference.json"
    given = {"bundle_root": str(config.parents[1]), **ON_CPU, **options}
    workflow = ConfigWorkflow(str(config), workflow_type="infer", run_id="inference", logging_file=False, **given)
    hook = sys.excepthook  # which a bundle replaces
    try:
        workflow.initialize()
        workflow.run()
    finally:
        sys.excepthook = hook


def without_early_blocks(net: nn.Module) -> nn.Module:
    """The network without the VSS blocks of its encoder's stages before the last; the dagger keeps one a resolution.

    For what follows every operation and takes seconds a block, which is the same in every stage.
    """
    for stage in net.vssm_encoder.layers[:-1]:
        stage.blocks = nn.ModuleList()
    return net


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
