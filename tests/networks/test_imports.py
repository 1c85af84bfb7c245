# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What importing the networks loads."""

from __future__ import annotations

import subprocess
import sys

from swinumamba_monai import networks

READERS = "matplotlib skimage nibabel imagecodecs tifffile pydicom PIL"


def test_the_package_of_networks_loads_no_reader():
    """What its networks load when one is asked for, ``tests/test_faces.py`` looks at."""
    script = "import sys, swinumamba_monai.networks; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    modules = set(run.stdout.split())
    assert "swinumamba_monai.networks" in modules
    assert not modules & {*READERS.split(), "monai", "torch"}


def test_every_name_of_the_face_is_there():
    assert all(getattr(networks, name) is not None for name in networks.__all__)
