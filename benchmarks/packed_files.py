# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Many small files in one safetensors file, one after another: quick to carry and to read, and nothing in it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import safe_open

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import InputError, quoted

FILES, ENDS, ABOUT = "files", "ends", "about"  # the files' bytes; where each ends; what else is said, as JSON


def save_files(path: Path, files: Sequence[bytes], arrays: Mapping[str, np.ndarray], about: object) -> None:
    """Write a pack, whole or not at all.

    Args:
        path: the pack; its folder must exist.
        files: content of each file.
        arrays: numbers of each file by name, of shape (n,).
        about: anything else that is to be kept, as JSON takes it.
    """
    packed = {
        FILES: np.frombuffer(b"".join(files), np.uint8),
        ENDS: np.cumsum([len(file) for file in files], dtype=np.int64),
        **{name: np.ascontiguousarray(array) for name, array in arrays.items()},
    }
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(packed, {ABOUT: json.dumps(about)}))


def load_files(path: Path, maker: str) -> tuple[list[bytes], dict[str, np.ndarray], object]:
    """The files, arrays and words of a pack of :func:`save_files`.

    Args:
        path: the pack.
        maker: the module that makes such packs, as the sentence advises it.

    Raises:
        InputError: the file cannot be read, is no pack, or is a damaged one.
    """
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()[ABOUT])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 – no dictionary
            content, ends = arrays.pop(FILES), arrays.pop(ENDS)
    except Exception as error:  # a damaged file fails anywhere in the reader
        raise InputError(f"{path} is no pack of images ({quoted(error)}); make one by {maker}.") from error
    counted = {array.shape for array in arrays.values()} <= {ends.shape}
    ordered = ends.ndim == 1 and len(ends) and (np.diff(ends, prepend=0) > 0).all() and ends[-1] == len(content)
    if not (counted and ordered):
        raise InputError(f"{path} is no pack of images: what it counts is not what it holds.")
    starts = [0, *ends[:-1].tolist()]
    return [content[start:end].tobytes() for start, end in zip(starts, ends.tolist())], arrays, about
