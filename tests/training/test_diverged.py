# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A training whose weights have become NaN ends, and what was saved before stays."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from swinumamba_monai.errors import InputError
from swinumamba_monai.training import FiniteWeights


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_it_ends_before_the_handlers_behind(bad):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Linear(2, 2))

    def step(engine, batch):
        if engine.state.epoch == 3:
            with torch.no_grad():
                network[1].weight[0, 1] = bad

    trainer, saved = Engine(step), []
    FiniteWeights(network).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: saved.append(trainer.state.epoch))
    with pytest.raises(InputError, match=r"diverged: in epoch 3 1\.weight became infinite or no number"):
        trainer.run([0, 1], max_epochs=5)
    assert saved == [1, 2]
