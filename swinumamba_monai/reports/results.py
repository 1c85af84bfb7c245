# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluations of runs in the layout of the paper's Tables I–III and V, beside the paper's numbers.

Runs that are alike but for their seed are one row: each case counts with its mean over the seeds, and the seeds' own
spread stands beside. The paper's numbers stand in rows of their own, marked as the paper's, and on other cases than
those of the runs: they are there to be looked at, not to be tested against.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.config import PathLike

from swinumamba_monai.atomic import write_file
from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.metrics.case_scores import PUBLISHED
from swinumamba_monai.metrics.statistics import summarize_cases
from swinumamba_monai.networks import SYSTEMS
from swinumamba_monai.reports.comparison import read_cases
from swinumamba_monai.reports.paper_tables import SETTINGS, PublishedRow, published_rows
from swinumamba_monai.reports.tables import markdown, write_csv
from swinumamba_monai.tasks import TASKS, Task

RESULT_COLUMNS = {
    "row": "Methods",
    "source": "source",
    "parameters": "#param",
    "dsc": "DSC",
    "dsc_interval": "95 % interval",
    "nsd": "NSD",
    "nsd_interval": "95 % interval",
    "f1": "F1",
    "f1_interval": "95 % interval",
    "n": "n",
    "seeds": "seeds",
    "seed_std": "std over seeds",
    "minutes": "training, min",
    "gpu_gb": "memory, GB",
}
RESULT_NOTES = (
    "Rows of 'the paper' are printed there (mean ± std over its own cases), and were not measured here. Rows of "
    "'here': mean ± std over the n cases, each with its mean over the seeds; interval: 95 % bootstrap of the mean "
    "over cases; std over seeds: of the first score, of the seeds' means.",
)
# Settings of a training that may differ between the runs of one row: chance, and where it ran.
FREE = {"seed", "data_dir", "num_workers", "processes", "epoch", "best_metric_epoch", "seconds", "gpu", "gpu_bytes"}
NUMBERS, MAX_NUMBER = ("parameters", "seconds", "gpu_bytes"), 1e18  # facts that are computed with


@dataclass(frozen=True)
class Evaluation:
    """What one folder of an evaluation holds.

    Args:
        folder: folder that the evaluation wrote.
        task: a key of :data:`~swinumamba_monai.tasks.TASKS`.
        system: a key of :data:`~swinumamba_monai.networks.SYSTEMS`, or the caller's own name.
        row: name of its row in the table.
        training: content of the training's ``run.json``; empty where there is none.
        cases: numbers of every case by column, by the name of the case.
    """

    folder: Path
    task: str
    system: str
    row: str
    training: Mapping[str, object]
    cases: Mapping[str, Mapping[str, float]]

    @property
    def fixed(self) -> dict[str, object]:
        """What makes a run of the same row: all settings but the free ones; files count by their names."""
        settings = {name: value for name, value in self.training.items() if name not in FREE}
        pretrained = settings.get("pretrained")
        return settings | ({"pretrained": Path(str(pretrained)).name} if pretrained else {})


def read_evaluation(argument: str) -> Evaluation:
    """Read an evaluation's folder, with ``summary.json`` and ``metrics.csv``.

    Args:
        argument: ``DIR``, or ``NAME=DIR`` to choose its row: the name of a network, or any other.

    Raises:
        InputError: there is no such folder, or nothing in it says which task and network it is of.
    """
    name, _, folder = argument.rpartition("=")
    path = Path(folder)
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        run = dict(summary.get("run") or {})
        task, system = run.get("task") or _task_of(summary["columns"]), name or run.get("network_name")
        trainings = list(run.get("training") or [])
        training = dict((trainings[0] if len(trainings) == 1 else None) or {})
    except (OSError, AttributeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no folder of an evaluation: it has no summary.json of one.") from error
    for fact in NUMBERS:
        value = training.get(fact, 0)
        if not isinstance(value, (int, float)) or not 0 <= value < MAX_NUMBER:
            raise InputError(f"{path / 'summary.json'} says that {fact} is {shown(value)}; correct or remove it.")
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(
            f"{path} does not say which task it is of, and no task has its scores and classes; evaluate it with the "
            "evaluate.json of a bundle."
        )
    if not isinstance(system, str) or not system:
        raise InputError(f"{path} does not say which network it is of; write NAME={path}.")
    row = _row_name(name, system, len(trainings), training)
    return Evaluation(path, task, system, row, training, read_cases(path / "metrics.csv"))


def _task_of(columns: Mapping) -> str | None:
    """Of a report that does not say: the task that has all of these scores and, unless it is of cells, classes."""
    scores = {column.get("score") for column in columns.values()}
    classes = {str(column.get("class")).replace("_", " ") for column in columns.values()}
    tasks = (task for task in TASKS.values() if scores.issuperset(task.scores))
    return next((task.name for task in tasks if classes.issuperset(task.files.class_names[1:])), None)


def _row_name(name: str, system: str, num_members: int, training: Mapping) -> str:
    if name and name not in SYSTEMS:
        return name
    title = SYSTEMS[system].title if system in SYSTEMS else system
    if num_members > 1:
        return f"{title}, {num_members} networks together"
    if not training:
        return title
    if encoder := training.get("encoder"):
        title += f" with {encoder}"
    pretrained = training.get("pretrained")
    return f"{title}, {'from ' + Path(str(pretrained)).name if pretrained else SETTINGS['scratch']}"


def result_tables(evaluations: Sequence[Evaluation], reading: str = PUBLISHED) -> dict[str, list[dict]]:
    """Rows of the tables that the evaluations belong to, by the tables' headings.

    Args:
        evaluations: evaluations that :func:`read_evaluation` read.
        reading: ``"published"``, as the paper's scripts compute their scores, or ``"corrected"``.

    Raises:
        InputError: runs of one row were tested on different cases, or a score is missing.
    """
    tables = {}
    for task in TASKS.values():
        groups = _grouped([item for item in evaluations if item.task == task.name])
        if not groups:
            continue
        here = [_measured(row, items, task, reading) for row, items in groups]
        published = [row for row in published_rows() if row.task == task.name]
        initialisations = {row.row for row in published if row.table == "V"}
        for table in (task.table, "V"):
            rows = [row for row in here if (row["row"] in initialisations) == (table == "V")]
            if rows:
                theirs = [_printed(row, task) for row in published if row.table == table]
                tables[f"Table {table}, {task.name}"] = _in_order(theirs, rows)
    return tables


def _grouped(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[Evaluation]]]:
    """Those that differ in free settings alone together; names of rows say in what else they differ."""
    groups: dict[str, list[Evaluation]] = {}
    for item in evaluations:
        key = json.dumps([item.system, item.row, item.fixed], sort_keys=True)
        groups.setdefault(key, []).append(item)
    named = []
    for items in groups.values():
        same = [other[0].fixed for other in groups.values() if other[0].row == items[0].row]
        fixed = items[0].fixed
        differing = [name for name in fixed if any(other.get(name) != fixed[name] for other in same)]
        remark = ", ".join(f"{name} {fixed[name]}" for name in differing)
        named.append((items[0].row + (f" ({remark})" if remark else ""), items))
    return named


