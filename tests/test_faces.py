# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A package's face hands its names on when they are asked for, and loads nothing before."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

FACES = ("analysis", "distribution", "inference", "metrics", "prediction", "reports", "training")
# What no network needs of the package.
ROOMS = ("data", "metrics", "inference", "analysis", "training", "serving", "distribution", "tasks")


@pytest.mark.parametrize("face", FACES)
def test_every_name_is_there(face):
    package = importlib.import_module(f"swinumamba_monai.{face}")
    assert package.__all__ and all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018


def loaded_after(*imports: str) -> list[set[str]]:
    """What there is in a process of its own after each of these imports."""
    code = "import sys\n" + "".join(f"{line}\nprint(*sys.modules)\n" for line in imports)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def loaded_in_turn() -> list[set[str]]:
    """By the operators, then also by the networks, the benchmarks' cases, and the scores.

    One process, because torch and MONAI take most of it; what may not be loaded by the last, the others do not load.
    """
    return loaded_after(
        "import swinumamba_monai.ops",
        "from swinumamba_monai.networks import build_network",
        "import benchmarks.cases",
        "import swinumamba_monai.metrics.segmentation",
    )


@pytest.mark.parametrize("face", FACES)
def test_a_face_loads_no_module_behind_it(face):
    (loaded,) = loaded_after(f"import swinumamba_monai.{face}")
    assert not {name for name in loaded if name.startswith("swinumamba_monai.")} - {f"swinumamba_monai.{face}"}
    assert "torch" not in loaded


def test_the_operators_do_not_load_numba(loaded_in_turn):
    loaded, *_ = loaded_in_turn
    assert "swinumamba_monai.ops.backends" in loaded and "numba" not in loaded


def test_the_networks_load_no_other_room(loaded_in_turn):
    """What MONAI itself loads when one of its networks is imported is MONAI's."""
    _, loaded, _, _ = loaded_in_turn
    assert "swinumamba_monai.networks.systems" in loaded
    assert not {name for name in loaded if name.startswith(tuple(f"swinumamba_monai.{room}" for room in ROOMS))}


def test_the_benchmarks_cases_load_no_reader(loaded_in_turn):
    _, _, loaded, _ = loaded_in_turn
    assert "swinumamba_monai.analysis.steps" in loaded
    assert not {name for name in loaded if name.startswith(("swinumamba_monai.data", "swinumamba_monai.reports"))}


def test_the_scores_load_no_reader(loaded_in_turn):
    """Of the files they need what lies where and what classes are called; what MONAI loads is MONAI's."""
    *_, loaded = loaded_in_turn
    files = {name for name in loaded if name.startswith("swinumamba_monai.data.files.")}
    assert files == {f"swinumamba_monai.data.files.{name}" for name in ("grids", "label_map")}
