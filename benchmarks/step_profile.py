# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes, kernel by kernel, with a figure of what they do."""

from __future__ import annotations

import re
from collections import defaultdict

import matplotlib
import torch
from torch.profiler import ProfilerActivity, profile

from .cases import BATCHES, NETWORKS, QUICK_BATCHES, MeasuredStep
from .record import Record, make_parser, start

STEPS = 3  # number of steps that are profiled
# What kernels do, by their names; the first that matches counts.
WORK = {
    "scan, backward": r"scan_(one_)?backward|scan_(end|chain)_gradients",
    "scan, forward": r"scan_(one_)?forward|scan_(end|chain)_states",
    "merging of the directions": r"^merge",
    "convolutions": r"cudnn|xmma",
    "matrix products": r"nvjet|cutlass|gemm|splitK|addmm|bmm",
    "depthwise convolution, SiLU": r"^conv_",
    "norms and gates": r"^layer_norm|^instance_|batch_norm",
    "sums": r"reduce_kernel|^sum_rows",
    "copies and single operations": r"elementwise|[cC]opy|Cat",
    "loss and optimizer": r"class_sums|multi_tensor|AdamW",
}
OTHERS = "others"
COLUMNS = {"kernel": "kernel", "work": "work", "launches a step": "launches", "ms a step": "ms"}
NOTES = [
    f"torch's profiler over {STEPS} steps after the network was recorded; times of the kernels alone, gaps between "
    "them not counted. Kernels of less than 0.1 % of the time are one row.",
]


def name_work(kernel: str) -> str:
    """What a kernel does, one of :data:`WORK` or :data:`OTHERS`."""
    return next((work for work, names in WORK.items() if re.search(names, kernel)), OTHERS)


def profile_step(step: MeasuredStep, device: torch.device) -> list[dict]:
    """The kernels of a step, the longest first."""
    on_gpu = device.type == "cuda"
    for _ in range(STEPS):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = [e for e in profiler.key_averages() if (e.device_type.name == "CUDA") == on_gpu]
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [{"kernel": e.key, "launches": e.count // STEPS, "ms": getattr(e, time) / STEPS / 1e3} for e in events]
    return sorted((row for row in rows if row["ms"] > 0), key=lambda row: -row["ms"])


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--network", default="Swin-UMamba†", choices=list(NETWORKS))
    parser.add_argument("--task", default="endoscopy", choices=[batch.task.name for batch in BATCHES])
    arguments = parser.parse_args(argv)
    device = start(arguments)
    record = Record("step_profile", arguments, COLUMNS, NOTES)
    batches = QUICK_BATCHES if arguments.quick else [b for b in BATCHES if b.task.name == arguments.task]
    precision = "bf16" if device.type == "cuda" else "fp32"
    record.content["step"] = f"{arguments.network}, {batches[0]}, {precision}"
    rows = profile_step(
        MeasuredStep(arguments.network, batches[0], device, arguments.quick, precision=precision), device
    )
    total = sum(row["ms"] for row in rows)
    small = [row for row in rows if row["ms"] < total / 1000]
    for row in rows[: len(rows) - len(small)]:
        record.add({**row, "work": name_work(row["kernel"])})
    if small:
        launches, ms = (sum(row[key] for row in small) for key in ("launches", "ms"))
        record.add({"kernel": f"{len(small)} more", "work": OTHERS, "launches": launches, "ms": ms})
    plot(record)


def plot(record: Record) -> None:
    """Write ``step_profile.png``: milliseconds of each kind of work."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sums: dict[str, float] = defaultdict(float)
    for row in record.content["rows"]:
        sums[row["work"]] += row["ms"]
    work, ms = zip(*sorted(sums.items(), key=lambda item: item[1]))
    figure, axis = pyplot.subplots(figsize=(8, 3.4))
    bars = axis.barh(work, ms, color="#4878a8")
    axis.bar_label(bars, [f"{value:.1f} ms, {100 * value / sum(ms):.0f} %" for value in ms], padding=3, fontsize=8)
    axis.set(
        title=f"{record.content['step']}: {sum(ms):.1f} ms of kernels", xlim=(0, 1.2 * max(ms)), xlabel="ms a step"
    )
    figure.tight_layout()
    figure.savefig(record.output_dir / "step_profile.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
