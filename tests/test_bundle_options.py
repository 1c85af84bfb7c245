# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A misspelt option and a path that Python would read otherwise end a run before it begins."""

from __future__ import annotations

import json
import sys

import pytest
from forked import run_forked
from monai.bundle import ConfigParser, ReferenceResolver
from typed_options import CONFIGS, check

from swinumamba_monai.bundle_options import as_literal, check_options
from swinumamba_monai.errors import InputError
from swinumamba_monai.overlays import OVERLAYS


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
        check_options(["--config_file", files, "--sektion", "test"])


@pytest.mark.parametrize("typed", [["train"], ["network_def"], ["trainin"], ["--run_id", "train"]])
def test_what_does_not_run(typed):
    """MONAI makes a section, or a component, and ends in silence with exit code 0."""
    with pytest.raises(InputError, match=r"there is no workflow '\w+'; choose from training\.$"):
        check_options([*typed, "--config_file", str(CONFIGS / "train.json")], {})


@pytest.mark.parametrize("typed", [[], ["run"], ["training"], ["--run_id", "training"]])
def test_what_runs(typed):
    check_options([*typed, "--config_file", str(CONFIGS / "train.json")], {})


def test_options_in_an_args_file(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file": str(CONFIGS / "train.json"), "max_epoch": 3}))
    with pytest.raises(InputError, match="max_epoch is no option of this config; did you mean --max_epochs"):
        check_options(["training", "--args_file", str(file)])


@pytest.mark.parametrize("name", ["dataset_dir", "output_dir", "bundle_root", "ckpt_dir", "pretrained", "ckpt_path"])
@pytest.mark.parametrize("path", ["plate#3", "20241125", "1e3", "2024_11_25", "ctrl,1", "[1]", "{a}", "0x10"])
def test_a_path_that_python_reads_otherwise(name, path):
    config = "inference" if name == "ckpt_path" else "train"
    with pytest.raises(InputError, match=r"would be read as .*; write \./"):
        check(config, f"--{name}", path)
    check(config, f"--{name}", f"./{path}")
    check(config, f"--{name}", f"'{path}'")


@pytest.mark.parametrize("path", ["", " "])
def test_a_variable_of_the_shell_that_is_not_set_is_no_path(path):
    """It would be the folder that the command was given in."""
    for name in ("dataset_dir", "output_dir"):
        with pytest.raises(InputError, match=rf"--{name} needs a path behind it"):
            check("inference", f"--{name}", path)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("output_dir", r"\$@bundle_root"),
        ("checkpointloader", r"\$@ensemble"),
        ("network_def#depths", "its own"),
        ("handlers#0", "{"),
    ],
)
def test_none_does_not_reach_the_config(name, kept):
    """MONAI leaves options out that are None, as if they had not been given."""
    with pytest.raises(
        InputError, match=rf"--{name} None is dropped by MONAI, so that {kept}.* would stay; write '\$None'"
    ):
        check("inference", f"--{name}", "None")
    check("inference", f"--{name}", "$None")
    check("inference", "--encoder", "None", "--channel", "None")  # which they are anyway


def test_a_recipe_with_weights_is_not_overruled_by_none():
    files = f"{CONFIGS / 'train.json'},{OVERLAYS['from_imagenet']}"
    with pytest.raises(InputError, match=r"--pretrained None is dropped by MONAI, so that @vmamba_tiny would stay"):
        check_options(["--config_file", files, "--pretrained", "None"], {})


@pytest.mark.parametrize("word", ["null", "none", "true", "False", "NULL"])
def test_a_path_that_is_a_word_of_another_language(word):
    with pytest.raises(
        InputError, match=rf"--output_dir {word} is a path; write ./{word} for one of this name, or .\$None"
    ):
        check("train", "--output_dir", word)
    check("train", "--output_dir", f"./{word}")
    check("train", "--pretrained", "None")


def test_logging_may_stay_as_it_is():
    """MONAI documents False as the word for it."""
    check("train", "--logging_file", "False")
    with pytest.raises(InputError, match="--logging_file false is a path"):
        check("train", "--logging_file", "false")  # a text for MONAI, which would look for the file


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


