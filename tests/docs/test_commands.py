# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every command in the documentation: run on synthetic data, or named here with the reason why not, and then checked.

Each block runs in a copy of a folder in which all exists that it names (``conftest.py``), in the order of its lines,
in this process. Commands between single backquotes in the text are checked as those that are not run.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import inspect
import re
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from doc_commands import DOCUMENTS, ROOT, Block, find_blocks, read_commands
from monai.bundle import ConfigParser, scripts
from short_runs import config_of, run_bundle, run_command

from swinumamba_monai import cli
from swinumamba_monai.networks import SYSTEMS
from swinumamba_monai.tasks import TASKS

# document, command (with * and ?), why it is not run here. All of them are checked all the same, as far as they are
# pytest, make, or commands of this package, of MONAI's bundles or of torchrun.
NOT_RUN = [
    ("*", "make *", "sets up an environment; the commands in it are the README's"),
    ("*", "python3 -m venv *", "sets up an environment"),
    ("*", "pip install *", "sets up an environment"),
    ("*", "python -m pytest*", "this is it"),
    ("*", "torchrun *", "several processes: tests/bundles/test_all_bundles.py runs the same"),
    ("*", "srun *", "Slurm"),
    ("*", "scontrol *", "Slurm"),
    ("*", "head *", "Slurm"),
    ("*", "curl *", "a MONAI Label server: tests/serving/test_monai_label.py asks it the same"),
    ("*", "python -m swinumamba_monai serve *", "a MONAI Label server: tests/serving/test_monai_label.py"),
    ("bundles/microscopy/*", "* benchmarks.peers.score *", "tests/benchmarks/test_peers.py scores made-up images"),
    ("docs/other_tools.md", "nnUNetv2_train *", "nnU-Net's; tests/docs/test_other_tools.py runs what it needs of ours"),
    ("docs/serving.md", "bash *", "a Nuclio function: tests/serving/test_monai_label.py runs it"),
    ("*", "python -m monai.bundle download*", "a server: tests/distribution/test_download.py runs the same"),
    ("*", "* --config_file microscopy/*", "of a download: tests/distribution/test_download.py runs the same"),
    ("*", "python -m swinumamba_monai overlay *", "its answer is in the command around it; tests/test_cli.py"),
    ("*", "python -m swinumamba_monai verify *", "the networks in full size; tests/distribution/test_verify.py"),
    ("*", "python -m swinumamba_monai package *", "tests/distribution/test_package.py"),
    ("*", "python -m swinumamba_monai table complexity *", "networks in full size; tests/analysis/test_complexity.py"),
    ("README.md", "python -m swinumamba_monai erf *", "networks in full size, 100 inputs; docs/tables.md's is run"),
    ("docs/export.md", "python -m monai.bundle ckpt_export *", "the network in full size; tests/export/test_export.py"),
    ("docs/export.md", "python -m swinumamba_monai export *", "the network in full size; tests/export/test_export.py"),
    ("docs/results_*", "*", "measured runs of minutes; the same commands are run for the other documents"),
    (
        "docs/adding_a_network.md",
        "* --network_name MyNetwork",
        "tests/bundles/test_any_network.py adds one and trains it",
    ),
    ("benchmarks/README.md", "python -m swinumamba_monai prepare *", "real data; run for the bundles' documents"),
    ("benchmarks/README.md", "python -m benchmarks.*", "minutes on a GPU; tests/benchmarks runs each at toy size"),
    ("docs/pretraining.md", "python -m benchmarks.*", "minutes on a GPU; tests/benchmarks runs each at toy size"),
    ("benchmarks/README.md", "python -m pip download *", "the internet"),
]
SYSTEM_COMMANDS = (
    "pip",
    "python3",
    "curl",
    "scontrol",
    "nnUNetv2_train",
    "head",
    "bash",
)  # nothing of ours to check in them


def commands_of(block: Block) -> list[list[str]]:
    with TemporaryDirectory() as folder:
        return read_commands(block, Path(folder))


def reason(block: Block, words: list[str]) -> str | None:
    """Why it is not run; None if it is."""
    return next((why for name, form, why in NOT_RUN if _fits(block, words, name, form)), None)


def _fits(block: Block, words: list[str], name: str, form: str) -> bool:
    return fnmatch.fnmatchcase(block.document, name) and fnmatch.fnmatchcase(" ".join(words), form)


BLOCKS = find_blocks()
COMMANDS = [(block, words) for block in BLOCKS for words in commands_of(block)]
RUN = [block for block in BLOCKS if any(owner == block and not reason(block, words) for owner, words in COMMANDS)]


def inline_commands() -> list[tuple[str, list[str]]]:
    """Those between single backquotes, outside the blocks: document and words."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        lines = re.findall(r"(?<!`)`(python -m (?:swinumamba_monai|benchmarks)[^`]*)`", text)
        found += [(path.relative_to(ROOT).as_posix(), shlex.split(line)) for line in lines]
    return found


class _ReadAsFar(Exception):
    """The arguments are understood, and nothing is done with them."""


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether what it names exists: subcommand, options, config files, their ids, tests, targets of make."""
    if words[0] == "make":
        targets = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
        assert words[1] in targets
    elif words[0] in ("torchrun", "srun"):
        check(["python", *words[words.index("-m") :]], monkeypatch)
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if not word.startswith("-"))
    elif words[:3] == ["python", "-m", "swinumamba_monai"]:
        cli.make_parser().parse_args(words[3:])
    elif words[1:2] == ["-m"] and words[2].startswith("benchmarks."):
        check_benchmark(words[2], words[3:], monkeypatch)
    elif words[:4] == ["python", "-m", "monai.bundle", "run"]:
        check_bundle(words[3:])
    elif words[:3] == ["python", "-m", "monai.bundle"]:
        check_tool(words[3:])
    else:
        assert words[0] in SYSTEM_COMMANDS or words[:3] == ["python", "-m", "pip"], f"what is {words[0]}?"


