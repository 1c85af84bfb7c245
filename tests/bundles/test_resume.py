# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How a run of any bundle is stopped, resumed and goes on to the same end, tried on microscopy."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import bundle_runs
import pytest
import torch
from bundle_runs import RUN_FILES, SHORT, STAGES, assert_same, command, load_weights, power_loss
from ignite.engine import Events

FOUR_EPOCHS = {"max_epochs": 4, "val_interval": 2}


run, refusal = (partial(f, "microscopy") for f in (bundle_runs.run, bundle_runs.refusal))


def test_resumed_run_goes_on_and_keeps_a_better_model(trained, dataset, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    last = torch.load(trained / "models" / "checkpoint.pt", weights_only=True)
    torch.save({**last, "best_metric": 2.0}, models / "checkpoint.pt")  # no epoch can beat it
    (models / "model.pt").write_bytes(b"the better model")
    run("train", tmp_path, dataset_dir=str(dataset), resume=True, **{**SHORT, "max_epochs": 3})
    resumed = torch.load(models / "checkpoint.pt", weights_only=True)
    assert (resumed["epoch"], resumed["best_metric"], resumed["best_metric_epoch"]) == (3, 2.0, 1)
    assert (models / "model.pt").read_bytes() == b"the better model"
    steps = {int(state["step"]) for state in resumed["optimizer"]["state"].values()}
    assert steps == {6}, "the optimizer went on from its own state"
    lr = resumed["optimizer"]["param_groups"][0]["lr"]
    assert lr == pytest.approx(1e-6), "the cosine reached its end, as in a run of three epochs"


def test_resuming_a_finished_run_trains_nothing(trained, dataset, tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("model.pt", "checkpoint.pt"):
        (tmp_path / "models" / name).write_bytes((trained / "models" / name).read_bytes())
    run("train", tmp_path, dataset_dir=str(dataset), resume=True, **SHORT)
    for name in ("model.pt", "checkpoint.pt"):
        assert (tmp_path / "models" / name).read_bytes() == (trained / "models" / name).read_bytes()


def test_early_stop(dataset, tmp_path):
    override = {**SHORT, "max_epochs": 4, "early_stop_patience": 1, "learning_rate": 0.0, "min_learning_rate": 0.0}
    workflow = run("train", tmp_path, dataset_dir=str(dataset), **override)
    assert workflow.trainer.state.epoch == 2


def sigterm() -> None:
    """To the run and to its loader's workers, from outside, with time for a dead worker to be noticed."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    subprocess.run(["kill", "-TERM", *map(str, pids)], check=True, timeout=300)
    time.sleep(0.2)


class TestResume:
    """A run stopped anywhere and resumed ends with the very files of one that was not."""

    @pytest.fixture(scope="class")
    def uninterrupted(self, dataset, tmp_path_factory):
        runs = {}

        def get(kind: str, num_workers: int) -> Path:
            if (kind, num_workers) not in runs:
                out = tmp_path_factory.mktemp("uninterrupted")
                _, options = STAGES[kind]
                options = {**options, **FOUR_EPOCHS, "num_workers": num_workers}
                run(kind, out, dataset_dir=str(dataset), **options)
                runs[kind, num_workers] = out
            return runs[kind, num_workers]

        return get

    @pytest.mark.parametrize("kind", STAGES)
    @pytest.mark.parametrize(
        "stop, epoch, num_workers",
        [(power_loss, 3, 0), (power_loss, 3, 2), (power_loss, 1, 0), (sigterm, 3, 2), (sigterm, 4, 0)],
    )
    @pytest.mark.filterwarnings("ignore:This process")
    def test_after_a_stop_in_an_epoch(self, kind, stop, epoch, num_workers, uninterrupted, dataset, tmp_path):
        def watch(workflow):
            def at(engine):
                if (engine.state.epoch, engine.state.iteration % 2) == (epoch, 1):
                    stop()

            workflow.trainer.add_event_handler(Events.ITERATION_STARTED, at)

        self.check(kind, stop, num_workers, watch, uninterrupted, dataset, tmp_path)

    @pytest.mark.parametrize("kind", STAGES)
    @pytest.mark.parametrize("stop", [power_loss, sigterm])
    def test_after_a_stop_in_a_validation(self, kind, stop, uninterrupted, dataset, tmp_path):
        def watch(workflow):
            def at(engine):
                if engine.state.epoch == 4:
                    stop()

            workflow.evaluator.add_event_handler(Events.ITERATION_STARTED, at)

        self.check(kind, stop, 0, watch, uninterrupted, dataset, tmp_path)

    def check(self, kind, stop, num_workers, watch, uninterrupted, dataset, out):
        _, options = STAGES[kind]
        options = {**options, **FOUR_EPOCHS, "dataset_dir": str(dataset), "num_workers": num_workers}
        previous = signal.getsignal(signal.SIGTERM)
        with pytest.raises(BaseException) as stopped:
            run(kind, out, before=watch, **options)
        if stop is sigterm:
            assert isinstance(stopped.value, SystemExit) and stopped.value.code == 143
            assert signal.getsignal(signal.SIGTERM) is previous
        run(kind, out, resume=True, **options)
        expected = uninterrupted(kind, num_workers)
        for name in RUN_FILES[kind]:
            assert_same(load_weights(out / "models" / name), load_weights(expected / "models" / name), name)

    def test_with_early_stopping(self, dataset, tmp_path):
        """The validations without progress before the stop count."""
        options = {**SHORT, "dataset_dir": str(dataset), "learning_rate": 0.0, "min_learning_rate": 0.0}
        options |= {"max_epochs": 6, "early_stop_patience": 2}

        def watch(workflow):
            workflow.trainer.add_event_handler(Events.EPOCH_STARTED(once=3), power_loss)

        with pytest.raises(BaseException):  # noqa: B017
            run("train", tmp_path, before=watch, **options)
        for _ in range(2):  # and once it has stopped it has
            workflow = run("train", tmp_path, resume=True, **options)
            assert workflow.trainer.state.epoch == 3

    @pytest.mark.parametrize("kind", STAGES)
    def test_a_full_disk_loses_nothing(self, kind, uninterrupted, dataset, tmp_path):
        """The system refuses to write past a size, in the middle of the third epoch's checkpoint."""
        resource = pytest.importorskip("resource")
        _, options = STAGES[kind]
        options = {**options, **FOUR_EPOCHS, "dataset_dir": str(dataset)}
        best, last = (tmp_path / "models" / name for name in RUN_FILES[kind])
        record = last.with_name(last.name.replace("checkpoint.pt", "run.json"))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill():
            resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, before[1]))

        def watch(workflow):
            workflow.trainer.add_event_handler(Events.EPOCH_STARTED(once=3), fill)

        try:
            sentence = refusal(kind, tmp_path, before=watch, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "could not be written" in sentence and "is intact" in sentence
        assert load_weights(last)["epoch"] == 2
        assert sorted(last.parent.iterdir()) == sorted([best, last, record]), "no half-written file"
        run(kind, tmp_path, resume=True, **options)
        expected = uninterrupted(kind, 0)
        for name in RUN_FILES[kind]:
            assert_same(load_weights(tmp_path / "models" / name), load_weights(expected / "models" / name), name)

    def test_killed_while_writing(self, trained, dataset, tmp_path):
        """What a killed process was writing is cleared away, and nothing else."""
        models = tmp_path / "models"
        shutil.copytree(trained / "models", models)
        (models / f".{'0' * 32}-checkpoint.pt").write_bytes(b"half a file")
        (models / ".hidden-checkpoint.pt").write_bytes(b"somebody's")
        run("train", tmp_path, dataset_dir=str(dataset), resume=True, **SHORT)
        assert {file.name for file in models.iterdir()} == {
            "model.pt",
            "checkpoint.pt",
            "run.json",
            ".hidden-checkpoint.pt",
        }

    def test_other_options_are_named(self, trained, dataset, tmp_path, caplog):
        shutil.copytree(trained / "models", tmp_path / "models")
        others = {"batch_size": 4, "deep_supervision": "False", "rotation_range": 0.0, "boundary_dilation": 1}
        others |= {"network_def#drop_path_rate": 0.3}
        same = {"tf32": "true", "log_interval": 3, "early_stop_patience": 9}
        run("train", tmp_path, dataset_dir=str(dataset), resume=True, **{**SHORT, **others, **same})
        named = "batch_size 4 (was 2), deep_supervision False (was True), rotation_range 0.0 (was 3.14159)"
        assert f"resumed with {named}, boundary_dilation 1 (was 0)" in caplog.text
        of_network = {name.split("#")[1]: value for name, value in SHORT.items() if "network_def#" in name}
        assert f"network_def {of_network | {'drop_path_rate': 0.3}} (was {of_network}); it will" in caplog.text

    def test_signal_from_outside(self, dataset, tmp_path):
        """Slurm signals a process and its workers: it ends with a sentence and 143, as a shell would say of SIGTERM."""
        options = {**SHORT, "max_epochs": 1000, "val_interval": 1000, "num_workers": 2}
        line = command("microscopy", "train", tmp_path, dataset_dir=str(dataset), **options)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(line, **pipes, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "models" / "checkpoint.pt").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGTERM)
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 143
        assert "stopped by SIGTERM in epoch" in output and "Traceback" not in output
        state = load_weights(tmp_path / "models" / "checkpoint.pt")
        assert {file.name for file in (tmp_path / "models").iterdir()} == {"model.pt", "checkpoint.pt", "run.json"}
        assert state["epoch"] >= 1
