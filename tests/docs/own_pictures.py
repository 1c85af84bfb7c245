# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Four images with three regions each, which the tests of docs/own_data.md write in every form that the page names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from swinumamba_monai.data import load_datalist
from swinumamba_monai.data.files.images import read_image
from swinumamba_monai.inference.coco import to_coco

SIZE = (20, 24)
NAMES = ("a", "b", "c", "d")
CLASSES = {1: "grasper", 2: "hook", 3: "clip"}


def image_of(name: str) -> np.ndarray:
    """An image (H, W, 3), another one for every name."""
    return np.random.default_rng(ord(name[0])).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def numbers_of(name: str) -> np.ndarray:
    """Three regions, one with a hole and one that touches the edge, at another place for every name."""
    numbers = np.zeros(SIZE, np.uint8)
    shift = ord(name[0]) - ord("a")
    numbers[2:9, 2 + shift : 11 + shift] = 1
    numbers[4:6, 4 + shift : 7 + shift] = 0
    numbers[9:12, 3:9] = 2
    numbers[14:20, 12 + shift : 24] = 3
    return numbers


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)


PALETTE = [value for number in range(256) for value in (number, 255 - number, 7)]


def palette_image(pixels: np.ndarray, mode: str = "P") -> Image.Image:
    image = Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    image.putpalette(PALETTE)
    return image


def one_coco_file(folder: Path) -> dict[str, np.ndarray]:
    maps = {name: numbers_of(name) for name in NAMES}
    content = to_coco([(f"{name}.png", numbers) for name, numbers in maps.items()], CLASSES)
    runs = [a["segmentation"] for a in content["annotations"] if isinstance(a["segmentation"], dict)]
    assert runs, "some have holes"
    runs[0]["counts"] = compressed(runs[0]["counts"])
    (folder / "instances.json").write_text(json.dumps(content))
    return maps


def compressed(counts: list[int]) -> str:
    """COCO's text of run lengths, as the format's definition writes it."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            letter, number = number & 0x1F, number >> 5
            more = number != (-1 if letter & 0x10 else 0)
            text += chr((letter | 0x20 * more) + 48)
    return text


def same_cells(cells: np.ndarray, expected: np.ndarray) -> bool:
    """Whether both have the same cells, whatever their numbers are."""
    pairs = {(a, b) for a, b in zip(cells.ravel().tolist(), expected.ravel().tolist())}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and all(
        (a == 0) == (b == 0) for a, b in pairs
    )


def check(prepared: Path, expected: dict[str, np.ndarray], read, equal) -> None:
    """All images are there, each with its own pixels and label."""
    items = [item for part in ("training", "validation", "test") for item in load_datalist(prepared, part)]
    assert len(items) == len(expected)
    for item in items:
        label = read(item["label"])
        image = read_image(item["image"])
        name = next(name for name in expected if np.array_equal(image, image_of(name)))
        assert equal(label, expected.pop(name)), item
