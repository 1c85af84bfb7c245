# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What importing the networks loads."""

from __future__ import annotations

import subprocess
import sys

from swinumamba_monai import networks

READERS = "matplotlib skimage nibabel imagecodecs tifffile pydicom PIL"
PARTS = "data metrics inference analysis training serving distribution tasks"


def loaded(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after some lines."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return set(run.stdout.split())


def test_the_package_of_networks_loads_no_reader():
    modules = loaded("import swinumamba_monai.networks")
    assert "swinumamba_monai.networks" in modules
    assert not modules & {*READERS.split(), "monai", "torch"}


def test_the_networks_load_no_other_room():
    """What MONAI itself loads when one of its networks is imported is MONAI's."""
    modules = loaded("from swinumamba_monai.networks import build_network")
    assert "swinumamba_monai.networks.systems" in modules
    assert not {
        name for name in modules if name.startswith(tuple(f"swinumamba_monai.{part}" for part in PARTS.split()))
    }


def test_every_name_of_the_face_is_there():
    assert all(getattr(networks, name) is not None for name in networks.__all__)
