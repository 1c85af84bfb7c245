# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""From the network's grid back to the grid of the image file."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, MapTransform
from monai.utils import MetaKeys, convert_to_numpy, convert_to_tensor
from torch import Tensor

from swinumamba_monai.data.sampling.transforms import MAX_SLAB
from swinumamba_monai.inference.uncertainty import entropy_map


class RestoreVolumed(MapTransform):
    """Bring logits back to the voxels of the image file, with the very affine of that file, as classes.

    Logits are interpolated linearly, as nnU-Net does, and the class of a voxel is the one with the highest. This goes a
    few slices at a time, so there is little in memory beside the logits and the result: a grid of float64 numbers for
    every voxel of a large volume would take more than all of inference.

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

        for key in self.keys:
            made = {key: _argmax, self.probabilities_key: partial(torch.softmax, dim=0), self.entropy_key: entropy_map}
            made.pop(None, None)
            whole: dict[Hashable, Tensor] = {}
            for place, slab in self._slabs(result[key], image, affine):
                for name, make in made.items():
                    part = make(slab)
                    if not place:
                        whole[name] = part
                        continue
                    if name not in whole:
                        whole[name] = part.new_empty((len(part), *_shape_of_file(image)))
                    whole[name][place] = part
            meta = {**image.meta, MetaKeys.AFFINE: affine}
            result |= {name: MetaTensor(volume, meta=dict(meta)) for name, volume in whole.items()}
        return result

    def _slabs(self, maps: Tensor, image: MetaTensor, affine: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Maps (C, H, W, S) on the grid of the file, (C, X, Y, Z) float32, a few slices at a time, and their places.

        Where slices are no slices of the file there is one slab, whose place is ().
        """
        maps = convert_to_tensor(maps, track_meta=False)
        count = maps.shape[-1]
        axis, flipped = _slices_of_file(image, affine, count)
        size = 0 if axis is None else max(MAX_SLAB * count // (len(maps) * math.prod(_shape_of_file(image))), 1)
        if axis is None or size >= count:
            yield (), self._invert(maps, image)
            return
        for start in range(0, count, size):
            stop = min(start + size, count)
            place = [slice(None)] * 4
            place[1 + axis] = slice(count - stop, count - start) if flipped else slice(start, stop)
            yield tuple(place), self._invert(maps[..., start:stop], image)

    def _invert(self, maps: Tensor, image: MetaTensor) -> Tensor:
        """Maps on the grid of the file, of all slices of the image or of some."""
        like = MetaTensor(image.as_tensor()[..., : maps.shape[-1]], meta=image.meta)
        for operation in map(dict, image.applied_operations):
            if maps.shape[-1] < image.shape[-1]:  # the slices are the last axis of all but the file, which is turned
                operation["orig_size"] = (*operation["orig_size"][:2], maps.shape[-1])
            like.applied_operations.append(operation)
        return self.invert({self.image_key: like, "map": MetaTensor(maps.float())})["map"].as_tensor().float()


def _slices_of_file(image: MetaTensor, affine: Tensor, count: int) -> tuple[int | None, bool]:
    """The axis of the file along which the slices of the network's grid lie, and whether the other way round."""
    steps = torch.linalg.solve(affine.double(), image.affine.double())
    axis = int(steps[:3, 2].abs().argmax())
    flipped = bool(steps[axis, 2] < 0)
    expected = torch.zeros(4, dtype=torch.float64)
    expected[2], expected[3] = (-1, count - 1) if flipped else (1, 0)
    others = [other for other in range(3) if other != axis]
    stay = torch.allclose(steps[axis], expected, atol=1e-4) and steps[others, 2].abs().max() < 1e-4
    return (axis if stay and _shape_of_file(image)[axis] == count else None), flipped


def _shape_of_file(image: MetaTensor) -> list[int]:
    """(X, Y, Z) as the reader noted it; zeros where nobody did."""
    return [int(size) for size in image.meta.get(MetaKeys.SPATIAL_SHAPE, (0, 0, 0))]


def _argmax(channels: Tensor) -> Tensor:
    """The number of the channel that is highest, the first of equals, (1, X, Y, Z) uint8."""
    best, classes = channels[:1].clone(), torch.zeros_like(channels[:1], dtype=torch.uint8)
    for number, channel in enumerate(channels[1:], start=1):
        classes[channel[None] > best] = number
        torch.maximum(best, channel[None], out=best)
    return classes
