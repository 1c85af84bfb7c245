# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The Python of ``docs/other_tools.md``: the trainer does with our networks what nnU-Net asks of it.

nnU-Net itself is not installed; a stand-in has what the trainer takes from it.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from doc_commands import ROOT

from swinumamba_monai.networks import SwinUMambaD

TEXT = (ROOT / "docs" / "other_tools.md").read_text(encoding="utf-8")
TRAINER, FVCORE, THOP = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def trainer(monkeypatch):
    name = "nnunetv2"
    for part in ("", ".training", ".training.nnUNetTrainer", ".training.nnUNetTrainer.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name + part, ModuleType(name + part))
    sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"].nnUNetTrainer = SimpleNamespace
    small = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8, "d_state": 4}
    monkeypatch.setattr("swinumamba_monai.networks.SwinUMambaD", partial(SwinUMambaD, **small))
    names = {}
    exec(TRAINER, names)
    trainer = names["nnUNetTrainerSwinUMambaD"]()
    trainer.is_ddp, trainer.enable_deep_supervision, trainer.num_epochs = False, True, 2
    trainer.network = trainer.build_network_architecture(None, None, 1, 3, True)
    return trainer


def test_heads_in_both_modes_at_the_scales_of_the_labels(trainer):
    labels = [[round(64 * side) for side in scale] for scale in trainer._get_deep_supervision_scales()]
    x = torch.zeros(1, 1, 64, 64)
    for mode in (True, False):
        with torch.no_grad():
            assert [list(head.shape[2:]) for head in trainer.network.train(mode)(x)] == labels


def test_one_output_where_a_validation_turns_it_off(trainer):
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert trainer.network.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    trainer.set_deep_supervision_enabled(True)
    assert all(p.requires_grad for p in trainer.network.parameters())


def test_optimizer(trainer):
    optimizer, scheduler = trainer.configure_optimizers()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trainer.network.parameters()))
    assert scheduler.get_last_lr() == [1e-4]


@pytest.mark.parametrize(("tool", "block"), [("fvcore", FVCORE), ("thop", THOP)])
def test_counters_give_the_documented_numbers(tool, block):
    pytest.importorskip(tool)
    names = {}
    exec(block, names)
    assert round(names["flops"] / 1e9, 4) == 18.9137
    assert round(names.get("parameters", 27_497_720) / 1e6, 4) == 27.4977
    assert sum(p.numel() for p in names["network"].parameters()) == 27_497_720
