# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The networks, sizes and training recipes that the tables compare.

nnU-Net is :class:`swinumamba_monai.networks.NNUNet`, MONAI's DynUNet with heads that keep their own resolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from swinumamba_monai.analysis.measurement import free, peak_bytes
from swinumamba_monai.analysis.steps import TrainingStep
from swinumamba_monai.networks import ENCODERS, NNUNet, SwinUMamba, SwinUMambaD
from swinumamba_monai.networks.vss import SS2D
from swinumamba_monai.tasks import TASKS, Task
from swinumamba_monai.training import HalvingDeepSupervisionLoss

from .released import ReleasedSS2D

__all__ = [
    "BATCHES",
    "Batch",
    "DEFAULT_NETWORKS",
    "HAVE_RELEASED",
    "MeasuredStep",
    "NETWORKS",
    "QUICK_BATCHES",
    "TOY",
    "TRAIN_CONFIG",
    "WAYS",
    "build",
    "plain_recipe",
    "recipe",
]


class Batch(NamedTuple):
    """Crops of one of the paper's tasks.

    Args:
        task: task whose channels, classes and size of crops the batch has.
        batch_size: number of crops.
    """

    task: Task
    batch_size: int

    def __str__(self) -> str:
        height, width = self.task.roi_size
        return f"{self.batch_size} × {self.task.in_channels}×{height}×{width}, {self.task.num_classes} classes"


BATCHES = tuple(
    Batch(TASKS[name], batch_size) for name, batch_size in (("abdomen_mri", 16), ("endoscopy", 13), ("microscopy", 12))
)
QUICK_BATCHES = (Batch(replace(TASKS["abdomen_mri"], name="toy", num_classes=3, roi_size=(64, 64)), 2),)


# How a row is called, and what makes it from a task, the arguments of a toy network (None: the real one), a scan
# backend and whether there are heads.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "nnU-Net": lambda task, toy, scan_backend, heads: NNUNet(
        task.in_channels, task.num_classes, task.roi_size, base_channels=8 if toy else 32, deep_supervision=heads
    ),
    "Swin-UMamba†": lambda task, toy, scan_backend, heads: SwinUMambaD(
        task.in_channels, task.num_classes, deep_supervision=heads, scan_backend=scan_backend, **(toy or {})
    ),
    "Swin-UMamba": lambda task, toy, scan_backend, heads: SwinUMamba(
        task.in_channels, task.num_classes, deep_supervision=heads, scan_backend=scan_backend, **(toy or {})
    ),
}
DEFAULT_NETWORKS = tuple(NETWORKS)
NETWORKS |= {
    f"Swin-UMamba†, {encoder}": lambda task, toy, scan_backend, heads, encoder=encoder: SwinUMambaD(
        task.in_channels,
        task.num_classes,
        deep_supervision=heads,
        scan_backend=scan_backend,
        encoder=encoder,
        **(toy or {}),
    )
    for encoder in ENCODERS
    if encoder != "vmamba_tiny_v0"
}
# How nnU-Net is trained: as it is called, and what else a user may make of it. "graph": forward and backward are
# replayed, by torch's make_graphed_callables. Ours have one way, that of train.json.
WAYS = ("as called", "graph", "graph, channels last", "compiled, channels last")
TRAIN_CONFIG = Path(__file__).parents[1] / "bundles" / "microscopy" / "configs" / "train.json"
TOY = {"feature_size": 8, "depths": (1, 1, 1, 1)}
RELEASED = ", released"  # ends the name of a network whose scans are arranged as in the released code
HAVE_RELEASED = ("Swin-UMamba†", "Swin-UMamba")


