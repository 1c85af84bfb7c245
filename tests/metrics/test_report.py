# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor
from PIL import Image

import swinumamba_monai
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics import CELL_COLUMNS
from swinumamba_monai.metrics.figures import draw_cases, make_case

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
                        "_target_": "swinumamba_monai.metrics.EvaluationReport",
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
    assert header == ["name", *CELL_COLUMNS, "val_dice_interior", "val_dice_boundary"]
    assert rows[0] == ["a.png", "4", "4", "4", "0", "0", *["1.000000"] * 4, "1.000000", "nan"]
    assert rows[1][:6] == ["b.tif", "3", "1", "1", "0", "2"]
    assert [float(value) for value in rows[1][6:10]] == pytest.approx([1, 1 / 3, 1 / 2, 1 / 2], abs=1e-6)
    assert rows[2] == ["c.png", "2", "0", "0", "0", "0", *["0.000000"] * 4, "nan", "nan"]

    summary = json.loads((output_dir / "summary.json").read_text())
    columns = summary.pop("columns")
    assert summary == {
        "swinumamba_monai": swinumamba_monai.__version__,
        "reading": "published",
        "threshold": 0.5,
        "count_border_cells": False,
        "std_ddof": 1,
    }
    assert list(columns) == header[1:]
    assert columns["f1"] == {"mean": 0.5, "std": 0.5, "n": 3}
    assert columns["true_num"] == {"mean": 3.0, "std": 1.0, "n": 3}
    assert columns["val_dice_interior"] == {"mean": 1.0, "std": 0.0, "n": 2}
    assert columns["val_dice_boundary"] == {"mean": None, "std": None, "n": 0}

    with Image.open(output_dir / "predictions.png") as picture:
        picture.load()
    assert sorted(path.name for path in output_dir.iterdir()) == ["metrics.csv", "predictions.png", "summary.json"]


def test_classes_without_names_are_numbered_and_pictures_can_be_left_out(tmp_path: Path) -> None:
    evaluate(tmp_path, ITEMS, num_figures=0)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].endswith(",dice,val_dice_0,val_dice_1")
    assert not (tmp_path / "predictions.png").exists()


def test_picture_has_a_row_for_each_of_the_first_images(tmp_path: Path) -> None:
    heights = []
    for count in (1, 2, 9):
        evaluate(tmp_path, ITEMS, num_figures=count)
        with Image.open(tmp_path / "predictions.png") as picture:
            heights.append(picture.height)
    one, two, three = heights
    assert two - one == pytest.approx(three - two, abs=2) and two > 1.5 * one


def evaluate_share(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    join = f"file://{folder / 'join'}"
    torch.distributed.init_process_group("gloo", join, timedelta(seconds=60), world_size=2, rank=rank)
    evaluate(folder / "report", ITEMS[rank::2], num_figures=1)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs processes that start at once")
def test_images_of_all_processes_are_reported(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(evaluate_share, (tmp_path,), nprocs=2, start_method="fork")
    with (tmp_path / "report" / "metrics.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert [row[:4] for row in rows] == [["a.png", "4", "4", "4"], ["c.png", "2", "0", "0"], ["b.tif", "3", "1", "1"]]
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["columns"]["f1"]["mean"] == 0.5


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
