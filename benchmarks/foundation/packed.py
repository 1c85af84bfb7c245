# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Packed images: those of one source in one file, small enough to carry and quick to read.

A pack is a safetensors file. Every image lies in it as a WebP of a square, whatever its sides were; its aspect is kept
beside it, and :mod:`.views` cuts crops in the image's own proportions.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError, quoted

__all__ = ["Images", "Pack", "find_packs", "load_images", "load_pack", "save_pack"]

SUFFIX = ".safetensors"
LARGEST_SIDE = 1024  # pixels, of what a pack may hold


class Pack(NamedTuple):
    """Images of one source.

    Args:
        classes: names of the classes.
        webp: the images' bytes, one file after the other, (bytes,) uint8.
        ends: where each image's bytes end, (n,) int64.
        labels: number of each image's class, (n,) int64.
        aspects: width over height of each image as it was, (n,) float32.
        held_out: whether it is kept out of the training, (n,) bool.
    """

    classes: tuple[str, ...]
    webp: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    aspects: np.ndarray
    held_out: np.ndarray


def save_pack(pack: Pack, path: Path) -> None:
    """Write a pack, whole or not at all; its folder must exist."""
    arrays = {name: np.ascontiguousarray(array) for name, array in pack._asdict().items() if name != "classes"}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, {"classes": json.dumps(pack.classes)}))


def load_pack(path: Path) -> Pack:
    """Read a pack.

    Raises:
        InputError: the file cannot be read, or is no pack.
    """
    try:
        with safe_open(path, "numpy") as file:
            classes = tuple(map(str, json.loads(file.metadata()["classes"])))
            pack = Pack(classes, *(file.get_tensor(name) for name in Pack._fields[1:]))
    except Exception as error:  # a damaged file fails anywhere in the reader
        sentence = f"{path} is no pack of images ({quoted(error)}); make one by benchmarks.foundation.pack."
        raise InputError(sentence) from error
    n, last = len(pack.ends), pack.ends[-1] if len(pack.ends) else 0
    starts_before_ends = (np.diff(pack.ends, prepend=0) > 0).all()
    known = ((pack.labels >= 0) & (pack.labels < len(classes))).all()
    if not (n and {array.shape for array in pack[2:]} == {(n,)} and starts_before_ends and last == len(pack.webp)):
        raise InputError(f"{path} is no pack of images: what it counts is not what it holds.")
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
        side: of the decoded images, in pixels.
        num_workers: threads that decode.

    Raises:
        InputError: no packs, or damaged ones.
    """
    files = find_packs(paths)
    packs = [load_pack(file) for file in files]
    classes = tuple(dict.fromkeys(name for pack in packs for name in pack.classes))
    number = {name: index for index, name in enumerate(classes)}
    pixels = torch.empty(sum(len(pack.ends) for pack in packs), 3, side, side, dtype=torch.uint8)
    first = 0
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        for file, pack in zip(files, packs):
            starts = [0, *pack.ends[:-1].tolist()]

            def decode(
                index: int, file: Path = file, pack: Pack = pack, starts: list = starts, first: int = first
            ) -> None:
                content = pack.webp[starts[index] : pack.ends[index]].tobytes()
                try:
                    picture = _decode(content, side)
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    raise InputError(f"image {index} of {file} cannot be read ({quoted(error)}).") from error
                pixels[first + index] = torch.from_numpy(picture).movedim(-1, 0)

            list(pool.map(decode, range(len(starts))))
            first += len(starts)

    def joined(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(dtype)

    return Images(
        pixels,
        joined([np.array([number[name] for name in pack.classes])[pack.labels] for pack in packs], torch.int64),
        joined([pack.aspects for pack in packs], torch.float32),
        joined([pack.held_out for pack in packs], torch.bool),
        joined([np.full(len(pack.ends), index) for index, pack in enumerate(packs)], torch.int64),
        classes,
        tuple(file.stem for file in files),
    )


def _decode(content: bytes, side: int) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        if max(image.size) > LARGEST_SIDE:
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, more than {LARGEST_SIDE}")
        return np.array(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
