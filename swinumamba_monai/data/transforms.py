# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""From what a file holds to what the network takes: three colour channels, the spacing, three classes for cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Spacingd, Transform
from monai.utils import TransformBackends, convert_data_type, convert_to_dst_type, convert_to_tensor, ensure_tuple
from scipy import ndimage

from swinumamba_monai.errors import InputError

# Pairs of indices that put every pixel of an (H, W) array next to the one above it, and next to the one left of it.
_NEIGHBOURS = ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]))


class ToRGB(Transform):
    """Give an image the three channels that a network pretrained on photographs expects.

    ==========  ======================================================================================
    channels    result
    ==========  ======================================================================================
    1           the gray channel three times
    2           two fluorescence channels as red and green, blue is zero (gray + alpha never comes here:
                :func:`~swinumamba_monai.data.readers.read_image` drops that alpha)
    3           unchanged
    4           the first three: RGB without its alpha
    ==========  ======================================================================================
    """

    backend = (TransformBackends.TORCH,)

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """
        Args:
            img: (C, H, W) with 1 to 4 channels.

        Returns:
            (3, H, W) of the same data type; a ``MetaTensor`` keeps its metadata.

        Raises:
            InputError: The image has another number of channels.
        """
        image = convert_to_tensor(img, track_meta=get_track_meta())
        channels = image.shape[0]
        if channels == 1:
            return torch.cat([image, image, image])
        if channels == 2:
            return torch.cat([image, torch.zeros_like(image[:1])])
        if channels in (3, 4):
            return image[:3]
        raise InputError(f"The image has {channels} channels, but 1 to 4 can be made RGB; keep the ones that matter.")


