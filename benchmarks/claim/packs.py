# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared datasets as one file a task, cut into the parts that are left out in turn.

    python -m benchmarks.claim.packs endoscopy --dataset_dir prepared/endoscopy --output_dir packs --reduce 2

Images lie in a pack as lossless WebP of 8 bits (those of MRI from the volume's lowest to its 99.5 % value), labels as
PNG. Whoever trains with it needs no reader and no network.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.command import run_plainly
from benchmarks.packed_files import load_files, save_files
from swinumamba_monai.cells import InstancesToClasses
from swinumamba_monai.data import load_datalist, read_image, read_instances
from swinumamba_monai.data.files.volumes import read_volume, read_volume_label
from swinumamba_monai.errors import InputError

SECTIONS = ("training", "validation", "test")
SURGERY = re.compile(r"op\d+")
PATIENTS_LEFT_OUT = 3


class Picture(NamedTuple):
    """An image, or a slice of a volume, that a network sees whole or in part.

    Args:
        case: what is scored as one: the image's or the volume's name.
        part: number of the part that is left out together.
        image: (H, W, 3) uint8.
        classes: what is learnt, (H, W) uint8.
        truth: what is scored: the classes, or the ids of cells (H, W) uint16.
    """

    case: str
    part: int
    image: np.ndarray
    classes: np.ndarray
    truth: np.ndarray


def microscopy(dataset_dir: Path) -> list[Picture]:
    """The test images are part 0, those for validation part 1, the others part 2."""
    pictures = []
    for section, part in zip(SECTIONS, (2, 1, 0)):
        for item in load_datalist(dataset_dir, section):
            image, ids = _rgb(read_image(item["image"])), read_instances(item["label"])
            classes = InstancesToClasses()(ids[None])[0]
            pictures.append(Picture(Path(item["image"]).stem, part, image, classes, ids.astype(np.uint16)))
    return pictures


def endoscopy(dataset_dir: Path) -> list[Picture]:
    """A part is a surgery, which the file's name has: ``op`` and a number."""
    pictures = []
    for item in _all_items(dataset_dir):
        name = Path(item["image"]).stem
        if not (found := SURGERY.search(name)):
            raise InputError(f"the name {name} has no surgery in it; call it op1_{name}, or by its surgery's number.")
        image, label = (np.asarray(Image.open(item[key])) for key in ("image", "label"))
        pictures.append(Picture(name, int(found[0][2:]), _rgb(image), label, label))
    numbers = sorted({picture.part for picture in pictures})
    return [picture._replace(part=numbers.index(picture.part)) for picture in pictures]


def abdomen_mri(dataset_dir: Path) -> list[Picture]:
    """A part is three patients, in the order of their names; pictures are the slices across the last axis."""
    pictures = []
    for number, item in enumerate(sorted(_all_items(dataset_dir), key=lambda item: item["image"])):
        image, label = read_volume(item["image"])[0], read_volume_label(item["label"])[0]
        low, high = image.min(), np.percentile(image, 99.5)
        image = ((image.clip(low, high) - low) * (255 / (high - low))).round().astype(np.uint8)
        name = Path(item["image"]).name.split(".")[0]
        for plane in range(image.shape[2]):
            classes = label[..., plane].astype(np.uint8)
            part = number // PATIENTS_LEFT_OUT
            pictures.append(Picture(name, part, _rgb(image[..., plane]), classes, classes))
    return pictures


MAKERS = {make.__name__: make for make in (microscopy, endoscopy, abdomen_mri)}


def _all_items(dataset_dir: Path) -> list[dict]:
    return [item for section in SECTIONS for item in load_datalist(dataset_dir, section)]


def _rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8:
        raise InputError(f"a pack takes images of 8 bits, but one is {image.dtype}; convert them first.")
    return np.ascontiguousarray(
        np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image[..., :3]
    )


def reduced(picture: Picture, factor: int) -> Picture:
    """A picture of which so many pixels of a side are one: the image's mean, the labels' in the middle."""
    image = np.asarray(Image.fromarray(picture.image).reduce(factor))
    size = [side // factor for side in picture.classes.shape[::-1]]
    labels = [np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST)) for label in picture[3:]]
    return Picture(picture.case, picture.part, image, *labels)


def save_pack(pictures: Sequence[Picture], path: Path) -> None:
    """Write pictures, whole or not at all; the folder must exist."""
    files = [_encoded(array) for picture in pictures for array in picture[2:]]
    save_files(path, files, {}, [picture[:2] for picture in pictures])


def load_pack(path: Path) -> list[Picture]:
    """The pictures of a file of :func:`save_pack`."""
    files, _, about = load_files(path, "benchmarks.claim.packs")
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda file: np.array(Image.open(io.BytesIO(file))), files))
    return [Picture(*case_and_part, *arrays[3 * n : 3 * n + 3]) for n, case_and_part in enumerate(about)]


def _encoded(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array)
    image.save(file, "WEBP", lossless=True, quality=60) if array.ndim == 3 else image.save(file, "PNG")
    return file.getvalue()


def split(
    pictures: Sequence[Picture], part: int, is_choice: bool, share: float, seed: int
) -> tuple[list[Picture], list[Picture]]:
    """What is learnt from and what is scored.

    Args:
        pictures: the pictures of a pack.
        part: part that is left out.
        is_choice: whether the next part is scored, in a training without both, to choose a learning rate by; else the
            part itself is scored.
        share: share of the cases that is learnt from, at least one case.
        seed: seed of the choice of these.
    """
    parts = max(picture.part for picture in pictures) + 1
    scored_part = (part + 1) % parts if is_choice else part
    away = {part, scored_part}
    cases = sorted({picture.case for picture in pictures if picture.part not in away})
    kept = set(random.Random(seed).sample(cases, max(1, round(share * len(cases)))))
    return (
        [picture for picture in pictures if picture.case in kept],
        [picture for picture in pictures if picture.part == scored_part],
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=MAKERS)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="what `prepare` wrote")
    parser.add_argument("--output_dir", type=Path, required=True, help="for TASK.safetensors")
    parser.add_argument("--reduce", type=int, default=1, help="so many pixels of a side become one")
    arguments = parser.parse_args(argv)

    def run() -> None:
        pictures = MAKERS[arguments.task](arguments.dataset_dir)
        if arguments.reduce > 1:
            pictures = [reduced(picture, arguments.reduce) for picture in pictures]
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        path = arguments.output_dir / f"{arguments.task}.safetensors"
        save_pack(pictures, path)
        print(
            f"{len(pictures)} pictures of {len({p.case for p in pictures})} cases, {path.stat().st_size / 1e6:.1f} MB"
        )

    return run_plainly(run)


if __name__ == "__main__":
    sys.exit(main())