def check_benchmark(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module(module)
    if module == "benchmarks.run_all":  # hands on what it does not know
        assert words[:1] in ([], ["--only"]) and all(
            Path(script.__file__).with_name(f"{w}.py").exists() for w in words[1:]
        )
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise _ReadAsFar

    with monkeypatch.context() as patch, pytest.raises(_ReadAsFar):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [module, *words])
        script.main()


def check_bundle(words: list[str]) -> None:
    """Whether the configs exist, have the workflow, and have every id that an option sets."""
    files, options = config_of(words)
    paths = [
        ROOT / (file if "/" not in file or not file.startswith("microscopy/") else f"bundles/{file}") for file in files
    ]
    assert not (missing := [path for path in paths if not path.is_file()]), missing
    parser = ConfigParser()
    parser.read_config([str(path) for path in paths])
    assert words[1] in parser, f"no workflow {words[1]}"
    network = options.get("network_name", parser["network_name"])
    arguments = inspect.signature(scripts.run).parameters
    for name in options:
        inner = name.removeprefix("network_def#").removeprefix("network#")
        if name.startswith("network_def#") and inner in inspect.signature(SYSTEMS[network].make).parameters:
            continue
        assert name in parser or name in arguments, f"--{name} sets nothing in {', '.join(files)}"
        if name in parser and isinstance(parser[name], bool):
            assert options[name].lower() in ("true", "false"), f"--{name} {options[name]}: write true or false"


def check_tool(words: list[str]) -> None:
    """Whether MONAI has the command, with these options or a config that has their ids."""
    parser, arguments = ConfigParser(), inspect.signature(getattr(scripts, words[0])).parameters
    if "--config_file" in words:
        parser.read_config(str(ROOT / words[words.index("--config_file") + 1]))
    for name in (word.removeprefix("--") for word in words if word.startswith("--")):
        assert name in arguments or ("override" in arguments and name in parser), f"{words[0]} has no --{name}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_names_exist(block, monkeypatch):
    """Also of the commands that are run: an id that no config has would be taken there without a word."""
    for words in commands_of(block):
        try:
            check(words, monkeypatch)
        except (SystemExit, AssertionError) as error:
            pytest.fail(f"{block}: {shlex.join(words)}: {error}")


@pytest.mark.parametrize("document, words", inline_commands(), ids=lambda part: part if isinstance(part, str) else "")
def test_names_in_the_text_exist(document, words, monkeypatch):
    check(words, monkeypatch)


@pytest.mark.parametrize("block", RUN, ids=str)
def test_run(block, workplace, tmp_path, monkeypatch, capsys):
    task = next((task for task in TASKS if task in block.document or task in block.text), "microscopy")
    workplace(task, tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in read_commands(block, tmp_path):
        if reason(block, words) is None:
            run = (
                {"swinumamba_monai": run_command, "monai.bundle": run_bundle}.get(words[2])
                if words[1:2] == ["-m"]
                else None
            )
            if run is None:
                pytest.fail(f"{block}: not run and not in NOT_RUN: {shlex.join(words)}")
            if words[3] == "prepare":  # it refuses a folder with other data; what is in the workplace is from elsewhere
                shutil.rmtree(words[words.index("--output_dir") + 1], ignore_errors=True)
            failed = run(words[3:])
            assert not failed, f"{shlex.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("entry", NOT_RUN, ids=lambda entry: entry[1])
def test_no_entry_is_stale(entry):
    name, form, _ = entry
    assert any(_fits(block, words, name, form) for block, words in COMMANDS)
    assert all((ROOT / file).exists() for file in re.findall(r"tests/\S+\.py", entry[2]))


class TestTheCheckItself:
    """It must be able to fail."""

    @pytest.mark.parametrize(
        "line",
        [
            "python -m swinumamba_monai prepair microscopy",
            "python -m swinumamba_monai synthesize microscopy --output_dir a --colour red",
            "python -m monai.bundle run training --config_file bundles/microscopy/configs/train.json --batchsize 3",
            "python -m monai.bundle run inference --config_file bundles/microscopy/configs/train.json",
            "python -m monai.bundle run training --config_file bundles/microscopy/configs/tain.json",
            "python -m monai.bundle run training --config_file bundles/microscopy/configs/train.json --resume yes",
            "python -m monai.bundle run training --config_file bundles/endoscopy/configs/train.json --network_def#w 3",
            "torchrun --nproc_per_node=2 -m monai.bundle run training --config_file bundles/microscopy/configs/no.json",
            "python -m benchmarks.growth --widths 3",
            "python -m pytest tests/no_such_test.py",
            "make coffee",
            "rm -rf somewhere",
        ],
    )
    def test_a_wrong_name(self, line, monkeypatch):
        with pytest.raises((AssertionError, SystemExit)):
            check(shlex.split(line), monkeypatch)

    def test_a_new_command(self, tmp_path):
        block = Block("docs/new.md", 1, "A='--b \"[1,2]\"'\nrm -rf $A \\\n  here && tidy")
        assert read_commands(block, tmp_path) == [["rm", "-rf", "--b", '"[1,2]"', "here"], ["tidy"]]
        assert reason(block, ["rm", "-rf"]) is None
        with pytest.raises(AssertionError, match="unbound variable"):
            read_commands(Block("docs/new.md", 1, "python $NOWHERE"), tmp_path)
