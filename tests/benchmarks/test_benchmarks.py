# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark scripts, at toy size on a CPU: they run, keep their rows, and compare what they say they compare."""

from __future__ import annotations

import importlib
import json
import tarfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import run_forked

from benchmarks import data_parallel, growth, loss_curve, mamba_ssm_build, occupancy, timing, training_step
from benchmarks.cases import QUICK_BATCHES, RELEASED, Batch, MeasuredStep, build, plain_recipe, recipe
from benchmarks.released import ReleasedSS2D
from swinumamba_monai.analysis.measurement import measure, summarize_samples
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import NNUNet
from swinumamba_monai.networks.vss import SS2D

CPU = torch.device("cpu")
TOY = Batch(replace(QUICK_BATCHES[0].task, roi_size=(32, 32)), 1)
QUICK = ["--device", "cpu", "--quick", "--repeats", "2", "--warmup", "0", "--git_commit", "tested"]


def run(name: str, folder, *options: str) -> dict:
    importlib.import_module(f"benchmarks.{name}").main([*QUICK, "--output_dir", str(folder), *options])
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["quick"] and record["git_commit"] == "tested" and record["versions"]["torch"]
    assert "TOY SIZES" in (folder / f"{name}.md").read_text()
    return record


def check_times(rows: list[dict]) -> None:
    for row in rows:
        assert "error" not in row, row
        ms = row["ms"]
        assert 0 < ms["min"] <= ms["q1"] <= ms["median"] <= ms["q3"] <= ms["max"]
        assert ms["n"] == len(ms["samples"]) == 2


@pytest.fixture(scope="module")
def loss_curves(tmp_path_factory) -> Path:
    """The folder of a run of ``loss_curve``, which is slow because of the reference's scans."""
    folder = tmp_path_factory.mktemp("loss_curves")
    run("loss_curve", folder, "--scan_backends", "portable", "reference")
    return folder


