# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The command line makes and prepares datasets of every task, and says in one sentence why it cannot."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
from monai.transforms import LoadImage

from swinumamba_monai import commands
from swinumamba_monai.cli import COMMANDS, main, make_parser
from swinumamba_monai.tasks import TASKS

SIZES = {"abdomen_mri": ["48", "64", "--num_slices", "6"], "endoscopy": ["64", "96"], "microscopy": ["64", "64"]}


@pytest.mark.parametrize("task", TASKS)
def test_synthesize_and_prepare(tmp_path, capsys, task):
    made = str(tmp_path / "made by me")
    counts = ["--num_train", "5", "--num_validation", "1", "--num_test", "1"]
    assert main(["synthesize", task, "--output_dir", made, *counts, "--image_size", *SIZES[task]]) == 0
    assert f"ready: --dataset_dir '{made}'" in capsys.readouterr().out
    out = tmp_path / "my prepared"
    assert main(["prepare", task, "--source_dir", made, "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("as nnU-Net would plan it: roi_size", f"ready: --dataset_dir '{out}'", "training and validation: 6"):
        assert words in printed, printed
    prints = json.loads((out / "fingerprint.json").read_text())
    assert prints["task"] == task and {"roi_size", "batch_size"} <= set(prints["proposal"])


def test_every_module_is_a_command_and_the_installed_script_runs_them():
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)
    parser = ConfigParser()
    parser.read(Path(__file__).parents[1] / "setup.cfg")
    assert parser["options.entry_points"]["console_scripts"].split() == [
        "swinumamba-monai",
        "=",
        "swinumamba_monai.cli:main",
    ]


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    listed = capsys.readouterr().err
    assert all(re.search(rf"^ +{name}\s+\w", listed, re.MULTILINE) for name in COMMANDS), listed


def test_an_entry_of_the_config_is_no_option_but_the_way_to_give_it_is_told(capsys):
    """Sentences about files, such as of several series, name the bundle's options."""
    for words, told in {("predict", "abdomen_mri", "a", "--output_dir", "b"): True, ("doctor",): False}.items():
        with pytest.raises(SystemExit) as ended:
            main([*words, "--series", "T2"])
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and "unrecognized arguments: --series T2" in printed
        assert ("given as --set NAME=VALUE" in printed) == told


def test_help_loads_nothing_slow():
    code = "import sys; from swinumamba_monai.cli import make_parser; make_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    ).stdout.split()
    assert not {"torch", "monai", "numpy"} & set(loaded)


def test_overlays_are_listed_and_found(capsys):
    assert main(["overlay"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert {"baselines: nnUNet", "ablations: symmetric_decoder"} <= set(listed)
    for line in listed:
        assert main(["overlay", line.split(": ")[1]]) == 0
        assert isinstance(json.loads(Path(capsys.readouterr().out.strip()).read_text()), dict)
    assert main(["overlay", "block_transformer"]) == 1
    assert "there is no overlay 'block_transformer'; choose from block_conv," in capsys.readouterr().err


def test_nothing_is_said_of_readers_that_nobody_asked_for(recwarn, caplog):
    main(["overlay"])
    LoadImage()
    said = [*caplog.messages, *(str(warning.message) for warning in recwarn)]
    assert not [text for text in said if "nvimgcodec" in text.lower()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepare", "endoscopy", "--source_dir", "nowhere"], "nowhere is not a folder"),
        (["prepare", "abdomen_mri", "--source_dir", ".", "--label_map", "no.json"], "no.json does not exist"),
        (["prepare", "microscopy", "--source_dir", ".", "--label_map", "a.json"], "microscopy takes no label_map"),
        (["synthesize", "endoscopy", "--num_slices", "3"], "have no slices"),
        (["synthesize", "endoscopy", "--image_size", "8", "8"], "not possible"),
        (["table", "complexity", "--measure", "--batch_size", "0"], "--batch_size must be a positive integer, got 0"),
        (["table", "complexity", "--measure", "--repeats", "0"], "--repeats must be a positive integer, got 0"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--output_dir", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from parsers_of(part)


def test_help_says_what_every_option_is():
    for parser in parsers_of(make_parser()):
        assert "default: None)" not in parser.format_help(), parser.prog
        silent = [action.dest for action in parser._actions if action.option_strings and not action.help]
        assert not silent, (parser.prog, silent)