class InstancesToClasses(Transform):
    """Turn an instance map into the three classes of the NeurIPS 2022 cell segmentation baseline.

    0 is background, 1 the interior of a cell, 2 its boundary: the pixels of a cell with a 4-neighbour that is not of
    this cell. Interiors of touching cells are thereby never 8-connected, so the connected components of class 1 are
    the cells again. The edge of the array is no boundary, so a crop gets the classes that the whole image has there
    (but for a piece of interior that the cut makes smaller than ``min_interior``).

    The baseline, and U-Mamba after it, dilates the boundary by a disk of radius 1, which fits cells of some 1000
    pixels. The nuclei of DSB-2018 are small (median 326 pixels, 5 % under 46), and a dilated boundary leaves less than
    half of many of them: they can then no longer reach an IoU of 0.5. The F1 score at IoU 0.5 of *perfect* class maps,
    mean over its 531 training images (all nuclei pooled), border nuclei left out as in the published evaluation:

    =================  =================  =================
    boundary_dilation  min_interior = 0   min_interior = 16
    =================  =================  =================
    0                  0.952 (0.957)      0.966 (0.971)
    1 (published)      0.693 (0.694)      0.711 (0.725)
    =================  =================  =================

    Hence the default of 0. ``boundary_dilation=1`` reproduces the published maps.

    Args:
        boundary_dilation: how many pixels the boundary is widened, into the cell and into the background.
        min_interior: 4-connected pieces of interior with fewer pixels become background.

    Raises:
        ValueError: An argument is negative.
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(self, boundary_dilation: int = 0, min_interior: int = 16) -> None:
        if boundary_dilation < 0 or min_interior < 0:
            raise ValueError(f"boundary_dilation {boundary_dilation} and min_interior {min_interior} must be >= 0.")
        self.boundary_dilation = boundary_dilation
        self.min_interior = min_interior

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """
        Args:
            img: instance map (1, H, W), 0 is background.

        Returns:
            Class map (1, H, W), uint8, of the kind of ``img``: array, tensor or ``MetaTensor`` with its metadata.

        Raises:
            InputError: The map has more than one channel.
        """
        if img.ndim != 3 or img.shape[0] != 1:
            raise InputError(f"An instance map has the shape (1, H, W), but this one has {tuple(img.shape)}.")
        instances = convert_data_type(img, np.ndarray)[0][0]
        boundary = _inner_boundary(instances)
        for _ in range(self.boundary_dilation):
            boundary = _dilate(boundary)
        interior = (instances > 0) & ~boundary
        if self.min_interior > 1:
            pieces, _ = ndimage.label(interior)
            interior &= np.bincount(pieces.ravel())[pieces] >= self.min_interior
        classes = interior.astype(np.uint8)
        classes[boundary] = 2
        return convert_to_dst_type(classes[None], dst=img, dtype=np.uint8)[0]


class ToRGBd(MapTransform):
    """Dictionary version of :class:`ToRGB`.

    Args:
        keys: the images.
        allow_missing_keys: skip keys that are not there.
    """

    backend = ToRGB.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.convert = ToRGB()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        items = dict(data)
        for key in self.key_iterator(items):
            items[key] = self.convert(items[key])
        return items


class InstancesToClassesd(MapTransform):
    """Dictionary version of :class:`InstancesToClasses`.

    Args:
        keys: the instance maps, replaced by class maps.
        instances_key: when given, the untouched instance map is stored under it, for evaluation; ``keys`` is then one.
        boundary_dilation: see :class:`InstancesToClasses`.
        min_interior: see :class:`InstancesToClasses`.
        allow_missing_keys: skip keys that are not there.

    Raises:
        ValueError: There are several keys for one ``instances_key``.
    """

    backend = InstancesToClasses.backend

    def __init__(
        self,
        keys: KeysCollection,
        instances_key: str | None = None,
        boundary_dilation: int = 0,
        min_interior: int = 16,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if instances_key is not None and len(ensure_tuple(keys)) != 1:
            raise ValueError(f"One instances_key can keep one map, but keys are {self.keys}.")
        self.instances_key = instances_key
        self.convert = InstancesToClasses(boundary_dilation, min_interior)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        items = dict(data)
        for key in self.key_iterator(items):
            if self.instances_key is not None:
                items[self.instances_key] = items[key]
            items[key] = self.convert(items[key])
        return items


class SliceSpacingd(Spacingd):
    """Resample volumes (C, H, W, S) in the planes of their slices; the slices stay where they are.

    MONAI's transform with one difference: it sees nothing but the keys, because from 1.6 on it takes every item whose
    name begins with that of a key for metadata, and fails on the "image_path" that MONAI Label has beside "image".

    Args:
        keys: the volumes, slices along the last axis.
        spacing: of the pixels of a slice along H and W, in mm.
        mode: of the interpolation, one for all keys or one each.
        allow_missing_keys: skip keys that are not there.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        mode: Sequence[str] | str = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        if len(spacing) != 2 or not all(mm > 0 for mm in spacing):
            raise InputError(f"spacing holds the mm of a pixel along the rows and columns of a slice, not {spacing}.")
        super().__init__(keys, (*spacing, -1.0), mode=mode, allow_missing_keys=allow_missing_keys)

    def __call__(
        self, data: Mapping[Hashable, NdarrayOrTensor], lazy: bool | None = None
    ) -> dict[Hashable, NdarrayOrTensor]:
        volumes = {key: data[key] for key in self.keys if key in data}
        return {**data, **super().__call__(volumes, lazy)}


def _inner_boundary(instances: np.ndarray) -> np.ndarray:
    """Cell pixels with a 4-neighbour of another number, (H, W) bool.

    The same as ``skimage.segmentation.find_boundaries(mode="inner")``, at a tenth of its time.
    """
    boundary = np.zeros(instances.shape, dtype=bool)
    for after, before in _NEIGHBOURS:
        differs = instances[after] != instances[before]
        boundary[after] |= differs
        boundary[before] |= differs
    return boundary & (instances > 0)


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Add the 4-neighbours, that is, dilate by a disk of radius 1."""
    dilated = mask.copy()
    for after, before in _NEIGHBOURS:
        dilated[after] |= mask[before]
        dilated[before] |= mask[after]
    return dilated
