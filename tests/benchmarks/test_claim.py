# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison of arms: what is learnt from and what is scored, crops, workers that share a folder, the report."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from benchmarks.claim import work
from benchmarks.claim.arms import ARMS, CLAIM_TASKS, Job, plan, rate_jobs
from benchmarks.claim.crops import RandomCrops
from benchmarks.claim.packs import Picture, load_pack, save_pack, split
from benchmarks.claim.report import means_over_seeds, scores_of, task_rows
from benchmarks.claim.train import _score


def picture(case: str, part: int, seed: int = 0, side: int = 80) -> Picture:
    """A bright disc on a dark ground, whose class is 1."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    disc = (rows - rng.uniform(25, 55)) ** 2 + (columns - rng.uniform(25, 55)) ** 2 < 18**2
    image = np.where(disc[..., None], 200, 40) + rng.integers(0, 20, (side, side, 3))
    classes = disc.astype(np.uint8)
    return Picture(case, part, image.astype(np.uint8), classes, classes)


@pytest.fixture
def pictures() -> list[Picture]:
    return [picture(f"case{part}{number}", part, 10 * part + number) for part in range(3) for number in range(4)]


def test_a_pack_gives_back_every_pixel(pictures, tmp_path):
    cells = pictures[0]._replace(truth=pictures[0].classes.astype(np.uint16) * 40000)
    save_pack([cells, *pictures[1:]], tmp_path / "pack")
    for loaded, saved in zip(load_pack(tmp_path / "pack"), [cells, *pictures[1:]], strict=True):
        assert loaded[:2] == saved[:2]
        for ours, theirs in zip(loaded[2:], saved[2:]):
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("part", [0, 2])
def test_what_is_scored_is_never_learnt_from(pictures, part):
    learnt, scored = split(pictures, part, False, 1.0, 0)
    assert {p.part for p in scored} == {part} and {p.part for p in learnt} == {0, 1, 2} - {part}
    learnt, scored = split(pictures, part, True, 1.0, 0)
    assert {p.part for p in scored} == {(part + 1) % 3}
    assert not {p.part for p in learnt} & {part, (part + 1) % 3}


def test_a_share_is_of_the_cases_and_the_same_for_every_arm(pictures):
    first, second, other = (split(pictures, 0, False, 0.25, seed)[0] for seed in (0, 0, 1))
    assert [p.case for p in first] == [p.case for p in second] != [p.case for p in other]
    assert len(first) == 2
    assert len(split(pictures, 0, False, 0.01, 0)[0]) == 1


def test_crops_repeat_and_their_labels_lie_on_their_images(pictures):
    images, classes = RandomCrops(pictures, (64, 48), torch.device("cpu"), 3).batch(16)
    again = RandomCrops(pictures, (64, 48), torch.device("cpu"), 3).batch(16)
    assert torch.equal(images, again[0]) and torch.equal(classes, again[1])
    assert images.shape == (16, 3, 64, 48) and classes.unique().tolist() == [0, 1]
    seen = [(i.mean(0), c[0] > 0) for i, c in zip(images, classes) if 0.05 < c.mean() < 0.95]
    assert len(seen) >= 8
    for image, disc in seen:  # the disc is brighter by several standard deviations of the noise, up to its edge
        agreement = ((image > (image[disc].mean() + image[~disc].mean()) / 2) == disc).float().mean()
        assert agreement > 0.9


def test_scores():
    truth = np.zeros((1, 20, 20), np.uint8)
    truth[0, 2:10, 2:10], truth[0, 12:16, 12:16] = 1, 2
    moved = np.roll(truth, 1, 1)
    dice = [7 * 8 / 64, 3 * 4 / 16]
    assert _score("endoscopy", moved, truth) == pytest.approx(np.mean(dice))
    assert _score("endoscopy", np.zeros_like(truth), np.zeros_like(truth)) == 1
    ids = np.where(truth == 1, 7, 0).astype(np.uint16)
    assert _score("microscopy", (ids > 0).astype(np.uint8), ids) == 1


def test_jobs_have_files_of_their_own():
    jobs = plan()
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.arm for job in jobs} == set(ARMS)


def test_a_worker_does_what_nobody_has_begun(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(CLAIM_TASKS, "endoscopy", CLAIM_TASKS["endoscopy"]._replace(crop=(64, 64), parts=(0, 1, 2)))
    save_pack(pictures, tmp_path / "endoscopy.safetensors")
    rates = rate_jobs("endoscopy", "nnU-Net")
    monkeypatch.setattr(work, "plan", lambda: [Job("endoscopy", "nnU-Net", part=2), *rates])
    runs = tmp_path / "runs"
    runs.mkdir()
    best = rates[1].rate
    for job in rates[:2]:  # done before, the second one better
        (runs / f"{job.name}.json").write_text(json.dumps({"mean": float(job.rate == best), "rate": job.rate}))
        (runs / f"{job.name}.claim").touch()
    arguments = {"packs": tmp_path, "weights": tmp_path, "output_dir": runs, "seconds": 60, "margin": 0, "steps": 1}

    def wait(seconds):
        raise AssertionError("nothing is left to be waited for")

    monkeypatch.setattr(work.time, "sleep", wait)
    monkeypatch.setattr("benchmarks.claim.train.BATCH_SIZE", 2)
    work.work(argparse.Namespace(**arguments, only=None, device="cpu"))
    third, tested = (
        json.loads((runs / f"{job.name}.json").read_text()) for job in (rates[2], Job("endoscopy", "nnU-Net", 2))
    )
    assert third["is_choice"] and set(third["scores"]) == {"case10", "case11", "case12", "case13"}
    assert not tested["is_choice"] and set(tested["scores"]) == {"case20", "case21", "case22", "case23"}
    assert tested["rate"] == max((best, 1.0), (rates[2].rate, third["mean"]), key=lambda pair: pair[1])[0]
    assert tested["learnt_from"] == 8 and 0 <= tested["mean"] <= 1


def test_weights_that_are_not_there_are_waited_for(tmp_path):
    (tmp_path / "endoscopy.safetensors").touch()
    assert work.claim(Job("endoscopy", "†, stage 1", rate=0.1), tmp_path, tmp_path, tmp_path) is None
    assert work.claim(Job("endoscopy", "†", rate=0.1), tmp_path, tmp_path, tmp_path) == 0.1
    assert work.claim(Job("endoscopy", "†", rate=0.1), tmp_path, tmp_path, tmp_path) is None  # somebody's


def test_a_choice_is_waited_for_until_it_fails(tmp_path):
    rates = rate_jobs("endoscopy", "nnU-Net")
    tested = Job("endoscopy", "nnU-Net")
    assert work.may_begin_later(tested, tmp_path)
    for job in rates:
        (tmp_path / f"{job.name}.claim").write_text("process 1")
    assert work.may_begin_later(tested, tmp_path)  # somebody tries the rates
    assert not work.may_begin_later(rates[0], tmp_path)
    (tmp_path / f"{rates[1].name}.claim").write_text("Traceback (most recent call last): ...")
    assert not work.may_begin_later(tested, tmp_path)


def test_the_report_compares_case_by_case():
    rng = np.random.default_rng(0)
    cases = {f"case{number}": float(value) for number, value in enumerate(rng.uniform(0.3, 0.6, 20))}
    gains = {case: float(gain) for case, gain in zip(cases, rng.normal(0.1, 0.05, 20))}

    def run(arm: str, seed: int, scores: dict) -> dict:
        job = Job("microscopy", arm, seed=seed)
        return {**job._asdict(), "rate": 0.1, "is_choice": False, "scores": scores}

    better = {case: value + gains[case] for case, value in cases.items()}
    runs = [run("nnU-Net", 0, cases), run("nnU-Net", 1, cases), run("†", 0, better)]
    runs.append({**run("†", 1, better), "steps": 2.0})  # another budget
    assert means_over_seeds(scores_of(runs, "microscopy", "nnU-Net", 1.0)) == cases
    nnunet, ours, longer = task_rows(runs, "microscopy")
    assert (nnunet["seeds"], ours["seeds"], longer["seeds"]) == (2, 1, 1)
    assert (nnunet["steps"], ours["steps"], longer["steps"]) == (1200, 1200, 2400)
    assert longer["minus nnU-Net"] == ours["minus nnU-Net"]  # both beside nnU-Net's own number of steps
    p = wilcoxon(list(gains.values())).pvalue
    assert ours["minus nnU-Net"].startswith(f"{np.mean(list(gains.values())):+.3f}")
    assert ours["minus nnU-Net"].endswith(f"p = {p:.2g}")


def test_no_runs_are_a_sentence(tmp_path, capsys):
    from benchmarks.claim.report import main

    assert main(["--runs", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 1
    assert "has no results" in capsys.readouterr().err
    assert not (Path(tmp_path) / "out").exists()
