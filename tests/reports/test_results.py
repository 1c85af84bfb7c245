# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of results from folders of evaluations: what is one row, and what each cell is made of."""

from __future__ import annotations

import json

import pytest
from result_tables import read_rows

from swinumamba_monai.cli import main
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics.segmentation import DiceNSDMetric
from swinumamba_monai.reports import read_evaluation
from swinumamba_monai.reports.tables import write_csv
from swinumamba_monai.tasks import TASKS


def evaluation(folder, scores, network_name="nnUNet", training=None, run=True, name="metrics.csv"):
    """What an evaluation of microscopy leaves, as far as the table reads it."""
    folder.mkdir(parents=True)
    record = {"task": "microscopy", "network_name": network_name, "training": [training]} if run else None
    summary = {"run": record, "columns": {"f1": {"score": "f1"}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = ["name,f1,f1_corrected", *(f"case{i},{score},{score / 2}" for i, score in enumerate(scores))]
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder)


def table(tmp_path, *arguments):
    assert main(["table", "results", *arguments, "--output_dir", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out" / "results.csv")
    return rows, [row for row in rows if row["source"] == "here"]


TRAINING = {"pretrained": None, "learning_rate": 0.01, "parameters": 46_300_000, "seconds": 120.0}


def test_seeds_are_one_row(tmp_path):
    folders = [
        evaluation(tmp_path / f"s{seed}", scores, training={**TRAINING, "seed": seed, "seconds": 60.0 * (seed + 1)})
        for seed, scores in enumerate([(0.2, 0.4), (0.4, 0.8)])
    ]
    rows, here = table(tmp_path, *folders)
    assert len(here) == 1
    row = here[0]
    assert row["row"] == "nnU-Net, w/o foundation model" and row["parameters"] == "46.3M"
    assert (row["n"], row["seeds"], row["minutes"]) == ("2", "2", "1.5")
    assert row["f1"] == "0.4500±0.2121"  # cases 0.3 and 0.6
    assert row["seed_std"] == "0.2121"  # seeds 0.3 and 0.6
    assert row["f1_interval"] == "0.3000–0.6000"
    paper = [row for row in rows if row["source"] == "the paper"]
    assert len(paper) == 11 and paper[0]["f1"] == "0.5383±0.2657"
    assert rows.index(row) == 1, "behind the paper's row of the same system"
    text = (tmp_path / "out" / "results.md").read_text()
    assert "Table III, microscopy" in text and "were not measured here" in text and "NSD" not in text


def test_other_settings_are_other_rows(tmp_path):
    folders = [
        evaluation(tmp_path / str(rate), (0.2, 0.4), training={**TRAINING, "seed": 0, "learning_rate": rate})
        for rate in (0.01, 0.001)
    ]
    _, here = table(tmp_path, *folders)
    assert [row["row"].split("(")[1] for row in here] == ["learning_rate 0.01)", "learning_rate 0.001)"]


def test_reading(tmp_path):
    _, here = table(tmp_path, evaluation(tmp_path / "a", (0.2, 0.4), training=TRAINING), "--reading", "corrected")
    assert here[0]["f1"].startswith("0.1500±")


def test_a_name_of_ones_own_and_table_v(tmp_path):
    old = evaluation(tmp_path / "old", (0.5, 0.7), run=False)
    rows, here = table(tmp_path, f"SwinUMambaD={old}", f"ImageNet pretraining={old}")
    assert [row["row"] for row in here] == ["Swin-UMamba†", "ImageNet pretraining"]
    assert {row["table"] for row in rows} == {"Table III, microscopy", "Table V, microscopy"}


@pytest.mark.parametrize(("task", "left_out"), [("abdomen_mri", ""), ("endoscopy", ""), ("abdomen_mri", "liver")])
def test_a_report_that_does_not_say_its_task(tmp_path, task, left_out):
    """It is known by the names of the paper's classes; one that has others is not taken for any task."""
    names = [name for name in TASKS[task].files.class_names[1:] if name != left_out]
    scored = DiceNSDMetric(names, tolerances=1.0).columns
    columns = {column.name: {"score": column.score, "class": column.label, "mean": 0.5} for column in scored}
    (tmp_path / "summary.json").write_text(json.dumps({"run": None, "columns": columns}))
    (tmp_path / "metrics.csv").write_text("name,dsc_published,nsd_published\na,0.5,0.6\n")
    if left_out:
        with pytest.raises(InputError, match="does not say which task it is of"):
            read_evaluation(f"nnUNet={tmp_path}")
    else:
        assert read_evaluation(f"nnUNet={tmp_path}").task == task


@pytest.mark.parametrize("what", ["nothing", "unnamed", "cases"])
def test_bad_folders_are_one_sentence(tmp_path, capsys, what):
    folders = {
        "nothing": lambda: [str(tmp_path / "nowhere")],
        "unnamed": lambda: [evaluation(tmp_path / "a", (0.1,), run=False)],
        "cases": lambda: [
            evaluation(tmp_path / "a", (0.1,), training={**TRAINING, "seed": 0}),
            evaluation(tmp_path / "b", (0.1, 0.2), training={**TRAINING, "seed": 1}),
        ],
    }[what]()
    assert main(["table", "results", *folders, "--output_dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    words = {"nothing": "no folder of an evaluation", "unnamed": "write NAME=", "cases": "different cases"}
    assert error.startswith("error: ") and words[what] in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "summary",
    [
        "[1]", "{", '"text"', "[" * 100_000, '{"columns": 3}', '{"columns": {"a": 1}}', '{"columns": {}, "run": [1]}',
        '{"columns": {"f1": {}}, "run": {"task": ["microscopy"], "network_name": "nnUNet"}}',
        '{"columns": {"f1": {}}, "run": {"network_name": {"a": 1}}}',
        '{"columns": {"f1": {}}, "run": {"network_name": "nnUNet", "training": 7}}',
        '{"columns": {"f1": {}}, "run": {"network_name": "nnUNet", "training": [[1]]}}',
    ],
)  # fmt: skip
def test_damaged_summaries_get_a_sentence(tmp_path, summary):
    (tmp_path / "summary.json").write_text(summary)
    with pytest.raises(InputError, match=r"is no folder of an evaluation|does not say which (network|task)"):
        read_evaluation(str(tmp_path))


def test_names_are_no_formulas(tmp_path):
    rows = [{"name": name, "f1": -0.5} for name in ("=1+1", "+a", "-b", "@c", "\td", "plain", "a=b")]
    write_csv(tmp_path, "metrics", rows)
    cells = [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert cells == ["'=1+1", "'+a", "'-b", "'@c", "'\td", "plain", "a=b"]
    assert "-0.5" in (tmp_path / "metrics.csv").read_text() and "'-0.5" not in (tmp_path / "metrics.csv").read_text()
