# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A misspelt option and a path that Python would read otherwise end a run before it begins."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from forked import run_forked
from monai.bundle import ConfigParser

from swinumamba_monai.bundle_options import as_literal, check_options
from swinumamba_monai.errors import InputError

CONFIGS = Path(__file__).parents[1] / "bundles" / "microscopy" / "configs"


def check(config: str, *typed: str) -> None:
    check_options(["training", "--config_file", str(CONFIGS / f"{config}.json"), *typed])


@pytest.mark.parametrize(
    ("config", "option", "nearest"),
    [
        ("inference", "--dataset_path", "dataset_dir"),
        ("inference", "--input_dir", "dataset_dir"),
        ("inference", "--data_dir", "dataset_dir"),
        ("train", "--learning_rte", "learning_rate"),
        ("train", "--learning-rte", "learning_rate"),
        ("train", "-learning_rte", "learning_rate"),
        ("train", "--noresume", "resume"),
        ("train", "--network_deff#depths", "network_name"),
        ("train", "--experiment_name", "network_name"),
    ],
)
@pytest.mark.parametrize("equals", [True, False])
def test_an_option_that_no_config_has(config, option, nearest, equals):
    with pytest.raises(InputError, match=rf"is no option of this config.*--{nearest}\b"):
        check(config, *([f"{option}=x"] if equals else [option, "x"]))


@pytest.mark.parametrize(
    "typed",
    [
        ["--max_epochs", "3", "--learning-rate=1e-3", "--resume"],
        ["--network_def#depths", "[1,1,1,1]", "--train#trainer#max_epochs=2", "--network_def::d_state", "2"],
        ["--tracking", "mlflow", "--experiment_name", "a", "--run_id", "training", "--logging_file", "l.conf"],
        ["--dataset_dir", "../my images/x", "--output_dir", "$@bundle_root + '/2024'", "--pretrained", "None"],
    ],
)
def test_options_that_the_config_has(typed):
    check("train", *typed)


@pytest.mark.parametrize("config_file", ["['{0}/train.json','{0}/evaluate.json']", "{0}/train.json,{0}/evaluate.json"])
def test_options_of_each_of_several_configs(config_file):
    files = config_file.format(CONFIGS)
    check_options(["evaluating", "--config_file", files, "--max_epochs", "3", "--section", "test"])
    with pytest.raises(InputError, match="sektion is no option"):
        check_options(["evaluating", "--config_file", files, "--sektion", "test"])


def test_options_in_an_args_file(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file": str(CONFIGS / "train.json"), "max_epoch": 3}))
    with pytest.raises(InputError, match="max_epoch is no option of this config; did you mean --max_epochs"):
        check_options(["training", "--args_file", str(file)])


@pytest.mark.parametrize("name", ["dataset_dir", "output_dir", "bundle_root", "ckpt_dir", "pretrained", "ckpt_path"])
@pytest.mark.parametrize("path", ["plate#3", "20241125", "1e3", "2024_11_25", "ctrl,1", "[1]", "{a}", "0x10", "True"])
def test_a_path_that_python_reads_otherwise(name, path):
    config = "inference" if name == "ckpt_path" else "train"
    with pytest.raises(InputError, match=r"would be read as .*; write \./"):
        check(config, f"--{name}", path)
    check(config, f"--{name}", f"./{path}")
    check(config, f"--{name}", f"'{path}'")


def test_paths_that_monai_would_change_arrive_as_they_were_typed():
    resolved = {}
    typed = ["--dataset_dir", "./plate#3", "--output_dir", "$@bundle_root + '/#'", "--ckpt_path", "['a#1.pt','b.pt']"]
    check_options(["inference", "--config_file", str(CONFIGS / "inference.json"), *typed], resolved)
    assert resolved == {"dataset_dir": "./plate#3", "ckpt_path": ["a#1.pt", "b.pt"]}


@pytest.mark.parametrize("text", ["plate", "plate#3", "#", "$a", "@a", "%a#b", 'it\'s \\ #1 "@b"', "ü#\n", "C:\\x23"])
def test_a_literal_is_read_as_its_text(text):
    config = ConfigParser({"given": as_literal(text), "used": "$@given + '/eval'"})
    assert config.get_parsed_content("given") == text
    assert config.get_parsed_content("used") == f"{text}/eval"


@pytest.mark.parametrize("further", [[], ["--output_dir", "out"]])
def test_a_path_that_was_forgotten(further):
    with pytest.raises(InputError, match="--dataset_dir needs a path behind it"):
        check("inference", "--dataset_dir", *further)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("max_epochs", ["0", "-1", "1.5", "many", "True", "[3]"], ["1"]),
        ("batch_size", ["0", "2,3"], ["2"]),
        ("learning_rate", ["-1", "fast", "1e400"], ["1e-3", "1", "0"]),
        ("num_workers", ["-1", "None"], ["0"]),
        ("roi_size", ["0", "64.0", "[64]", "[64,64,64]", "[64,-1]", "big"], ["64", "[64,96]", "64,96"]),
        ("resume", ["yes", "1"], ["true", "False"]),
        ("device", ["gpu", "3.5", "cuda:x"], ["cpu", "cuda:1"]),
    ],
)
def test_values_are_of_the_kind_of_the_configs_own(name, wrong, right):
    for text in wrong:
        with pytest.raises(InputError, match="must be"):
            check("train", f"--{name}={text}")
    for text in [*right, "$1 + 1"]:
        check("train", f"--{name}", text)


def test_several_checkpoints_are_a_list():
    check("inference", "--ckpt_path", "['a.pt','b.pt']")
    with pytest.raises(InputError, match="dataset_dir"):
        check("inference", "--dataset_dir", "['a','b']")


def test_other_programs_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/monailabel", "run", "--no_such_option", "x"])
    check_options()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--dataset_path", "images"], "error: --dataset_path is no option of this config; did you mean --dataset_dir"),
        (["--dataset_dir", "plate#3"], "error: --dataset_dir plate#3 would be read as 'plate'; write ./plate#3"),
        (["--dataset_dir", "./plate#3"], "error: plate#3 does not exist"),
        ([], "error: --dataset_dir is missing"),
    ],
)
def test_a_run_ends_with_the_sentence_alone(tmp_path, typed, sentence):
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(tmp_path)]
    command += ["--config_file", str(CONFIGS / "inference.json"), "--network_def#feature_size", "8", *typed]
    command += ["--ckpt_path", str(CONFIGS.parent / "models" / "model.safetensors")]
    if not typed or typed[1] == "./plate#3":
        command += ["--checkpointloader", "null"]  # a small network: only the images are missing
    done = run_forked(command)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
