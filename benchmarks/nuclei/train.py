# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Train the network that ships with the microscopy bundle: Swin-UMamba† learns the flows of nuclei from random weights.

    python -m swinumamba_monai prepare microscopy --source_dir DSB2018 --output_dir prepared
    python -m benchmarks.nuclei.train --dataset_dir prepared --output_dir out

The weights in ``bundles/microscopy/models`` came from the experiment that this code was made of, on one H200 with seed
0. It had three channels at the network's heads, one logit of the cell instead of two (the file has 0 for the
background's), and a time instead of steps: 7.2 minutes, 0.8 of them to prepare the images, in which it made 6,400 steps
in bf16 with 7 GB of memory. Commit a0913d9 gives the same crops and looks from that seed, but for rounding, and weights
that differ as those of two seeds do; later ones have other stains, and ``--extra_dir`` for more images of tissue.
With these, commit c42c4c2 went on from there::

    python -m benchmarks.nuclei.train --dataset_dir prepared --extra_dir stained --output_dir out --num_workers 14 \\
        --pretrained first.safetensors --learning_rate 5e-4 --steps 4200

Only the section "training" is read. ``model.pt`` and ``model.safetensors``, the same in half precision, are the moving
averages of the weights after the last step; ``log.txt`` says how it went.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.command import main_of
from benchmarks.record import hardware, versions
from swinumamba_monai.atomic import replacing
from swinumamba_monai.data import load_class_names, load_datalist
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError
from swinumamba_monai.instances.flows import FLOW_CHANNELS, FlowLoss
from swinumamba_monai.networks import build_network
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.training import HalvingDeepSupervisionLoss, autocast_dtype, default_amp
from swinumamba_monai.weight_files import save_half_precision

from .crops import Atlas, RandomCrops, Sample, read_sample

WARM_UP, LAST_RATE = 200, 0.01  # steps in which the learning rate grows, and the share of it that is left at the end
WEIGHT_DECAY, BETAS, EPSILON = 0.05, (0.9, 0.99), 1e-6  # AdamW's numbers
GRADIENT_CLIP = 5.0
AVERAGE_DECAY = 0.998  # decay of the weights' moving average
LOG_EVERY = 50  # steps

QUICK = {"steps": 6, "batch_size": 2, "roi_size": 64, "num_workers": 0}
TOY = {"feature_size": 8, "d_state": 2, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1)}


def read_samples(dataset_dirs: Sequence[Path], sections: Sequence[str], num_workers: int) -> list[Sample]:
    """Images of prepared microscopy datasets with the flows of their cells; most of the time goes into these.

    Args:
        dataset_dirs: folders with a ``datalist.json``.
        sections: sections of the datalists.
        num_workers: number of processes, 0: this one.

    Raises:
        InputError: one is no such dataset, or they have no cells.
    """
    for folder in dataset_dirs:
        if load_class_names(folder):
            raise InputError(f"{folder} is a dataset of classes, but cells are needed; run `prepare microscopy`.")
    items = [item for folder in dataset_dirs for section in sections for item in load_datalist(folder, section)]
    if num_workers == 0:
        samples = list(map(read_sample, items))
    else:
        with ProcessPoolExecutor(num_workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            samples = list(pool.map(read_sample, items))
    if not any(len(sample.centres) for sample in samples):
        raise InputError(f"the images of {', '.join(map(str, dataset_dirs))} have no cells; look at their labels.")
    return samples


def parameter_groups(network: nn.Module) -> list[dict]:
    """Matrices and kernels decay; biases, norms and the state matrices of the scans do not, as in Mamba."""
    named = list(network.named_parameters())
    kept = [parameter for name, parameter in named if parameter.ndim <= 1 or "A_log" in name]
    decayed = [parameter for name, parameter in named if parameter.ndim > 1 and "A_log" not in name]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]


