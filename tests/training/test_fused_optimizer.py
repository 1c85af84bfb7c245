# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The configs take torch's fused optimizers on a GPU, which do as the others with all that the recipe does to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import IterationEvents

from swinumamba_monai.overlays import OVERLAYS
from swinumamba_monai.training import GradientClip, TrainingCheckpoint

BUNDLES = Path(__file__).parents[2] / "bundles"
RECIPES = [name for name in OVERLAYS if "optimizer" in ConfigParser.load_config_file(str(OVERLAYS[name]))]


@pytest.mark.parametrize("overlay", [None, *RECIPES])
@pytest.mark.parametrize("workflow", ["train", "pretrain"])
@pytest.mark.parametrize("bundle", ["abdomen_mri", "endoscopy", "microscopy"])
def test_configs(bundle, workflow, overlay):
    """SGD stays as it is: a fused one fails where a frozen encoder begins to learn later than the rest."""
    for device, fused in (("cpu", None), ("cuda", True)):
        parser = ConfigParser()
        overlays = [] if overlay is None else [str(OVERLAYS[overlay])]
        parser.read_config([str(BUNDLES / bundle / "configs" / f"{workflow}.json"), *overlays])
        parser["device"], parser["network"] = f"$torch.device('{device}')", "$torch.nn.Linear(1, 1)"
        optimizer = parser.get_parsed_content("optimizer")
        assert optimizer.defaults["fused"] is (None if isinstance(optimizer, torch.optim.SGD) else fused)
        assert optimizer.defaults["foreach"] is None


def train(folder, fused, resume=False, epochs=1):
    """Three steps an epoch: the second gradient is not finite, and some parameters learn in every second epoch."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.05, eps=1e-5, fused=fused)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4, eta_min=1e-3)

    def step(engine, number):
        loss = network(torch.full((1, 3), 1.0 + number + engine.state.epoch)).square().sum()
        engine.scaler.scale(loss).backward()
        if number == 1:
            network[1].bias.grad[0] = torch.inf
        if engine.state.epoch % 2:
            network[0].zero_grad()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.scaler.step(optimizer)
        engine.scaler.update()
        optimizer.zero_grad()

    trainer, evaluator = Engine(step), Engine(lambda engine, batch: None)
    trainer.register_events(*IterationEvents)
    trainer.optimizer, trainer.scaler = optimizer, torch.amp.GradScaler("cpu", init_scale=4.0)
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, 3
    TrainingCheckpoint(folder, network, optimizer, schedule, resume=resume).attach(trainer, evaluator)
    GradientClip(0.5).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: schedule.step())
    trainer.run(range(3), max_epochs=epochs, epoch_length=3)
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("first, second", [(None, True), (True, None), (True, True)])
def test_scaled_clipped_frozen_scheduled_and_resumed(first, second, tmp_path):
    """Four epochs, and the last three of them resumed by another of AdamW's implementations."""
    expected = train(tmp_path / "whole", None, epochs=4)
    after_one = train(tmp_path / "parts", first)
    resumed = train(tmp_path / "parts", second, resume=True, epochs=4)
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, msg=lambda m, name=name: f"{name}: {m}")
        assert not torch.allclose(value, after_one[name]), "the later epochs taught something"