class TestScripts:
    def test_training_step(self, tmp_path):
        rows = run("training_step", tmp_path)["rows"]
        check_times(rows)
        names = ["nnU-Net", "Swin-UMamba†", "Swin-UMamba", "Swin-UMamba†, released", "Swin-UMamba, released"]
        assert [(row["precision"], row["network"]) for row in rows] == [(p, n) for p in ("bf16", "fp32") for n in names]
        assert rows[0]["ratio"]["min"] == rows[0]["ratio"]["max"] == 1

    def test_later_encoders(self, tmp_path):
        names = ["nnU-Net", "Swin-UMamba†, vmamba_tiny_s1l8"]
        rows = run("training_step", tmp_path, "--precisions", "bf16", "--networks", *names)["rows"]
        check_times(rows)
        assert [row["network"] for row in rows] == names
        rows = run("ss2d_block", tmp_path, "--d_state", "1")["rows"]
        assert rows[0]["error"] == "the released arrangement has a gate"
        check_times(rows[1:])

    def test_loss(self, tmp_path):
        rows = run("loss", tmp_path)["rows"]
        check_times(rows)
        parts = [(part, whose) for part in ("loss", "AdamW") for whose in ("plain", "train.json")]
        assert [(row["part"], row["whose"]) for row in rows] == parts

    def test_inference(self, tmp_path):
        rows = run("inference", tmp_path, "--batch_sizes", "1", "2", "--skip_released")["rows"]
        check_times(rows)
        assert len(rows) == 6

    def test_ss2d_block(self, tmp_path):
        rows = run("ss2d_block", tmp_path)["rows"]
        check_times(rows)
        assert [row["part"] for row in rows] == ["block"] * 2 + ["scan"] * 4

    def test_step_profile(self, tmp_path):
        record = run("step_profile", tmp_path)
        assert {row["work"] for row in record["rows"]} >= {"matrix products", "others"}
        assert all(row["ms"] > 0 and row["launches"] >= 0 for row in record["rows"])
        assert (tmp_path / "step_profile.png").stat().st_size > 1000

    def test_growth(self, tmp_path):
        record = run("growth", tmp_path)
        check_times(record["rows"])
        assert record["slopes"].keys() == {"map", "batch"}
        assert (tmp_path / "growth.png").stat().st_size > 1000

    def test_cpu(self, tmp_path):
        threads = torch.get_num_threads()
        options = ("--threads", str(threads), "--neighbours", "1", "--scan_backends", "portable", "mamba_ssm")
        rows = run("cpu", tmp_path, *options)["rows"]
        failed = [row for row in rows if "error" in row]
        assert {row["network"] for row in failed} == {"Swin-UMamba†, mamba_ssm"}, "and its reason stands in the row"
        check_times([row for row in rows if "error" not in row])

    def test_prediction(self, tmp_path):
        rows = run("prediction", tmp_path, "--threads", str(torch.get_num_threads()))["rows"]
        assert [(row["images"], row["side"]) for row in rows] == [(2, 64), (1, 1100)]
        for row in rows:
            assert "error" not in row, row
            assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"]) and row["peak_bytes"] > 1e8

    def test_loss_curve(self, loss_curves):
        record = json.loads((loss_curves / "loss_curve.json").read_text())
        assert [len(row["losses"]) for row in record["rows"]] == [6, 6, 6]
        assert record["verdict"]["first_steps_agree"] is True
        assert record["rows"][0]["losses"] != record["rows"][2]["losses"], "another seed, other losses"
        assert (loss_curves / "loss_curve.png").stat().st_size > 1000

    def test_data_parallel(self, tmp_path, monkeypatch):
        launched = []

        def start(command, cwd, **options):
            launcher = command[1 : command.index("monai.bundle") - 1]
            launched.append(launcher)
            line = [command[0], *command[1 + len(launcher) :]]
            return run_forked(line, cwd, processes=2 if launcher else 1)

        monkeypatch.setattr(data_parallel, "subprocess", SimpleNamespace(run=start))
        rows = run("data_parallel", tmp_path, "--repeats", "1", "--augmentations", "crops", "--tasks", "endoscopy")[
            "rows"
        ]
        assert [row["processes"] for row in rows] == [1, 2]
        assert launched == [[], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]]
        assert all("error" not in row and row["images_per_second"] > 0 for row in rows), rows
        assert rows[1]["speedup"] == pytest.approx(rows[1]["images_per_second"] / rows[0]["images_per_second"])

    def test_a_failing_network_leaves_the_others(self, tmp_path, monkeypatch):
        def fail(name, *arguments, **options):
            if name == "Swin-UMamba":
                raise RuntimeError("CUDA out of memory\nmore words")
            return MeasuredStep(name, *arguments, **options)

        monkeypatch.setattr(training_step, "MeasuredStep", fail)
        rows = run("training_step", tmp_path, "--precisions", "fp32", "--skip_released")["rows"]
        errors = {row["network"]: row.get("error") for row in rows}
        assert errors == {"nnU-Net": None, "Swin-UMamba†": None, "Swin-UMamba": "RuntimeError: CUDA out of memory"}


class TestReleased:
    @pytest.mark.parametrize("height, width", [(5, 7), (8, 8), (1, 3)])
    def test_equals_this_package(self, height, width):
        torch.manual_seed(0)
        ours = SS2D(16, 4)
        theirs = ReleasedSS2D(16, 4)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, height, width, 16)
        results = []
        for block in (ours, theirs):
            leaf = x.clone().requires_grad_()
            y = block(leaf)
            y.square().sum().backward()
            results.append([y, leaf.grad, *(parameter.grad for parameter in block.parameters())])
        for mine, published in zip(*results):
            # float32 sums in another order, through some ten operations
            torch.testing.assert_close(mine, published, rtol=1e-3, atol=2e-5 * mine.detach().abs().max().item())

    def test_network_with_its_scans(self):
        torch.manual_seed(0)
        network = build("Swin-UMamba†" + RELEASED, TOY.task, CPU, quick=True).eval()
        x = torch.randn(1, 1, 32, 32)
        published = network(x)
        blocks = [module for module in network.modules() if isinstance(module, SS2D)]
        assert {type(block) for block in blocks} == {ReleasedSS2D}
        for block in blocks:
            block.__class__ = SS2D
        torch.testing.assert_close(network(x), published, rtol=1e-3, atol=1e-4)


