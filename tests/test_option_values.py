# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A value of an option is of the kind and within the bounds of its own, and a component makes what it should."""

from __future__ import annotations

import json
import sys

import pytest
from forked import run_forked
from typed_options import CONFIGS, check

from swinumamba_monai.bundle_options import check_options
from swinumamba_monai.errors import InputError


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("max_epochs", ["0", "-1", "1.5", "many", "True", "[3]"], ["1"]),
        ("batch_size", ["0", "2,3"], ["2"]),
        ("learning_rate", ["-1", "0", "fast", "1e400"], ["1e-3", "1"]),
        ("gradient_clip", ["0", "-1", "off"], ["0.5"]),
        ("weight_decay", ["-1", "some"], ["0", "0.1"]),
        ("early_stop_patience", ["0", "-3", "1.5", "abc"], ["1", "None"]),
        ("cache_rate", ["2", "-1", "all"], ["0", "0.5", "1"]),
        ("overlap", ["1", "1.0", "-0.1", "half"], ["0", "0.75"]),
        ("channel", ["-1", "1.5", "red"], ["0", "None"]),
        ("train#trainer#max_epochs", ["0", "many"], ["2"]),
        ("optimizer#lr", ["0", "fast"], ["1e-3"]),
        ("lr_scheduler#T_max", ["0", "2.5", "long"], ["7"]),  # whose own value refers to another reference
        ("lr_scheduler#eta_min", ["-1"], ["0"]),
        ("train#crop_transforms#0#spatial_size", ["0", "[64]"], ["64"]),
        ("num_classes", ["2", "5"], []),
        ("network_name", ["[]", "{}", "3", "None"], ["UNETR"]),
        ("encoder", ["[]", "2"], ["vmamba_tiny_s1l8", "None"]),
        ("target", ["{}", "-1", "None"], ["classes"]),
        ("amp", ["[]", "16", "None"], ["off"]),
        ("amp_dtype", ["abc", "bf16", "16"], ["$None"]),
        ("network_def#in_channels", ["0"], ["1"]),
        ("num_workers", ["-1", "None"], ["0"]),
        ("roi_size", ["0", "15", "64.0", "[64]", "[64,64,64]", "[64,-1]", "big"], ["64", "16", "[64,96]", "64,96"]),
        ("resume", ["yes", "1"], ["true", "False"]),
        ("device", ["gpu", "3.5", "cuda:x", "cuda:99", "meta"], ["cpu"]),
    ],
)
def test_values_are_of_the_kind_of_the_configs_own(name, wrong, right):
    for text in wrong:
        with pytest.raises(InputError, match=r"must be|cannot be used|is made by the config"):
            check("train", f"--{name}={text}")
    for text in [*right, "$1 + 1"]:
        check("train", f"--{name}", text)


@pytest.mark.parametrize(
    ("config", "name", "wrong", "right"),
    [
        ("inference", "checkpointloader", ["null", "0", "model.pt", "[]"], ["$None"]),
        ("inference", "dataset#data", ["images", "[]", "3"], ["$[{'image': 'a.png'}]"]),
        ("train", "validate#dataset#data", ["images"], ["$[]"]),
        ("inference", "mirror_axes", ["{}", "both"], ["[0]", "[]", "1"]),
        ("inference", "network", ["null", "{}"], ["$None"]),
        ("inference", "diameter", ["0", "-3", "0.5", "1e-9", "1e300", "small"], ["auto", "12", "7.5", "1", "5000"]),
        ("inference", "min_score", ["2", "-0.1"], ["0", "1"]),
        ("pretrain", "mask_ratio", ["0", "1", "2"], ["0.5"]),
        ("../../abdomen_mri/configs/train", "nan", ["nan", "none", "True"], ["0", "-1000"]),
        ("../../abdomen_mri/configs/train", "foreground_fraction", ["2"], ["0", "1"]),
    ],
)
def test_bounds_of_single_tasks(config, name, wrong, right):
    for text in wrong:
        with pytest.raises(InputError, match=f"--{name} (must be a|is made by the config)"):
            check(config, f"--{name}={text}")
    for text in right:
        check(config, f"--{name}", text)


def test_tolerances_in_pixels_need_not_be_whole():
    files = [str(CONFIGS.parents[1] / "endoscopy" / "configs" / f"{name}.json") for name in ("train", "evaluate")]
    check_options(["evaluating", "--config_file", ",".join(files), "--nsd_tolerances", "1.5"])
    with pytest.raises(InputError, match="--nsd_tolerances must be a number from 0 on, such as 2; got -1"):
        check_options(["evaluating", "--config_file", ",".join(files), "--nsd_tolerances", "-1"])


