# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A pack of small images for the tests of stage 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from coloured_images import write_images

from benchmarks.foundation import pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A folder with the pack of 24 images for training and 6 held out."""
    folder = tmp_path_factory.mktemp("foundation")
    write_images(folder / "images" / "train", 8)
    write_images(folder / "images" / "val", 2)
    options = ["--output_dir", str(folder / "packed"), "--side", "48", "--num_workers", "1"]
    assert pack.main([f"colours={folder / 'images'}", *options]) == 0
    return folder / "packed"
