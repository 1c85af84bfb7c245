# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is particular to microscopy, and how a run of any bundle is stopped, resumed and refused."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from itertools import takewhile
from pathlib import Path

import bundle_runs
import numpy as np
import pytest
import torch
from bundle_runs import (
    NETWORK,
    PRETRAIN,
    RUN_FILES,
    SHORT,
    STAGES,
    assert_same,
    command,
    load_weights,
    power_loss,
)
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from swinumamba_monai.data import read_image, synthesize_microscopy

FOUR_EPOCHS = {"max_epochs": 4, "val_interval": 2}


def run(kind: str, out: Path, before=lambda workflow: None, **override) -> ConfigWorkflow:
    return bundle_runs.run("microscopy", kind, out, before, **override)


def refusal(kind: str, out: Path, **override) -> str:
    return bundle_runs.refusal("microscopy", kind, out, **override)


@pytest.fixture(scope="module")
def dataset(dataset_of) -> Path:
    return dataset_of("microscopy")


@pytest.fixture(scope="module")
def trained(trained_in) -> Path:
    return trained_in("microscopy")


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


def test_pretrained_encoder_is_frozen_at_first(trained, dataset, tmp_path):
    before = torch.load(trained / "models" / "model.pt", weights_only=True)
    pretrained = tmp_path / "encoder.pt"
    torch.save({name: t for name, t in before.items() if name.startswith("vssm_encoder.")}, pretrained)
    run("train", tmp_path, dataset_dir=str(dataset), pretrained=str(pretrained), **SHORT)
    after = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    for name in before:
        if name.startswith("vssm_encoder.") and not name.startswith("vssm_encoder.patch_embed."):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(
        before["vssm_encoder.patch_embed.proj.weight"], after["vssm_encoder.patch_embed.proj.weight"]
    )


def test_early_stop(dataset, tmp_path):
    override = {**SHORT, "max_epochs": 4, "early_stop_patience": 1, "learning_rate": 0.0, "min_learning_rate": 0.0}
    workflow = run("train", tmp_path, dataset_dir=str(dataset), **override)
    assert workflow.trainer.state.epoch == 2


