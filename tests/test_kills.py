# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A few kills of quick commands; ``make kills`` does it with every command, for as long as you like."""

from __future__ import annotations

import json
import os
import sys

import pytest
from forked import run_forked

COMMANDS = ("prepare", "package", "predict")
KILLS = 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no forks and no such kills")
def test_quick_commands(tmp_path):
    done = run_forked([sys.executable, "-m", "kills", str(KILLS), str(tmp_path / "kills"), "0", *COMMANDS])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert {name: counts[name]["tried"] for name in COMMANDS} == dict.fromkeys(COMMANDS, KILLS // len(COMMANDS))
    assert counts["all"]["failed"] == 0 and counts["all"]["killed"] >= KILLS // 2, counts  # a kill may come too late
