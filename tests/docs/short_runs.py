# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Commands from the documentation that run a network, run in this process with a small one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from unittest.mock import patch

import fire
from monai.bundle import ConfigParser, run

from swinumamba_monai.cli import main

# Every network small, and every run short: added behind what the documentation says.
# The workplace holds networks of another training.
AGAIN = "--checkpoint#overwrite True --max_epochs 1 --batch_size 2 --val_interval 1"
SHORT = {
    "training": f"{AGAIN} --iterations_per_epoch 1 --roi_size [32,32]",
    "pretraining": f"{AGAIN} --spatial_size [32,32] --mask_patch_size 16",
    "evaluating": "--roi_size [64,64] --num_figures 0",
    "inference": "--roi_size [64,64]",
}
SMALL = {
    "SwinUMambaD": {"feature_size": 8, "d_state": 2, "depths": [1, 1, 1, 1], "decoder_depths": [1, 1, 1]},
    "UMambaBot": {"base_channels": 2, "d_state": 2},
}


def run_command(words: Sequence[str]) -> int:
    """``python -m swinumamba_monai`` with these words behind it, in this process; ``predict`` is made small."""
    if words[0] != "predict":
        return main(list(words))
    network = [f"network_def#{option}={value}".replace(" ", "") for option, value in SMALL["SwinUMambaD"].items()]
    place = ["--bundle_dir", "bundles", "--device", "cpu"]  # the workplace's, with the small network that it trained
    return main([*words, *place, "--set", "roi_size=64", *network])


def run_bundle(words: Sequence[str]) -> None:
    """``python -m monai.bundle`` with these words behind it, in this process and made small."""
    files, options = config_of(words)
    parser = ConfigParser()
    parser.read_config(files)
    name = options.get("network_name", parser["network_name"])
    of_task = " --spacing [6.0,7.0]" if "abdomen_mri" in files[0] else ""
    added = f"{SHORT[words[1]]}{of_task} --num_workers 0 --device $torch.device('cpu') --logging_file False".split()
    inner = "network_def#network#" if words[1] == "pretraining" else "network_def#"
    for option, value in SMALL[name].items():
        if f"{inner}{option}" not in parser:  # an overlay that sets it is what the command is about
            added += [f"--{inner}{option}", str(value).replace(" ", "")]
    with patch.object(sys, "excepthook", sys.excepthook):  # the bundles' initialize replaces it
        fire.Fire({"run": run}, command=[*words, *added])


def config_of(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The config files of a command ``run ID --name value ...`` of MONAI's, and its other options.

    Raises:
        AssertionError: an option has no value.
    """
    assert len(words) % 2 == 0 and all(word.startswith("--") for word in words[2::2]), words
    options = {name.removeprefix("--"): value for name, value in zip(words[2::2], words[3::2])}
    files = options.pop("config_file")
    return [file.strip(" '\"") for file in files.strip("[]").split(",")], options