def test_recipes_are_the_same():
    """train.json's loss and optimizer, and what nnU-Net has as it is called; the coarsest head counts for nothing."""
    network = NNUNet(1, 3, (64, 64), base_channels=4).train()
    (loss, optimizer), (plain_loss, plain_optimizer) = recipe(network, CPU), plain_recipe(network)
    assert plain_loss.weights == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    heads, label = network(torch.randn(2, 1, 64, 64)), torch.randint(3, (2, 1, 64, 64)).float()
    assert loss(heads, label).equal(plain_loss(heads, label))
    groups = [{**o.param_groups[0], "initial_lr": None} for o in (optimizer, plain_optimizer)]
    assert groups[0] == groups[1]
    assert all(p is q for p, q in zip(groups[0]["params"], network.parameters(), strict=True))


class TestTiming:
    def test_rows_take_turns(self):
        calls = []
        runs = {name: lambda name=name: calls.append(name) for name in "ab"}
        results = measure(runs, CPU, repeats=3, warmup=1, sample_seconds=0)
        assert "".join(calls) == "aabb" + "ab" * 3
        assert results["a"]["ms"]["n"] == 3

    def test_a_run_that_fails_later_leaves_the_others(self):
        left = iter([1, 2, 3])
        results = measure({"a": lambda: next(left), "b": lambda: None}, CPU, 5, 1, 0)
        assert results["a"] == {"error": "StopIteration: "}
        assert results["b"]["ms"]["n"] == 5

    def test_ratio_is_of_rounds(self):
        summary = timing.ratio(summarize_samples([2.0, 30.0, 4.0]), summarize_samples([1.0, 10.0, 2.0]))
        assert (summary["min"], summary["median"], summary["max"]) == (2, 2, 3)

    def test_floor(self):
        """The issue's own number: 192 channels, 80 × 80, 16 states, batch 16 take 0.30 ms on 132 SMs at 1.98 GHz."""
        hardware = {"gpu": {"multiprocessors": 132, "max_sm_clock_mhz": 1980.0}}
        assert timing.exponential_floor_ms(16 * 6400 * 4 * 192 * 16, hardware) == pytest.approx(0.30, abs=0.005)
        assert timing.exponential_floor_ms(1, {"cpu": "no GPU"}) is None


def test_slope_of_linear_growth_is_one():
    rows = [{"series": "map", "side": s, "batch_size": 1, "ms": {"median": 3e-5 * s * s}} for s in (8, 16, 32, 64)]
    assert growth.slopes(rows, "map") == {"all": 1.0, "larger_half": 1.0}
    assert growth.slopes(rows, "batch") is None


def test_verdict_can_be_no():
    arguments = Namespace(first=2, window=2)
    record = Namespace(content={"notes": []}, save=lambda: None)
    curves = {("a", 0): [2, 1.5, 1, 1.0], ("b", 0): [2, 1.6, 1, 1.4], ("a", 1): [2, 1.5, 1, 1.1]}
    loss_curve.judge(record, {k: np.array(v) for k, v in curves.items()}, "a", "b", 1e-3, arguments)
    verdict = record.content["verdict"]
    assert (verdict["first_steps_agree"], verdict["same_curve"], verdict["both_learn"]) == (False, False, True)
    assert verdict["steps_within_tolerance"] == [1]
    assert verdict["mean_distance_of_backends"] == pytest.approx((0.05 + 0.05 + 0.2) / 3)
    assert verdict["mean_distance_of_seeds"] == pytest.approx(0.05 / 3)