def _measured(row: str, items: Sequence[Evaluation], task: Task, reading: str) -> dict:
    names = items[0].cases.keys()
    for item in items[1:]:
        if item.cases.keys() != names:
            raise InputError(
                f"{items[0].folder} and {item.folder} belong to one row, but were tested on different cases; give one "
                "of them another name, as NAME=DIR."
            )
    cells: dict[str, object] = {"row": row, "source": "here", "system": items[0].system}
    parameters = items[0].training.get("parameters")
    cells["parameters"] = f"{parameters / 1e6:.1f}M" if parameters else None
    for index, score in enumerate(task.scores):
        column = score if (score, reading) == ("f1", PUBLISHED) else f"{score}_{reading}"
        try:
            values = np.array([[item.cases[name][column] for name in names] for item in items])
        except KeyError as error:
            raise InputError(f"{items[0].folder} has no column {column} in its metrics.csv.") from error
        over_cases = summarize_cases(values.mean(axis=0))
        if over_cases["n"] == 0:
            raise InputError(f"{items[0].folder} has no case with a value of {column}.")
        std, interval = over_cases["std"], over_cases["interval"]
        cells[score] = f"{over_cases['mean']:.4f}" + (f"±{std:.4f}" if std is not None else "")
        cells[f"{score}_interval"] = "{:.4f}–{:.4f}".format(*interval) if interval else None
        if index == 0:
            cells["n"] = over_cases["n"]
            cells["seeds"] = len(items)
            cells["seed_std"] = f"{np.nanmean(values, axis=1).std(ddof=1):.4f}" if len(items) > 1 else None
    seconds = [item.training["seconds"] for item in items if "seconds" in item.training]
    memory = [item.training["gpu_bytes"] for item in items if "gpu_bytes" in item.training]
    cells["minutes"] = f"{np.mean(seconds) / 60:.1f}" if seconds else None
    cells["gpu_gb"] = f"{max(memory) / 1e9:.1f}" if memory else None
    return cells


def _printed(row: PublishedRow, task: Task) -> dict:
    name = row.row
    if row.table != "V" and row.system in ("SwinUMamba", "SwinUMambaD"):
        name = f"{row.row}, {SETTINGS[row.setting]}"
    cells = {"row": name, "source": "the paper", "system": row.system, "parameters": row.parameters or None}
    return cells | {score: getattr(row, score) for score in task.scores}


def _in_order(printed: Sequence[dict], measured: Sequence[dict]) -> list[dict]:
    """The paper's rows in its order, each system's runs behind its last row, and unknown ones at the end."""
    rows = []
    for index, row in enumerate(printed):
        rows.append(row)
        if all(later["system"] != row["system"] for later in printed[index + 1 :]):
            rows += [run for run in measured if run["system"] == row["system"]]
    placed = {row["system"] for row in printed}
    return rows + [run for run in measured if run["system"] not in placed]


def write_results(output_dir: PathLike, tables: Mapping[str, Sequence[Mapping]], reading: str) -> str:
    """Write ``results.md``, a section a table, and ``results.csv``, all rows; return the text of the former.

    Args:
        output_dir: folder to write into; made if absent.
        tables: tables that :func:`result_tables` made.
        reading: reading of the scores, for the headings.
    """
    sections = []
    for heading, rows in tables.items():
        columns = {key: name for key, name in RESULT_COLUMNS.items() if any(row.get(key) for row in rows)}
        sections.append(f"## {heading} (scores in the {reading} reading)\n\n{markdown(columns, rows, RESULT_NOTES)}")
    rows = [{"table": heading, **row} for heading, rows in tables.items() for row in rows]
    write_csv(output_dir, "results", rows)
    text = "\n".join(sections)
    write_file(Path(output_dir) / "results.md", text)
    return text
