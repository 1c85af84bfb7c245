# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every bundle: its defaults are the paper's, and its workflows run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_runs import (
    BUNDLES,
    KINDS,
    NETWORK,
    PRETRAIN,
    ROOT,
    RUN_FILES,
    SHORT,
    STAGES,
    Interrupted,
    assert_same,
    configs,
    load_weights,
    power_loss,
    refusal,
    run,
    run_processes,
    workflow_of,
)
from ignite.engine import Events
from monai.bundle import load, verify_metadata, verify_net_in_out
from PIL import Image
from result_tables import read_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from swinumamba_monai.data.files.label_map import ABDOMEN_CLASSES, ENDOSCOPY_CLASSES
from swinumamba_monai.instances import cell_channels

every_bundle = pytest.mark.parametrize("bundle", BUNDLES)

CLASSES = {
    "abdomen_mri": ABDOMEN_CLASSES,
    "endoscopy": ENDOSCOPY_CLASSES,
    "microscopy": ("background", "cell", "direction to the centre along rows", "direction to the centre along columns"),
}
# The paper, sections IV-A and IV-B: channels, classes with background, crop, batch, epochs of training and pretraining.
PAPER = {
    "abdomen_mri": (1, 14, [320, 320], 30, 200, 50),
    "endoscopy": (3, 8, [384, 640], 13, 400, 800),
    "microscopy": (3, 3, [512, 512], 12, 500, 200),
}


def read(bundle: str, name: str) -> dict:
    return json.loads((configs(bundle) / f"{name}.json").read_text())


class TestDefaults:
    @every_bundle
    def test_the_numbers_of_the_paper_are_the_defaults(self, bundle):
        train, pretrain, inference = (read(bundle, name) for name in ("train", "pretrain", "inference"))
        names = ("in_channels", "num_classes", "roi_size", "batch_size", "max_epochs")
        of_paper = {**train, "num_classes": cell_channels("classes")} if bundle == "microscopy" else train
        assert (*(of_paper[name] for name in names), pretrain["max_epochs"]) == PAPER[bundle]
        assert (train["learning_rate"], train["weight_decay"]) == (1e-4, 0.05)
        assert (pretrain["learning_rate"], pretrain["mask_ratio"], pretrain["spatial_size"]) == (2e-4, 0.6, [192, 192])
        longest = max(train["roi_size"]) / min(train["roi_size"])  # nnU-Net turns long crops by 15 degrees only
        assert train["rotation_range"] == pytest.approx(np.deg2rad(15 if longest > 1.5 else 180), abs=1e-4)
        assert train["freeze_epochs"] == pretrain["freeze_epochs"] == 10
        for name in ("in_channels", "num_classes", "roi_size", "spacing"):
            assert inference.get(name) == train.get(name), name


@every_bundle
class TestMetadata:
    def test_has_what_monai_requires(self, bundle, tmp_path):
        required = (
            "schema version monai_version pytorch_version numpy_version required_packages_version task description "
            "authors copyright network_data_format"
        ).split()
        schema = tmp_path / "schema.json"
        schema.write_text(json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", "required": required}))
        verify_metadata(meta_file=str(configs(bundle) / "metadata.json"), filepath=str(schema))
        metadata = read(bundle, "metadata")
        assert metadata["version"] in metadata["changelog"]
        assert isinstance(metadata["supported_apps"], dict)

    def test_network_takes_and_gives_what_it_says(self, bundle):
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(configs(bundle) / "metadata.json"),
            config_file=str(configs(bundle) / "inference.json"),
            device="cpu",
            **{"network_def#feature_size": 8},
        )

    def test_names_the_classes(self, bundle):
        definition = read(bundle, "metadata")["network_data_format"]["outputs"]["pred"]["channel_def"]
        assert tuple(definition.values()) == CLASSES[bundle]
        assert list(definition) == [str(number) for number in range(len(definition))]


