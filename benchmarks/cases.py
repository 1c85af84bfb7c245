# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The networks, sizes and loss that the tables compare.

nnU-Net is :class:`swinumamba_monai.networks.NNUNet`, MONAI's DynUNet with heads that keep their own resolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from swinumamba_monai.analysis.timing import allocated_bytes, free, peak_bytes, reserved_bytes
from torch import nn

from swinumamba_monai.networks import NNUNet, SwinUMamba, SwinUMambaD
from swinumamba_monai.networks.vss import SS2D

from .published import PublishedSS2D

__all__ = ["Size", "TrainingStep", "NETWORKS", "QUICK_SIZES", "SIZES", "autocast", "build", "make_loss"]


class Size(NamedTuple):
    """One of the paper's data sets as a batch: 2D images and their number of classes."""

    name: str
    batch_size: int
    in_channels: int
    height: int
    width: int
    out_channels: int

    def __str__(self) -> str:
        return f"{self.batch_size} × {self.in_channels}×{self.height}×{self.width}, {self.out_channels} classes"


SIZES = (
    Size("abdomen_mri", 16, 1, 320, 320, 14),
    Size("endoscopy", 13, 3, 384, 640, 8),
    Size("microscopy", 12, 3, 512, 512, 3),
)
QUICK_SIZES = (Size("toy", 2, 1, 64, 64, 3),)


# How a row is called, and what makes it from a size, the arguments of a toy network (None: the real one), a scan
# backend and whether there are heads.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "nnU-Net": lambda size, toy, scan_backend, heads: NNUNet(
        size.in_channels,
        size.out_channels,
        (size.height, size.width),
        base_channels=8 if toy else 32,
        deep_supervision=heads,
    ),
    "Swin-UMamba†": lambda size, toy, scan_backend, heads: SwinUMambaD(
        size.in_channels, size.out_channels, deep_supervision=heads, scan_backend=scan_backend, **(toy or {})
    ),
    "Swin-UMamba": lambda size, toy, scan_backend, heads: SwinUMamba(
        size.in_channels, size.out_channels, deep_supervision=heads, scan_backend=scan_backend, **(toy or {})
    ),
}
TOY = {"feature_size": 8, "depths": (1, 1, 1, 1)}
PUBLISHED = ", released"  # ends the name of a network whose scans are arranged as in the released code


def build(
    name: str,
    size: Size,
    device: torch.device,
    quick: bool,
    scan_backend: str = "auto",
    heads: bool = True,
    cuda_graphs: bool = True,
) -> nn.Module:
    """A network of :data:`NETWORKS` on a device; with :data:`PUBLISHED` after its name, as released."""
    with torch.device(device):
        network = NETWORKS[name.removesuffix(PUBLISHED)](size, TOY if quick else None, scan_backend, heads)
    if name.endswith(PUBLISHED):
        for module in network.modules():
            if isinstance(module, SS2D):
                module.__class__ = PublishedSS2D  # the same parameters, another forward
        cuda_graphs = False
    if not cuda_graphs and not isinstance(network, NNUNet):
        network._graphs = None
    return network.to(device)  # what was made from NumPy or on the CPU


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of ``"bf16"``; ``"fp32"`` switches it off."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def make_loss(network: nn.Module) -> nn.Module:
    """The loss of the microscopy bundle's train.json, with the weights that belong to the network's heads.

    Swin-UMamba: [4, 2, 1, 0] / 7, as in the bundle. nnU-Net: halved from head to head and 0 for the coarsest, as there.
    """
    heads = network.deep_supr_num + 1 if isinstance(network, NNUNet) else 4
    weights = [2.0**-i for i in range(heads - 1)] + [0.0]
    return DeepSupervisionLoss(
        DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
        ),
        weights=[w / sum(weights) for w in weights],
    )


class TrainingStep:
    """Forward, loss, backward and AdamW of one network on one batch, to be called.

    Args:
        name: of the network, see :func:`build`.
        size: of the batch.
        device: where it runs.
        quick: a toy network.
        scan_backend: of the network.
        cuda_graphs: whether the network replays its forward and backward; nnU-Net by torch's make_graphed_callables.
        precision: see :func:`autocast`.
    """

    def __init__(
        self,
        name: str,
        size: Size,
        device: torch.device,
        quick: bool = False,
        scan_backend: str = "auto",
        cuda_graphs: bool = False,
        precision: str = "fp32",
    ) -> None:
        before = allocated_bytes(device)
        reserved_before = reserved_bytes(device)
        self.device = device
        self.precision = precision
        self.cuda_graphs = cuda_graphs
        self.network = build(name, size, device, quick, scan_backend, cuda_graphs=cuda_graphs).train()
        self.loss = make_loss(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.05, eps=1e-5)
        shape = (size.batch_size, size.height, size.width)
        self.image = torch.randn(size.batch_size, size.in_channels, *shape[1:], device=device)
        self.label = torch.randint(size.out_channels, shape, device=device).unsqueeze(1).float()
        if cuda_graphs and isinstance(self.network, NNUNet):
            half = precision == "bf16"
            with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
                torch.cuda.make_graphed_callables(self.network, (self.image,))
        for _ in range(5 if cuda_graphs else 1):  # at the third our networks are recorded
            self()
        self.resident_bytes = allocated_bytes(device) - before
        free(device)
        self.held_bytes = reserved_bytes(device) - reserved_before

    def __call__(self) -> None:
        with autocast(self.device, self.precision):
            loss = self.loss(self.network(self.image), self.label)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def peak_bytes(self) -> int | None:
        """The most memory that this network's step needs: parameters, optimizer state, batch and what a step adds.

        A graph's memory counts as allocated to nobody between replays; there it is what the network keeps reserved.
        None on a CPU, where nobody counts what is resident.
        """
        if self.device.type != "cuda":
            return None
        if self.cuda_graphs:
            return self.held_bytes
        return self.resident_bytes + peak_bytes(self, self.device)
