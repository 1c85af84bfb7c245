# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Small images of one colour a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.foundation.packed import Images

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def write_images(folder: Path, number: int, size: tuple[int, int] = (90, 60)) -> None:
    """Noisy images of one colour in a folder for each, 90 pixels wide and 60 high."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.clip(colour + random.normal(0, 30, (*size[::-1], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")


def images_of(pixels: torch.Tensor, aspect: float = 1.0) -> Images:
    n = len(pixels)
    zeros = torch.zeros(n, dtype=torch.int64)
    return Images(pixels, torch.arange(n), torch.full((n,), aspect), zeros.bool(), zeros, ("a",) * n, ("source",))
