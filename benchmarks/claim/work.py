# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Do the jobs of the plan that nobody has begun, one after another; any number of workers share a folder.

    python -m benchmarks.claim.work --packs packs --weights weights --output_dir runs --seconds 500

A job that is done has a file ``runs/NAME.json`` with the score of every case; one that somebody does, or that failed,
has ``NAME.claim`` with the process or the reason. A worker begins no job in the last ``--margin`` seconds of
``--seconds``, and ends when every job is done, somebody's or failed, or waits for a choice that failed. Weights and
packs that are not there are waited for: somebody may be making them; ``--only`` leaves the arms without out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.command import run_plainly
from benchmarks.record import hardware
from swinumamba_monai.analysis.measurement import free
from swinumamba_monai.atomic import replacing

from .arms import ARMS, CLAIM_TASKS, Job, plan, rate_jobs
from .packs import load_pack, split
from .train import Recipe, score_cases, train_network

FAILED = "Traceback"  # what the claim of a job that failed begins with


def claim(job: Job, output_dir: Path, weights_dir: Path, packs: Path) -> float | None:
    """Take a job if it is free and can be done now; its learning rate, or None."""
    arm = ARMS[job.arm]
    if (output_dir / f"{job.name}.claim").exists() or not (packs / f"{job.task}.safetensors").exists():
        return None
    if arm.weights and not (weights_dir / arm.weights).exists():
        return None
    rate = job.rate
    if rate is None:
        tried = [output_dir / f"{other.name}.json" for other in rate_jobs(job.task, job.arm)]
        if not all(path.exists() for path in tried):
            return None
        rate = max((json.loads(path.read_text()) for path in tried), key=lambda result: result["mean"])["rate"]
    try:
        file = os.open(output_dir / f"{job.name}.claim", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    with os.fdopen(file, "w") as text:
        text.write(f"process {os.getpid()}")
    return rate


def may_begin_later(job: Job, output_dir: Path) -> bool:
    """Whether a job that cannot be done now is free, and nothing that it needs has failed."""
    if (output_dir / f"{job.name}.claim").exists():
        return False
    needed = rate_jobs(job.task, job.arm) if job.rate is None else []
    claims = [output_dir / f"{other.name}.claim" for other in needed]
    return not any(path.exists() and path.read_text().startswith(FAILED) for path in claims)


def do(job: Job, rate: float, packs: dict, arguments: argparse.Namespace, device: torch.device) -> dict:
    """Train and score; what the job's file says."""
    begin = time.perf_counter()
    arm, task = ARMS[job.arm], CLAIM_TASKS[job.task]
    pictures = packs[job.task]
    learnt, scored = split(pictures, job.part, job.rate is not None, job.share, job.seed)
    weights = arguments.weights / arm.weights if arm.weights else None
    steps = round(task.steps * job.steps) if arguments.steps is None else arguments.steps
    network, seconds, loss = train_network(arm, task, learnt, Recipe(rate, steps, weights, job.seed), device)
    scores = score_cases(network, job.task, scored, task.crop, device)
    return {
        **job._asdict(),
        "rate": rate,
        "is_choice": job.rate is not None,
        "number_of_steps": steps,
        "learnt_from": len({picture.case for picture in learnt}),
        "mean": sum(scores.values()) / len(scores),
        "scores": scores,
        "last_loss": loss,
        "training_seconds": seconds,
        "seconds": time.perf_counter() - begin,
    }


def work(arguments: argparse.Namespace) -> None:
    begin = time.perf_counter()
    device = torch.device(arguments.device)
    torch.backends.cudnn.benchmark = True  # crops are all of one size
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    print(f"{hardware(device)}", flush=True)
    packs: dict = {}
    jobs = [job for job in plan() if arguments.only is None or job.arm in arguments.only]
    while (left := arguments.seconds - (time.perf_counter() - begin)) > arguments.margin:
        for job in jobs:
            rate = claim(job, arguments.output_dir, arguments.weights, arguments.packs)
            if rate is not None:
                break
        else:
            if not any(may_begin_later(job, arguments.output_dir) for job in jobs):
                break
            time.sleep(1)  # until weights or the choices of others are there
            continue
        if job.task not in packs:
            packs[job.task] = load_pack(arguments.packs / f"{job.task}.safetensors")
        try:
            result = do(job, rate, packs, arguments, device)
        except Exception:  # one job that fails does not stop the others
            (arguments.output_dir / f"{job.name}.claim").write_text(traceback.format_exc())
            print(f"{job.name} failed\n{traceback.format_exc()}", flush=True)
            continue
        finally:
            free(device)
        with replacing(arguments.output_dir / f"{job.name}.json") as temporary:
            temporary.write_text(json.dumps(result))
        jobs.remove(job)
        print(
            f"[{arguments.seconds - left:.0f} s] {job.task}, {job.arm}, part {job.part}, seed {job.seed}, share "
            f"{job.share}, rate {rate:g}{' tried' if job.rate else ''}: {result['mean']:.4f}, "
            f"{result['training_seconds']:.1f} of {result['seconds']:.1f} s, {result['number_of_steps']} steps, "
            f"loss {result['last_loss']:.3f}",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packs", type=Path, required=True, help="folder of what benchmarks.claim.packs wrote")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the files that arms begin from")
    parser.add_argument("--output_dir", type=Path, required=True, help="for a file of each job")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--margin", type=float, default=60, help="seconds at the end in which no job begins")
    parser.add_argument("--steps", type=int, default=None, help="of every training, to try whether it runs")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=None, help="arms")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    return run_plainly(lambda: work(arguments))


if __name__ == "__main__":
    sys.exit(main())
