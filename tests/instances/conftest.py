# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest


def draw_cells(shape: tuple[int, int], radius: tuple[float, float], count: int, seed: int) -> np.ndarray:
    """Ellipses of any direction that touch each other and the border, later ones below earlier ones."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ids = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        long, short = random.uniform(*radius) * np.array([1.25, 0.85])
        angle = random.uniform(0, np.pi)
        y, x = (random.uniform(0, side) for side in shape)
        u = (rows - y) * np.cos(angle) + (columns - x) * np.sin(angle)
        v = (columns - x) * np.cos(angle) - (rows - y) * np.sin(angle)
        ellipse = (u / long) ** 2 + (v / short) ** 2 <= 1
        new = ellipse & (ids == 0)
        if new.sum() > 0.75 * ellipse.sum():  # else it would be a rest between others
            ids[new] = number
    return ids


@pytest.fixture(scope="session")
def nuclei() -> np.ndarray:
    """Some 60 cells of 9 to 25 pixels across, many touching, in 256 × 320 pixels."""
    return draw_cells((256, 320), (4.5, 13), 150, seed=0)


@pytest.fixture(scope="session")
def large_cells() -> np.ndarray:
    """Cells of about 150 pixels across."""
    return draw_cells((400, 500), (60, 75), 30, seed=1)


@pytest.fixture(scope="session")
def tiny_cells() -> np.ndarray:
    """Cells of four to five pixels across."""
    return draw_cells((128, 128), (2, 2.6), 120, seed=2)