def test_tolerances_of_classes_of_ones_own():
    files = ",".join(
        str(CONFIGS.parents[1] / "abdomen_mri" / "configs" / f"{name}.json") for name in ("train", "evaluate")
    )
    for text in ("3", "2.5", "[3,4]", "{'liver':5,'tumour':2.5}"):
        check_options(["evaluating", "--config_file", files, "--nsd_tolerances", text])
    for text in ("-1", "[3,-4]", "{'liver':-5}", "wide", "{'liver':'wide'}", "True"):
        with pytest.raises(InputError, match="--nsd_tolerances must be a number from 0 on for all, a list of one each"):
            check_options(["evaluating", "--config_file", files, "--nsd_tolerances", text])


@pytest.mark.parametrize("name", ["network_def#cuda_graphs", "loss#softmax", "train#dataloader#pin_memory"])
def test_words_of_other_languages_in_a_component(name):
    """MONAI hands them over as texts, and a text counts as true."""
    for word, python in (("false", "False"), ("true", "True"), ("FALSE", "False"), ("null", r"'\$None'")):
        with pytest.raises(InputError, match=rf"--{name} {word} would be the text '{word}'; write {python}\.$"):
            check("train", f"--{name}", word)
        check("train", f"--{name}", python.replace("\\", "").strip("'"))
    check("train", "--resume", "false")  # the switches at the top read it


@pytest.mark.parametrize(
    ("name", "texts", "first"),
    [
        ("loss", ["dice", "[]", "{}", "3"], "_target_"),
        ("train", ["3", "{}", "[1]"], "crop_transforms"),
        ("train#trainer", ["fast", "[]"], "_target_"),
        ("train#handlers", ["abc", "{}"], "0"),
    ],
)
def test_what_cannot_take_the_place_of_a_component(name, texts, first):
    for text in texts:
        with pytest.raises(InputError, match=rf"--{name} .* cannot take the place of .* such as --{name}#{first}, or"):
            check("train", f"--{name}", text)
    for right in ("$None", "$3", "[]" if first == "0" else "{'_target_': 'torch.nn.L1Loss'}"):
        check("train", f"--{name}", right)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("@nothing", "refers to @nothing, which the config lacks"),
        ("@learning_rte", "did you mean @learning_rate"),
        ("$@max_epoch * 2", "refers to @max_epoch, .* did you mean @max_epochs"),
        ("$@train#no * @nowhere", "@nowhere, which"),
        ("$1 +", "is no Python"),
        ("$import", "is no Python"),
    ],
)
def test_expressions_that_cannot_be_evaluated(text, sentence):
    with pytest.raises(InputError, match=sentence):
        check("train", "--max_epochs", text)
    check("train", "--max_epochs", "$@batch_size * @train#trainer#max_epochs")
    check("train", "--max_epochs", "@batch_size")


def test_a_learning_rate_that_would_rise():
    with pytest.raises(InputError, match=r"--learning_rate 1e-07 is below --min_learning_rate 1e-06, .* give both"):
        check("train", "--learning_rate", "1e-7")
    check("train", "--learning_rate", "1e-7", "--min_learning_rate", "0")


def test_values_of_an_args_file(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file": str(CONFIGS / "train.json"), "batch_size": "two"}))
    with pytest.raises(InputError, match="--batch_size must be a whole number from 1 on, such as 12; got 'two'"):
        check_options(["training", "--args_file", str(file)])
    check_options(["training", "--args_file", str(file), "--batch_size", "2"])  # what is typed counts


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--mirror_axes", "5"], "error: mirror_axes can hold 0 (top and bottom) and 1 (left and right), not 5."),
        (["--output_ext", "5"], "error: --output_ext must be a word, such as .png; got 5."),
        (["--network_def#depths", "3"], "error: build_network cannot be made with --network_def#depths 3 (V"),
        (["--dataloader#batchsize", "3"], "error: DataLoader cannot be made with --dataloader#batchsize 3 (T"),
        (["--inferer#_target_", "monai.Nope"], "error: there is no class or function monai.Nope, which --inferer#_tar"),
        (["--output_dir", "$no + 'x'"], "error: --output_dir $no + 'x' cannot be evaluated (NameError: name 'no' is"),
    ],
)
def test_what_a_component_cannot_be_made_of(tmp_path, typed, sentence):
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", str(tmp_path)]
    command += ["--config_file", str(CONFIGS / "inference.json"), "--dataset_dir", "synthetic"]
    command += ["--ckpt_path", str(CONFIGS.parent / "models" / "model.safetensors")]
    done = run_forked([*command, *typed])
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
