# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The metric of Dice and surface Dice: what it takes, refuses and reports, over regions and several processes."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from forked import call_in_group
from label_volumes import random_labels, scores_of
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image
from result_tables import read_rows

from swinumamba_monai.data import ImageFileReader
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics import DiceNSDMetric


def test_metric_takes_indices_one_hot_and_scores() -> None:
    truth, pred = (torch.tensor(labels).long() for labels in random_labels((12, 14), 2))
    one_hot = torch.nn.functional.one_hot(pred, 4).movedim(-1, 0)
    true_hot = torch.nn.functional.one_hot(truth, 4).movedim(-1, 0)
    metric = DiceNSDMetric(["a", "b", "c"], 1)
    rows = [
        metric(y_pred=[as_pred], y=[as_truth])
        for as_pred, as_truth in [
            (pred[None], truth[None]),
            (pred[None].float(), truth[None].to(torch.uint8)),
            (one_hot, true_hot),
            (3 * one_hot.float() - 1, truth[None]),
        ]
    ]
    assert all(torch.equal(row, rows[0]) for row in rows)
    metric(y_pred=pred[None, None].repeat(2, 1, 1, 1), y=truth[None, None].repeat(2, 1, 1, 1))  # batch-first
    assert metric.get_buffer().shape == (6, 4 + 3 * 4 + 3 * 2)
    assert metric.aggregate().item() == pytest.approx(rows[0][0, metric.names.index("dsc_corrected")].item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerances": [1, 2]}, "2 NSD tolerances for 3 classes"),
        ({"tolerances": [1, 2, -1]}, "not negative"),
        ({"cut_slices": [4]}, "labels from 1 to 3"),
        ({"class_names": ["a", "b", "a"]}, "differ"),
        ({"class_names": ["a", "b", "mean"]}, "differ"),
        ({"key": "dsc"}, "no score 'dsc'"),
    ],
)
def test_impossible_settings(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiceNSDMetric(**{"class_names": ["a", "b", "c"], "tolerances": 2, **options})


INDICES = torch.zeros(1, 8, 9)


@pytest.mark.parametrize(
    ("pred", "truth", "options", "message"),
    [
        (INDICES + 4, INDICES, {}, "prediction must hold the labels 0 to 3"),
        (INDICES, INDICES - 1, {}, "truth must hold the labels 0 to 3"),
        (INDICES + 0.5, INDICES, {}, "between whole numbers"),
        (torch.zeros(3, 8, 9), INDICES, {}, "or 4 channels"),
        (torch.zeros(8, 9), INDICES, {}, "cannot be read"),
        (torch.zeros(1, 8, 10), INDICES, {}, "same grid"),
        (INDICES, INDICES, {"in_mm": True}, "no spacing"),
    ],
)
def test_metric_refuses_what_it_would_misread(
    pred: torch.Tensor, truth: torch.Tensor, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        DiceNSDMetric(["a", "b", "c"], 2, **options)(y_pred=[pred], y=[truth])


def evaluate(output_dir: Path, items: list[dict], load: Compose, channels: int = 1, **options: object) -> dict:
    """Evaluate a network that predicts the image; the metrics of the evaluator."""
    parser = ConfigParser(
        {
            "imports": ["$import monai"],
            "loader": DataLoader(Dataset(items, load), batch_size=1),
            "key_metric": {
                "val_scores": {
                    "_target_": "swinumamba_monai.metrics.DiceNSD",
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                    **options,
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "cpu",
                "val_data_loader": "@loader",
                "network": {"_target_": "torch.nn.Identity"},
                "inferer": {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2},
                "key_val_metric": "@key_metric",
                "val_handlers": [
                    {
                        "_target_": "swinumamba_monai.reports.EvaluationReport",
                        "output_dir": str(output_dir),
                        "metric": "@key_metric#val_scores",
                        "num_figures": 2,
                    }
                ],
            },
        }
    )
    if channels == 2:
        del parser["evaluator"]["inferer"]
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    return evaluator.state.metrics


def test_volumes_predicted_slice_by_slice_are_reported(tmp_path: Path) -> None:
    spacing, items = (0.8, 1.6, 4.0), []
    for seed in range(3):
        truth, pred = random_labels((20, 18, 8), seed)
        if seed == 2:
            truth[truth == 3], pred[pred == 3] = 0, 0
        for key, labels in (("image", pred), ("label", truth)):
            nibabel.save(nibabel.Nifti1Image(labels, np.diag([*spacing, 1])), tmp_path / f"{key}_{seed}.nii.gz")
        items.append({key: str(tmp_path / f"{key}_{seed}.nii.gz") for key in ("image", "label")})
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    options = {"class_names": ["liver", "right kidney", "aorta"], "tolerances": [1, 2, 3], "in_mm": True}
    metrics = evaluate(tmp_path / "report", items, load, cut_slices=[3], every_mean=True, **options)

    rows = read_rows(tmp_path / "report" / "metrics.csv")
    assert [row["name"] for row in rows] == [f"image_{seed}.nii.gz" for seed in range(3)]
    metric = DiceNSDMetric(cut_slices=[3], **options)
    for row, item in zip(rows, items, strict=True):
        pred, truth = (load(item)[key] for key in ("image", "label"))
        for name, number in scores_of(metric, pred, truth).items():
            assert float(row[name]) == pytest.approx(number, abs=1e-6), name
    assert metrics["val_scores"] == pytest.approx(np.mean([float(row["dsc_corrected"]) for row in rows]), abs=1e-6)
    assert metrics["val_scores_nsd_published_aorta"] == pytest.approx(metric.means()["nsd_published_aorta"])

    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["tolerances"] == {"liver": 1, "right_kidney": 2, "aorta": 3}
    assert (summary["tolerance_unit"], summary["published_cut_slices"]) == ("mm", ["aorta"])
    column = summary["columns"]["nsd_corrected_right_kidney"]
    assert (column["score"], column["reading"], column["class"]) == ("nsd", "corrected", "right_kidney")
    low, high = column["interval"]
    assert low <= column["mean"] <= high and column["n"] == 3
    rows = read_rows(tmp_path / "report" / "classes.csv")
    classes = {(row["score"], row["reading"], row["class"]): row for row in rows}
    assert len(classes) == 2 * 2 * 4
    assert [classes["dsc", "corrected", name]["n_present"] for name in ("mean", "liver", "aorta")] == ["", "3", "2"]
    for name in ("scores.png", "predictions.png", "worst_cases.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert min(picture.size) > 100


def test_frames_are_reported(tmp_path: Path) -> None:
    items = []
    for surgery in ("one", "two"):
        truth, pred = random_labels((24, 32), len(surgery))
        for key, labels in (("image", pred), ("label", truth)):
            (tmp_path / surgery / key).mkdir(parents=True)
            Image.fromarray(labels).save(tmp_path / surgery / key / "frame000.png")
        items.append({key: str(tmp_path / surgery / key / "frame000.png") for key in ("image", "label")})
    keys = ["image", "label"]
    load = Compose([LoadImaged(keys, reader=ImageFileReader), EnsureChannelFirstd(keys)])
    options = {"class_names": ["shaft", "wrist", "jaw"], "tolerances": 2, "only_present": True, "channels": 2}
    metrics = evaluate(tmp_path / "report", items, load, **options)
    assert 0 < metrics["val_scores"] < 1
    rows = read_rows(tmp_path / "report" / "metrics.csv")
    assert [row["name"] for row in rows] == ["one/image/frame000.png", "two/image/frame000.png"]


def share(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    join = (folder / "join").as_uri()
    torch.distributed.init_process_group("gloo", join, timedelta(seconds=60), world_size=2, rank=rank)
    metric = DiceNSDMetric(["a", "b", "c"], 1)
    for seed in ((0, 1, 2), (3,))[rank]:  # not as many on both
        truth, pred = (torch.tensor(labels)[None] for labels in random_labels((12, 14), seed))
        metric(y_pred=[pred], y=[truth])
    (folder / f"{rank}.json").write_text(json.dumps([metric.aggregate().item(), metric.means()]))
    torch.distributed.destroy_process_group()


def test_mean_over_the_cases_of_all_processes(tmp_path: Path) -> None:
    call_in_group(share, tmp_path)
    metric = DiceNSDMetric(["a", "b", "c"], 1)
    for seed in range(4):
        truth, pred = (torch.tensor(labels)[None] for labels in random_labels((12, 14), seed))
        metric(y_pred=[pred], y=[truth])
    for rank in range(2):
        value, means = json.loads((tmp_path / f"{rank}.json").read_text())
        assert value == metric.aggregate().item()
        assert means == metric.means()


def test_settings_by_name_are_those_by_label() -> None:
    names = ["liver", "spleen", "aorta"]
    by_label = DiceNSDMetric(names, [5, 3, 2], cut_slices=[3])
    by_name = DiceNSDMetric(
        names, {"aorta": 2, "liver": 5, "spleen": 3, "stomach": 5}, cut_slices=["aorta", "esophagus"]
    )
    assert by_name.settings() == by_label.settings()
    assert by_name.cut_slices == (3,)
    with pytest.raises(InputError, match="no NSD tolerance for spleen, aorta"):
        DiceNSDMetric(names, {"liver": 5})


def test_names_are_compared_without_their_spelling() -> None:
    names = ["Liver", "kidney_right", "Inferior-Vena Cava", "肝", "脾"]
    tolerances = {"liver": 5, "right kidney": 3, "left kidney": 1, "inferior vena cava": 2, "脾": 7, "肝": 6}
    metric = DiceNSDMetric(names, tolerances, cut_slices=["inferior vena cava"])
    assert (metric.tolerances, metric.cut_slices) == ((5, 3, 2, 6, 7), (3,))


def test_regions_are_scored_as_unions_of_classes():
    """Whole tumour and core of the labels 1 to 3, by hand: DSC 2 * 8 / (8 + 12) and 2 * 4 / (4 + 8)."""
    truth, pred = torch.zeros(1, 6, 6), torch.zeros(1, 6, 6)
    truth[:, 1:3, 1:5] = 1
    truth[:, 2, 1:5] = 3
    pred[:, 1:4, 1:5] = 1
    pred[:, 2:4, 1:5] = 2
    regions = {"whole tumor": [1, 2, 3], "core": [2, 3]}
    metric = DiceNSDMetric(["edema", "necrosis", "enhancing"], {"core": 1, "whole tumor": 2}, regions=regions)
    metric(truth[None], pred[None])
    scores = dict(zip([column.name for column in metric.columns], metric.get_buffer()[0].tolist()))
    assert scores["dsc_corrected_whole_tumor"] == pytest.approx(2 * 8 / 20)
    assert scores["dsc_corrected_core"] == pytest.approx(2 * 4 / 12)
    assert scores["dsc_corrected"] == pytest.approx((16 / 20 + 8 / 12) / 2)
    assert metric.settings()["tolerances"] == {"whole_tumor": 2, "core": 1}
