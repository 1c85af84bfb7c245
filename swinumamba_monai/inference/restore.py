# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's grid back to the grid of the image file."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, MapTransform
from monai.utils import MetaKeys, convert_to_tensor
from torch import Tensor


class RestoreVolumed(MapTransform):
    """Bring logits, or other maps, back to the voxels of the image file, with the very affine of that file.

    Logits are interpolated linearly, as nnU-Net does, and the class of a voxel is the one with the highest. This goes
    class by class, so beside the logits there are never more than a few volumes in memory.

    Args:
        keys: maps (C, X, Y, Z) on the grid of ``image_key``. A key of a batch that has none is passed over.
        transform: what brought the image from its file to the network's grid.
        image_key: the image as the network saw it; it knows how it was transformed.
        argmax_keys: those of ``keys`` that are logits and become classes, (1, X, Y, Z) uint8.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable,
        image_key: str = "image",
        argmax_keys: KeysCollection = ("pred",),
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key = image_key
        self.argmax_keys = MapTransform(argmax_keys).keys
        self.invert = Invertd(
            keys="map", transform=transform, orig_keys=image_key, nearest_interp=False, to_tensor=True
        )

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        image = result[self.image_key]
        for key in self.key_iterator(result):
            maps = result[key]
            if key in self.argmax_keys:
                restored = self._classes(maps, image)
            else:
                restored = torch.cat([self._restore(channel, image) for channel in maps])
            affine = torch.as_tensor(np.asarray(image.meta[MetaKeys.ORIGINAL_AFFINE]))
            result[key] = MetaTensor(restored, meta={**image.meta, MetaKeys.AFFINE: affine})
        return result

    def _classes(self, logits: Tensor, image: MetaTensor) -> Tensor:
        best = self._restore(logits[0], image)
        classes = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
        for number, channel in enumerate(logits[1:], start=1):
            restored = self._restore(channel, image)
            classes[restored > best] = number
            torch.maximum(best, restored, out=best)
        return classes

    def _restore(self, channel: Tensor, image: MetaTensor) -> Tensor:
        """A map (H, W, S) of the network's grid on that of the file, (1, X, Y, Z) float32."""
        volume = convert_to_tensor(channel, dtype=torch.float32, track_meta=False)[None]
        return self.invert({self.image_key: image, "map": MetaTensor(volume)})["map"].as_tensor().float()
