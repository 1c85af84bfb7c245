# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Packed images: those of one source in one file, small enough to carry and quick to read.

Every image lies in a pack as a WebP of a square, whatever its sides were; its aspect is kept beside it, and
:mod:`.views` cuts crops in the image's own proportions.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.packed_files import load_files, save_files
from swinumamba_monai.errors import InputError, quoted

__all__ = ["Images", "Pack", "find_packs", "load_images", "load_pack", "save_pack"]

SUFFIX = ".safetensors"
LARGEST_SIDE = 1024  # pixels, of what a pack may hold


class Pack(NamedTuple):
    """Images of one source.

    Args:
        classes: names of the classes.
        files: content of each image's WebP file.
        labels: number of each image's class, (n,) int64.
        aspects: width over height of each image as it was, (n,) float32.
        held_out: whether each image is kept out of the training, (n,) bool.
    """

    classes: tuple[str, ...]
    files: Sequence[bytes]
    labels: np.ndarray
    aspects: np.ndarray
    held_out: np.ndarray


def save_pack(pack: Pack, path: Path) -> None:
    """Write a pack, whole or not at all; its folder must exist."""
    save_files(path, pack.files, {name: getattr(pack, name) for name in Pack._fields[2:]}, pack.classes)


def load_pack(path: Path) -> Pack:
    """Read a pack.

    Raises:
        InputError: the file cannot be read, or is no pack.
    """
    files, arrays, about = load_files(path, "benchmarks.foundation.pack")
    if not isinstance(about, list) or set(arrays) != set(Pack._fields[2:]):
        raise InputError(f"{path} is a pack of other images; make one by benchmarks.foundation.pack.")
    pack = Pack(tuple(map(str, about)), files, **arrays)
    known = ((pack.labels >= 0) & (pack.labels < len(pack.classes))).all()
    if not (known and np.isfinite(pack.aspects).all() and (pack.aspects > 0).all()):
        raise InputError(f"{path} is no pack of images: it has labels without a class, or images without a shape.")
    return pack


def find_packs(paths: Sequence[Path]) -> list[Path]:
    """The packs among files and in folders.

    Raises:
        InputError: there are none, or two have one name.
    """
    found = [file for path in paths for file in (sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path])]
    if not found:
        raise InputError(f"there is no pack (*{SUFFIX}) in {', '.join(map(str, paths))}.")
    if len({file.stem for file in found}) < len(found):
        raise InputError(f"two packs have one name: {', '.join(map(str, found))}.")
    return found


class Images(NamedTuple):
    """Images of several sources, decoded.

    Args:
        pixels: (n, 3, side, side) uint8.
        labels: (n,) int64, into ``classes``.
        aspects: width over height, (n,) float32.
        held_out: (n,) bool.
        source: number of each image's source, (n,) int64, into ``sources``.
        classes: names of the classes; those of one name are one, whatever the source.
        sources: names of the sources.
    """

    pixels: Tensor
    labels: Tensor
    aspects: Tensor
    held_out: Tensor
    source: Tensor
    classes: tuple[str, ...]
    sources: tuple[str, ...]

    def to(self, device: torch.device) -> Images:
        """The same on a device."""
        return Images(*(tensor.to(device) for tensor in self[:5]), *self[5:])

    def numbers(self, held_out: bool) -> Tensor:
        """The numbers of the images for training, or of those held out."""
        return (self.held_out == held_out).nonzero().flatten()


def load_images(paths: Sequence[Path], side: int, num_workers: int) -> Images:
    """Decode packs.

    Args:
        paths: packs, or folders of them.
        side: side of the decoded images, in pixels.
        num_workers: threads that decode.

    Raises:
        InputError: no packs, or damaged ones.
    """
    files = find_packs(paths)
    packs = [load_pack(file) for file in files]
    classes = tuple(dict.fromkeys(name for pack in packs for name in pack.classes))
    number = {name: index for index, name in enumerate(classes)}
    pixels = torch.empty(sum(len(pack.files) for pack in packs), 3, side, side, dtype=torch.uint8)
    places = [(path, index, content) for path, pack in zip(files, packs) for index, content in enumerate(pack.files)]

    def decode(row: int) -> None:
        path, index, content = places[row]
        try:
            picture = _decode(content, side)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"image {index} of {path} cannot be read ({quoted(error)}).") from error
        pixels[row] = torch.from_numpy(picture).movedim(-1, 0)

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        list(pool.map(decode, range(len(places))))

    def joined(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(dtype)

    return Images(
        pixels,
        joined([np.array([number[name] for name in pack.classes])[pack.labels] for pack in packs], torch.int64),
        joined([pack.aspects for pack in packs], torch.float32),
        joined([pack.held_out for pack in packs], torch.bool),
        joined([np.full(len(pack.files), index) for index, pack in enumerate(packs)], torch.int64),
        classes,
        tuple(file.stem for file in files),
    )


def _decode(content: bytes, side: int) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        if max(image.size) > LARGEST_SIDE:
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, more than {LARGEST_SIDE}")
        return np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
