# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pack folders of images, one folder a class, for the training of a foundation model.

    python -m benchmarks.foundation.pack imagenette=IMAGENETTE pets=PETS --output_dir packed

A source is a folder of class folders, or one with ``train`` and ``val`` (or ``validation``, ``test``) of such; images
may lie in folders below a class. What is in ``val`` is held out of the training; where there is no ``train``, every
tenth image of a class is. The name before the equals sign becomes the pack's, ``packed/imagenette.safetensors``, so
that each source can be packed by a command of its own with other options.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from benchmarks.command import run_plainly
from swinumamba_monai.errors import InputError, quoted

from .packed import SUFFIX, Pack, save_pack

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
HELD_OUT = ("val", "validation", "test")  # folders beside ``train``
HELD_OUT_EVERY = 10  # where there are no such
QUALITY = 40  # of the WebP, 0 to 100


class Found(NamedTuple):
    """An image of a source: its file, its class, and whether it is held out."""

    path: Path
    name: str
    held_out: bool


def find_images(folder: Path, per_class: int | None = None, held_out_per_class: int | None = None) -> list[Found]:
    """The images of a source, in the order of classes and names.

    Args:
        folder: the source.
        per_class: largest number of images of a class for training, spread evenly over their names.
        held_out_per_class: largest number of images of a class that are held out.

    Raises:
        InputError: no folder, no images, or a class without one for training.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.")
    train = folder / "train"
    if train.is_dir():
        kept = next((folder / name for name in HELD_OUT if (folder / name).is_dir()), None)
        splits = {False: _by_class(train), True: _by_class(kept) if kept else {}}
    else:
        splits = {False: {}, True: {}}
        for name, files in _by_class(folder).items():
            splits[True][name] = files[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
            splits[False][name] = [file for file in files if file not in set(splits[True][name])]
    if not any(splits[False].values()):
        raise InputError(f"there is no image in class folders of {folder}.")
    if unknown := sorted(splits[True].keys() - splits[False].keys()):
        raise InputError(f"{folder} holds images out whose class has none for training: {', '.join(unknown[:3])}.")
    limits = {False: per_class, True: held_out_per_class}
    return [
        Found(file, name, held_out)
        for held_out, classes in splits.items()
        for name, files in classes.items()
        for file in _spread(files, limits[held_out])
    ]


def _by_class(folder: Path) -> dict[str, list[Path]]:
    found = {}
    for place in sorted(folder.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if files:
                found[place.name] = files
    return found


def _spread(files: Sequence[Path], limit: int | None) -> list[Path]:
    """At most so many of the files, evenly spaced."""
    if limit is None or len(files) <= limit:
        return list(files)
    return [files[index * len(files) // limit] for index in range(limit)]


def encode(path: Path, side: int, quality: int) -> tuple[bytes, float]:
    """An image as WebP of a square, never larger than its own shorter side, and its width over its height.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with Image.open(path) as image:
        image = image.convert("RGB")
        aspect = image.width / image.height
        square = min(side, *image.size)
        buffer = io.BytesIO()
        image.resize((square, square), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=quality)
    return buffer.getvalue(), aspect


def make_pack(found: Sequence[Found], side: int, quality: int, num_workers: int) -> tuple[Pack, list[str]]:
    """Encode images.

    Returns:
        the pack, and a line for each image that could not be read and is left out.

    Raises:
        InputError: none could be read.
    """

    def try_encode(image: Found) -> tuple[bytes, float] | str:
        try:
            return encode(image.path, side, quality)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            return f"{image.path} cannot be read ({quoted(error)})."

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        results = list(pool.map(try_encode, found))
    complaints = [result for result in results if isinstance(result, str)]
    read = [(image, *result) for image, result in zip(found, results) if not isinstance(result, str)]
    if not read:
        raise InputError(f"none of {len(found)} images can be read; the first: {complaints[0]}")
    classes = tuple(sorted({image.name for image, *_ in read}))
    return Pack(
        classes,
        [content for _, content, _ in read],
        np.array([classes.index(image.name) for image, *_ in read]),
        np.array([aspect for *_, aspect in read], np.float32),
        np.array([image.held_out for image, *_ in read]),
    ), complaints


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="NAME=FOLDER", help="a source's name and folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="for a pack of each source")
    parser.add_argument("--side", type=int, default=144, help="of the packed images; smaller ones are not enlarged")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of the WebP, 0 to 100")
    parser.add_argument("--per_class", type=int, default=None, help="at most so many images of a class for training")
    parser.add_argument("--held_out_per_class", type=int, default=None, help="and so many held out")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that encode")
    return parser


def pack_source(
    source: str,
    output_dir: Path,
    side: int,
    quality: int = QUALITY,
    per_class: int | None = None,
    held_out_per_class: int | None = None,
    num_workers: int = 2,
) -> str:
    """Pack a source, ``NAME=FOLDER``, into ``NAME.safetensors`` of a folder; what cannot be read goes to the screen.

    Returns:
        a line on what the pack holds.

    Raises:
        InputError: no such form or folder, or no images.
    """
    name, equals, folder = source.partition("=")
    if not equals or not name or Path(name).name != name:
        raise InputError(f"'{source}' is not NAME=FOLDER; give each source a name.")
    pack, complaints = make_pack(find_images(Path(folder), per_class, held_out_per_class), side, quality, num_workers)
    for line in complaints:
        print(f"left out: {line}", file=sys.stderr)
    output_dir.mkdir(parents=True, exist_ok=True)
    target = output_dir / f"{name}{SUFFIX}"
    save_pack(pack, target)
    kept = int(pack.held_out.sum())
    return (
        f"{target}: {len(pack.files) - kept} images for training and {kept} held out, {len(pack.classes)} classes, "
        f"{target.stat().st_size / 1e6:.1f} MB, {len(complaints)} left out"
    )


def run(arguments: argparse.Namespace) -> None:
    """Pack the sources that the parsed arguments name."""
    options = vars(arguments)
    for source in options.pop("sources"):
        print(pack_source(source, **options), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return run_plainly(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
