# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Images a second of the bundles' training, on one GPU and on several of one host, beside the bare step's.

Starts what a user starts, ``python -m monai.bundle run training`` with train.json, and the same under torchrun with
multi_gpu_train.json, with a third config that shortens the run and adds the clock below to the trainer's handlers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events

from swinumamba_monai.analysis.measurement import free, measure, reason, summarize_samples
from swinumamba_monai.training import default_amp

from .cases import BATCHES, TOY, Batch, MeasuredStep
from .record import ROOT, Record, make_parser, start

SLICES = 24  # number of slices of a synthetic volume
COLUMNS = {
    "batch": "batch",
    "augmentation": "augmentation",
    "GPUs": "processes",
    "images/s": "images_per_second",
    "× one GPU": "speedup",
    "iteration, ms": "iteration_ms",
    "bare step, images/s": "bare_images_per_second",
    "waiting for data": lambda row: "data_share" in row and f"{100 * row['data_share']:.0f} %",
    "failed": "error",
}
NOTES = [
    "Images a second of all processes: batch · processes · iterations over the time from the first to the last "
    "iteration counted. Not counted: the first epoch, and of the last one the iterations that were prepared ahead.",
    "Every process has a batch and data workers of its own; the first one keeps the clock and waits for its GPU after "
    "each iteration, as the bundle's own loss log does. 'waiting for data' is its time between asking for a batch and "
    "having it: far above zero, the loader is what is measured.",
    "augmentation full: all of train.json's transforms; crops: its random crops alone. The deterministic "
    "transforms are cached (cache_rate 1). The images are the bundle's synthetic ones, of the size of the crops.",
    "bare step: benchmarks.training_step's of the same network and batch, of one process, which has its batch already.",
]


