# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A test that waits for ever is a failure that says where, and not an hour of silence."""

from __future__ import annotations

import subprocess
import sys

import pytest

# pause() as ctypes.PyDLL calls it keeps Python's lock: nothing that is written in Python could end it any more.
HANGS = """
import ctypes, os

def test_before():
    pass

def test_waits_with_the_lock_in_hand():
    ctypes.PyDLL(None).pause()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pause()")
def test_it_ends_and_says_where(tmp_path, pytestconfig):
    (tmp_path / "test_that_hangs.py").write_text(HANGS)
    settings = ["-c", str(pytestconfig.rootpath / "setup.cfg"), "-p", "no:cacheprovider"]
    line = [sys.executable, "-m", "pytest", *settings, "-o", "faulthandler_timeout=1", "test_that_hangs.py"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Timeout (0:00:01)!" in done.stderr and "in test_waits_with_the_lock_in_hand" in done.stderr
