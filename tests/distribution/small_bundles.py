# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of the bundles with a small network, and weights for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from swinumamba_monai.distribution.network_of_config import build_bundle_network

ROOT = Path(__file__).parents[2]
BUNDLES = ("abdomen_mri", "endoscopy", "microscopy")
SMALL = {"feature_size": 8, "depths": [1, 1, 1, 1], "decoder_depths": [1, 1, 1], "d_state": 2}


def copy_bundle(name: str, folder: Path, weights: bool = True) -> Path:
    """A copy of a bundle in ``folder``, whose network is small and has random weights, or none."""
    bundle = folder / name
    shutil.copytree(ROOT / "bundles" / name, bundle, ignore=shutil.ignore_patterns("models", "eval", "synthetic"))
    for config in ("train", "inference"):
        path = bundle / "configs" / f"{config}.json"
        content = json.loads(path.read_text())
        content["network_def"].update(SMALL)
        content["roi_size"] = [64, 64]
        path.write_text(json.dumps(content, indent=4))
    if weights:
        (bundle / "models").mkdir()
        torch.manual_seed(0)
        torch.save(
            build_bundle_network(bundle / "configs" / "inference.json").state_dict(), bundle / "models" / "model.pt"
        )
    return bundle