class IterationClock:
    """Handler that writes when each iteration of a trainer asked for its batch, had it, and was through.

    Args:
        path: JSON file, a list of ``[epoch, asked, got, done]`` in seconds, written by the first process at the end.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[list[float]] = []

    def attach(self, engine: Engine) -> None:
        """Follow ``engine``, a trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.GET_BATCH_STARTED, self.ask)
            engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.stamp)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.finish)
            engine.add_event_handler(Events.COMPLETED, self.write)

    def ask(self, engine: Engine) -> None:
        if self.rows and len(self.rows[-1]) < 4:  # ignite asks once more after the last batch of an epoch
            self.rows.pop()
        self.rows.append([engine.state.epoch, time.perf_counter()])

    def stamp(self, engine: Engine) -> None:
        self.rows[-1].append(time.perf_counter())

    def finish(self, engine: Engine) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamp(engine)

    def write(self, engine: Engine) -> None:
        self.path.write_text(json.dumps([row for row in self.rows if len(row) == 4]))


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--augmentations", nargs="+", default=["full", "crops"], choices=["full", "crops"])
    names = [batch.task.name for batch in BATCHES]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="whose bundles are trained")
    parser.add_argument("--iterations", type=int, default=60, help="of the epoch that is timed")
    parser.add_argument(
        "--num_workers", type=int, default=None, help="of each process; default: its share of the cores"
    )
    parser.add_argument("--num_images", type=int, default=96, help="or slices of volumes, that are learnt from")
    parser.add_argument("--timeout", type=float, default=240, help="of a run, in seconds")
    arguments = parser.parse_args(argv)
    device = start(arguments)
    if arguments.num_workers is None:
        arguments.num_workers = max(1, min(16, (os.cpu_count() or 1) // max(arguments.processes) - 1))
    record = Record("data_parallel", arguments, COLUMNS, NOTES)
    for batch in BATCHES:
        if batch.task.name in arguments.tasks:
            measure_bundle(batch, arguments, device, record)


def measure_bundle(batch: Batch, arguments: argparse.Namespace, device: torch.device, record: Record) -> None:
    """Add the rows of one bundle to the record.

    Args:
        batch: the batch of each process.
        arguments: those of the command line.
        device: device that the bare step runs on.
        record: what is added to.
    """
    if arguments.quick:
        batch = Batch(replace(batch.task, roi_size=(64, 64)), 1)
    overrides = {
        "max_epochs": 2,
        "val_interval": 1000,
        "iterations_per_epoch": 3 if arguments.quick else arguments.iterations,
        "batch_size": batch.batch_size,
        "roi_size": list(batch.task.roi_size),
        "num_workers": 0 if arguments.quick else arguments.num_workers,
        "seed": arguments.seed,
    }
    if batch.task.name != "abdomen_mri":  # which keeps its slices in files
        overrides["cache_rate"] = 1.0
    if batch.task.name == "microscopy":
        overrides["target"] = "classes"
    if arguments.quick:
        overrides |= {f"network_def#{name}": value for name, value in TOY.items()}
    bare = {"bare_images_per_second": bare_rate(batch, arguments.quick, device)}
    with tempfile.TemporaryDirectory() as work:
        volumes = batch.task.name == "abdomen_mri"
        number = 4 if arguments.quick else max(1, arguments.num_images // (SLICES if volumes else 1))
        given = {"num_train": number, "image_size": batch.task.roi_size}
        data = batch.task.synthesize(Path(work) / "data", num_validation=max(arguments.processes), num_test=1, **given)
        for repeat in range(arguments.repeats):
            for augmentation in arguments.augmentations:
                single = None
                for processes in arguments.processes:
                    folder = Path(work) / f"{augmentation}_{processes}_{repeat}"
                    row = {"batch": str(batch), "augmentation": augmentation, "processes": processes, "repeat": repeat}
                    try:
                        row |= run(
                            folder, batch.task.name, data, overrides, augmentation, processes, device, arguments.timeout
                        )
                    except Exception as error:
                        record.add({**row, "error": reason(error)})
                        continue
                    single = row["images_per_second"] if processes == 1 else single
                    record.add({**row, **bare, "speedup": row["images_per_second"] / single if single else None})


def bare_rate(batch: Batch, quick: bool, device: torch.device) -> float:
    """Images a second of a step that has its batch."""
    precision = "bf16" if default_amp(device) == "bf16" else "fp32"
    step = MeasuredStep("Swin-UMamba†", batch, device, quick, precision=precision)
    result = measure({"step": step}, device, repeats=3, warmup=1, sample_seconds=0 if quick else 0.3)["step"]
    del step
    free(device)
    if "error" in result:
        raise RuntimeError(result["error"])
    return 1000 * batch.batch_size / result["ms"]["median"]


def run(
    folder: Path,
    bundle: str,
    data: Path,
    overrides: dict,
    augmentation: str,
    processes: int,
    device: torch.device,
    timeout: float,
) -> dict:
    """One training of the bundle; returns what its clock says.

    Raises:
        RuntimeError: the training failed; the message is its first error.
        subprocess.TimeoutExpired: it took too long.
    """
    folder.mkdir()
    paths = {"bundle_root": folder, "dataset_dir": data, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    config = overrides | {name: str(path) for name, path in paths.items()}
    config["+train#handlers"] = [{"_target_": "benchmarks.data_parallel.IterationClock", "path": str(folder / "clock")}]
    if augmentation == "crops":
        config |= {"train#spatial_transforms": [], "train#intensity_transforms": []}
    (folder / "benchmark.json").write_text(json.dumps(config))
    configs = ROOT / "bundles" / bundle / "configs"
    files = [configs / "train.json", *([configs / "multi_gpu_train.json"] if processes > 1 else [])]
    files = "[" + ",".join(f"'{file}'" for file in (*files, folder / "benchmark.json")) + "]"
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment |= {} if device.type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "monai.bundle", "run", "training", "--config_file", files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)
    if done.returncode != 0:
        print(done.stderr[-8000:], flush=True)
        errors = [line for line in done.stderr.splitlines() if "Error: " in line]
        raise RuntimeError(errors[0] if errors else f"exit code {done.returncode}")
    rows = np.array(json.loads((folder / "clock").read_text()))
    return throughput(rows, config["batch_size"] * processes, ahead=2 * config["num_workers"])


def throughput(rows: np.ndarray, images: int, ahead: int) -> dict:
    """What the clock's rows say about the last epoch.

    Args:
        rows: (iterations, 4): epoch, asked, got, done, seconds.
        images: number of images of an iteration, all processes together.
        ahead: number of batches that the workers prepare before the first iteration; at most half an epoch is left out.
    """
    last = rows[rows[:, 0] == rows[-1, 0]]
    first = min(1 + ahead, len(last) // 2)
    counted, begin = last[first:], last[first - 1, 3]
    seconds = counted[-1, 3] - begin
    return {
        "images_per_second": float(images * len(counted) / seconds),
        "iterations": len(counted),
        "iteration_ms": summarize_samples(list(1000 * np.diff(np.append(begin, counted[:, 3])))),
        "data_share": float((counted[:, 2] - counted[:, 1]).sum() / seconds),
    }


if __name__ == "__main__":
    main()
