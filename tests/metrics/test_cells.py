# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.metrics import compute_panoptic_quality
from scipy import ndimage
from skimage.measure import label

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import classes_to_instances
from swinumamba_monai.metrics import CELL_COLUMNS, CellF1Metric, cell_counts

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "reference" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden numbers are not at {GOLDEN}")


def image(height: int = 20, width: int = 30, **cells: tuple[slice, slice]) -> np.ndarray:
    """Ids of rectangles, 'c7' being the cell with id 7."""
    ids = np.zeros((height, width), np.int32)
    for name, where in cells.items():
        ids[where] = int(name[1:])
    return ids


def five(counts) -> tuple[int, ...]:
    return counts.true_num, counts.pred_num, counts.tp, counts.fp, counts.fn


def big_image() -> tuple[np.ndarray, np.ndarray]:
    """Truth and classes of case z_big, by the recipe in the golden README."""
    truth, classes = np.zeros((5003, 5001), np.uint16), np.zeros((5003, 5001), np.uint8)
    number = 0
    for y in range(40, 4973, 97):
        for x in range(40, 4971, 101):
            number += 1
            truth[y : y + 30, x : x + 30] = number
            shift = 7 * number % 11
            if number % 13:
                classes[y + shift : y + 30, x : x + 30] = 1
    return truth, classes


@needs_golden
def test_every_number_of_the_published_script() -> None:
    expected = json.loads((GOLDEN / "metrics_cells.json").read_text())
    arrays = np.load(GOLDEN / "metrics_cells.npz")
    f1, compared = [], 0
    for case, settings in expected["cases"].items():
        truth, classes = big_image() if case == "z_big" else (arrays[f"{case}/gt"], arrays[f"{case}/pred"])
        pred = classes_to_instances(classes)
        for setting, numbers in settings.items():
            if setting == "generator":
                continue
            threshold, _, border = setting.removeprefix("thr").partition("_")
            counts = cell_counts(truth, pred, float(threshold), count_border_cells=border == "count_bd")
            ours = {name: np.round(getattr(counts, name.lower()), 4) for name in numbers}
            assert ours == numbers, (case, setting)
            compared += len(numbers)
            if setting == "thr0.5":
                f1.append(ours["F1"])
    assert compared == 14 * 4 * 9 + 2 * 9
    assert round(np.mean(f1), 4) == expected["aggregate"]["mean_F1"]
    assert round(np.median(f1), 4) == expected["aggregate"]["median_F1"]


def test_hand_counted_image() -> None:
    truth = image(c1=np.s_[4:8, 4:8], c2=np.s_[4:8, 12:16], c9=np.s_[12:16, 4:8])
    pred = image(c3=np.s_[4:8, 4:8], c5=np.s_[4:8, 13:17], c6=np.s_[12:14, 20:24])
    counts = cell_counts(truth, pred, 0.6)  # IoU of 2 and 5: 12 / 20, exactly at the threshold
    assert five(counts) == (3, 3, 2, 1, 1)
    assert counts.row() == pytest.approx([3, 3, 2, 1, 1, 2 / 3, 2 / 3, 2 / 3, 2 * 28 / (48 + 40)])
    assert cell_counts(truth, pred, 0.61).tp == 1


def test_a_cell_matches_one_other_at_most() -> None:
    halves = image(c1=np.s_[4:8, 4:8], c2=np.s_[4:8, 8:12])
    whole = image(c1=np.s_[4:8, 4:12])
    assert five(cell_counts(halves, whole)) == (2, 1, 1, 0, 1)
    assert five(cell_counts(whole, halves)) == (1, 2, 1, 1, 0)


def test_matching_finds_the_most_pairs() -> None:
    truth = image(c1=np.s_[4:8, 4:10], c2=np.s_[4:8, 10:14])
    pred = image(c1=np.s_[4:8, 3:7], c2=np.s_[4:8, 7:14])
    # At 0.2 true cell 1 fits both predicted ones (12 / 28 and 12 / 40), cell 2 the second alone (16 / 28).
    assert cell_counts(truth, pred, 0.2).tp == 2


def test_cells_on_the_two_pixel_frame_are_left_out() -> None:
    inside, touching = image(c1=np.s_[2:6, 2:6]), image(c1=np.s_[1:6, 2:6])
    assert five(cell_counts(inside, inside)) == (1, 1, 1, 0, 0)
    assert five(cell_counts(touching, touching)) == (0, 0, 0, 0, 0)
    assert five(cell_counts(touching, touching, count_border_cells=True)) == (1, 1, 1, 0, 0)
    assert cell_counts(touching, touching).dice == 1


def test_all_pieces_of_a_cell_on_the_frame_are_left_out() -> None:
    truth = image(c4=np.s_[0:6, 4:8])
    truth[12:16, 12:16] = 4
    assert cell_counts(truth, truth).true_num == 0


def test_empty_images_in_the_published_reading() -> None:
    empty, cell = image(), image(c1=np.s_[4:8, 4:8])
    assert five(cell_counts(cell, empty)) == (1, 0, 0, 0, 0)
    assert five(cell_counts(empty, cell)) == (0, 1, 0, 1, 0)
    nothing = cell_counts(empty, empty)
    assert (nothing.f1, nothing.dice) == (0, 1)