def test_what_a_refusal_says():
    with pytest.raises(InputError, match=r"^--save_polygons must be True or False, got 'maybe'\.$"):
        check("inference", "--save_polygons", "maybe")
    with pytest.raises(InputError, match=r"^--overlap must be a number from 0 on and below 1, such as 0.5; got 1.5\.$"):
        check("inference", "--overlap", "1.5")
    with pytest.raises(InputError, match=r"^--cache_rate must be a number from 0 to 1, such as 0.0; got 2\.$"):
        check("train", "--cache_rate", "2")
    with pytest.raises(InputError, match=r"^--dataset_dir needs a path behind it\.$"):
        check("train", "--dataset_dir", "--max_epochs", "3")
    with pytest.raises(InputError, match=r"^--train#max_epochs is no option of this config; did you mean --train#"):
        check("train", "--train#max_epochs", "3")


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"learning_rte": 0.5}, r"mine.json: --learning_rte is no option of this config; did you mean --learning_rate"),
        ({"batch_size": "two"}, r"mine.json: --batch_size must be a whole number from 1 on, such as 12; got 'two'"),
        ({"train#max_epochs": 3}, r"mine.json: --train#max_epochs is no option of this config"),
        ({"network_def#cuda_graphs": "false"}, r"mine.json: --network_def#cuda_graphs false would be the text"),
        ({"loss": "@losss"}, r"mine.json: --loss @losss refers to @losss, which the config lacks; did you mean @loss"),
    ],
)
def test_entries_of_a_config_on_top(tmp_path, entries, sentence):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=sentence):
        check_options(["training", "--config_file", f"{CONFIGS / 'train.json'},{file}"], {})


def test_an_entry_of_the_config_itself_that_nothing_reads(tmp_path):
    file = tmp_path / "train.json"
    config = json.loads((CONFIGS / "train.json").read_text())
    file.write_text(json.dumps({**config, "_why": "a remark", "half": 0.5, "learning_rate": "@half"}))
    check_options(["training", "--config_file", str(file)], {})
    file.write_text(json.dumps({**config, "max_epoch": 3}))
    with pytest.raises(InputError, match=r"train.json: --max_epoch is no option of this config; did you mean --max_e"):
        check_options(["training", "--config_file", str(file)], {})


def test_another_network_on_top_leaves_entries_of_the_first_config_unread(tmp_path):
    file = tmp_path / "mine.json"
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 3, "out_channels": 2, "kernel_size": 1}
    file.write_text(json.dumps({"network_def": network, "network": "$@network_def.to(@device)", "min_size": 3}))
    check_options(["inference", "--config_file", f"{CONFIGS / 'inference.json'},{file}"], {})
    file.write_text(json.dumps({"network_def": network, "min_sizes": 3}))
    with pytest.raises(
        InputError, match=r"mine.json: --min_sizes is no option of this config; did you mean --min_size"
    ):
        check_options(["inference", "--config_file", f"{CONFIGS / 'inference.json'},{file}"], {})


@pytest.mark.parametrize("name", ["train", "inference"])
def test_several_processes_of_a_config_for_one(name, monkeypatch):
    """Each would do the whole run, or find that the other has locked its folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=rf"2 processes .* one; add configs/multi_gpu_{name}\.json, as the last"):
        check(name)


@pytest.mark.parametrize("bundle", ["abdomen_mri", "endoscopy", "microscopy"])
@pytest.mark.parametrize(
    "files",
    [
        "pretrain multi_gpu_train",
        "inference multi_gpu_inference",
        "train multi_gpu_train",
        "train evaluate multi_gpu_evaluate",
    ],
)
def test_what_ships_passes(bundle, files, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2" if "multi" in files else "1")
    paths = [CONFIGS.parents[1] / bundle / "configs" / f"{name}.json" for name in files.split()]
    for overlay in [None, *OVERLAYS.values()] if "train" in files.split() else [None]:
        used = [paths[0], *([overlay] if overlay else []), *paths[1:]]
        check_options(["run", "--config_file", ",".join(map(str, used))], {})


def test_the_name_that_monai_gives_to_what_it_has_resolved():
    """Private to MONAI; 1.5.1, 1.5.2, 1.6.0 and 1.6.1 have it. Without it the bundles run, but refuse a # in a path."""
    assert ReferenceResolver._vars == "__local_refs"
    config = ConfigParser({"a": 1, "b": "$@a + 1", "both": "$globals().get('__local_refs')"})
    assert config.get_parsed_content("b") == 2
    assert config.get_parsed_content("both")["a"] == 1
    options = ["inference", "--config_file", str(CONFIGS / "inference.json"), "--dataset_dir", "./plate#3"]
    with pytest.raises(InputError, match=r"--dataset_dir ./plate#3: this version of MONAI reads # as ::"):
        check_options(options, None)


def test_the_other_command_of_monai(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run_workflow", "--bundle_root", str(tmp_path)]
    done = run_forked([*command, "--config_file", str(CONFIGS / "train.json"), "--learning_rte", "0.5"])
    assert done.returncode == 1
    assert "error: --learning_rte is no option of this config; did you mean --learning_rate" in done.stderr


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
        command += ["--checkpointloader", "$None"]  # a small network: only the images are missing
    done = run_forked(command)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
