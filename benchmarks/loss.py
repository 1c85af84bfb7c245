# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the loss, and of the optimizer's step: train.json's beside MONAI's and torch's default."""

from __future__ import annotations

import torch

from swinumamba_monai.analysis.measurement import free, measure, peak_bytes
from swinumamba_monai.analysis.steps import autocast

from .cases import BATCHES, QUICK_BATCHES, build, plain_recipe, recipe
from .record import Record, make_parser, start
from .ss2d_block import graphed_if_possible
from .timing import ratio

COLUMNS = {
    "batch": "batch",
    "part": "part",
    "whose": "whose",
    "launch": "launch",
    "ms": "ms",
    "× the plain one": "ratio",
    "adds, MB": lambda row: row.get("peak_bytes") and row["peak_bytes"] / 1e6,
    "failed": "error",
}
NOTES = [
    "loss: of all heads, as the network gives them under bf16 autocast, and its gradient; AdamW: a step.",
    "plain: MONAI's DeepSupervisionLoss over DiceCELoss, and torch's default AdamW.",
    "graph: train.json's loss is timed as a CUDA graph, without the launches of its small kernels, which a GPU that is "
    "behind does not wait for; eager: launched one by one, which the others cover by their work.",
    "Adds: the most that a call allocates on top of heads, labels, gradients and AdamW's state; 1 MB is 10^6 bytes.",
]


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser(__doc__, repeats=10).parse_args(argv)
    device = start(arguments)
    record = Record("loss", arguments, COLUMNS, NOTES)
    for batch in QUICK_BATCHES if arguments.quick else BATCHES:
        for part, runs in make_runs(batch, device, arguments).items():
            peaks = {whose: peak(run, device) for whose, run in runs.items()}
            launches = dict.fromkeys(runs, "eager")
            if part == "loss":
                runs["train.json"], launches["train.json"] = graphed_if_possible(runs["train.json"], device)
            times = measure(runs, device, arguments.repeats, arguments.warmup, arguments.sample_seconds)
            for whose in runs:
                compared = ratio(times[whose].get("ms"), times["plain"].get("ms"))
                row = {"batch": str(batch), "part": part, "whose": whose, "launch": launches[whose], "ratio": compared}
                record.add({**row, "peak_bytes": peaks[whose], **times[whose]})
        free(device)


def make_runs(batch, device: torch.device, arguments) -> dict[str, dict]:
    """What is measured of a batch: for either part the plain one and that of train.json."""
    network = build("Swin-UMamba†", batch.task, device, arguments.quick, cuda_graphs=False).train()
    image = torch.randn(batch.batch_size, batch.task.in_channels, *batch.task.roi_size, device=device)
    label = torch.randint(batch.task.num_classes, (batch.batch_size, 1, *batch.task.roi_size), device=device).float()
    with torch.no_grad(), autocast(device, "bf16"):
        heads = [head.requires_grad_() for head in network(image)]
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    recipes = {"plain": plain_recipe(network), "train.json": recipe(network, device)}

    def make_loss_run(loss):
        def run():
            with autocast(device, "bf16"):
                value = loss(heads, label)
            return torch.autograd.grad(value, heads)

        return run

    return {
        "loss": {whose: make_loss_run(loss) for whose, (loss, _) in recipes.items()},
        "AdamW": {whose: optimizer.step for whose, (_, optimizer) in recipes.items()},
    }


def peak(run, device: torch.device) -> int | None:
    run()
    return peak_bytes(run, device) if device.type == "cuda" else None


if __name__ == "__main__":
    main()
