# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a user types behind `monai.bundle run` for the microscopy bundle, checked without running it."""

from __future__ import annotations

from pathlib import Path

from swinumamba_monai.bundle_options import check_options

CONFIGS = Path(__file__).parents[1] / "bundles" / "microscopy" / "configs"


def check(config: str, *typed: str) -> None:
    check_options(["--config_file", str(CONFIGS / f"{config}.json"), *typed], {})