def build(
    name: str,
    task: Task,
    device: torch.device,
    quick: bool,
    scan_backend: str = "auto",
    heads: bool = True,
    cuda_graphs: bool = True,
) -> nn.Module:
    """A network of :data:`NETWORKS` on a device; with :data:`RELEASED` after its name, as released."""
    with torch.device(device):
        network = NETWORKS[name.removesuffix(RELEASED)](task, TOY if quick else None, scan_backend, heads)
    if name.endswith(RELEASED):
        for module in network.modules():
            if isinstance(module, SS2D):
                module.__class__ = ReleasedSS2D  # the same parameters, another forward
        cuda_graphs = False
    if not cuda_graphs and not isinstance(network, NNUNet):
        network._graphs = None
    return network.to(device)  # what was made from NumPy or on the CPU


def recipe(network: nn.Module, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Loss and optimizer of train.json, of the microscopy bundle and for classes; other bundles have the same."""
    config = _train_config()
    config["device"], config["network"] = device, network
    return config.get_parsed_content("loss"), config.get_parsed_content("optimizer")


def classes_loss() -> nn.Module:
    """The loss of :func:`recipe` alone."""
    return _train_config().get_parsed_content("loss")


def _train_config() -> ConfigParser:
    config = ConfigParser(ConfigParser.load_config_file(TRAIN_CONFIG))
    config["target"] = "classes"
    return config


def plain_recipe(network: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same from MONAI's losses and torch's default AdamW."""
    heads = network.deep_supr_num + 1 if isinstance(network, NNUNet) else 4
    dice_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    loss = DeepSupervisionLoss(dice_ce, weights=HalvingDeepSupervisionLoss(dice_ce).get_weights(heads))
    return loss, torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, eps=1e-5)


class MeasuredStep(TrainingStep):
    """A training step of a network that is built for it, and the memory that it takes.

    Args:
        name: name of the network, see :func:`build`.
        batch: batch of the step.
        device: device that it runs on.
        quick: whether the network is a toy.
        scan_backend: scan backend of the network.
        way: one of :data:`WAYS` for nnU-Net, which has MONAI's loss and torch's default AdamW as it is called; None for
            train.json's, with networks that record themselves on a GPU.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
    """

    def __init__(
        self,
        name: str,
        batch: Batch,
        device: torch.device,
        quick: bool = False,
        scan_backend: str = "auto",
        way: str | None = None,
        precision: str = "fp32",
    ) -> None:
        allocated_before, reserved_before = memory_bytes(device)
        self.cuda_graphs = device.type == "cuda" and way != "as called" and not name.endswith(RELEASED)
        network = build(name, batch.task, device, quick, scan_backend)
        super().__init__(network, *batch, device, precision)
        self.loss, self.optimizer = plain_recipe(network) if way == "as called" else recipe(network, device)
        if way is not None:
            self._prepare(way)
        for _ in range(5 if self.cuda_graphs else 1):  # at the third our networks are recorded
            self()
        self.allocated_bytes = memory_bytes(device)[0] - allocated_before
        free(device)
        self.reserved_bytes = memory_bytes(device)[1] - reserved_before

    def _prepare(self, way: str) -> None:
        """Make of nnU-Net what a way says."""
        self.network.train()
        if "channels last" in way:
            self.network.to(memory_format=torch.channels_last)
            self.image = self.image.contiguous(memory_format=torch.channels_last)
        if "graph" in way:
            half = self.precision == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
                torch.cuda.make_graphed_callables(self.network, (self.image,))
        if "compiled" in way:
            self.network = torch.compile(self.network, mode="reduce-overhead")  # which records too

    def peak_bytes(self) -> int | None:
        """The most memory that this network's step needs: parameters, optimizer state, batch and what a step adds.

        A graph's memory counts as allocated to nobody between replays; there it is what the network keeps reserved.
        None on a CPU, where nobody counts what is resident.
        """
        if self.device.type != "cuda":
            return None
        return self.reserved_bytes if self.cuda_graphs else self.allocated_bytes + peak_bytes(self, self.device)


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """Memory of the tensors that are there, and memory that torch holds of the device; 0 on a CPU."""
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
