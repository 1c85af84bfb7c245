# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Dice and surface Dice: the published scripts number by number, and the corrected reading against MONAI."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from label_volumes import random_labels, scores_of
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_surface_dice
from monai.transforms import LoadImage

from swinumamba_monai.metrics import DiceNSDMetric, corrected_scores, published_scores


def read_golden(reference_dir: Path, task: str) -> tuple[dict, dict[str, np.ndarray]]:
    stem = reference_dir / "golden" / f"metrics_{task}"
    return json.loads(stem.with_suffix(".json").read_text()), dict(np.load(stem.with_suffix(".npz")))


def volume(labels: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> MetaTensor:
    return MetaTensor(labels[None], affine=np.diag([*spacing, 1]))


def abdomen_metric(golden: dict) -> DiceNSDMetric:
    tolerances = [golden["tolerance_mm"][organ] for organ in golden["organs"]]
    return DiceNSDMetric(golden["organs"], tolerances, in_mm=True, cut_slices=golden["z_cropped_organs"])


def test_every_number_of_the_published_abdomen_scripts(reference_dir: Path) -> None:
    golden, arrays = read_golden(reference_dir, "abdomen")
    metric, rounded = abdomen_metric(golden), {"dsc": [], "nsd": []}
    for case, expected in golden["cases"].items():
        truth = volume(arrays[f"{case}/gt"], expected["spacing_nominal"])
        ours = scores_of(metric, torch.tensor(arrays[f"{case}/pred"])[None], truth)
        for organ, numbers in expected["organs"].items():
            for score, number in numbers.items():
                assert ours[f"{score.lower()}_published_{organ}"] == number, (case, organ, score)
        for score, values in rounded.items():
            values.append([np.round(ours[f"{score}_published_{organ}"], 4) for organ in golden["organs"]])
            assert values[-1] == list(expected[f"script_{score.upper()}"].values())
            assert ours[f"{score}_published"] == pytest.approx(
                np.mean(list(numbers[score.upper()] for numbers in expected["organs"].values())), abs=1e-12
            )
    assert np.shape(rounded["dsc"]) == (11, 13)
    for score, values in rounded.items():  # the scripts average the rounded numbers
        aggregate = golden["aggregate"][score.upper()]
        assert np.mean(values) == pytest.approx(aggregate["case_means_mean"], abs=1e-12)
        assert np.mean(values, axis=1).std(ddof=1) == pytest.approx(aggregate["case_means_std_ddof1"], abs=1e-12)


def test_every_number_of_the_published_endoscopy_scripts(reference_dir: Path) -> None:
    golden, arrays = read_golden(reference_dir, "endoscopy")
    metric = DiceNSDMetric([str(label) for label in range(1, 8)], golden["tolerance_px"], only_present=True)
    for case, expected in golden["cases"].items():
        pred, truth = (torch.tensor(arrays[f"{case}/{which}"])[None] for which in ("pred", "gt"))
        ours = scores_of(metric, pred, truth)
        for score in ("DSC", "NSD"):
            per_class = {c: ours[f"{score.lower()}_published_{c}"] for c in metric.class_names}
            assert {c: value for c, value in per_class.items() if not np.isnan(value)} == expected[f"{score}_per_label"]
            assert ours[f"{score.lower()}_published"] == expected[score]
            assert round(ours[f"{score.lower()}_published"], 4) == expected[f"script_{score}"]
    means = metric.means()
    for score in ("DSC", "NSD"):  # of eleven numbers that the script rounded to four digits
        assert means[f"{score.lower()}_published"] == pytest.approx(golden["aggregate"][score]["mean"], abs=5e-5)


def test_what_stops_the_published_scripts(reference_dir: Path) -> None:
    golden, arrays = read_golden(reference_dir, "abdomen")
    case = "x_single_slice_aorta"
    ours = scores_of(abdomen_metric(golden), torch.tensor(arrays[f"{case}/pred"])[None], volume(arrays[f"{case}/gt"]))
    assert np.isnan([ours["dsc_published_Aorta"], ours["nsd_published_Aorta"]]).all()
    assert (ours["dsc_corrected_Aorta"], ours["nsd_corrected_Aorta"]) == (1, 1)
    assert ours["dsc_published"] == ours["dsc_corrected"] == 1

    nothing = torch.zeros(1, 20, 30, dtype=torch.uint8)
    ours = scores_of(DiceNSDMetric(["a", "b"], 2, only_present=True), nothing, nothing)
    assert np.isnan([ours["dsc_published"], ours["nsd_published"], ours["dsc_published_a"]]).all()
    assert [ours[f"{score}_corrected{label}"] for score in ("dsc", "nsd") for label in ("", "_a", "_b")] == [1] * 6


@pytest.mark.parametrize(("shape", "spacing"), [((22, 26), (1, 1, 1)), ((12, 14, 9), (0.8, 1.7, 3.1))])
def test_corrected_scores_are_those_of_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    truth, pred = random_labels(shape, 0)
    tolerances = [0.9, 1.9, 2.5]
    metric = DiceNSDMetric(["a", "b", "c"], tolerances, in_mm=True, cut_slices=[1, 2, 3])
    ours = scores_of(metric, torch.tensor(pred)[None], volume(truth, spacing))
    pair = [torch.nn.functional.one_hot(torch.tensor(x).long(), 4).movedim(-1, 0)[None].float() for x in (pred, truth)]
    dsc = compute_dice(*pair, include_background=False)[0]
    nsd = compute_surface_dice(*pair, tolerances, spacing=spacing[: len(shape)], use_subvoxels=True)[0]
    for index, name in enumerate("abc"):
        assert ours[f"dsc_corrected_{name}"] == pytest.approx(dsc[index].item(), abs=1e-6)
        assert ours[f"nsd_corrected_{name}"] == pytest.approx(nsd[index].item(), abs=2e-6)
    assert ours["dsc_corrected"] == pytest.approx(dsc.mean().item(), abs=1e-6)
    assert ours["nsd_corrected"] == pytest.approx(nsd.mean().item(), abs=2e-6)
    assert ours["truth_pixels_b"] == (truth == 2).sum() and ours["pred_pixels_c"] == (pred == 3).sum()


def test_concentric_discs() -> None:
    radius = np.hypot(*np.ogrid[-30:31, -30:31])
    pair = radius <= 20, radius <= 12
    assert published_scores(*pair, 2, (1, 1))[1] == pytest.approx(0.629, abs=5e-4)  # golden README
    assert corrected_scores(*pair, 2, (1, 1))[1] == 0
    assert corrected_scores(*pair, 2, (0.2, 0.2))[1] == 1  # in mm the discs are close


def test_all_slices_count_in_the_corrected_reading() -> None:
    truth = np.zeros((10, 10, 6), bool)
    truth[3:7, 3:7, 1:5] = True
    pred = truth.copy()
    pred[..., 4] = False
    pred[3:7, 3:7, 5] = True  # beyond the truth's last slice
    assert published_scores(truth, pred, 0, (1, 1, 1), cut_slices=True) == (1, 1)
    dsc, nsd = corrected_scores(truth, pred, 0, (1, 1, 1))
    assert dsc == pytest.approx(2 * 48 / 128) and nsd < 1


def test_a_volume_of_one_slice_is_an_image() -> None:
    truth, pred = (labels == 1 for labels in random_labels((20, 24), 1))
    as_image = corrected_scores(truth, pred, 1, (2, 3))
    assert 0 < as_image[1] < 1
    for axis in range(3):
        spacing = np.insert([2.0, 3.0], axis, 5.0)
        assert corrected_scores(np.expand_dims(truth, axis), np.expand_dims(pred, axis), 1, spacing) == as_image
    assert published_scores(truth[..., None], pred[..., None], 1, (1, 1, 1)) == published_scores(truth, pred, 1, (1, 1))


def test_float32_headers_do_not_decide_ties(tmp_path: Path) -> None:
    truth, pred = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    truth[4:9], pred[9:14] = 1, 1  # 5 voxels of 1.2 mm apart; float32's 1.2 is a little more
    for name, labels in (("truth", truth), ("pred", pred)):
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.2, 1.2, 5, 1])), tmp_path / f"{name}.nii")
    truth, pred = (LoadImage(ensure_channel_first=True)(tmp_path / f"{name}.nii") for name in ("truth", "pred"))
    ours = scores_of(DiceNSDMetric(["a"], 6, in_mm=True), pred, truth)
    assert ours["nsd_corrected"] == 1 and ours["nsd_published"] < 1
    in_voxels = scores_of(DiceNSDMetric(["a"], 4), pred, truth)
    assert in_voxels["nsd_corrected"] == in_voxels["nsd_published"] < 1


def test_scores_of_absent_classes() -> None:
    truth, pred = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)
    truth[0, 2:6, 2:6], pred[0, 2:6, 2:6], pred[0, 8:10, 8:10] = 1, 1, 2
    ours = scores_of(DiceNSDMetric(["right kidney", "b", "c"], 2), pred, truth)
    assert [ours[f"dsc_corrected_{name}"] for name in ("right_kidney", "b", "c")] == [1, 0, 1]
    assert ours["dsc_corrected"] == 0.5, "class c, which none has, does not count in the case's score"
    assert ours["dsc_published"] == pytest.approx(2 / 3), "but it does in the published abdomen scripts"
    assert scores_of(DiceNSDMetric(["a", "b", "c"], 2, only_present=True), pred, truth)["dsc_published"] == 0.5
