# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What was found in the blocks of a large image, kept until the image is finished: a stopped run goes on from there.

A block has a file that is called by a hash of all that its answer follows from. So what was found in another image, by
other weights or with other options, has another name and is never taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.errors import explained
from swinumamba_monai.owned import refuse

Found = tuple[np.ndarray, np.ndarray]


class KeptBlocks:
    """The answers of the blocks of one image, for as long as a ``with`` statement takes.

    Whatever stopped a run in it, such as Ctrl-C or a full disk, they stay for the next.

    Args:
        folder: where their files go, made when there is one; images and processes may share it.
        settings: what decides about the answers beside the image: version, config, weights, options.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self._settings, self._files = folder, settings, []

    def __enter__(self) -> KeptBlocks:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            for file in self._files:
                file.unlink(missing_ok=True)
            with suppress(OSError):  # those of another image are there
                self.folder.rmdir()

    def finder(self, overview: np.ndarray, find: Callable[[np.ndarray], Found]) -> Callable[[np.ndarray], Found]:
        """What gives the labels (H, W) of a block's cells and their scores (n,), kept ones where there are any.

        Args:
            overview: every n-th pixel of the image, from which the look of all its blocks is taken.
            find: gives the answer of a block (H, W) or (H, W, C), which is kept.

        What it gives raises an InputError where an answer cannot be written, as on a full disk.
        """
        digest = hashlib.sha256(self._settings.encode())
        _add(digest, overview)
        return partial(self._answer, digest, find)

    def _answer(self, of_image: hashlib._Hash, find: Callable[[np.ndarray], Found], block: np.ndarray) -> Found:
        digest = of_image.copy()
        _add(digest, block)
        file = self.folder / f"{digest.hexdigest()}.npz"
        self._files.append(file)
        try:
            with np.load(file) as kept:
                return kept["labels"], kept["scores"]
        except FileNotFoundError:
            pass
        except Exception:  # NumPy and zipfile have no common class for it
            refuse(file, "is damaged")
        labels, scores = find(block)
        keeping = explained(
            f"what was found cannot be kept in {self.folder}", "free space, the next run goes on", OSError
        )
        # Another process may remove the folder while it is empty; between two looks of mkdir it is there and gone.
        with keeping, suppress(FileNotFoundError, FileExistsError):
            self.folder.mkdir(exist_ok=True)
            with replacing(file) as temporary:
                np.savez_compressed(temporary, labels=labels, scores=scores)
        return labels, scores


def _add(digest: hashlib._Hash, pixels: np.ndarray) -> None:
    digest.update(f"{pixels.dtype.str} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels))
