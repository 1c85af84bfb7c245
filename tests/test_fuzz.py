# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Half a minute of damaged files, and of whole ones with strange insides: a result or one sentence, nothing else.

No crash, no hang, no leftover, no memory without bounds.

The files are made by :mod:`fuzzing` from a fixed seed; a faster machine gets further in the same sequence. A crash of a
decoder ends its process, so it has one of its own. ``SWINUMAMBA_FUZZ_SECONDS`` sets another time.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydicom")

SECONDS = float(os.environ.get("SWINUMAMBA_FUZZ_SECONDS", 30))
MAX_GROWTH = 1024  # MB
FORMATS = "a.png a.jpg a.bmp a.tif a.nii b.nii.gz c.nii.gz a.dcm a.pt a.safetensors datalist.json labels.json a.zip"
FORMATS += " checkpoint.pt weights.pt run.json summary.json metrics.csv dataset.json split.json"
FORMATS += " a.mp4 a.avi a.mkv a.mpg tags.dcm"
FORMATS += " a.geojson coco.json cvat.xml aperio.xml a.txt a.roi a.npy a.mat"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_damaged_files(tmp_path):
    faulthandler.cancel_dump_traceback_later()  # of setup.cfg: the process has a bound of its own
    script = Path(__file__).with_name("fuzzing.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), str(SECONDS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=SECONDS + 300,
        env=environment | {"PYTHONPATH": str(script.parents[1])},
    )
    assert done.returncode == 0, f"ended with {done.returncode}, its files are in {tmp_path}:\n{done.stderr[-3000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    assert sorted(report["counts"]) == sorted(FORMATS.split())
    for name, count in report["counts"].items():
        assert count["refused"] > 0, f"{name}: the damage does nothing, {count}"
        assert count["read"] > 0, f"{name}: nothing gets past its first check, {count}"
    assert report["grown_mb"] < MAX_GROWTH, report
    print(json.dumps(report))
