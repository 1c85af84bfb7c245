# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of :mod:`.evidence` from what its runs left: scores, tests against a reference, time, memory, a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data import load_class_names, load_datalist
from swinumamba_monai.metrics.statistics import summarize_cases
from swinumamba_monai.reports import compare, markdown_lines, read_cases, write_csv
from swinumamba_monai.reports.figures import Case, painted_case, panel_figure
from swinumamba_monai.tasks import TASKS

from .evidence_handlers import load_kept_cases

__all__ = ["write_report"]

SCORES = {name: {f"{score}_corrected": score.upper() for score in task.scores} for name, task in TASKS.items()}
REFERENCES = {"comparison": "nnUNet", "pair": "nnUNet", "blocks": "SwinUMambaD"}
TITLES = {
    "comparison": "All systems",
    "pair": "Swin-UMamba† and nnU-Net, a longer budget",
    "blocks": "The block of Swin-UMamba† (Fig. 6), and no scan at all (Conv)",
}
GIGABYTE = 1e9
NOTES = [
    "Score: mean ± standard deviation over test cases, of each case's mean over the seeds. Seeds: standard deviation "
    "of the mean score over seeds. Difference: mean over cases with its 95 % bootstrap interval, and p of the paired "
    "Wilcoxon signed-rank test; frames of one surgery are alike, so for endoscopy both are too confident; p is not "
    "corrected for the number of tests.",
    "Time: the epochs with their data, without validations; runs that share a GPU slow each other down. Memory: the "
    "most that torch reserved on the GPU after the first ten steps.",
    "Every system has its own optimizer and schedule (swinumamba_monai/configs/baselines), at the learning rate meant "
    "for long trainings; all are trained from scratch. Such short trainings say nothing about where longer ones end.",
]


def write_report(tables: Mapping[str, Sequence], output_dir: Path, versions: dict, quick: bool) -> int:
    """Write evidence.json, evidence.md and predictions.png.

    Args:
        tables: runs of each table, by its name.
        output_dir: folder of the files, and of the runs in ``runs/NAME``.
        versions: versions of the software, for the record.
        quick: whether the sizes are toys.

    Returns:
        number of runs that are not done.
    """
    content = {"versions": versions, "quick": quick, "notes": NOTES, "tables": {}}
    for name, runs in tables.items():
        content["tables"][name] = _table(name, runs, output_dir / "runs")
    text = "\n\n".join(_markdown(table) for table in content["tables"].values())
    text += "\n" + "".join(f"\n- {note}" for note in NOTES) + "\n"
    for suffix, written in ((".json", json.dumps(content, indent=1) + "\n"), (".md", text)):
        with replacing(output_dir / f"evidence{suffix}") as temporary:
            temporary.write_text(written, encoding="utf-8")
    _draw(tables, output_dir)
    runs = {run.name for runs in tables.values() for run in runs}
    return sum(_record(output_dir / "runs" / name).get("state") != "done" for name in runs)


def _record(folder: Path) -> dict:
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "not run"}


def _table(name: str, runs: Sequence, folder: Path) -> dict:
    group, task = name.split("-")
    by_label: dict[str, list] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    means = {}  # files with each case's mean over the seeds
    rows = []
    for label, members in by_label.items():
        records = [_record(folder / run.name) for run in members]
        done = [(run, record) for run, record in zip(members, records) if record["state"] == "done"]
        row = {"system": label, "seeds": [run.seed for run, _ in done]}
        row["failed"] = [record.get("error", record["state"]) for record in records if record["state"] != "done"]
        if done:
            per_seed = [_cases(folder / run.name, task) for run, _ in done]
            means[label] = folder.parent / "means" / f"{name}-{label}.csv"
            row["scores"] = _scores(per_seed, task)
            write_csv(means[label].parent, means[label].stem, _means(per_seed, task))
            row["seconds"] = float(np.mean([record["seconds"] for _, record in done]))
            peaks = [record["peak_bytes"] for _, record in done if record["peak_bytes"]]
            row["peak_bytes"] = max(peaks, default=None)
        rows.append(row)
    reference = REFERENCES[group]
    for row in rows:
        if row["system"] in means and reference in means and row["system"] != reference:
            differences = compare(means[reference], means[row["system"]], columns=list(SCORES[task]))
            row["differences"] = {
                item.column: {"mean": item.mean_difference, "interval": item.interval, "p": item.p_value, "n": item.n}
                for item in differences
            }
    places = [record for run in runs if (record := _record(folder / run.name))["state"] == "done"]
    return {
        "name": name,
        "title": f"{TITLES[group]}: {task}",
        "caption": _caption(runs[0], rows, places),
        "task": task,
        "reference": reference,
        "rows": rows,
    }


def _cases(folder: Path, task: str) -> dict[str, dict[str, float]]:
    """Scores of every test case."""
    cases = read_cases(folder / "evaluation" / "metrics.csv")
    return {name: {score: numbers[score] for score in SCORES[task]} for name, numbers in cases.items()}


