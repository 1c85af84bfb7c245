# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Commands that write into a folder do so one at a time, by the same sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import run_forked

from swinumamba_monai.errors import InputError
from swinumamba_monai.run_lock import one_run
from swinumamba_monai.tasks import find_task

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from swinumamba_monai.run_lock import RunLock
lock = RunLock(sys.argv[1])
lock.acquire()
print(flush=True)
sys.stdin.read()
"""
COMMANDS = {
    "prepare": ["swinumamba_monai", "prepare", "microscopy", "--source_dir", "{data}", "--output_dir", "{out}"],
    "package": ["swinumamba_monai", "package", str(ROOT / "bundles" / "endoscopy"), "--output_dir", "{out}"],
    "predict": [
        "monai.bundle", "run", "inference", "--config_file", "{bundle}/configs/inference.json",
        "--bundle_root", "{bundle}", "--dataset_dir", "{data}", "--output_dir", "{out}", "--num_workers", "0",
    ],
}  # fmt: skip

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Let another process hold a lock of the folder ``out``."""
    processes = []

    def hold(name: str) -> int:
        """The number of the process."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", HOLD, str(tmp_path / "out" / f".{name}.lock")]
        process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        process.stdout.readline()
        processes.append(process)
        return process.pid

    yield hold
    for process in processes:
        process.communicate(timeout=300)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_second_run_is_refused(name: str, tmp_path: Path, other: Callable[[str], int]) -> None:
    sizes = {"num_train": 1, "num_validation": 1, "num_test": 1, "image_size": (64, 64)}
    data = find_task("microscopy").synthesize(tmp_path / "data", **sizes)
    holder = other(name)
    places = {"out": tmp_path / "out", "data": data, "bundle": ROOT / "bundles" / "microscopy"}
    done = run_forked([sys.executable, "-m", *(part.format(**places) for part in COMMANDS[name])], tmp_path)
    what = "a prediction" if name == "predict" else name
    assert done.returncode == 1, done.stderr[-2000:]
    said = done.stderr.strip().splitlines()[-1]
    assert f"{what} is running in {tmp_path / 'out'} (process {holder} on " in said, said
    assert said.endswith("; wait for its end, or choose another --output_dir.")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f".{name}.lock"]


def test_a_run_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"), one_run(tmp_path / "a" / "b", "prepare"):
        assert (tmp_path / "a" / "b" / ".prepare.lock").is_file()
        raise InputError("no such images.")
    assert not list(tmp_path.iterdir())
    with one_run(tmp_path / "a", "prepare"):
        (tmp_path / "a" / "made").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["made"]
