# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings and evaluations of all systems at equal budgets, from the bundles' configs, and their table.

Every run is what a user would start, ``python -m monai.bundle run training`` and then ``evaluating``, in processes of
its own, with the system's overlay (its own optimizer and learning rate) and a config that sets the budget. Runs are
spread over GPUs. What is finished is not run again, what was stopped goes on from its last epoch, and what fails leaves
its log and does not stop the others: start the same command again until nothing is left.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data import load_class_names, load_datalist
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SYSTEMS
from swinumamba_monai.overlays import OVERLAYS
from swinumamba_monai.tasks import TASKS, find_task

from .evidence_report import write_report
from .record import ROOT, versions

OURS, REFERENCE = "SwinUMambaD", "nnUNet"
BLOCKS = {OURS: (), **{f"{OURS}-{block}": (f"block_{block.lower()}",) for block in ("Vim", "Mamba", "Conv")}}
TARGETS = {"microscopy": {"target": "classes"}}  # the paper's, which all systems were compared with
ROI_SIZES = {"microscopy": (256, 256), "endoscopy": TASKS["endoscopy"].roi_size}  # crops and windows by task
MACHINE = ("dataset_dir", "num_workers")  # settings that may change when a run goes on elsewhere
TINY = {"feature_size": 8, "depths": [1, 1, 1, 1], "d_state": 2}
QUICK = {OURS: {**TINY, "decoder_depths": [1, 1, 1]}, "SwinUMamba": TINY, REFERENCE: {"base_channels": 4}}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Args:
        group: group of tables that it was planned for first; others may use it too.
        task: a key of :data:`~swinumamba_monai.tasks.TASKS`.
        label: name of the system, with what is changed in it.
        overlays: names of the overlays on the bundle's train.json.
        budget: ``"short"`` or ``"long"``.
        seed: seed of the training.
        settings: values of the bundle's options that are not the defaults.
    """

    group: str
    task: str
    label: str
    overlays: tuple[str, ...]
    budget: str
    seed: int
    settings: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task}-{self.label}-{self.budget}-seed{self.seed}"


def plan(arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """The tables, each with its runs; a run that two tables need stands in both and is done once."""
    tables: dict[str, list[Run]] = {}
    for task in arguments.data_dirs:
        systems = {system: (system,) if system in OVERLAYS else () for system in SYSTEMS}
        tables[f"comparison-{task}"] = [
            _run(arguments, "comparison", task, system, overlays, "short", arguments.seed)
            for system, overlays in systems.items()
        ]
        if task == "endoscopy":
            tables["blocks-endoscopy"] = [
                _run(arguments, "blocks", task, label, overlays, "short", arguments.seed)
                for label, overlays in BLOCKS.items()
            ]
    for task in arguments.data_dirs:
        tables[f"pair-{task}"] = [
            _run(arguments, "pair", task, system, (system,) if system in OVERLAYS else (), "long", seed)
            for seed in range(arguments.seed, arguments.seed + arguments.num_seeds)
            for system in (OURS, REFERENCE)
        ]
    chosen = {
        name: [run for run in runs if any(fnmatch.fnmatch(run.name, pattern) for pattern in arguments.only)]
        for name, runs in tables.items()
        if name.split("-")[0] in arguments.groups
    }
    return {name: runs for name, runs in chosen.items() if runs}


def _run(arguments, group: str, task: str, label: str, overlays: tuple[str, ...], budget: str, seed: int) -> Run:
    data_dir = arguments.data_dirs[task]
    iterations = arguments.iterations if budget == "short" else arguments.long_iterations
    settings = {
        "network_name": label.split("-")[0],
        "dataset_dir": str(data_dir),
        "num_classes": len(load_class_names(data_dir)) or TASKS[task].num_classes,
        **TARGETS.get(task, {}),
        "seed": seed,
        "max_epochs": arguments.epochs,
        "iterations_per_epoch": -(-iterations // arguments.epochs),
        "val_interval": arguments.epochs,  # the network after the last step is the one that is tested
        "batch_size": arguments.batch_size,
        "roi_size": list(getattr(arguments, f"{task}_roi_size")),
        "cache_rate": 1.0,
        "num_workers": arguments.num_workers,
        "log_interval": max(1, iterations // 20),
    }
    if arguments.quick:
        options = QUICK.get(settings["network_name"], {})
        settings |= {f"network_def#{name}": value for name, value in options.items()}
    return Run(group, task, label, overlays, budget, seed, settings)


def execute(run: Run, folder: Path, gpu: str | None, arguments: argparse.Namespace) -> dict:
    """Do what is left of a run; returns its record, which is in ``folder/run.json`` too.

    Args:
        run: training and evaluation to do.
        folder: folder of this run alone.
        gpu: number of the GPU, None for the CPU.
        arguments: options of the script.
    """
    record = _read_json(folder / "run.json") or {}
    if record.get("state") == "done":
        return record

    record = {"run": run.name, "gpu": gpu, "jobs_per_gpu": arguments.jobs_per_gpu, "state": "done"}
    deadline = time.perf_counter() + arguments.time_limit
    for workflow in ("training", "evaluating"):
        error = _start(workflow, run, folder, gpu, deadline - time.perf_counter())
        if error:
            record |= {"state": "failed", "error": f"{workflow}: {error}"}
            break
    else:
        meter = _read_json(folder / "meter.json")
        record |= {**meter, "seconds": sum(meter["seconds"].values())}
        if not arguments.keep_models:
            shutil.rmtree(folder / "models")
    _write_json(folder / "run.json", record)
    return record


def claim(run: Run, folder: Path) -> None:
    """Note a run's settings in its folder, or see that they are those of what is there.

    Raises:
        InputError: they are others.
    """
    settings = {name: value for name, value in run.settings.items() if name not in MACHINE}
    settings = json.loads(json.dumps({"overlays": run.overlays, **settings}))
    before = _read_json(folder / "settings.json")
    changed = [name for name in settings if before is not None and before.get(name) != settings[name]]
    if changed:
        raise InputError(f"{folder} holds a run with other {', '.join(changed)}; choose another --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "settings.json", settings)


def _start(workflow: str, run: Run, folder: Path, gpu: str | None, seconds: float) -> str | None:
    """Run a workflow; None if it succeeded or had done so before, else one line that says why not."""
    configs = ROOT / "bundles" / run.task / "configs"
    files = [configs / "train.json", *(OVERLAYS[name] for name in run.overlays)]
    config = {**run.settings, "bundle_root": str(folder), "ckpt_dir": str(folder / "models")}
    if workflow == "training":
        last = folder / "models" / "checkpoint.pt"
        config |= {"output_dir": str(folder / "training"), "resume": last.exists()}
        config["+train#handlers"] = [
            {"_target_": "benchmarks.evidence_handlers.TrainingMeter", "path": str(folder / "meter.json")}
        ]
    else:
        files.append(configs / "evaluate.json")
        metric = f"@validate#key_metric#val_{TASKS[run.task].scores[0]}"
        config |= {"output_dir": str(folder / "evaluation"), "num_figures": 0}
        config["+validate#handlers"] = [
            {"_target_": "benchmarks.evidence_handlers.KeepCases", "path": str(folder / "cases.npz"), "metric": metric}
        ]
    config_file = folder / f"{workflow}.json"
    _write_json(config_file, config)
    names = ",".join(f"'{file}'" for file in (*files, config_file))
    command = [sys.executable, "-m", "monai.bundle", "run", workflow, "--config_file", f"[{names}]"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpu or ""}
    log = folder / f"{workflow}.log"
    with log.open("a") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, timeout=max(seconds, 0)
            ).returncode
        except subprocess.TimeoutExpired:
            return "out of time; the same command goes on with it"
    if code == 0:
        return None
    errors = [line for line in log.read_text().splitlines() if "rror: " in line]
    return errors[-1][:300] if errors else f"exit code {code}, see {log.name}"


def run_all(runs: Sequence[Run], arguments: argparse.Namespace) -> dict[str, dict]:
    """Every run once, several at a time; returns the records by the runs' names."""
    slots: queue.Queue[str | None] = queue.Queue()
    for _ in range(arguments.jobs_per_gpu):
        for gpu in arguments.gpus or [None]:
            slots.put(gpu)

    def work(run: Run) -> tuple[str, dict]:
        gpu = slots.get()
        try:
            record = execute(run, arguments.output_dir / "runs" / run.name, gpu, arguments)
        finally:
            slots.put(gpu)
        print(f"evidence: {run.name}: {record['state']} {record.get('error', '')}".rstrip(), flush=True)
        return run.name, record

    with ThreadPoolExecutor(slots.qsize()) as pool:
        return dict(pool.map(work, {run.name: run for run in runs}.values()))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for task, roi_size in ROI_SIZES.items():
        parser.add_argument(f"--{task}_dir", type=Path, help="what `prepare` wrote; default: the task is left out")
        parser.add_argument(f"--{task}_roi_size", type=int, nargs=2, default=roi_size, help="of crops, windows")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "evidence", help="a folder a run, and the table")
    parser.add_argument("--groups", nargs="+", default=["comparison", "blocks", "pair"], help="which tables")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="names of runs, with * and ?")
    parser.add_argument("--iterations", type=int, default=500, help="of a run of the comparison and the blocks")
    parser.add_argument("--long_iterations", type=int, default=1500, help="of a run of the pair")
    parser.add_argument("--epochs", type=int, default=5, help="that the iterations are divided into")
    parser.add_argument("--batch_size", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of all runs; the first of the pair")
    parser.add_argument("--num_seeds", type=int, default=3, help="of the pair")
    parser.add_argument("--num_workers", type=int, default=4, help="that make the crops of a run")
    parser.add_argument("--gpus", type=lambda text: text.split(","), default=[], help="such as 0,1; default: the CPU")
    parser.add_argument("--jobs_per_gpu", type=int, default=1, help="runs at once on a GPU, or on the CPU")
    parser.add_argument("--time_limit", type=float, default=3600, help="of a run, in seconds")
    parser.add_argument("--keep_models", action="store_true", help="after the evaluation too")
    parser.add_argument("--report_only", action="store_true", help="run nothing, write the table of what there is")
    parser.add_argument("--quick", action="store_true", help="a tiny network on synthetic images: shows that it runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    arguments.output_dir = arguments.output_dir.resolve()
    arguments.data_dirs = {
        task: folder.resolve() for task in ROI_SIZES if (folder := getattr(arguments, f"{task}_dir")) is not None
    }
    try:
        if arguments.quick:
            _make_quick(arguments)
        if not arguments.data_dirs:
            raise InputError("there is nothing to train on; give --microscopy_dir, --endoscopy_dir or both.")
        for folder in arguments.data_dirs.values():
            load_datalist(folder, "test")
        tables = plan(arguments)
        if not tables:
            raise InputError(f"no run is called {' or '.join(arguments.only)}.")
        for run in (run for runs in tables.values() for run in runs):
            claim(run, arguments.output_dir / "runs" / run.name)
        if not arguments.report_only:
            run_all([run for runs in tables.values() for run in runs], arguments)
        failed = write_report(tables, arguments.output_dir, versions(), arguments.quick)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(failed > 0)


def _make_quick(arguments: argparse.Namespace) -> None:
    """Toy sizes and, where no data are given, toy data."""
    arguments.iterations, arguments.long_iterations, arguments.epochs = 2, 4, 2
    arguments.batch_size, arguments.num_workers, arguments.num_seeds = 1, 0, 2
    for task in ROI_SIZES:
        setattr(arguments, f"{task}_roi_size", (64, 64))
        if not arguments.data_dirs.get(task):
            folder = arguments.output_dir / "data" / task
            if not (folder / "datalist.json").exists():
                find_task(task).synthesize(folder, num_train=2, num_validation=1, num_test=2, image_size=(64, 80))
            arguments.data_dirs[task] = folder


def _read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def _write_json(path: Path, content: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
