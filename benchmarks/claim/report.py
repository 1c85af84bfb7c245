# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and a figure of what the workers left.

    python -m benchmarks.claim.report --runs runs --output_dir benchmarks/results/claim

``scores.csv`` has the score of every case of every tested run, ``claim.md`` the tables, also of the learning rates that
were tried on validation images, and ``shares.png`` the score over the share of the training cases.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from benchmarks.command import run_plainly
from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics.statistics import bootstrap_interval
from swinumamba_monai.reports import markdown_lines

from .arms import ARMS, CLAIM_TASKS, rate_jobs

REFERENCE = "nnU-Net"
SCRATCH = {  # the same network from random weights
    name: other
    for name, arm in ARMS.items()
    for other, base in ARMS.items()
    if other != name and base == arm._replace(weights=None, is_adapted=False, rates=base.rates)
}
RUN = ("task", "arm", "part", "seed", "share", "steps", "rate")  # what tells a run in scores.csv
DIGITS = 6  # of a score
SCORES = {"microscopy": "F1", "endoscopy": "DSC", "abdomen_mri": "DSC"}


def read_runs(folder: Path) -> list[dict]:
    """The results of all jobs that are done, their scores as ``scores.csv`` has them."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise InputError(f"{folder} has no results; give the --output_dir of benchmarks.claim.work.")
    return [run | {"scores": {case: round(score, DIGITS) for case, score in run["scores"].items()}} for run in runs]


def scores_of(
    runs: Sequence[dict], task: str, arm: str, share: float, steps: float = 1.0
) -> dict[int, dict[str, float]]:
    """The scores of all cases for every seed with which each part was tested after so many times the task's steps."""
    seeds = defaultdict(dict)
    for run in runs:
        if (run["task"], run["arm"], run["share"], run["steps"]) == (task, arm, share, steps) and not run["is_choice"]:
            seeds[run["seed"]][run["part"]] = run["scores"]
    whole = {seed: parts for seed, parts in seeds.items() if sorted(parts) == sorted(CLAIM_TASKS[task].parts)}
    return {seed: {c: s for part in parts.values() for c, s in part.items()} for seed, parts in whole.items()}


def means_over_seeds(seeds: dict[int, dict[str, float]]) -> dict[str, float]:
    """Of each case."""
    return {
        case: float(np.mean([scores[case] for scores in seeds.values()])) for case in sorted(next(iter(seeds.values())))
    }


def difference(ours: dict[str, float], others: dict[str, float]) -> str:
    """Mean over cases with its 95 % bootstrap interval, and p of the paired Wilcoxon test."""
    values = np.array([ours[case] - others[case] for case in sorted(ours)])
    low, high = bootstrap_interval(values)
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}], p = {wilcoxon(values).pvalue:.2g}"


def task_rows(runs: Sequence[dict], task: str) -> list[dict]:
    """A row for every arm, share and number of steps that was tested whole; nnU-Net is that of the task's own steps."""
    rows = []
    tested = {(run["share"], run["steps"]) for run in runs if not run["is_choice"]}
    for share, steps in sorted(tested, key=lambda budget: (-budget[0], budget[1])):
        found = {arm: seeds for arm in ARMS if (seeds := scores_of(runs, task, arm, share, steps))}
        means = {arm: means_over_seeds(seeds) for arm, seeds in found.items()}
        of_nnunet = scores_of(runs, task, REFERENCE, share)
        reference = means_over_seeds(of_nnunet) if of_nnunet else None
        for arm, cases in means.items():
            values = np.array(list(cases.values()))
            chosen = {run["rate"] for run in runs if (run["task"], run["arm"], run["is_choice"]) == (task, arm, False)}
            rows.append(
                {
                    "share of the cases": f"{share:.0%}",
                    "steps": round(steps * CLAIM_TASKS[task].steps),
                    "arm": arm,
                    "learning rate": ", ".join(f"{rate:g}" for rate in sorted(chosen)),
                    SCORES[task]: f"{values.mean():.3f} ± {values.std(ddof=1):.3f}",
                    "seeds": len(found[arm]),
                    "minus nnU-Net": difference(cases, reference) if reference not in (None, cases) else "–",
                    "minus random weights": difference(cases, means[SCRATCH[arm]])
                    if SCRATCH.get(arm) in means
                    else "–",
                }
            )
    return rows


def rate_rows(runs: Sequence[dict]) -> list[dict]:
    """What was tried to choose the learning rates."""
    tried = [run for run in runs if run["is_choice"]]
    tried.sort(key=lambda run: (list(CLAIM_TASKS).index(run["task"]), list(ARMS).index(run["arm"]), run["rate"]))
    whole = {(task, arm): len(rate_jobs(task, arm)) for task in CLAIM_TASKS for arm in ARMS}
    counts = defaultdict(int)
    for run in tried:
        counts[run["task"], run["arm"]] += 1
    return [
        {"task": run["task"], "arm": run["arm"], "rate": f"{run['rate']:g}", "validation": f"{run['mean']:.4f}"}
        for run in tried
        if counts[run["task"], run["arm"]] == whole[run["task"], run["arm"]]
    ]


def draw_shares(runs: Sequence[dict], path: Path) -> None:
    """The score of every arm over the share of the cases that it learnt from, those with several shares."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(CLAIM_TASKS)), CLAIM_TASKS):
        for arm in ARMS:
            points = []
            for share in sorted({run["share"] for run in runs}):
                if seeds := scores_of(runs, task, arm, share):
                    values = np.array(list(means_over_seeds(seeds).values()))
                    points.append((100 * share, values.mean(), *bootstrap_interval(values)))
            if len(points) > 1:
                share, mean, low, high = np.array(points).T
                axes.errorbar(share, mean, (mean - low, high - mean), marker="o", capsize=3, label=arm)
        axes.set(title=task, xlabel="% of the training cases", ylabel=SCORES[task], xscale="log")
        axes.set_xticks([10, 30, 100], ["10", "30", "100"], minor=False)
        axes.grid(alpha=0.3)
    figure.axes[-1].legend(fontsize=8, loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def write_report(runs_dir: Path, output_dir: Path) -> None:
    runs = read_runs(runs_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tables = {f"{task}, cases of all tested parts": task_rows(runs, task) for task in CLAIM_TASKS}
    tables["Learning rates, tried in half of the steps"] = rate_rows(runs)
    lines = []
    for title, rows in tables.items():
        columns = list(rows[0])
        lines += [
            f"## {title}",
            "",
            markdown_lines(columns, [[str(row[name]) for name in columns] for row in rows]),
            "",
        ]
    (output_dir / "claim.md").write_text("\n".join(lines))
    with (output_dir / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*RUN, "case", "score"])
        for run in runs:
            if not run["is_choice"]:
                head = [run[name] for name in RUN]
                writer.writerows([*head, case, f"{score:.{DIGITS}f}"] for case, score in run["scores"].items())
    draw_shares(runs, output_dir / "shares.png")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the workers' results")
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_plainly(lambda: write_report(arguments.runs, arguments.output_dir))


if __name__ == "__main__":
    sys.exit(main())