@every_bundle
@pytest.mark.parametrize("kind", KINDS)
def test_properties(bundle, kind, dataset_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = PRETRAIN if kind == "pretrain" else NETWORK
    workflow = workflow_of(bundle, kind, tmp_path / "bundle", dataset_dir=str(dataset_of(bundle)), **options)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # initialize replaces it
    workflow.initialize()
    assert workflow.check_properties() == []


@every_bundle
def test_monai_loads_the_bundle_from_anywhere(bundle, trained_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    model = trained_in(bundle) / "models" / "model.pt"
    net = load(
        bundle,
        bundle_dir=str(ROOT),
        model_file=str(model),
        workflow_type="inference",
        device="cpu",
        net_override={name.split("#")[1]: value for name, value in NETWORK.items() if "#" in name},
    )
    weights = load_weights(model)
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    assert not any(tmp_path.iterdir()), "nothing is written where it is loaded"


@every_bundle
@pytest.mark.parametrize(("kind", "size"), [("train", {"roi_size": 64}), ("pretrain", {"spatial_size": 64})])
def test_a_device_by_name_and_one_number_for_a_square(bundle, kind, size, dataset_of, tmp_path):
    options = {**STAGES[kind][1], "device": "cpu", **size, "max_epochs": 1}
    run(bundle, kind, tmp_path, dataset_dir=str(dataset_of(bundle)), **options)
    assert (tmp_path / "models" / RUN_FILES[kind][0]).exists()


@every_bundle
class TestTraining:
    def test_leaves_the_best_and_the_last_state(self, bundle, trained_in):
        best, last = (load_weights(trained_in(bundle) / "models" / name) for name in RUN_FILES["train"])
        assert last["epoch"] == last["best_metric_epoch"] == 1
        assert 0 <= last["best_metric"] <= 1
        assert_same(best, last["model"])
        assert list((trained_in(bundle) / "eval").glob("events.out.tfevents.*")), "TensorBoard events"

    def test_without_deep_supervision(self, bundle, dataset_of, tmp_path):
        """As the paper trains AbdomenMRI from scratch: the coarser heads stay as they were."""
        before = {}

        def watch(workflow):
            weights = workflow.parser.get_parsed_content("network_def").state_dict()
            before.update({name: weight.clone() for name, weight in weights.items()})

        options = {**SHORT, "dataset_dir": str(dataset_of(bundle)), "deep_supervision": False}
        run(bundle, "train", tmp_path, watch, **options)
        after = load_weights(tmp_path / "models" / "model.pt")
        heads = sorted(name for name in after if "seg_layers" in name and name.endswith("weight"))
        assert [torch.equal(after[name], before[name]) for name in heads] == [True, True, True, False]

    def test_pretraining_leaves_encoder_state_pictures_and_log(self, bundle, pretrained_in):
        encoder = load_weights(pretrained_in(bundle) / "models" / "pretrained_encoder.pt")
        assert {name.split(".")[0] for name in encoder} == {"vssm_encoder", "head", "mask_token"}
        assert load_weights(pretrained_in(bundle) / "models" / "pretraining_checkpoint.pt")["epoch"] == 2
        folder = pretrained_in(bundle) / "eval" / "pretraining"
        pictures = sorted(file.name for file in folder.glob("*.png"))
        assert pictures == ["reconstruction_epoch0001.png", "reconstruction_epoch0002.png"]
        assert Image.open(folder / pictures[0]).size[0] > 500
        logged = EventAccumulator(str(folder)).Reload().Tags()
        assert {"train_loss", "val_loss"} <= set(logged["scalars"]) and logged["images"] == ["reconstruction"]

    def test_starts_from_the_pretraining(self, bundle, pretrained_in, dataset_of, tmp_path):
        file = pretrained_in(bundle) / "models" / "pretrained_encoder.pt"
        encoder = load_weights(file)
        run(bundle, "train", tmp_path, dataset_dir=str(dataset_of(bundle)), pretrained=str(file), **SHORT)
        after = load_weights(tmp_path / "models" / "model.pt")
        same = [name for name in after if name in encoder and torch.equal(after[name], encoder[name])]
        frozen = [name for name in after if name.startswith("vssm_encoder.") and "patch_embed" not in name]
        assert sorted(same) == sorted(frozen)


@pytest.mark.parametrize("bundle", ["abdomen_mri", "endoscopy"])  # microscopy: see there, stopped in many more places
@pytest.mark.parametrize("kind, num_workers", [("train", 0), ("train", 2), ("pretrain", 0)])
def test_a_resumed_run_ends_like_one_that_was_not_stopped(bundle, kind, num_workers, dataset_of, tmp_path):
    options = {**STAGES[kind][1], "max_epochs": 2, "num_workers": num_workers, "dataset_dir": str(dataset_of(bundle))}

    def watch(workflow):
        workflow.trainer.add_event_handler(Events.EPOCH_STARTED(once=2), power_loss)

    run(bundle, kind, tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        run(bundle, kind, tmp_path / "stopped", before=watch, **options)
    run(bundle, kind, tmp_path / "stopped", resume=True, **options)
    for name in RUN_FILES[kind]:
        whole, stopped = (load_weights(tmp_path / folder / "models" / name) for folder in ("whole", "stopped"))
        for state in (whole, stopped):
            if isinstance(state.get("settings"), str):
                state.pop("settings")
        assert_same(stopped, whole, name)


@every_bundle
class TestEvaluation:
    def test_writes_its_report(self, bundle, trained_in, dataset_of, tmp_path):
        data = dataset_of(bundle)
        run(bundle, "evaluate", trained_in(bundle), dataset_dir=str(data), output_dir=str(tmp_path), **NETWORK)
        rows = read_rows(tmp_path / "metrics.csv")
        expected = [Path(item["image"]).name for item in json.loads((data / "datalist.json").read_text())["test"]]
        assert [row["name"] for row in rows] == expected
        columns = json.loads((tmp_path / "summary.json").read_text())["columns"]
        key = "f1_corrected" if bundle == "microscopy" else "dsc_corrected"
        assert columns[key]["n"] == 2
        assert columns[key]["mean"] == pytest.approx(np.mean([float(row[key]) for row in rows]), abs=1e-6)
        assert (tmp_path / "classes.csv").read_text().startswith("score,reading,class,mean,std,low,high,n,n_present\n")
        for name in ("predictions.png", "worst_cases.png", "scores.png"):
            assert Image.open(tmp_path / name).size[0] > 100

    def test_mirroring_and_ensembles_count(self, bundle, trained_in, dataset_of, tmp_path):
        options = {"dataset_dir": str(dataset_of(bundle)), **NETWORK, "num_figures": 0}
        model = trained_in(bundle) / "models" / "model.pt"
        other = load_weights(model)
        finest = max(name for name in other if "seg_layers" in name and name.endswith("bias"))
        other[finest] = other[finest] + torch.tensor([-1e4] + [0.0] * (len(other[finest]) - 1))  # never background
        torch.save(other, tmp_path / "other.pt")
        logits = []

        def watch(workflow):
            workflow.evaluator.add_event_handler(
                Events.ITERATION_COMPLETED(once=1), lambda engine: logits.append(engine.state.output[0]["pred"])
            )

        postprocessing = {"validate#postprocessing": None, "validate#key_metric": None, "validate#handlers": []}
        options |= {"validate#additional_metrics": None, **postprocessing}
        for more in (
            {},
            {"mirror_axes": [0, 1]},
            {"ckpt_path": [str(model), str(model)]},
            {"ckpt_path": [str(model), str(tmp_path / "other.pt")]},
        ):
            run(bundle, "evaluate", trained_in(bundle), before=watch, **{**options, **more})
        plain, mirrored, same, both = (torch.as_tensor(pred).float() for pred in logits)
        assert not torch.equal(mirrored, plain)
        torch.testing.assert_close(same, plain, rtol=0, atol=1e-5)
        torch.testing.assert_close(both[0] - plain[0], torch.full_like(plain[0], -5e3), rtol=1e-3, atol=0)


def test_inference_of_two_checkpoints_needs_both(trained_in, dataset_of, tmp_path):
    options = {"dataset_dir": str(dataset_of("endoscopy")), "output_dir": str(tmp_path), **NETWORK}
    model = str(trained_in("endoscopy") / "models" / "model.pt")
    nowhere = str(tmp_path / "nowhere.pt")
    assert "nowhere.pt" in refusal("endoscopy", "inference", tmp_path, ckpt_path=[model, nowhere], **options)
    assert "names no checkpoint" in refusal("endoscopy", "inference", tmp_path, ckpt_path=[], **options)
    assert "mirror_axes" in refusal("endoscopy", "inference", tmp_path, ckpt_path=model, mirror_axes=[2], **options)


class TestProcesses:
    @pytest.mark.parametrize(
        "bundle, kind, launcher", [("abdomen_mri", "train", True), ("microscopy", "pretrain", False)]
    )
    def test_two_train(self, bundle, kind, launcher, dataset_of, tmp_path):
        options = {"dataset_dir": str(dataset_of(bundle)), **STAGES[kind][1]}
        done = run_processes(bundle, kind, tmp_path, "multi_gpu_train", launcher=launcher, **options)
        assert load_weights(tmp_path / "models" / RUN_FILES[kind][1])["epoch"] == 1
        assert done.stdout.count("Iter: 1/") == 1, "only the first process reports"

    def test_two_evaluate(self, trained_in, dataset_of, tmp_path):
        options = {"dataset_dir": str(dataset_of("abdomen_mri")), **NETWORK, "num_figures": 1}
        options |= {"ckpt_dir": str(trained_in("abdomen_mri") / "models")}
        run("abdomen_mri", "evaluate", tmp_path, output_dir=str(tmp_path / "one"), **{**options, "num_figures": 0})
        folder = str(tmp_path / "two")
        run_processes("abdomen_mri", "evaluate", tmp_path, "multi_gpu_evaluate", output_dir=folder, **options)
        for name in ("classes.csv", "metrics.csv"):
            one, two = (sorted((tmp_path / where / name).read_text().splitlines()) for where in ("one", "two"))
            assert one == two

    def test_three_predict_two_images(self, trained_in, dataset_of, tmp_path):
        weights = str(trained_in("microscopy") / "models" / "model.pt")
        options = {"dataset_dir": str(dataset_of("microscopy")), "ckpt_path": weights, **NETWORK}
        run("microscopy", "inference", tmp_path, output_dir=str(tmp_path / "one"), **options)
        words = ("microscopy", "inference", tmp_path, "multi_gpu_inference")
        run_processes(*words, processes=3, output_dir=str(tmp_path / "three"), **options)
        one, three = ({file.name: file.read_bytes() for file in (tmp_path / of).iterdir()} for of in ("one", "three"))
        assert one == three and len(one) == 2


@pytest.mark.parametrize("bundle", ["abdomen_mri", "endoscopy"])
def test_another_number_of_classes_is_named_before_work_is_lost(bundle, dataset_of, tmp_path):
    options = {**SHORT, "dataset_dir": str(dataset_of(bundle)), "num_classes": 5}
    count = len(CLASSES[bundle])
    assert f"give --num_classes {count}" in refusal(bundle, "train", tmp_path, **options)
    assert not (tmp_path / "models").exists()
