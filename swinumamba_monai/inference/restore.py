# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's grid back to the grid of the image file."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, MapTransform
from monai.utils import MetaKeys, convert_to_numpy, convert_to_tensor
from torch import Tensor

from swinumamba_monai.inference.uncertainty import entropy_map


class RestoreVolumed(MapTransform):
    """Bring logits back to the voxels of the image file, with the very affine of that file, as classes.

    Logits are interpolated linearly, as nnU-Net does, and the class of a voxel is the one with the highest. This goes
    class by class, so beside the logits there are never more than a few volumes in memory.

    Args:
        keys: keys of logits (C, H, W, S) on the grid of ``image_key``; they become classes (1, X, Y, Z) uint8.
        transform: transform that brought the image from its file to the network's grid.
        image_key: key of the image as the network saw it, which knows how it was transformed.
        probabilities_key: key of the probabilities (C, X, Y, Z) of the classes that are added, the softmax of the
            restored logits; with None there are none, which saves their memory.
        entropy_key: key of the entropy of these probabilities, (1, X, Y, Z), likewise.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable,
        image_key: str = "image",
        probabilities_key: str | None = None,
        entropy_key: str | None = None,
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.probabilities_key = probabilities_key
        self.entropy_key = entropy_key
        self.invert = Invertd("map", transform, orig_keys=image_key, nearest_interp=False)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        image = result[self.image_key]
        affine = torch.as_tensor(convert_to_numpy(image.meta[MetaKeys.ORIGINAL_AFFINE]))

        def on_file_grid(volume: Tensor) -> MetaTensor:
            return MetaTensor(volume, meta={**image.meta, MetaKeys.AFFINE: affine})

        for key in self.keys:
            channels = self._channels(result[key], image)
            if self.probabilities_key is not None or self.entropy_key is not None:
                channels = list(channels)
                logits = torch.cat(channels)
                if self.entropy_key is not None:
                    result[self.entropy_key] = on_file_grid(entropy_map(logits))
                if self.probabilities_key is not None:
                    result[self.probabilities_key] = on_file_grid(logits.softmax(0))
            result[key] = on_file_grid(_argmax(channels))
        return result

    def _channels(self, maps: Tensor, image: MetaTensor) -> Iterator[Tensor]:
        """Every channel of (C, H, W, S) on the grid of the file, (1, X, Y, Z) float32."""
        for channel in convert_to_tensor(maps, track_meta=False):
            volume = MetaTensor(channel[None].float())
            yield self.invert({self.image_key: image, "map": volume})["map"].as_tensor().float()


def _argmax(channels: Iterator[Tensor] | list[Tensor]) -> Tensor:
    """The number of the channel that is highest, uint8, one channel at a time."""
    best = classes = None
    for number, channel in enumerate(channels):
        if best is None:
            best, classes = channel.clone(), torch.zeros_like(channel, dtype=torch.uint8)
        else:
            classes[channel > best] = number
            torch.maximum(best, channel, out=best)
    return classes
