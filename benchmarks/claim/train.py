# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""One training of the comparison, and its test: the same crops, loss and schedule for every network.

Loss, AdamW and nnU-Net's SGD have the settings of the bundles' ``train.json`` and of nnU-Net's overlay; the encoder is
not frozen at first, the learning rate grows over the first steps instead. What is scored is the network after the last
step, by windows that overlap by half, without mirror images.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from benchmarks.cases import classes_loss
from benchmarks.foundation.training import rate_factor
from benchmarks.nuclei.train import parameter_groups
from swinumamba_monai.cells import classes_to_instances
from swinumamba_monai.metrics.case_scores import CORRECTED, dice
from swinumamba_monai.metrics.cells import cell_counts
from swinumamba_monai.networks import build_network
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.training import autocast_dtype, default_amp
from swinumamba_monai.training.mim import MaskedBatch, MaskedImageModel, MaskedL1Loss

from .arms import ADAPTATION_STEPS, BATCH_SIZE, Arm, ClaimTask
from .crops import RandomCrops, z_scored
from .packs import Picture

GRADIENT_CLIP = 12.0
ADAPTATION_RATE, ADAPTATION_SIZE = 2e-4, (192, 192)  # as in pretrain.json
MOMENTUM, SGD_DECAY, POWER = 0.99, 3e-5, 0.9  # nnU-Net's numbers


class Recipe(NamedTuple):
    """What is different from run to run.

    Args:
        rate: the largest learning rate.
        steps: number of batches.
        weights: file to begin from, or None.
        seed: seed of the weights and the crops.
    """

    rate: float
    steps: int
    weights: Path | None
    seed: int


def train_network(
    arm: Arm, task: ClaimTask, pictures: Sequence[Picture], recipe: Recipe, device: torch.device
) -> tuple[nn.Module, float, float]:
    """The trained network, the seconds that it took, adaptation included, and the mean loss of the last 50 steps."""
    torch.manual_seed(recipe.seed)
    network = build_network(
        arm.network,
        in_channels=3,
        out_channels=len(task.classes) + 1,
        roi_size=task.crop,
        deep_supervision=True,
        encoder=arm.encoder,
    ).to(device)
    if recipe.weights:
        load_pretrained(network, recipe.weights)
    begin = time.perf_counter()
    if arm.is_adapted:
        crops = RandomCrops(pictures, ADAPTATION_SIZE, device, recipe.seed + 1)
        model, masked = MaskedImageModel(network).to(device), MaskedBatch()
        optimizer = torch.optim.AdamW(model.parameters(), ADAPTATION_RATE, eps=1e-5, weight_decay=0.05)

        def reconstruct() -> torch.Tensor:
            image, target, (mask,), _ = masked({"image": crops.batch(BATCH_SIZE)[0]}, device)
            return MaskedL1Loss()(model(image, mask), target)

        steps = min(ADAPTATION_STEPS, recipe.steps)
        _run(model, reconstruct, optimizer, lambda step: rate_factor(step / steps), steps, device)
    if arm.encoder:
        optimizer = torch.optim.AdamW(parameter_groups(network), recipe.rate, eps=1e-5, fused=device.type == "cuda")
        factor = lambda step: rate_factor(step / recipe.steps)  # noqa: E731
    else:
        parameters = network.parameters()
        optimizer = torch.optim.SGD(parameters, recipe.rate, MOMENTUM, nesterov=True, weight_decay=SGD_DECAY)
        factor = lambda step: (1 - step / recipe.steps) ** POWER  # noqa: E731
    crops = RandomCrops(pictures, task.crop, device, recipe.seed)
    loss_function = classes_loss()

    def segment() -> torch.Tensor:
        image, classes = crops.batch(BATCH_SIZE)
        return loss_function(network(image), classes)

    loss = _run(network, segment, optimizer, factor, recipe.steps, device)
    return network, time.perf_counter() - begin, loss


def _run(network: nn.Module, compute_loss, optimizer, factor, steps: int, device: torch.device) -> float:
    """So many steps; the mean loss of the last 50."""
    dtype = autocast_dtype(default_amp(device), device)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    network.train()
    losses = []
    for _ in range(steps):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = compute_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.detach())
    return torch.stack(losses[-50:]).mean().item()


@torch.no_grad()
def score_cases(
    network: nn.Module, task: str, pictures: Sequence[Picture], crop: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """The score of every case: F1 of cells at an IoU of 0.5, or the mean DSC of the classes that one of both has."""
    dtype = autocast_dtype(default_amp(device), device)
    network.eval()
    predictions = defaultdict(list)
    for picture in pictures:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            image = z_scored(picture, device)[None]
            logits = sliding_window_inference(image, crop, 16, network, overlap=0.5, mode="gaussian")
        predictions[picture.case].append((logits.argmax(1)[0].byte().cpu().numpy(), picture.truth))
    return {case: _score(task, *map(np.stack, zip(*parts))) for case, parts in predictions.items()}


def _score(task: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    if task == "microscopy":
        (classes,), (ids,) = predicted, truth
        return cell_counts(ids.astype(np.int32), classes_to_instances(classes), reading=CORRECTED).f1
    labels = [
        label
        for label in range(1, 1 + max(predicted.max(), truth.max()))
        if ((predicted == label) | (truth == label)).any()
    ]
    return float(np.mean([dice(truth == label, predicted == label) for label in labels])) if labels else 1.0
