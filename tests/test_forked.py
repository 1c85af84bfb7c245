# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A fork that stands for a command line ends as that would, and one that fails is not waited for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from forked import run_forked

MODULE = """
import os, sys, time
print(sys.argv[1:], os.path.basename(os.getcwd()), os.environ.get("RANK"), flush=True)
print("to the errors", file=sys.stderr)
if sys.argv[1] == "wait" and os.environ["RANK"] == "0":
    time.sleep(600)
if sys.argv[1] == "raise":
    raise ValueError("of the module")
sys.exit({"good": None, "number": 3, "wait": 4}[sys.argv[1]])
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "module_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "module_of_a_test"


@pytest.mark.parametrize("end", ["good", "number", "raise"])
def test_ends_as_an_interpreter_does(module, tmp_path, end):
    line = [sys.executable, "-m", module, end]
    forked = run_forked(line, tmp_path)
    real = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.returncode == {"good": 0, "number": 3, "raise": 1}[end]
    assert forked.stderr.splitlines()[0] == real.stderr.splitlines()[0] == "to the errors"
    assert forked.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="there the file of a process that still runs cannot be removed")
def test_the_others_do_not_wait_for_one_that_fails(module, tmp_path):
    done = run_forked([sys.executable, "-m", module, "wait"], tmp_path, processes=2)
    assert done.returncode == 4
    assert f"['wait'] {tmp_path.name} 1\n" in done.stdout