def test_mlflow_tracking(dataset, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run("train", tmp_path, dataset_dir=str(dataset), tracking="mlflow", **SHORT)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path.as_posix()}/eval/mlflow.db")
    (logged,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {"train_loss", "val_f1", "val_dice", "lr_group_0"} <= logged.data.metrics.keys()
    assert logged.data.metrics["lr_group_0"] == 1e-4
    config = json.loads(Path(bundle_runs.config_files("microscopy", "train")[0]).read_text())
    top = set(takewhile(lambda name: name != "network_def", config)) - {"imports", "tracking_uri"}
    written = EventAccumulator(str(tmp_path / "eval"))
    written.Reload()
    assert [(event.step, event.value) for event in written.Scalars("learning_rate")] == [(1, pytest.approx(1e-4))]
    content = written.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    assert top == set(told) and top <= logged.data.params.keys()
    for name, value in {"max_epochs": 1, "seed": 0, "weight_decay": 0.05}.items():
        assert logged.data.params[name] == str(value) and told[name].number_value == value
    for name, value in {
        "target": "flows",
        "roi_size": "[64, 64]",
        "device": "cpu",
        "dataset_dir": str(dataset),
    }.items():
        assert logged.data.params[name] == value and told[name].string_value == value


def sigterm() -> None:
    """To the run and to its loader's workers, from outside, with time for a dead worker to be noticed."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)
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
        run("train", tmp_path, dataset_dir=str(dataset), resume=True, **{**SHORT, "batch_size": 4})
        assert "resumed with batch_size 4 (was 2); it will not end where" in caplog.text

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
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 143
        assert "stopped by SIGTERM in epoch" in output and "Traceback" not in output
        state = load_weights(tmp_path / "models" / "checkpoint.pt")
        assert {file.name for file in (tmp_path / "models").iterdir()} == {"model.pt", "checkpoint.pt", "run.json"}
        assert state["epoch"] >= 1


class TestAmp:
    @pytest.mark.parametrize("kind", STAGES)
    @pytest.mark.parametrize("amp, sentence", [("bf16", "needs a CUDA device"), ("half", "must be one of bf16")])
    def test_what_cannot_be(self, kind, amp, sentence, dataset, tmp_path):
        _, options = STAGES[kind]
        assert sentence in refusal(kind, tmp_path, dataset_dir=str(dataset), amp=amp, **options)
        assert not (tmp_path / "models").exists()


class TestPretraining:
    @pytest.fixture(scope="class")
    def pretrained(self, pretrained_in) -> Path:
        return pretrained_in("microscopy")

    def test_freezes_what_it_is_given(self, pretrained, dataset, tmp_path):
        before = load_weights(pretrained / "models" / "pretrained_encoder.pt")
        file = str(pretrained / "models" / "pretrained_encoder.pt")
        options = {**PRETRAIN, "max_epochs": 2, "freeze_epochs": 1}
        states = []

        def watch(workflow):
            workflow.trainer.add_event_handler(
                Events.EPOCH_COMPLETED,
                lambda engine: states.append({n: w.clone() for n, w in engine.network.state_dict().items()}),
            )

        run("pretrain", tmp_path, before=watch, dataset_dir=str(dataset), pretrained=file, **options)
        name = "vssm_encoder.layers.0.blocks.0.ln_1.weight"
        assert torch.equal(states[0][name], before[name]) and not torch.equal(states[1][name], before[name])
        assert not torch.equal(states[0]["head.0.weight"], before["head.0.weight"])

    @pytest.mark.parametrize("count", [1, 3])
    def test_a_folder_with_few_images(self, count, tmp_path, caplog):
        rng = np.random.default_rng(0)
        folder = tmp_path / "images"
        folder.mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (40 + i, 50), dtype=np.uint8)).save(folder / f"{i}.png")
        options = {**PRETRAIN, "batch_size": 8}
        workflow = run("pretrain", tmp_path, dataset_dir=str(folder), **options)
        assert workflow.trainer.state.iteration == 1
        assert f"only {count} images to pretrain on" in caplog.text
        assert (tmp_path / "models" / "pretrained_encoder.pt").exists()

    def test_early_stop(self, dataset, tmp_path):
        options = {
            **PRETRAIN,
            "max_epochs": 4,
            "early_stop_patience": 1,
            "learning_rate": 0.0,
            "min_learning_rate": 0.0,
        }
        workflow = run("pretrain", tmp_path, dataset_dir=str(dataset), **options)
        assert workflow.trainer.state.epoch == 2

    @pytest.mark.parametrize(
        "change, sentence",
        [
            ({"spatial_size": [40, 64]}, "whole patches of 16"),
            ({"mask_ratio": 1.0}, "some must be masked"),
            ({"spatial_size": [48, 64]}, "multiples of 32"),
            ({"dataset_dir": "nowhere"}, "nowhere does not exist"),
            ({"extra_image_dir": "nowhere"}, "nowhere does not exist"),
        ],
        ids=str,
    )
    def test_bad_input(self, change, sentence, dataset, tmp_path):
        options = {"dataset_dir": str(dataset), **PRETRAIN, **change}
        assert sentence in refusal("pretrain", tmp_path, **options)
        assert not (tmp_path / "models").exists()


def test_evaluation_writes_its_report(trained, dataset, tmp_path):
    run("evaluate", trained, dataset_dir=str(dataset), output_dir=str(tmp_path), **NETWORK)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [Path(item["image"]).name for item in json.loads((dataset / "datalist.json").read_text())["test"]]
    assert [row["name"] for row in rows] == expected
    summary = json.loads((tmp_path / "summary.json").read_text())
    record = summary["run"]
    assert (record["task"], record["network_name"], record["section"]) == ("microscopy", "SwinUMambaD", "test")
    (training,) = record["training"]  # from run.json beside the checkpoint
    assert training["seed"] == 0 and training["seconds"] > 0 and training["parameters"] > 1000
    assert summary["columns"]["f1"]["n"] == 2
    assert summary["columns"]["f1"]["mean"] == pytest.approx(np.mean([float(row["f1"]) for row in rows]), abs=1e-6)
    assert {"f1", "dice"} <= summary["columns"].keys()
    assert summary["columns"]["f1_corrected"]["n"] == 2
    assert (tmp_path / "classes.csv").read_text().startswith("score,reading,class,mean,std,low,high,n,n_present\n")
    for name in ("predictions.png", "worst_cases.png", "scores.png"):
        assert Image.open(tmp_path / name).size[0] > 100


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_inference_writes_instances_of_the_images_size(trained, tmp_path, extension):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("gray.png", (50, 70)), ("rgba.png", (65, 31, 4)), ("large.tif", (130, 100, 3))):
        pixels = rng.integers(0, 255, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)
    out = tmp_path / "out"
    run("inference", trained, dataset_dir=str(images), output_dir=str(out), output_ext=extension, **NETWORK)
    sizes = {file.name: read_image(file).shape for file in out.iterdir()}
    stems = {"gray": (50, 70), "rgba": (65, 31), "large": (130, 100)}
    assert sizes == {f"{stem}_instances{extension}": shape for stem, shape in stems.items()}
    assert all(read_image(file).dtype == np.uint16 for file in out.iterdir())


class TestTargets:
    """Flows are the default, the paper's three classes an option."""

    def test_the_papers_classes(self, dataset, tmp_path):
        run("train", tmp_path, dataset_dir=str(dataset), target="classes", **SHORT)
        run("evaluate", tmp_path, dataset_dir=str(dataset), target="classes", output_dir=str(tmp_path), **NETWORK)
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert {"f1", "val_dice_interior", "val_dice_boundary"} <= summary["columns"].keys()
        given = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "out"), **NETWORK}
        run("inference", tmp_path, target="classes", **given)
        assert len(list((tmp_path / "out").iterdir())) == summary["columns"]["f1"]["n"]
        sentence = refusal("inference", tmp_path, **given)  # its three channels are no flows
        assert "4" in sentence and "3" in sentence

    def test_there_is_no_other(self, dataset, tmp_path):
        sentence = refusal("train", tmp_path, dataset_dir=str(dataset), target="class", **SHORT)
        assert sentence == "target is class, but it can be flows or classes."

    @pytest.mark.parametrize("of", [{"channel": 2}, {"invert": True}])
    def test_one_channel_and_inverted_images(self, of, trained, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        image = np.zeros((64, 80, 3), np.uint8)
        image[..., 2] = np.arange(80)
        image[5, 5, 0] = 200
        Image.fromarray(image).save(folder / "a.png")
        seen = {}

        def remember(workflow):
            seen["image"] = workflow.parser.get_parsed_content("dataset")[0]["image"].numpy()

        given = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "out"), **NETWORK}
        run("inference", trained, remember, **given, **of)
        along = seen["image"][2, 20]  # a row of the blue ramp
        if "channel" in of:
            assert (np.diff(along) >= 0).all() and along[8] < along[-8]
            assert (seen["image"] == seen["image"][:1]).all()
        else:
            assert (np.diff(along) <= 0).all() and along[8] > along[-8]


