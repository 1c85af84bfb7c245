# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the prediction of an image fits into memory, asked before there is work to lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.utils import ImageMetaKey, MetaKeys, ensure_tuple_rep

from swinumamba_monai.data.files.limits import MAX_CHANNELS
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.free_memory import free_memory
from swinumamba_monai.inference.rescaling import AUTO, wanted_zoom


class MemoryNeed:
    """How much memory a prediction takes beside the network, by measurement with the bundles' ``inference.json``.

    Images: 24 bytes a pixel, and 14 a pixel and class (measured from 2048 x 2048 to 4096 x 4096: 62 with 3 classes, 131
    with 8); and what the postprocessing says, which is 32 for flows (measured: 111 with their 4 channels).
    Volumes: 7 bytes a voxel of the file, while the next is read, and 8 and 4 a class for each on the network's grid.
    Probabilities that are saved take 4 more a class. Images of cells that are so small that they are made larger take
    24 bytes more for a pixel of the larger image, and 4 for each of its classes (measured at 16 times the pixels).

    Args:
        num_classes: channels of the network's output.
        spacing: mm of a pixel of a slice on the network's grid, of both sides or one number for both; None for images.
        probabilities: whether they are saved.
        postprocessing: more bytes that it takes a pixel of an image.
        diameter: diameter of the cells in pixels, as :class:`~swinumamba_monai.inference.RescalingInferer` has it; of
            "auto" as if it left the image as it is, for it makes none larger than free memory allows.
        in_blocks: whether large TIFF files are predicted in blocks, which the sentence then says.
    """

    def __init__(
        self,
        num_classes: int,
        spacing: Sequence[float] | float | None = None,
        probabilities: bool = False,
        postprocessing: int = 0,
        diameter: float | str | None = None,
        in_blocks: bool = False,
    ) -> None:
        self.num_classes = num_classes
        self.spacing = None if spacing is None else ensure_tuple_rep(spacing, 2)
        self.postprocessing = postprocessing
        blocks = "give a smaller block_size if it is a TIFF file, save it as one in tiles if not, " if in_blocks else ""
        self.advice = f"{blocks}cut it into parts, or use a machine with more memory"
        self.zoomed = max(wanted_zoom(None if diameter == AUTO else diameter), 1) ** 2  # how many times the pixels
        self.saved = 4 * num_classes * probabilities

    def estimate(self, image: np.ndarray, meta: Mapping) -> int:
        """Bytes for an image (H, W) or (H, W, C), or a volume (X, Y, Z), as a reader of ``LoadImage`` gives it.

        Args:
            image: image (H, W) or (H, W, C), or volume (X, Y, Z), as a reader of ``LoadImage`` gives it.
            meta: metadata of the image, with the affine of a volume.
        """
        if self.spacing is None:
            # flows, which alone have a postprocessing here, stay as large until the cells are found
            a_larger = 24 + (14 if self.postprocessing else 4) * self.num_classes + self.postprocessing
            larger = self.zoomed * a_larger if self.zoomed > 1 else 0
            a_pixel = 24 + 14 * self.num_classes + self.saved + self.postprocessing + larger
            a_pixel += 8 * max(0, math.prod(image.shape[2:]) - MAX_CHANNELS)  # as float32, until one is taken
            return int(math.prod(image.shape[:2]) * a_pixel)
        voxels = math.prod(image.shape[:3])
        sizes = np.linalg.norm(np.asarray(meta[MetaKeys.AFFINE])[:3, :3], axis=0)
        # which axis the slices lie along decides little; the two finest are those of a slice
        resampled = voxels * math.prod(sorted(sizes)[:2]) / math.prod(self.spacing)
        return int(voxels * (7 + self.saved) + resampled * (8 + 4 * self.num_classes))

    def check(self, name: object, image: np.ndarray, meta: Mapping) -> None:
        """Refuse an image whose prediction takes more memory than is free.

        Args:
            name: name of the image, for the sentence.
            image, meta: see :meth:`estimate`.

        Raises:
            InputError: it takes more.
        """
        self.refuse(name, image.shape[: 2 if self.spacing is None else 3], self.estimate(image, meta), self.advice)

    @staticmethod
    def refuse(name: object, shape: Sequence[int], needed: float, advice: str) -> None:
        """Refuse by an InputError, which ends in ``advice``, an image that needs more bytes than are free.

        Args:
            name: name of the image.
            shape: its size in pixels or voxels.
            needed: bytes that its prediction takes.
            advice: end of the sentence.
        """
        free = free_memory()
        if free is not None and needed > free:
            size = " x ".join(map(str, shape))
            raise InputError(
                f"the prediction of {name} ({size}) takes about {needed / 1e9:.1f} GB of memory, and "
                f"{free / 1e9:.1f} GB are free; {advice}."
            )


class MemoryHandler:
    """Handler of an evaluator that checks every image before the network sees it, for images that nobody has looked at.

    Args:
        need: the memory that an image takes.
    """

    def __init__(self, need: MemoryNeed) -> None:
        self.need = need

    def attach(self, engine: Engine) -> None:
        """Have it called by an engine."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        for item in decollate_batch({"image": engine.state.batch["image"][:, :1, :1, :1]}):
            meta = item["image"].meta
            like = np.broadcast_to(np.uint8(0), [int(size) for size in meta[MetaKeys.SPATIAL_SHAPE]])
            name = meta.get(ImageMetaKey.FILENAME_OR_OBJ, "the image")
            self.need.check(name, like, {MetaKeys.AFFINE: meta[MetaKeys.ORIGINAL_AFFINE]})
