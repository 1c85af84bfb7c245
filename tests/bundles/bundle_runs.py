# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The bundles, run the way a user runs them: by MONAI, from their JSON files, with a small network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from forked import run_forked
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from small_weights import ON_CPU, SMALL_NETWORK

from swinumamba_monai.errors import find_input_error

ROOT = Path(__file__).parents[2] / "bundles"
BUNDLES = ("abdomen_mri", "endoscopy", "microscopy")
KINDS = {
    "train": ("train",),
    "pretrain": ("pretrain",),
    "evaluate": ("train", "evaluate"),
    "inference": ("inference",),
}
NETWORK = {**SMALL_NETWORK, **ON_CPU}
SHORT = {
    "max_epochs": 1,
    "iterations_per_epoch": 2,
    "batch_size": 2,
    "val_interval": 1,
    "log_interval": 1,
    **NETWORK,
}
PRETRAIN = {
    "max_epochs": 1,
    "batch_size": 2,
    "spatial_size": [32, 64],
    "mask_patch_size": 16,
    "val_interval": 1,
    "picture_interval": 9,  # none: it takes as long as the epoch
    "log_interval": 1,
    **{name.replace("_def#", "_def#network#"): value for name, value in NETWORK.items() if name != "roi_size"},
}
RUN_FILES = {
    "train": ("model.pt", "checkpoint.pt"),
    "pretrain": ("pretrained_encoder.pt", "pretraining_checkpoint.pt"),
}
OF_BUNDLE = {"abdomen_mri": {"spacing": [6.0, 7.0]}, "endoscopy": {}, "microscopy": {}}
STAGES = {"train": ("training", SHORT), "pretrain": ("pretraining", PRETRAIN)}
RUN_IDS = {"train": "training", "pretrain": "pretraining", "evaluate": "evaluating", "inference": "inference"}


def threshold(channels: int, classes: int) -> dict[str, object]:
    """Options of an inference by one convolution of single pixels, whose weights a test sets.

    Args:
        channels: number of channels of the image.
        classes: number of classes.
    """
    network = {"_target_": "torch.nn.Conv2d", "in_channels": channels, "out_channels": classes, "kernel_size": 1}
    return {"network_def": network, "checkpointloader": None, **ON_CPU, "roi_size": [32, 32]}


def configs(bundle: str) -> Path:
    return ROOT / bundle / "configs"


def config_files(bundle: str, *names: str) -> list[str]:
    return [str(configs(bundle) / f"{name}.json") for name in names]


def workflow_of(bundle: str, kind: str, out: Path, **override) -> ConfigWorkflow:
    """A workflow that has not been initialized."""
    files = config_files(bundle, *KINDS[kind])
    return ConfigWorkflow(
        config_file=files if len(files) > 1 else files[0],
        run_id=RUN_IDS[kind],
        workflow_type="infer" if kind == "inference" else "train",
        logging_file=False,
        tracking=override.pop("tracking", None),
        bundle_root=str(out),
        **{**OF_BUNDLE[bundle], **override},
    )


def run(bundle: str, kind: str, out: Path, before=lambda workflow: None, **override) -> ConfigWorkflow:
    """Run a workflow in this process; ``before`` is called with it when it is ready to run."""
    workflow = workflow_of(bundle, kind, out, **override)
    with patch.object(sys, "excepthook", sys.excepthook):  # initialize replaces it
        workflow.initialize()
        before(workflow)
        workflow.run()
        workflow.finalize()
    return workflow


def before_the_metric(workflow: ConfigWorkflow, handler) -> None:
    """Have a handler called after the postprocessing of each batch, and before the metric."""
    workflow.evaluator.add_event_handler(Events.ITERATION_COMPLETED, handler)
    handlers = workflow.evaluator._event_handlers[Events.ITERATION_COMPLETED]
    handlers.insert(0, handlers.pop())


def refusal(bundle: str, kind: str, out: Path, **override) -> str:
    """The sentence with which a workflow refuses to run."""
    with pytest.raises(Exception) as caught:  # MONAI wraps what is raised in a config
        run(bundle, kind, out, **override)
    cause = find_input_error(caught.value)
    assert cause is not None, f"no InputError behind {caught.value!r}"
    return str(cause)


def command(bundle: str, kind: str, out: Path, *further: str, processes: int = 1, **override) -> list[str]:
    """The same on the command line; ``further`` are names of configs on top."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    files = config_files(bundle, *KINDS[kind], *further)
    arguments = ["-m", "monai.bundle", "run", RUN_IDS[kind], "--bundle_root", str(out)]
    arguments += ["--config_file", "[" + ",".join(f"'{file}'" for file in files) + "]" if len(files) > 1 else files[0]]
    for name, value in {**OF_BUNDLE[bundle], **override}.items():
        if name != "device":
            arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return [sys.executable, *launcher, *arguments]


def run_processes(*arguments, processes: int = 2, launcher: bool = False, **override) -> subprocess.CompletedProcess:
    """Run :func:`command` on CPU processes, and expect that it succeeds; by torch's launcher, or by forks."""
    if launcher:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        line = command(*arguments, processes=processes, **override)
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300)
    else:
        done = run_forked(command(*arguments, **override), processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def load_weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a, b, where: str = "") -> None:
    """Equal to the last bit, through all dictionaries and lists, but for the time it took."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}.{i}")
    else:
        assert a == b, where


class Interrupted(BaseException):
    """The power fails."""


def power_loss() -> None:
    raise Interrupted
