# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of resuming that need a GPU in a real run; whole runs are resumed in tests/bundles."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.training import TrainingCheckpoint, autocast_dtype, default_amp


def start(folder, scaler, resume=False, epochs=1):
    """Train nothing for some epochs, with a gradient scaler that is made when the run starts, as MONAI's is."""
    network = SwinUMambaD(1, 2, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1), feature_size=2, d_state=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, 1
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    trainer.scaler = scaler
    TrainingCheckpoint(folder, network, optimizer, schedule, resume=resume).attach(trainer, evaluator)
    trainer.run([0], max_epochs=epochs, epoch_length=1)
    return trainer


def test_the_gradient_scaler_goes_on(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    scaler.scale(torch.ones(()))  # makes its state
    scaler._growth_tracker.fill_(2)
    expected = scaler.state_dict()
    assert (expected["scale"], expected["_growth_tracker"]) == (4.0, 2)
    start(tmp_path, scaler)
    resumed = torch.amp.GradScaler("cpu")
    start(tmp_path, resumed, resume=True, epochs=2)
    assert resumed.state_dict() == expected


@pytest.mark.parametrize("before, now", [(None, "scaler"), ("scaler", None), (None, None)])
def test_amp_may_be_turned_on_and_off(before, now, tmp_path):
    make = {"scaler": lambda: torch.amp.GradScaler("cpu"), None: lambda: None}
    start(tmp_path, make[before]())
    start(tmp_path, make[now](), resume=True, epochs=2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2


def test_checkpoint_of_another_network(tmp_path):
    start(tmp_path, None)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["model"]["decoder.seg_layers.0.bias"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="lacks decoder"):
        start(tmp_path, None, resume=True)


class TestAmp:
    def test_names(self):
        cuda = torch.device("cuda")
        dtypes = [autocast_dtype(name, cuda) for name in ("bf16", "fp16", "off")]
        assert dtypes == [torch.bfloat16, torch.float16, None]
        assert autocast_dtype("off", torch.device("cpu")) is None

    @pytest.mark.parametrize("name", [True, False, "fp32", None])
    def test_other_names(self, name):
        with pytest.raises(InputError, match="one of bf16, fp16, off"):
            autocast_dtype(name, torch.device("cuda"))

    def test_default_without_a_gpu(self):
        assert default_amp(torch.device("cpu")) == "off"