class TestBadInput:
    """One sentence each, before training starts, and nothing overwritten."""

    def test_missing_dataset_dir(self, tmp_path):
        sentence = refusal("train", tmp_path, dataset_dir=str(tmp_path / "nowhere"), **SHORT)
        assert "nowhere" in sentence and "swinumamba_monai prepare" in sentence

    def test_no_images(self, trained, tmp_path):
        empty = tmp_path / "empty"
        empty.mkdir()
        sentence = refusal("inference", trained, dataset_dir=str(empty), output_dir=str(tmp_path), **NETWORK)
        assert "empty" in sentence

    @pytest.mark.parametrize("damage", ["size", "rgb", "truncated", "missing"])
    def test_bad_pair(self, damage, tmp_path):
        folder = synthesize_microscopy(
            tmp_path / "data", num_train=2, num_validation=1, num_test=1, image_size=(64, 64)
        )
        label = sorted((folder / "labels").iterdir())[0]
        if damage == "size":
            Image.fromarray(np.zeros((64, 63), np.uint16)).save(label)
        elif damage == "rgb":
            Image.fromarray(np.eye(64, dtype=np.uint8)[..., None] * np.uint8([200, 0, 90])).save(label)
        elif damage == "truncated":
            label.write_bytes(label.read_bytes()[:100])
        else:
            label.unlink()
        out = tmp_path / "out"
        assert label.name in refusal("train", out, dataset_dir=str(folder), **SHORT)
        assert not (out / "models").exists()

    def test_nan_pixels(self, tmp_path):
        import tifffile

        folder = synthesize_microscopy(
            tmp_path / "data", num_train=2, num_validation=1, num_test=1, image_size=(64, 64)
        )
        datalist = json.loads((folder / "datalist.json").read_text())
        tifffile.imwrite(folder / "images" / "nan.tif", np.full((64, 64), np.nan, np.float32))
        datalist["training"][0]["image"] = "images/nan.tif"
        (folder / "datalist.json").write_text(json.dumps(datalist))
        assert "nan.tif" in refusal("train", tmp_path / "out", dataset_dir=str(folder), **SHORT)

    def test_run_in_a_folder_that_holds_one(self, trained, dataset):
        files = [trained / "models" / name for name in ("model.pt", "checkpoint.pt")]
        before = [file.read_bytes() for file in files]
        assert "--resume" in refusal("train", trained, dataset_dir=str(dataset), **SHORT)
        assert [file.read_bytes() for file in files] == before

    def test_checkpoint_of_other_channels(self, trained, dataset):
        override = {**SHORT, "network_def#in_channels": 1}
        sentence = refusal("evaluate", trained, dataset_dir=str(dataset), **override)
        assert "in_channels" in sentence and "model.pt" in sentence

    @pytest.mark.parametrize("key, kind", [("pretrained", "train"), ("ckpt_path", "evaluate")])
    def test_corrupt_checkpoint(self, key, kind, dataset, tmp_path):
        corrupt = tmp_path / "corrupt.pt"
        corrupt.write_bytes(b"PK\x03\x04 no zip file")
        sentence = refusal(kind, tmp_path / "out", dataset_dir=str(dataset), **{**SHORT, key: str(corrupt)})
        assert "corrupt.pt" in sentence
        assert not (tmp_path / "out" / "models").exists()

    def test_corrupt_state_to_resume(self, dataset, tmp_path):
        (tmp_path / "models").mkdir()
        state = tmp_path / "models" / "checkpoint.pt"
        state.write_bytes(b"half a file")
        assert "checkpoint.pt" in refusal("train", tmp_path, dataset_dir=str(dataset), resume=True, **SHORT)
        assert state.read_bytes() == b"half a file"

    def test_the_user_sees_the_sentence_alone(self, tmp_path):
        line = command("microscopy", "train", tmp_path, dataset_dir=str(tmp_path / "nowhere"))
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in done.stderr
