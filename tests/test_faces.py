# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A package's face hands its names on when they are asked for, and loads nothing before."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

FACES = ("analysis", "distribution", "inference", "metrics", "prediction", "reports", "training")


@pytest.mark.parametrize("face", FACES)
def test_every_name_is_there(face):
    package = importlib.import_module(f"swinumamba_monai.{face}")
    assert package.__all__ and all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018


def loaded_by(module: str) -> set[str]:
    """What an import of a module loads, in a process of its own."""
    code = f"import sys, {module}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
        ).stdout.split()
    )


@pytest.mark.parametrize("face", FACES)
def test_a_face_loads_no_module_behind_it(face):
    loaded = loaded_by(f"swinumamba_monai.{face}")
    assert not {name for name in loaded if name.startswith("swinumamba_monai.")} - {f"swinumamba_monai.{face}"}
    assert "torch" not in loaded


def test_the_benchmarks_cases_load_no_reader():
    loaded = loaded_by("benchmarks.cases")
    assert "swinumamba_monai.analysis.steps" in loaded
    assert not {name for name in loaded if name.startswith(("swinumamba_monai.data", "swinumamba_monai.reports"))}


def test_the_scores_load_no_reader():
    """Of the files they need what lies where and what classes are called; what MONAI loads is MONAI's."""
    loaded = loaded_by("swinumamba_monai.metrics.segmentation")
    files = {name for name in loaded if name.startswith("swinumamba_monai.data.files.")}
    assert files == {f"swinumamba_monai.data.files.{name}" for name in ("grids", "label_map")}
