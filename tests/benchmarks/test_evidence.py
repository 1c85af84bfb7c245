# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The evidence: one run for real, at toy size, and with runs that only pretend what the script makes of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from forked import run_forked
from monai.bundle import ConfigParser

from benchmarks import evidence
from benchmarks.evidence_report import SCORES

SCORE = {"nnUNet": 0.5, "SwinUMambaD": 0.6, "SwinUMambaD-Conv": 0.3}


@pytest.fixture
def pretended(monkeypatch):
    """Runs that leave the files of a real one, and the workflows that were asked for."""
    started = []

    def start(workflow, run, folder, gpu, seconds):
        started.append((workflow, run.name, gpu))
        if workflow == "training":
            (folder / "models").mkdir()
            meter = {"seconds": {"1": 1.5, "2": 2.5}, "peak_bytes": 3e9, "hardware": {"cpu": "pretended"}}
            (folder / "meter.json").write_text(json.dumps(meter))
            return None
        if run.label not in SCORE:
            return "OutOfMemoryError: none left"
        (folder / "evaluation").mkdir()
        scores = list(SCORES[run.task])
        rows = [[f"case{i}", *[SCORE[run.label] + 0.01 * i + 0.1 * run.seed] * len(scores)] for i in range(8)]
        table = [["name", *scores], *rows]
        (folder / "evaluation" / "metrics.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in table))
        return None

    monkeypatch.setattr(evidence, "_start", start)
    return started


def main(folder, *options: str) -> int:
    return evidence.main(["--quick", "--output_dir", str(folder), *options])


def table(folder, name: str) -> dict[str, dict]:
    rows = json.loads((folder / "evidence.json").read_text())["tables"][name]["rows"]
    return {row["system"]: row for row in rows}


def test_a_run_for_real(tmp_path, monkeypatch):
    """Trained and evaluated by MONAI in processes of their own; the second time there is nothing to do."""

    def process(command, stdout, cwd, **options):
        done = run_forked(command, cwd)
        stdout.write(done.stdout + done.stderr)
        return done

    monkeypatch.setattr(evidence.subprocess, "run", process)
    only = ("--only", "endoscopy-SwinUMambaD-Conv-short-seed0")
    assert main(tmp_path, *only) == 0
    folder = tmp_path / "runs" / only[1]
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "done" and record["seconds"] > 0 and record["network"] == "SwinUMambaD"
    assert not (folder / "models").exists()
    row = table(tmp_path, "blocks-endoscopy")["SwinUMambaD-Conv"]
    assert 0 <= row["scores"]["dsc_corrected"]["mean"] <= 1 and row["scores"]["dsc_corrected"]["n"] == 2
    text = (tmp_path / "evidence.md").read_text()
    assert "2 steps of 1 crops of 64 × 64" in text and "| SwinUMambaD-Conv |" in text
    before = (folder / "run.json").stat().st_mtime_ns
    assert main(tmp_path, *only) == 0
    assert (folder / "run.json").stat().st_mtime_ns == before


def test_a_stopped_run_resumes_with_its_overlay_and_gpu(monkeypatch, tmp_path):
    """Stopped by the time limit, it says so; the next time it goes on from its checkpoint."""
    commands = []

    def process(command, env, timeout, **options):
        config = json.loads((tmp_path / "runs" / name / "training.json").read_text())
        commands.append((command, env["CUDA_VISIBLE_DEVICES"], config["resume"]))
        (tmp_path / "runs" / name / "models").mkdir(exist_ok=True)
        (tmp_path / "runs" / name / "models" / "checkpoint.pt").touch()
        raise subprocess.TimeoutExpired(command, timeout)

    name = "endoscopy-nnUNet-short-seed0"
    monkeypatch.setattr(evidence.subprocess, "run", process)
    for _ in range(2):
        assert main(tmp_path, "--only", name, "--gpus", "1") == 1
    assert [resume for _, _, resume in commands] == [False, True]
    assert all(gpu == "1" and "baselines/nnUNet.json" in command[-1] for command, gpu, _ in commands)
    assert "out of time" in table(tmp_path, "comparison-endoscopy")["nnUNet"]["failed"][0]


class TestPlan:
    def test_every_run_once_over_the_gpus(self, pretended, tmp_path):
        main(tmp_path, "--gpus", "0,1", "--jobs_per_gpu", "2")
        names = [name for workflow, name, _ in pretended if workflow == "training"]
        blocks_besides_vss, pairs = 3, 2 * 2 * 2  # of two seeds
        assert len(names) == len(set(names)) == 2 * len(evidence.SYSTEMS) + blocks_besides_vss + pairs
        assert {gpu for _, _, gpu in pretended} == {"0", "1"}

    def test_every_run_trains_the_system_it_is_called_after(self, monkeypatch, tmp_path):
        """As MONAI reads its command: the bundle's config, the overlays, the run's own."""
        found = {}

        def process(command, stdout, **options):
            files = command[-1].strip("[]").replace("'", "").split(",")
            name = Path(stdout.name).parent.name
            found[name] = ConfigParser(ConfigParser.load_config_files(files))["network_name"]
            raise subprocess.TimeoutExpired(command, 0)

        monkeypatch.setattr(evidence.subprocess, "run", process)
        main(tmp_path)
        assert len(found) == 2 * len(evidence.SYSTEMS) + 3 + 2 * 2 * 2
        assert all(name.split("-")[1] == system for name, system in found.items())

    def test_failures_stop_nothing_and_are_tried_again(self, pretended, tmp_path):
        only = ("--only", "microscopy-*-short-*")
        assert main(tmp_path, *only) == 1
        rows = table(tmp_path, "comparison-microscopy")
        assert rows["UNETR"]["failed"] == ["evaluating: OutOfMemoryError: none left"] and "scores" not in rows["UNETR"]
        assert rows["nnUNet"]["failed"] == [] and rows["nnUNet"]["scores"]["f1_corrected"]["n"] == 8
        pretended.clear()
        for folder in (tmp_path / "runs").glob("*/models"):
            folder.rmdir()
        main(tmp_path, *only)
        assert {name.split("-")[1] for _, name, _ in pretended} == set(evidence.SYSTEMS) - SCORE.keys()

    def test_other_settings_are_refused(self, pretended, tmp_path, capsys):
        assert main(tmp_path, "--only", "*-nnUNet-short-*") == 0
        settings = next((tmp_path / "runs").glob("*/settings.json"))
        settings.write_text(settings.read_text().replace('"batch_size": 1', '"batch_size": 2'))
        assert main(tmp_path, "--only", "*-nnUNet-short-*") == 1
        assert "other batch_size; choose another --output_dir" in capsys.readouterr().err

    def test_nothing_to_do(self, tmp_path, capsys):
        assert main(tmp_path, "--only", "nothing") == 1
        assert evidence.main(["--output_dir", str(tmp_path)]) == 1
        errors = capsys.readouterr().err.splitlines()
        assert errors == [
            "error: no run is called nothing.",
            "error: there is nothing to train on; give --microscopy_dir, --endoscopy_dir or both.",
        ]


def test_the_tables_numbers(pretended, tmp_path):
    assert main(tmp_path, "--only", "*-nnUNet-*", "*-SwinUMambaD-*") == 1  # the blocks of Fig. 6 are not done
    ours = table(tmp_path, "pair-endoscopy")["SwinUMambaD"]
    scores = ours["scores"]["dsc_corrected"]
    assert scores["mean"] == pytest.approx(0.6 + 0.035 + 0.05)
    assert scores["std"] == pytest.approx(0.0244949, abs=1e-6)  # of 0, 0.01 … 0.07
    assert scores["std_of_seeds"] == pytest.approx(0.1 / 2**0.5)
    difference = ours["differences"]["dsc_corrected"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["p"] == pytest.approx(2 / 2**8)  # all eight differences have one sign
    assert (ours["seconds"], ours["peak_bytes"], ours["seeds"]) == (4.0, 3e9, [0, 1])
    blocks = table(tmp_path, "blocks-endoscopy")
    assert blocks["SwinUMambaD-Conv"]["differences"]["nsd_corrected"]["mean"] == pytest.approx(-0.3)
    assert blocks["SwinUMambaD-Vim"]["failed"]
    text = (tmp_path / "evidence.md").read_text()
    assert "| SwinUMambaD | 0.6850 ± 0.0245 | ± 0.0707 | +0.1000 [+0.1000, +0.1000] | 0.0078 |" in text
    assert "| 4 s | 3.0 GB |" in text
