# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Datasets of pictures 10 pixels high and 12 wide, with their labels, in the files of several tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

SIZE = (10, 12)
TWO = {"background": 0, "tool": 1}


def cells(number: int = 0) -> np.ndarray:
    numbers = np.zeros(SIZE, np.uint8)
    numbers[1:4, 1 + number % 4 : 5], numbers[6:9, 2:9] = 1, 2
    return numbers


def save(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    pixels = np.full((*SIZE, 3), 9, np.uint8) if pixels is None else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def white(number: int = 0) -> np.ndarray:
    """The same cells in white on black."""
    return (cells(number) > 0).astype(np.uint8) * 255


def fill(source: Path, count: int = 5, labels: str | None = "labels/{}.png", label: Callable = cells) -> Path:
    """Images 0.png, 1.png, ... with maps of two cells or another label of each; without labels the images alone."""
    for number in range(count):
        save(source / "images" / f"{number}.png")
        if labels:
            save(source / labels.format(number), label(number))
    return source


def names(dataset_dir: Path, section: str) -> list[str]:
    """The images of a section of a prepared dataset, by name."""
    return [Path(item["image"]).stem for item in load_datalist(dataset_dir, section)]


def problems(source: Path, task: str = "microscopy", label_map: dict | None = None, **options) -> str:
    """The sentences with which a dataset is refused."""
    prepare = {"microscopy": prepare_microscopy, "endoscopy": prepare_endoscopy}[task]
    given = (PrepareOptions(**options),)
    if label_map is not None:
        (source.parent / "map.json").write_text(json.dumps(label_map))
        given += (source.parent / "map.json",)
    with pytest.raises(InputError) as error:
        prepare(source, source.parent / "out", *given)
    assert not (source.parent / "out").exists()
    return str(error.value)
