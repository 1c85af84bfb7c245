# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A component that does not exist, or refuses what a config gives it, is named with its place."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from swinumamba_monai.bundle_failures import explain_failure

LOADER = {"_target_": "torch.utils.data.DataLoader", "dataset": [1, 2], "batch_size": 1}


def explained(config: dict, **options: object) -> str | None:
    parser = ConfigParser(dict(config))
    for name, value in options.items():
        parser[name] = value
    with pytest.raises(Exception) as caught:  # of many kinds, as MONAI's
        parser.get_parsed_content("run")
    sentence = explain_failure(caught.value, options, config)
    return str(sentence) if sentence else None


@pytest.mark.parametrize("target", ["torch.nn.Nope", "nopackage.Loss", "NoTransformd"])
def test_a_class_that_does_not_exist(target):
    config = {"loss": {"_target_": "torch.nn.L1Loss"}, "run": [{"inner": "@loss"}]}
    assert explained(config, **{"loss#_target_": target}).startswith(
        f"there is no class or function {target}, which --loss#_target_ names, or what it imports is not installed"
    )
    replaced = {**config, "loss": {"_target_": target}}
    assert f"{target}, which loss#_target_ names" in explained(replaced)
    assert f"{target}, which loss#_target_ names" in explained(config, loss={"_target_": target})


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"batchsize": 3}, "(TypeError: "),
        ({"batch_size": 0}, "(ValueError: batch_size should be a positive integer value, but got batch_size=0)."),
    ],
)
def test_a_constructor_that_refuses_what_stands_in_the_config(wrong, cause):
    sentence = explained({"sets": [{"loader": {**LOADER, **wrong}}], "run": "$@sets#0#loader"})
    assert sentence.startswith("DataLoader cannot be made as sets#0#loader of the config says (")
    assert cause in sentence


def test_more_processes_than_images(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = {
        "_target_": "DistributedSampler",
        "dataset": [1, 2],
        "even_divisible": False,
        "num_replicas": 3,
        "rank": 0,
    }
    sentence = explained({"validate": {"sampler": sampler}, "run": "$@validate#sampler"})
    assert sentence.startswith("each of the 3 processes needs an image of the section")


def test_an_entry_of_a_config_on_top_is_named_once():
    loader = {**LOADER, "batch_size": 0}
    sentence = explained({"sets": {"loader": loader}, "run": "$@sets#loader"}, **{"sets#loader": loader})
    assert sentence.startswith("DataLoader cannot be made as sets#loader of the config says (")


def test_an_error_further_down_keeps_its_traceback():
    deep = {"_target_": "json.loads", "s": "no json"}
    assert explained({"run": deep}) is None


def test_an_expression_of_an_option():
    config = {"size": 3, "sizes": [1, 2], "run": "$[@size] * 2"}
    assert explained(config, size="$@sizes#0 / 0") == (
        "--size $@sizes#0 / 0 cannot be evaluated (ZeroDivisionError: division by zero)."
    )
    assert explained({"run": "$1 / 0"}) is None, "no option is behind it"


def test_a_part_of_what_was_replaced():
    config = {"images": {"size": 3}, "run": "$@images#size + 1"}
    assert explained(config, images={"sizes": 3}) == (
        "the config refers to @images#size, which it lacks, for --images {'sizes': 3} took its place."
    )
    assert explained({"run": "@nothing"}) == "the config refers to @nothing, which it lacks."