def rate_factor(step: int, steps: int) -> float:
    """Of the learning rate: a short way up, then down along a cosine.

    Args:
        step: the number of steps that are done.
        steps: the number of all steps.
    """
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1, (step + 1) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def train(
    network: nn.Module,
    crops: RandomCrops,
    steps: int,
    batch_size: int,
    learning_rate: float,
    report: Callable[[str], object],
) -> None:
    """Train a network, and leave it with the moving averages of its weights.

    Args:
        network: network with :data:`~swinumamba_monai.instances.flows.FLOW_CHANNELS` channels, on the crops' device.
        crops: crops that it learns from.
        steps: number of batches.
        batch_size: number of crops in each.
        learning_rate: the largest.
        report: is given a line every :data:`LOG_EVERY` steps and after the last one.
    """
    device = next(network.parameters()).device
    dtype = autocast_dtype(default_amp(device), device)
    loss_function = HalvingDeepSupervisionLoss(FlowLoss())
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(parameter_groups(network), learning_rate, BETAS, EPSILON, fused=fused)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    weights = list(network.parameters())
    averages = [weight.detach().clone() for weight in weights]
    network.train()
    losses, left_out, begin = [], 0, time.perf_counter()
    for step in range(1, steps + 1):
        image, target = crops.batch(batch_size)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            heads = network(image)
        loss = loss_function(heads, target)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, GRADIENT_CLIP)
        if norm.isfinite():
            optimizer.step()
        else:
            left_out += 1
        optimizer.zero_grad()
        scheduler.step()
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))  # at first the weights change fast
        get_ema_multi_avg_fn(decay)(averages, weights, step)
        losses.append(loss.detach())
        if step % LOG_EVERY == 0 or step == steps:
            mean, seconds = torch.stack(losses).mean().item(), time.perf_counter() - begin
            report(f"step {step}: loss {mean:.4f}, {1000 * seconds / step:.0f} ms a step, {left_out} steps left out")
            losses = []
    with torch.no_grad():
        for weight, average in zip(weights, averages):
            weight.copy_(average)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="what `prepare microscopy` wrote")
    parser.add_argument(
        "--extra_dir", type=Path, nargs="+", default=[], help="more prepared datasets, to learn from beside the first"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="for the weights and the log")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=["training", "validation"],
        default=["training"],
        help="of the datasets, to learn from; both once nothing is left to be chosen",
    )
    parser.add_argument("--pretrained", type=Path, default=None, help="weights to begin from, such as a stage 1's")
    parser.add_argument("--steps", type=at_least(1), default=6400)
    parser.add_argument("--batch_size", type=at_least(1), default=24)
    parser.add_argument("--roi_size", type=at_least(1), default=256, help="side of the crops")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops and looks")
    parser.add_argument(
        "--num_workers", type=at_least(0), default=4, help="processes that prepare the images, 0: this one"
    )
    parser.add_argument("--device", default=None, help="a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="a toy network and a few steps: shows that it runs")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """Reads an option that is a whole number from ``least`` on."""

    def whole_number(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return whole_number


def run(arguments: argparse.Namespace, report: Callable[[str], object]) -> None:
    """Read, train and write what the parsed arguments say."""
    device = find_device(arguments.device)
    report(f"{vars(arguments)}, {hardware(device)}, {versions()}")
    torch.manual_seed(arguments.seed)
    torch.backends.cuda.matmul.allow_tf32 = device.type == "cuda"
    network = build_network(
        "SwinUMambaD",
        in_channels=3,
        out_channels=FLOW_CHANNELS,
        roi_size=arguments.roi_size,
        deep_supervision=True,
        **(TOY if arguments.quick else {}),
    ).to(device)
    if arguments.pretrained:
        report(str(load_pretrained(network, arguments.pretrained)))
    samples = read_samples([arguments.dataset_dir, *arguments.extra_dir], arguments.sections, arguments.num_workers)
    report(f"{len(samples)} images with {sum(len(sample.centres) for sample in samples)} cells")
    crops = RandomCrops(Atlas(samples, device), arguments.roi_size, arguments.seed)
    train(network, crops, arguments.steps, arguments.batch_size, arguments.learning_rate, report)
    checkpoint, half = (arguments.output_dir / f"model{suffix}" for suffix in (".pt", ".safetensors"))
    with replacing(checkpoint) as temporary:
        torch.save({name: weight.cpu() for name, weight in network.state_dict().items()}, temporary)
    report(f"{half}: {save_half_precision(checkpoint, half) / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    return main_of(make_parser(), QUICK, run, argv, mode="w")


if __name__ == "__main__":
    sys.exit(main())