def test_empty_images_in_the_corrected_reading() -> None:
    empty, cell, touching = image(), image(c1=np.s_[4:8, 4:8]), image(c1=np.s_[1:6, 2:6])
    assert five(cell_counts(cell, empty, reading="corrected")) == (1, 0, 0, 0, 1)
    assert five(cell_counts(empty, cell, reading="corrected")) == (0, 1, 0, 1, 0)
    for pair in ((cell, empty), (empty, cell)):
        counts = cell_counts(*pair, reading="corrected")
        assert (counts.precision, counts.recall, counts.f1, counts.dice) == (0, 0, 0, 0)
    for pair in ((empty, empty), (touching, empty), (touching, touching)):  # cells on the frame are no cells
        counts = cell_counts(*pair, reading="corrected")
        assert (counts.precision, counts.recall, counts.f1) == (1, 1, 1)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction with a dozen cells, some alike, some not."""
    rng = np.random.default_rng(seed)
    truth, noise = (ndimage.gaussian_filter(rng.standard_normal((60, 70)), 2.5) for _ in range(2))
    return tuple(label(height > np.quantile(height, 0.8)) for height in (truth, truth + 0.4 * noise))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
def test_readings_agree_where_nothing_is_to_be_corrected(threshold: float) -> None:
    hits = 0
    for seed in range(5):
        published = cell_counts(*blobs(seed), threshold)
        hits += published.tp
        assert published.row() == cell_counts(*blobs(seed), threshold, reading="corrected").row()
    assert hits > 0


def test_corrected_f1_is_the_recognition_quality_of_panoptic_quality() -> None:
    for seed in range(5):
        truth, pred = blobs(seed)
        # MONAI matches above the threshold, the script from it on.
        counts = cell_counts(truth, pred, 0.5 + 1e-9, count_border_cells=True, reading="corrected")
        pair = (torch.tensor(ids.astype(np.int64)) for ids in (pred, truth))
        quality = compute_panoptic_quality(*pair, metric_name="rq", match_iou_threshold=0.5)
        assert counts.tp > 0 and counts.fp > 0
        assert counts.f1 == pytest.approx(float(quality), abs=1e-6)  # MONAI adds 1e-6 to the denominator


def test_large_image_is_counted_by_tiles() -> None:
    truth = np.zeros((5001, 5000), np.uint8)
    truth[100:120, 100:120] = 1
    truth[1990:2010, 100:120] = 2  # on a cut
    truth[4981:5001, 100:120] = 3  # at the lower edge, which the padding moves inside
    truth[2100:2120, 4990:5000] = 4  # at the right edge, in a tile without predictions
    pred = truth * (truth != 4)
    counts = cell_counts(truth, pred)
    assert five(counts) == (3, 2, 2, 0, 0)
    assert (counts.precision, counts.recall, counts.f1) == pytest.approx((1, 2 / 3, 0.8))
    corrected = cell_counts(truth, pred, reading="corrected")  # in one piece, where 3 and 4 touch the frame
    assert five(corrected) == (2, 2, 2, 0, 0) and corrected.f1 == 1
    # One pixel row less is a small image: nothing is cut, and the edges are frame.
    assert five(cell_counts(truth[:-2], pred[:-2])) == (2, 2, 2, 0, 0)


def test_all_ids_of_a_16_bit_file() -> None:
    ids = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    assert five(cell_counts(ids, ids, count_border_cells=True)) == (65535, 65535, 65535, 0, 0)


def test_a_thousand_cells_are_fast() -> None:
    truth, pred = np.zeros((1000, 1000), np.int32), np.zeros((1000, 1000), np.int32)
    for index, (y, x) in enumerate(np.ndindex(32, 32)):
        truth[31 * y : 31 * y + 28, 31 * x : 31 * x + 28] = index + 1
        pred[31 * y + 3 : 31 * y + 28, 31 * x : 31 * x + 26] = index + 1
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        counts = cell_counts(truth, pred)
        seconds.append(time.perf_counter() - start)
    assert counts.tp == 31 * 31  # the first row and column touch the frame
    assert min(seconds) < 0.5  # about 0.04 s; a loop over pairs takes minutes


@pytest.mark.parametrize("threshold", [0, 1.5])
def test_impossible_thresholds(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        cell_counts(image(), image(), threshold)
    with pytest.raises(InputError, match="threshold"):
        CellF1Metric(threshold)


def test_images_of_different_size() -> None:
    with pytest.raises(InputError, match="same"):
        cell_counts(image(20, 30), image(30, 20))


TRUTH = image(c1=np.s_[4:8, 4:8], c2=np.s_[4:8, 12:16])
CLASSES = image(c1=np.s_[4:8, 4:8], c2=np.s_[4:8, 12:16])  # class 2 at the second cell: boundary only, so missed


def test_metric_takes_classes_one_hot_and_instances() -> None:
    truth, classes = torch.tensor(TRUTH)[None], torch.tensor(CLASSES).long()
    one_hot = torch.nn.functional.one_hot(classes, 3).permute(2, 0, 1)
    metric = CellF1Metric()
    for pred in (classes[None], one_hot, one_hot.float() * 5 - 2):
        rows = metric(y_pred=[pred], y=[truth.float()])
        assert rows[0, :5].tolist() == [2, 1, 1, 0, 1]
    metric(y_pred=classes[None, None].repeat(2, 1, 1, 1), y=truth[None].repeat(2, 1, 1, 1))  # batch-first
    assert metric.get_buffer().shape == (5, 2 * len(CELL_COLUMNS) - 1)
    assert metric.aggregate().item() == pytest.approx(2 / 3)

    instances = CellF1Metric(pred_instances=True)
    assert instances(y_pred=[truth * 7], y=[truth])[0, 2] == 2


def test_metric_grows_cells_into_their_boundary_and_drops_specks() -> None:
    """A cell of 6 × 6 whose interior alone, 4 × 4, overlaps it by less than half; and a speck of 2 pixels."""
    truth = torch.tensor(image(c1=np.s_[4:10, 4:10]))[None]
    classes = torch.zeros(1, *truth.shape[1:])
    classes[0, 4:10, 4:10], classes[0, 5:9, 5:9], classes[0, 15, 15:17] = 2, 1, 1
    counts = {}
    for min_size, grow in ((0, 0), (3, 0), (3, 1)):
        metric = CellF1Metric(min_size=min_size, grow=grow)
        counts[min_size, grow] = metric(y_pred=[classes], y=[truth])[0, :5].tolist()
        assert metric.settings().items() >= {"min_size": min_size, "grow": grow}.items()
    assert counts == {(0, 0): [1, 2, 0, 2, 1], (3, 0): [1, 1, 0, 1, 1], (3, 1): [1, 1, 1, 0, 0]}


def test_metric_takes_images_of_different_sizes_and_averages_over_images() -> None:
    metric = CellF1Metric()
    small, large = torch.tensor(TRUTH)[None], torch.zeros(1, 40, 40, dtype=torch.int32)
    large[0, 10:20, 10:20] = 1
    metric(y_pred=[torch.tensor(CLASSES)[None], large], y=[small, large])
    assert metric.aggregate().item() == pytest.approx((2 / 3 + 1) / 2)
    metric.reset()
    with pytest.raises(InputError, match="no images"):
        metric.aggregate()


def test_either_reading_can_be_the_value_of_the_metric() -> None:
    nothing = torch.zeros(1, 20, 30, dtype=torch.int32)
    for key, expected in (("f1", 0), ("f1_corrected", 1), ("dice", 1)):
        metric = CellF1Metric(key=key)
        metric(y_pred=[nothing], y=[nothing])
        assert metric.aggregate() == expected
    with pytest.raises(InputError, match=r"'f2'.*f1_corrected"):
        CellF1Metric(key="f2")


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (torch.tensor(TRUTH)[None] * 3, torch.tensor(TRUTH)[None], "classes 0, 1 and 2"),
        (torch.full((1, 20, 30), 0.5), torch.tensor(TRUTH)[None], "classes 0, 1 and 2"),
        (torch.zeros(2, 20, 30), torch.tensor(TRUTH)[None], "cannot be read as cells"),
        (torch.zeros(3, 20, 30), torch.zeros(3, 20, 30), "Instance ids must be of shape"),
        (torch.zeros(3, 20, 30), torch.full((1, 20, 30), 0.5), "whole numbers"),
    ],
)
def test_metric_refuses_what_it_would_misread(pred: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CellF1Metric()(y_pred=[pred], y=[truth])


def test_handler_is_the_key_metric_of_an_evaluator_in_a_config() -> None:
    # The "network" passes the image on, so the image is the prediction: one hit and one miss, then a perfect one.
    scores = torch.nn.functional.one_hot(torch.tensor(CLASSES).long(), 3).permute(2, 0, 1).float()
    items = [
        {"image": scores, "label": torch.zeros(1, 20, 30), "instances": torch.tensor(TRUTH)[None]},
        {"image": scores, "label": torch.zeros(1, 20, 30), "instances": torch.tensor(TRUTH * (TRUTH == 1))[None]},
    ]
    parser = ConfigParser(
        {
            "imports": ["$import monai"],
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "cpu",
                "val_data_loader": "@loader",
                "network": {"_target_": "torch.nn.Identity"},
                "key_val_metric": {
                    "f1": {
                        "_target_": "swinumamba_monai.metrics.CellF1",
                        "output_transform": "$monai.handlers.from_engine(['pred', 'instances'])",
                        "save_details": True,
                    }
                },
            },
            "loader": DataLoader(items, batch_size=2),
        }
    )
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.run()
    assert evaluator.state.metrics["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert evaluator.state.metric_details["f1"][:, :5].tolist() == [[2, 1, 1, 0, 1], [1, 1, 1, 0, 0]]
    evaluator.run()
    assert len(evaluator.state.metric_details["f1"]) == 2
