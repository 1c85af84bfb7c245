# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What learns: VMamba's classifier, with what it needs to learn from a teacher, and the files that come of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinumamba_monai.atomic import replacing
from swinumamba_monai.networks import build_vmamba
from swinumamba_monai.networks.cuda_graphs import CUDAGraphs
from swinumamba_monai.weight_files import save_half_precision

__all__ = ["Student", "dense_loss", "export_encoder", "is_head", "save_weights"]

_HEAD = re.compile(r"^(head|norm|classifier)\.")  # names of either version's classifier


class Student(nn.Module):
    """VMamba's classifier; behind a teacher it has the teacher's classes too, and a projection to each of its maps.

    Its launches on a GPU are recorded and replayed.

    Args:
        encoder: a key of :data:`swinumamba_monai.networks.ENCODERS`.
        num_classes: number of classes of the labels.
        teacher_classes: number of the teacher's, 0 without one.
        teacher_channels: channels of its maps at strides 8, 16 and 32.
        options: further keyword arguments of :func:`swinumamba_monai.networks.build_vmamba`.
    """

    def __init__(
        self, encoder: str, num_classes: int, teacher_classes: int = 0, teacher_channels: Sequence[int] = (), **options
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        # one head for both: the first logits are of the labels
        self.classifier = build_vmamba(encoder, num_classes=num_classes + teacher_classes, **options)
        stages = self.classifier.channels[-len(teacher_channels) :] if teacher_channels else []
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, wanted))
            for channels, wanted in zip(stages, teacher_channels)
        )
        self._graphs = CUDAGraphs()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """
        Args:
            x: image, (b, 3, h, w), sides multiples of 32.

        Returns:
            logits of the labels, logits of the teacher's classes, and the projected maps, (b, h / s, w / s, channels).
        """
        logits, *maps = self._graphs.run(self, self._compute, x)
        return logits[:, : self.num_classes], logits[:, self.num_classes :], maps

    def _compute(self, x: Tensor) -> list[Tensor]:
        features = self.classifier.features(x)
        maps = [project(own) for project, own in zip(self.projections, features[-len(self.projections) :])]
        return [self.classifier._classify(features[-1]), *maps]

    def weights(self) -> dict[str, Tensor]:
        """The classifier's weights by the released names, without what served the teacher; on the CPU."""
        state = {name: weight.detach().cpu() for name, weight in self.classifier.state_dict().items()}
        return {
            name: weight[: self.num_classes].clone() if re.search(r"(^|\.)head\.", name) else weight
            for name, weight in state.items()
        }


def dense_loss(maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Squared distance of projected maps to a teacher's, whose vectors are normalised; the mean over the maps.

    Args:
        maps: (b, h, w, channels) each.
        teacher_maps: (b, channels, H, W) each; they are brought to the size of the others.
    """
    losses = []
    for own, teachers in zip(maps, teacher_maps):
        wanted = F.interpolate(teachers.float(), own.shape[1:3], mode="bilinear").movedim(1, -1)
        losses.append(F.mse_loss(own.float(), F.layer_norm(wanted, wanted.shape[-1:])))
    return torch.stack(losses).mean()


def is_head(name: str) -> bool:
    """Whether a classifier's tensor is of its head, which no other network takes over."""
    return _HEAD.match(name) is not None


def export_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's weights without its head by the names of Swin-UMamba's encoder, with the patch embedding.

    That is what pretraining writes, and ``--pretrained`` takes: a network for images of another number of channels
    leaves the patch embedding out.
    """
    return {
        "vssm_encoder." + re.sub(r"^layers\.(\d+)\.downsample\.", r"downsamples.\1.", name): weight
        for name, weight in weights.items()
        if not is_head(name)
    }


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as a torch file, and in half precision as safetensors beside it.

    Args:
        weights: tensors by name.
        path: path of both files, without suffix.
    """
    full = path.with_suffix(".pt")
    with replacing(full) as temporary:
        torch.save(dict(weights), temporary)
    save_half_precision(full, path.with_suffix(".safetensors"))
