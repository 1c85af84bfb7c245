# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A few kills of quick commands; ``make kills`` does it with every command, for as long as you like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("prepare", "package", "predict")
KILLS = 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no forks and no such kills")
def test_quick_commands(tmp_path):
    script = Path(__file__).with_name("kills.py")
    line = [sys.executable, str(script), str(KILLS), str(tmp_path / "kills"), "0", *COMMANDS]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1])}
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert {name: counts[name]["tried"] for name in COMMANDS} == dict.fromkeys(COMMANDS, KILLS // len(COMMANDS))
    assert counts["all"]["failed"] == 0 and counts["all"]["killed"] >= KILLS // 2, counts  # a kill may come too late
