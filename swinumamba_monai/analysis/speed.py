# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of every system side by side in one run: what FLOPs do not say (Fig. 1 with time in their place)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from swinumamba_monai.analysis.complexity import paper_network
from swinumamba_monai.analysis.measurement import free, measure, peak_bytes, reason
from swinumamba_monai.analysis.steps import Inference, TrainingStep
from swinumamba_monai.atomic import replacing
from swinumamba_monai.networks import SYSTEMS
from swinumamba_monai.reports.paper_tables import published_rows
from swinumamba_monai.tasks import Task, find_task

SPEED_COLUMNS = {
    "task": "task",
    "row": "network",
    "latency": "inference, ms",
    "latency_gb": "memory, GB",
    "step": "training step, ms",
    "step_gb": "memory, GB",
    "error": "failed",
}
CIRCLE = 12  # area in Fig. 1, square points a million parameters


def speed_notes(device: torch.device, batch_size: int, precision: str, repeats: int) -> list[str]:
    """How :func:`speed_rows` measured, in sentences.

    Args:
        device: device that was measured on.
        batch_size: number of images of a training step.
        precision: "bf16" or "fp32".
        repeats: number of samples.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return [
        f"{name}, torch {torch.__version__}, {precision}, {repeats} samples of each in turn: median (least–most). "
        "Inference: batch 1, logits of the finest head.",
        f"Training step: batch {batch_size}, forward, DeepSupervisionLoss over DiceCELoss, backward, AdamW; our own "
        "networks replay their launches on a GPU, as they do by default.",
        "Memory: parameters, batch, in training gradients and AdamW's state, and the most that a call adds, launched "
        "kernel by kernel; on a CPU that last part is the peak of the process' resident memory.",
    ]


def speed_rows(
    tasks: Sequence[Task],
    systems: Sequence[str],
    device: torch.device,
    batch_size: int = 2,
    precision: str = "fp32",
    repeats: int = 5,
    warmup: int = 3,
    sample_seconds: float = 0.05,
    options: Mapping[str, Mapping] | None = None,
) -> list[dict]:
    """Inference and training step of each system, in turn within a task.

    Args:
        tasks: tasks whose channels, classes and size of crops the networks get.
        systems: keys of :data:`~swinumamba_monai.networks.SYSTEMS`.
        device: device of the networks; it holds all systems of a task at a time.
        batch_size: number of crops in a training step.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        repeats, warmup, sample_seconds: see :func:`.measurement.measure`.
        options: options of the networks, by system, in place of the paper's.

    Returns:
        rows with ``task``, ``system``, ``row``, and, as text for people and as numbers for programs, ``latency`` and
        ``step`` (with ``_ms``, ``_min_ms``, ``_max_ms``) and their memory (``_gb``); or ``error``, why there is none.
    """
    rows = []
    for task in tasks:
        runs, memory, failed = {}, {}, {}
        for system in systems:
            try:
                network = paper_network(task, system, (options or {}).get(system, {})).to(device)
                inference = Inference(network, task, device, precision)
                training = TrainingStep(network, task, batch_size, device, precision)
                for kind, run in (("latency", inference), ("step", training)):
                    run()  # makes what stays
                    added = peak_bytes(run, device)
                    memory[system, kind] = None if added is None else run.held_bytes() + added
                    runs[system, kind] = run
            except Exception as error:
                failed[system] = reason(error)
            free(device)
        times = measure(runs, device, repeats, warmup, sample_seconds)
        rows += [_row(task.name, system, times, memory, failed.get(system)) for system in systems]
        del runs
        free(device)
    return rows


def _row(task: str, system: str, times: Mapping, memory: Mapping, error: str | None) -> dict:
    row = {"task": task, "system": system, "row": SYSTEMS[system].title}
    for kind in ("latency", "step"):
        result = times.get((system, kind), {})
        error = error or result.get("error")
        if "ms" in result:
            median, low, high = (result["ms"][key] for key in ("median", "min", "max"))
            row[kind] = f"{median:.4g} ({low:.4g}–{high:.4g})"
            row |= {f"{kind}_ms": median, f"{kind}_min_ms": low, f"{kind}_max_ms": high}
            peak = memory[system, kind]
            row[f"{kind}_gb"] = None if peak is None else f"{peak / 1e9:.2f}"
    if error:
        row["error"] = error
    return row


def draw_speed(path: Path, speed: Sequence[Mapping], complexity: Sequence[Mapping], heading: str) -> None:
    """The paper's Fig. 1 with measured time in place of FLOPs: score over time, one panel a task.

    The scores are the paper's own (DSC, on Microscopy F1): times are measured here, scores are not. The size of a
    circle is that of the model; an arrow leads from the score from scratch to the one with the foundation model.

    Args:
        path: PNG file to write.
        speed: rows that :func:`speed_rows` made.
        complexity: rows that :func:`.complexity.complexity_rows` made, for the numbers of parameters.
        heading: text above the panels.
    """
    papers = [row for row in complexity if row["table"] not in (None, "IV")]
    millions = {(row["task"], row["system"]): row["parameters"] / 1e6 for row in papers}
    times = {(row["task"], row["system"]): row["latency_ms"] for row in speed if "latency_ms" in row}
    tasks = list(dict.fromkeys(task for task, _ in times))
    figure = Figure(figsize=(5.2 * max(1, len(tasks)), 4.6), layout="constrained")
    figure.suptitle(textwrap.fill(heading, 60 * max(1, len(tasks))), fontsize=8)
    for axis, task in zip(figure.subplots(1, max(1, len(tasks)), squeeze=False)[0], tasks):
        score = find_task(task).scores[0]
        for index, system in enumerate(SYSTEMS):
            if (task, system) not in times:
                continue
            x = times[task, system]
            printed = [row for row in published_rows() if (row.task, row.system) == (task, system)]
            points = {row.setting: row.score(score)[0] for row in printed if row.table == find_task(task).table}
            for setting, y in points.items():
                alpha = 0.35 if setting == "scratch" and len(points) > 1 else 0.75
                axis.scatter(x, y, s=CIRCLE * millions[task, system], color=f"C{index}", alpha=alpha, linewidths=0)
            best = max(points.values())
            axis.annotate(SYSTEMS[system].title, (x, best), ha="center", va="center", fontsize=7)
            if len(points) > 1:
                axis.annotate("", (x, best), (x, points["scratch"]), arrowprops={"arrowstyle": "->", "color": "red"})
        axis.set_xscale("log")
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks("{x:g}")
        axis.tick_params(axis="x", which="both", labelsize=7)
        axis.margins(0.25)
        axis.set_xlabel("inference, ms, measured here")
        axis.set_ylabel(f"{score.upper()}, the paper's")
        axis.set_title(task, fontsize=9)
        axis.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
