# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is particular to microscopy, and what any bundle does and refuses, tried on it."""

from __future__ import annotations

import json
from functools import partial
from itertools import takewhile
from pathlib import Path

import bundle_runs
import numpy as np
import pytest
import torch
from bundle_runs import NETWORK, PRETRAIN, SHORT, STAGES, command, load_weights
from forked import run_forked
from ignite.engine import Events
from PIL import Image
from result_tables import read_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from swinumamba_monai.data import read_image, synthesize_microscopy

run, refusal = (partial(f, "microscopy") for f in (bundle_runs.run, bundle_runs.refusal))


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
    """What every bundle's holds, ``test_all_bundles.py`` looks at."""
    run("evaluate", trained, dataset_dir=str(dataset), output_dir=str(tmp_path), num_figures=0, **NETWORK)
    rows = read_rows(tmp_path / "metrics.csv")
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
        options = {"target": "classes", "output_dir": str(tmp_path), "num_figures": 0, **NETWORK}
        run("evaluate", tmp_path, dataset_dir=str(dataset), **options)
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
        done = run_forked(line)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in done.stderr