def _scores(per_seed: Sequence[Mapping], task: str) -> dict:
    found = {}
    for score in SCORES[task]:
        values = np.array([[case[score] for case in cases.values()] for cases in per_seed])
        of_seeds = np.nanmean(values, axis=1)
        found[score] = {
            **summarize_cases(values.mean(axis=0)),
            "means_of_seeds": of_seeds.tolist(),
            "std_of_seeds": float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None,
        }
    return found


def _means(per_seed: Sequence[Mapping], task: str) -> list[dict]:
    """Rows of a table of cases that :func:`compare` reads, each case with its mean over the seeds."""
    return [
        {"name": case, **{score: np.mean([cases[case][score] for cases in per_seed]) for score in SCORES[task]}}
        for case in per_seed[0]
    ]


def _caption(run, rows: Sequence[dict], records: Sequence[dict]) -> str:
    settings = run.settings
    iterations = settings["max_epochs"] * settings["iterations_per_epoch"]
    height, width = settings["roi_size"]
    training, test = (len(load_datalist(settings["dataset_dir"], section)) for section in ("training", "test"))
    seeds = max((len(row["seeds"]) for row in rows), default=0)
    places = sorted({record["hardware"].get("gpu", {}).get("name") or record["hardware"]["cpu"] for record in records})
    at_once = sorted({record["jobs_per_gpu"] for record in records})
    return (
        f"Budget of a run: {iterations} steps of {settings['batch_size']} crops of {height} × {width}, "
        f"{iterations * settings['batch_size']} crops of {training} training images, the bundle's augmentation; the "
        f"network after the last step, on {test} test images; {seeds} seed{'s' if seeds != 1 else ''}. "
        f"{', '.join(places) or 'Nothing run yet'}; runs at once: {', '.join(map(str, at_once)) or '–'}."
    )


def _markdown(table: dict) -> str:
    scores = SCORES[table["task"]]
    reference = table["reference"]
    several = any(len(row["seeds"]) > 1 for row in table["rows"])
    heading = ["system"]
    for score in scores.values():
        heading += [score, *(["seeds"] if several else []), f"minus {reference}", "p"]
    lines = []
    for row in table["rows"]:
        name = row["system"] + (f" ({'; '.join(row['failed'])})" if row["failed"] else "")
        cells = [name.replace("|", "/")]
        for score in scores:
            found, difference = row.get("scores", {}).get(score), row.get("differences", {}).get(score)
            cells.append(_plus_minus(found["mean"], found["std"]) if found else "–")
            if several:
                cells.append(_number(found["std_of_seeds"], ".4f", "± ") if found else "–")
            cells += [_difference(difference), _number(difference["p"], ".2g") if difference else "–"]
        cells.append(_number(row.get("seconds"), ".0f", after=" s"))
        peak = row.get("peak_bytes")
        cells.append(_number(peak and peak / GIGABYTE, ".1f", after=" GB"))
        lines.append(cells)
    return f"## {table['title']}\n\n{table['caption']}\n\n{markdown_lines([*heading, 'training', 'memory'], lines)}"


def _plus_minus(mean: float | None, std: float | None) -> str:
    return "–" if mean is None else f"{mean:.4f}" + _number(std, ".4f", " ± ", missing="")


def _difference(difference: dict | None) -> str:
    if difference is None:
        return "–"
    interval = difference["interval"]
    return f"{difference['mean']:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "")


def _number(value: float | None, form: str, before: str = "", after: str = "", missing: str = "–") -> str:
    return missing if value is None else f"{before}{value:{form}}{after}"


def _draw(tables: Mapping[str, Sequence], output_dir: Path) -> None:
    """The first test cases of the comparison's tasks, a column a system."""
    rows = []
    for name, runs in tables.items():
        if not name.startswith("comparison-"):
            continue
        class_names = load_class_names(runs[0].settings["dataset_dir"])[1:] or None
        kept = {run.label: output_dir / "runs" / run.name / "cases.npz" for run in runs}
        kept = {label: load_kept_cases(path) for label, path in kept.items() if path.exists()}
        count = min(map(len, kept.values()), default=0)
        rows += [({label: cases[i] for label, cases in kept.items()}, class_names) for i in range(count)]
    if rows:
        with replacing(output_dir / "predictions.png") as temporary:
            draw_methods(temporary, rows)


def draw_methods(path: Path, rows: Sequence[tuple[Mapping[str, Case], Sequence[str] | None]]) -> None:
    """Write a picture that compares the predictions of several networks for the same cases.

    Args:
        path: PNG file to write.
        rows: prediction of every network for one case, by the network's name, and the names of its classes, as
            :func:`~swinumamba_monai.reports.figures.draw_cases` takes them. The columns are image, truth, and the
            networks of all rows in their first order.
    """
    methods = list(dict.fromkeys(name for cases, _ in rows for name in cases))
    panels = []
    for cases, class_names in rows:
        painted = {name: painted_case(case, class_names) for name, case in cases.items()}
        first = next(iter(cases))
        predictions = (painted[name][1] if name in painted else None for name in methods)
        panels.append([cases[first].image, painted[first][0], *predictions])
    panel_figure(panels, [["image", "truth", *methods]], width=1.8, square=True).savefig(path, dpi=150)