def test_records_of_one_kind_are_judged_together(loss_curves, tmp_path, capsys):
    """The runs of both, each once; another commit's are refused."""
    record = json.loads((loss_curves / "loss_curve.json").read_text())
    other = {**record, "rows": [{**record["rows"][1], "seed": 1}, record["rows"][0]]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    files = (str(loss_curves / "loss_curve.json"), str(tmp_path / "other.json"))
    united = run("loss_curve", tmp_path, "--scan_backends", "portable", "reference", "--judge", *files)
    runs = [(row["backend"], row["seed"]) for row in united["rows"]]
    assert runs == [("portable", 0), ("portable", 1), ("reference", 0), ("reference", 1)]
    assert len(united["verdict"]["distances_of_backends"]) == 2
    (tmp_path / "other.json").write_text(json.dumps({**other, "git_commit": "another"}))
    with pytest.raises(InputError, match="another machine, commit or kind of run"):
        loss_curve.unite([loss_curves / "loss_curve.json", tmp_path / "other.json"])


def test_throughput_counts_the_last_epoch_after_what_was_prepared():
    first_epoch = [[1, t, t + 0.5, t + 1] for t in range(4)]
    last_epoch = [[2, 100 + t, 100 + t + 0.25, 101 + t] for t in range(10)]
    result = data_parallel.throughput(np.array(first_epoch + last_epoch), images=24, ahead=3)
    assert result["iterations"] == 6
    assert result["images_per_second"] == pytest.approx(24)
    assert result["data_share"] == pytest.approx(0.25)


def test_build_refuses_another_source(tmp_path):
    root = tmp_path / "mamba_ssm-0"
    for name in (*mamba_ssm_build.PYTHON_FILES, "__init__.py"):
        mamba_ssm_build._write(root / "mamba_ssm" / name, '__version__ = "0"\n')
    mamba_ssm_build._write(root / "csrc" / "selective_scan" / "static_switch.h", "no pragma\n")
    archive = tmp_path / "mamba_ssm-0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=root.name)
    with pytest.raises(RuntimeError, match=r"static_switch\.h has 0 places"):
        mamba_ssm_build.unpack(archive, tmp_path / "out")


REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'scan_backward' for 'sm_86'
ptxas info    : Function properties for scan_backward
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 8 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compile time = 300.000 ms
ptxas info    : Compiling entry function 'merge' for 'sm_86'
ptxas info    : Function properties for merge
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


class TestOccupancy:
    def test_the_report_of_the_compiler(self):
        assert occupancy.read_report(REPORT) == {"scan_backward": (168, 28, 2048), "merge": (32, 0, 0)}

    @pytest.mark.parametrize(
        "architecture, registers, warps, shared_bytes, blocks",
        [
            # 168 registers are 5,376 a warp, of which a quarter with 16,384 has 3: 12 warps
            ("sm_90", 168, 4, 0, 3),
            ("sm_90", 168, 3, 0, 4),
            ("sm_86", 168, 4, 66 << 10, 1),  # of 100 KiB a block of 66 takes 67
            ("sm_86", 168, 4, 49 << 10, 2),
            ("sm_86", 168, 4, (49 << 10) + 1, 1),
            ("sm_86", 32, 8, 0, 6),  # 48 warps
            ("sm_80", 32, 8, 0, 8),  # 64
            ("sm_86", 16, 1, 0, 16),
            ("sm_89", 255, 8, 0, 1),
        ],
    )
    def test_blocks_that_fit(self, architecture, registers, warps, shared_bytes, blocks):
        limits = occupancy.ARCHITECTURES[architecture]
        assert occupancy.fitting_blocks(limits, registers, warps, shared_bytes) == blocks

    @pytest.mark.parametrize("limits", occupancy.ARCHITECTURES.values(), ids=list(occupancy.ARCHITECTURES))
    @pytest.mark.parametrize("dtype", occupancy.DTYPES.values(), ids=list(occupancy.DTYPES))
    def test_every_launch_fits(self, dtype, limits):
        for launch in occupancy.launches(dtype, limits.block_kib):
            assert occupancy.fitting_blocks(limits, 32, launch.warps, launch.shared_bytes) >= 1

    def test_the_table(self, monkeypatch, capsys):
        usage = dict.fromkeys({launch.kernel for launch in occupancy.launches(torch.float32, 99)}, (168, 28, 0))
        compiled = {kernel: occupancy.Usage(*numbers) for kernel, numbers in usage.items()}
        monkeypatch.setattr(occupancy, "compile_report", lambda *arguments: compiled)
        occupancy.main(["--architectures", "sm_86", "--precisions", "fp32"])
        assert "| scan_backward | fp32 | sm_86 | 3 | 168 | 28 | 29.5 | 3 | 9 |" in capsys.readouterr().out
