# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import call_in_group
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor
from PIL import Image
from result_tables import read_rows

import swinumamba_monai
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics import CELL_COLUMNS, Column
from swinumamba_monai.metrics.statistics import summarize_cases
from swinumamba_monai.reports.figures import draw_cases, draw_scores, make_case

HEIGHT, WIDTH = 24, 40
FROM_ENGINE = "$monai.handlers.from_engine(['pred', '{}'])"


def item(name: str, cells: int, found: int, label: int = 1) -> dict[str, torch.Tensor]:
    """An image of true cells, of which some are found; the image holds the scores that the network passes on."""
    truth, classes = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int32), torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    for index in range(cells):
        where = np.s_[4:10, 4 + 8 * index : 9 + 8 * index]
        truth[0][where] = index + 1
        classes[where] = 1 if index < found else 0
    scores = torch.nn.functional.one_hot(classes, 3).permute(2, 0, 1).float()
    meta = {"filename_or_obj": f"/data/{name}"}
    return {
        "image": MetaTensor(scores, meta=meta),
        "label": torch.nn.functional.one_hot(classes * label, 3).permute(2, 0, 1).float(),
        "instances": MetaTensor(truth, meta=meta),
    }


def evaluate(output_dir: Path, items: list[dict], batch_size: int = 2, **options: object) -> None:
    parser = ConfigParser(
        {
            "imports": ["$import monai"],
            "loader": DataLoader(items, batch_size=batch_size),
            "key_metric": {
                "val_f1": {
                    "_target_": "swinumamba_monai.metrics.CellF1",
                    "output_transform": FROM_ENGINE.format("instances"),
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "cpu",
                "val_data_loader": "@loader",
                "network": {"_target_": "torch.nn.Identity"},
                "postprocessing": {"_target_": "AsDiscreted", "keys": "pred", "argmax": True, "to_onehot": 3},
                "key_val_metric": "@key_metric",
                "additional_metrics": {
                    "val_dice": {
                        "_target_": "MeanDice",
                        "include_background": False,
                        "output_transform": FROM_ENGINE.format("label"),
                    }
                },
                "val_handlers": [
                    {
                        "_target_": "swinumamba_monai.reports.EvaluationReport",
                        "output_dir": str(output_dir),
                        "metric": "@key_metric#val_f1",
                        **options,
                    }
                ],
            },
        }
    )
    parser.get_parsed_content("evaluator").run()


ITEMS = [item("a.png", 4, 4), item("b.tif", 3, 1), item("c.png", 2, 0, label=0)]


def test_report_of_an_evaluation(tmp_path: Path) -> None:
    output_dir = tmp_path / "new" / "folder"
    evaluate(output_dir, ITEMS, class_names={"val_dice": ["interior", "boundary"]})

    with (output_dir / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    corrected = [f"{name}_corrected" for name in CELL_COLUMNS[:-1]]
    assert header == ["name", *CELL_COLUMNS, *corrected, "val_dice_interior", "val_dice_boundary"]
    all_found = ["4", "4", "4", "0", "0", *["1.000000"] * 3]
    assert rows[0] == ["a.png", *all_found, "1.000000", *all_found, "1.000000", "nan"]
    assert rows[1][:6] == ["b.tif", "3", "1", "1", "0", "2"]
    assert [float(value) for value in rows[1][6:10]] == pytest.approx([1, 1 / 3, 1 / 2, 1 / 2], abs=1e-6)
    assert rows[2][:10] == ["c.png", "2", "0", "0", "0", "0", *["0.000000"] * 4]
    assert rows[2][10:] == ["2", "0", "0", "0", "2", *["0.000000"] * 3, "nan", "nan"]

    summary = json.loads((output_dir / "summary.json").read_text())
    columns = summary.pop("columns")
    assert summary.pop("run") is None
    assert summary == {
        "swinumamba_monai": swinumamba_monai.__version__,
        "threshold": 0.5,
        "count_border_cells": False,
        "min_size": 0,
        "grow": 0,
        "std_ddof": 1,
        "bootstrap": {
            "statistic": "mean",
            "drawn_with_replacement": "cases",
            "method": "percentile",
            "confidence": 0.95,
            "resamples": 9999,
            "seed": 0,
        },
    }
    assert list(columns) == header[1:]
    # Of 27 equally likely draws of three of 1, 0.5 and 0, one has the mean 1 and one 0: more than 2.5 % each.
    f1 = {"score": "f1", "class": "cell", "mean": 0.5, "std": 0.5, "n": 3, "interval": [0.0, 1.0]}
    assert columns["f1"] == {**f1, "reading": "published"}
    assert columns["f1_corrected"] == {**f1, "reading": "corrected"}
    assert columns["true_num"]["mean"] == 3.0 and columns["true_num"]["std"] == 1.0
    assert columns["val_dice_interior"] == {
        "score": "val_dice",
        "reading": "",
        "class": "interior",
        "mean": 1.0,
        "std": 0.0,
        "n": 2,
        "interval": [1.0, 1.0],
    }
    assert columns["val_dice_boundary"]["n"] == 0
    assert all(columns["val_dice_boundary"][name] is None for name in ("mean", "std", "interval"))

    classes = {(row["score"], row["reading"], row["class"]): row for row in read_rows(output_dir / "classes.csv")}
    assert classes.keys() == {
        *((score, "published", "cell") for score in ("precision", "recall", "f1", "dice")),
        *((score, "corrected", "cell") for score in ("precision", "recall", "f1")),
        *(("val_dice", "", name) for name in ("interior", "boundary")),
    }
    f1 = classes["f1", "corrected", "cell"]
    assert [f1[name] for name in ("mean", "std", "low", "high")] == ["0.500000", "0.500000", "0.000000", "1.000000"]
    assert (f1["n"], f1["n_present"]) == ("3", "3")

    pictures = ["predictions.png", "scores.png", "worst_cases.png"]
    for name in pictures:
        with Image.open(output_dir / name) as picture:
            picture.load()
    tables = ["classes.csv", "metrics.csv", "summary.json"]
    assert sorted(path.name for path in output_dir.iterdir()) == sorted(tables + pictures)


def test_a_second_evaluation_in_the_folder_is_refused(tmp_path: Path) -> None:
    take = "import sys; from swinumamba_monai.run_lock import RunLock; RunLock(sys.argv[1]).acquire()"
    command = [sys.executable, "-c", f"{take}; print(flush=True); input()", str(tmp_path / ".evaluation.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        with pytest.raises(InputError, match=f"an evaluation is running in .*process {first.pid} on .*--output_dir"):
            evaluate(tmp_path, ITEMS)
        assert [path.name for path in tmp_path.iterdir()] == [".evaluation.lock"]
        first.communicate(b"\n", timeout=300)
    evaluate(tmp_path, ITEMS, num_figures=0)
    assert (tmp_path / "metrics.csv").is_file() and not (tmp_path / ".evaluation.lock").exists()


def test_classes_without_names_are_numbered_and_pictures_can_be_left_out(tmp_path: Path) -> None:
    evaluate(tmp_path, ITEMS, num_figures=0)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].endswith(",f1_corrected,val_dice_0,val_dice_1")
    assert not (tmp_path / "predictions.png").exists() and not (tmp_path / "worst_cases.png").exists()


def test_picture_has_a_row_for_each_of_the_first_images(tmp_path: Path) -> None:
    heights = []
    for count in (1, 2, 9):
        evaluate(tmp_path, ITEMS, num_figures=count)
        with Image.open(tmp_path / "predictions.png") as picture:
            heights.append(picture.height)
    one, two, three = heights
    assert two - one == pytest.approx(three - two, abs=2) and two > 1.5 * one


def drawn_by(monkeypatch: pytest.MonkeyPatch, output_dir: Path, items: list[dict], **options: object) -> dict:
    """Names of the cases and titles of each picture of an evaluation."""
    drawn = {}

    def record(path: Path, cases: list, titles: list, heading: str, class_names: list | None) -> None:
        drawn[path.name.split("-", 1)[1]] = [case.name for case in cases], titles
        path.write_bytes(b"picture")

    monkeypatch.setattr("swinumamba_monai.reports.evaluation.draw_cases", record)
    evaluate(output_dir, items, **options)
    return drawn


def test_worst_cases_are_those_with_the_lowest_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": 4, "b": 1, "c": 3, "d": 0, "e": 2}
    items = [item(f"{name}.png", 4, count, label=0) for name, count in found.items()]
    drawn = drawn_by(monkeypatch, tmp_path, items, num_figures=3)
    assert drawn["predictions.png"][0] == ["a.png", "b.png", "c.png"]
    names, titles = drawn["worst_cases.png"]
    assert names == ["d.png", "b.png", "e.png"]
    assert titles[1] == "prediction: F1 0.400 (1 right, 0 wrong, 3 missed)"


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    items = [item(f"{folder}/frames/1.png", 3, 2) for folder in ("one", "two")]
    evaluate(tmp_path, [*items, items[0]], num_figures=0)  # the last one is a repetition, not another file
    names = [row["name"] for row in read_rows(tmp_path / "metrics.csv")]
    assert names == ["one/frames/1.png", "two/frames/1.png", "one/frames/1.png"]


def test_interval_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(5, 2, 400)
    summary = summarize_cases(np.r_[values, np.nan, np.inf])
    assert summary["n"] == 400
    low, high = summary["interval"]
    # For 400 normal values the interval is the classical one, up to the 1 % or so that 9999 draws leave open.
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.03)
    assert summary == summarize_cases(values) and summary != summarize_cases(values, seed=1)
    assert summarize_cases(values[:1]) == {"mean": values[0], "std": None, "n": 1, "interval": None}


def evaluate_share(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    join = (folder / "join").as_uri()
    torch.distributed.init_process_group("gloo", join, timedelta(seconds=60), world_size=2, rank=rank)
    with pytest.MonkeyPatch.context() as monkeypatch:
        drawn = drawn_by(monkeypatch, folder / "report", ITEMS[:2] if rank == 0 else ITEMS[2:], num_figures=1)
    if rank == 0:
        (folder / "drawn.json").write_text(json.dumps(drawn))
    torch.distributed.destroy_process_group()


def test_images_of_all_processes_are_reported(tmp_path: Path) -> None:
    call_in_group(evaluate_share, tmp_path)
    with (tmp_path / "report" / "metrics.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert [row[:4] for row in rows] == [["a.png", "4", "4", "4"], ["b.tif", "3", "1", "1"], ["c.png", "2", "0", "0"]]
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["columns"]["f1"]["mean"] == 0.5
    drawn = json.loads((tmp_path / "drawn.json").read_text())
    assert drawn["predictions.png"][0] == ["a.png"]
    assert drawn["worst_cases.png"][0] == ["c.png"], "a case of the second process"


def test_wrong_number_of_class_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'val_dice' has 2 classes, but class_names gives it 1"):
        evaluate(tmp_path, ITEMS, class_names={"val_dice": ["interior"]})


def test_images_without_file_name(tmp_path: Path) -> None:
    nameless = {**ITEMS[0], "image": ITEMS[0]["image"].as_tensor()}
    with pytest.raises(InputError, match="file name"):
        evaluate(tmp_path, [nameless])


def test_figures_keep_little_memory_and_stay_aligned() -> None:
    truth = np.zeros((1300, 1030), np.int32)
    truth[300:600, 30:90] = 5
    case = make_case("big", torch.tensor(truth > 0)[None].float().repeat(4, 1, 1), truth, truth * 2)
    assert case.truth.shape == (434, 344) and case.truth.base is None
    assert case.image.shape == (434, 344, 3)
    assert (case.pred == 2 * case.truth).all()
    inside = case.truth > 0
    assert case.image[inside].mean() > 230 and case.image[~inside].mean() < 5


def test_matched_cells_share_their_colour(tmp_path: Path) -> None:
    truth, pred = np.zeros((60, 100), np.int32), np.zeros((60, 100), np.int32)
    truth[10:40, 10:40], truth[10:22, 41:53] = 1, 2
    # Other ids than the truth, a large cell that takes a column of the small one too, and a false cell.
    pred[10:40, 12:42], pred[10:22, 43:55], pred[45:55, 45:55] = 2, 1, 3
    draw_cases(tmp_path / "a.png", [make_case("a", torch.zeros(1, 60, 100), truth, pred)], ["title"], "heading")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3).astype(int)
    colours, pixels = np.unique(picture[np.ptp(picture, axis=1) > 60], axis=0, return_counts=True)
    assert len(colours) == 4  # a rim and a fill for each true cell; the false cell is white
    # The fill of the large cell has 2 * 28 * 28 pixels of the image, its rim 2 * 116, the small one's fill 2 * 10 * 10.
    # Were predictions coloured by their ids, each fill would be that of a large and a small cell.
    assert np.sort(pixels)[::-1] / pixels.max() == pytest.approx(np.array([784, 116, 100, 44]) / 784, rel=0.1)


def test_empty_images_can_be_drawn(tmp_path: Path) -> None:
    empty = np.zeros((20, 30), np.int32)
    draw_cases(tmp_path / "a.png", [make_case("a", torch.zeros(3, 20, 30), empty, empty)], ["title"], "heading")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_volume_is_shown_by_its_worst_slice() -> None:
    truth = np.zeros((20, 30, 8), np.uint8)
    truth[5:15, 5:15, 2:6] = 1
    pred = truth.copy()
    pred[..., 5] = 0
    image = torch.zeros(1, 40, 60, 16)  # on a finer grid, bright where the slice is
    image[0, 20:, :, 10:12] = 1
    case = make_case("a.nii.gz", image, truth, pred)
    assert case.name == "a.nii.gz, slice 6 of 8"
    assert case.truth.any() and not case.pred.any()
    assert case.truth.shape == (30, 20), "the first axis lies across"
    assert (case.image[:, 10:] == 255).all() and (case.image[:, :10] == 0).all()
    assert case.truth[15:25, 5:15].all() and case.truth.sum() == 100, "the second one points up"
    assert make_case("a", image, truth, truth).truth.any(), "without errors, a slice with an organ"


def test_classes_have_the_same_colour_in_truth_and_prediction(tmp_path: Path) -> None:
    truth, elsewhere = np.zeros((60, 100), np.uint8), np.zeros((60, 100), np.uint8)
    truth[10:40, 10:40], elsewhere[10:40, 60:90] = 2, 2  # no overlap: were they instances, one would be white
    fills = []
    for pred in (truth, elsewhere, np.where(elsewhere, 1, 0)):
        case = make_case("a", torch.zeros(1, 60, 100), truth, pred)
        draw_cases(tmp_path / "a.png", [case], ["title"], "heading", ["x", "y", "z"])
        picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3).astype(int)
        fills.append(np.unique(picture[np.ptp(picture, axis=1) > 60], axis=0, return_counts=True)[1].max())
    same_place, other_place, other_class = fills
    assert other_place == pytest.approx(same_place, rel=0.05)
    assert other_class == pytest.approx(same_place / 2, rel=0.05)


def test_box_plots_take_any_columns(tmp_path: Path) -> None:
    columns = {
        Column("f1", "f1", "published", "cell"): np.array([0.5, np.nan, 0.7]),
        Column("f1_corrected", "f1", "corrected", "cell"): np.array([0.5, 1.0, 0.7]),
        Column("tp", "tp", "published", "cell", is_count=True): np.array([1.0, 2, 3]),
        Column("hausdorff", "hausdorff"): np.array([12.0, np.inf, 3.0]),
        Column("nothing", "nothing"): np.full(3, np.nan),
    }
    heights = []
    for count in (5, 3, 0):
        draw_scores(tmp_path / "a.png", dict(list(columns.items())[:count]), "three cases")
        with Image.open(tmp_path / "a.png") as picture:
            heights.append(picture.height)
    two_panels, one_panel, no_panel = heights
    assert two_panels > 1.5 * one_panel and no_panel > 0
