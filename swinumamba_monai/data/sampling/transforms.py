# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""From what a file holds to what the network takes: three colour channels, and the spacing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Orientationd, Spacingd, Transform
from monai.utils import ImageMetaKey, TransformBackends, convert_to_numpy, convert_to_tensor, ensure_tuple
from scipy.spatial.transform import Rotation

from swinumamba_monai.data.files.grids import MIN_LEAN, spacing_of, thick_axis
from swinumamba_monai.data.files.pixel_checks import check_channel
from swinumamba_monai.errors import InputError, shown

logger = logging.getLogger(__name__)

MAX_SLAB = 1 << 22  # voxels that are resampled at once, or one slice
DOUBT_KEY = "doubt"  # in the metadata of a volume: why what the network makes of it is not to be trusted
_OTHER_AXCODES = "--axcodes (ILA for a coronal, IPR for a sagittal one)"
# A turn of all places by a thirtieth of a degree: more than affines of one grid differ by, less than anybody turns
# slices. By other parts about each axis, or two axes that lean alike would be turned alike.
_NUDGE = np.eye(4)
_NUDGE[:3, :3] = Rotation.from_rotvec([1.7e-4, 2.9e-4, 4.7e-4]).as_matrix()


class ToRGB(Transform):
    """Give an image the three channels that a network pretrained on photographs expects.

    ==========  ======================================================================================
    channels    result
    ==========  ======================================================================================
    1           the gray channel three times
    2           two fluorescence channels as red and green, blue is zero (gray + alpha never comes here:
                :func:`~swinumamba_monai.data.files.images.read_image` drops that alpha)
    3           unchanged
    4           the first three: RGB without its alpha
    ==========  ======================================================================================

    >>> ToRGB()(torch.zeros(1, 4, 5)).shape
    torch.Size([3, 4, 5])
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
        raise InputError(f"The image has {channels} channels, but 1 to 4 can be made RGB; name one with --channel.")


class ToRGBd(MapTransform):
    """Dictionary version of :class:`ToRGB`.

    Args:
        keys: the images.
        in_channels: number of channels that the network takes.
        channel: the number of the one channel that is looked at, from 0; None for all of them.
        allow_missing_keys: skip keys that are not there.

    Raises:
        InputError: ``in_channels`` is not 3, or an image has no such channel.
    """

    backend = ToRGB.backend

    def __init__(
        self, keys: KeysCollection, in_channels: int = 3, channel: int | None = None, allow_missing_keys: bool = False
    ) -> None:
        if in_channels != 3:
            raise InputError(
                f"in_channels is {in_channels}, but every image becomes RGB, gray ones too: leave it at 3, or take "
                "ToRGBd out of the config."
            )
        if channel is not None and (not isinstance(channel, int) or channel < 0):
            raise InputError(f"channel is {channel}, but it is a whole number; the first channel is 0.")
        super().__init__(keys, allow_missing_keys)
        self.channel = channel
        self.convert = ToRGB()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        items = dict(data)
        for key in self.key_iterator(items):
            image = items[key]
            if self.channel is not None:
                check_channel("The image", image.shape[0], self.channel)
                image = image[self.channel : self.channel + 1]
            items[key] = self.convert(image)
        return items


class SliceOrientationd(Orientationd):
    """Turn volumes (C, X, Y, Z) so that slices lie along the last axis, rows and columns before it.

    MONAI's transform, but for axes at 45 degrees: which of two directions they have is left to rounding there, which is
    another for an image than for its label, and for what goes back to the file. Here a turn of all of them decides.

    Args:
        keys: the volumes.
        axcodes: directions of the three axes, a letter of R or L, A or P, S or I each. "PLS" gives axial slices as
            radiologists see them, "ILA" coronal and "IPR" sagittal ones.
        allow_missing_keys: skip keys that are not there.

    Raises:
        InputError: ``axcodes`` are no such letters.
    """

    def __init__(self, keys: KeysCollection, axcodes: str, allow_missing_keys: bool = False) -> None:
        axes = ["RL", "AP", "SI"]
        codes = str(axcodes).upper()
        if len(codes) != 3 or any(sum(code in axis for code in codes) != 1 for axis in axes):
            raise InputError(
                f"axcodes say where rows, columns and slices lead, such as PLS (axial), ILA (coronal) or IPR "
                f"(sagittal), not {shown(repr(axcodes))}."
            )
        super().__init__(keys, axcodes=codes, labels=None, allow_missing_keys=allow_missing_keys)

    def __call__(
        self, data: Mapping[Hashable, NdarrayOrTensor], lazy: bool | None = None
    ) -> dict[Hashable, NdarrayOrTensor]:
        return self._without_ties(data, partial(super().__call__, lazy=lazy))

    def inverse(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        return self._without_ties(data, super().inverse)

    def _without_ties(
        self, data: Mapping[Hashable, NdarrayOrTensor], turn: Callable[[Mapping], dict[Hashable, NdarrayOrTensor]]
    ) -> dict[Hashable, NdarrayOrTensor]:
        """What a method of MONAI's makes of the volumes, those with axes at 45 degrees nudged as long as it looks."""
        nudge, nudged = torch.from_numpy(_NUDGE), {}
        for key in self.key_iterator(data):
            affine = data[key].affine.double()
            if not np.array_equal(nib.io_orientation(affine), nib.io_orientation(nudge @ affine)):
                nudged[key] = data[key].clone()
                nudged[key].affine = nudge @ affine
        turned = turn({**data, **nudged})
        for key in nudged:
            turned[key].affine = torch.linalg.solve(nudge, turned[key].affine)
        return turned


class SliceSpacingd(Spacingd):
    """Resample volumes (C, H, W, S) in the planes of their slices; the slices stay where they are.

    MONAI's transform with three differences. Slices that lean, as those of a tilted gantry, stay too: MONAI puts a grid
    at right angles through them, whose slices are others. It sees nothing but the keys, because from 1.6 on it takes
    every item whose name begins with that of a key for metadata, and fails on the "image_path" that MONAI Label has
    beside "image". And it gets a few slices at a time, because it makes a grid of four float64 for every voxel.

    A stack of thick slices in another direction is warned of, in the log and under ``DOUBT_KEY``, but not beside its
    label: preparing did so, and a validation reads its volumes again each time.

    Args:
        keys: the volumes, slices along the last axis.
        spacing: distance of the pixels of a slice along H and W, in mm; one number for both.
        mode: mode of the interpolation, one for all keys or one each.
        allow_missing_keys: skip keys that are not there.

    Raises:
        InputError: ``spacing`` is none; slices of a volume become a single pixel, as where metres are taken for mm; or
            it is one slice in another direction.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | float,
        mode: Sequence[str] | str = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        sides = ensure_tuple(spacing) if isinstance(spacing, Sequence) else (spacing, spacing)
        if len(sides) != 2 or not all(isinstance(mm, (int, float)) and 0 < mm <= 100 for mm in sides):
            raise InputError(
                f"spacing holds the mm of a pixel along the rows and columns of a slice, at most 100, not {spacing}."
            )
        super().__init__(keys, (*sides, -1.0), mode=mode, allow_missing_keys=allow_missing_keys)

    def __call__(
        self, data: Mapping[Hashable, NdarrayOrTensor], lazy: bool | None = None
    ) -> dict[Hashable, NdarrayOrTensor]:
        volumes = {key: data[key] for key in self.keys if key in data}
        upright = {key: _put_upright(volume) for key, volume in volumes.items()}
        planned = super().__call__(upright, lazy=True)
        for key, volume in volumes.items():
            name = volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "the volume")
            height, width = volume.shape[1:3]
            if min(height, width) == 1 < max(height, width):
                raise InputError(
                    f"{name} is a single slice in another direction, which would be cut into slices of {height} x "
                    f"{width} pixels; give {_OTHER_AXCODES}, or leave it out."
                )
            sides = spacing_of(convert_to_numpy(volume.affine))
            if len(volumes) == 1 and thick_axis(sides) in (0, 1):
                sides = " x ".join(f"{mm:g}" for mm in sides)
                volume.meta[DOUBT_KEY] = (
                    f"the slices are thick and lie in another direction, with voxels of {sides} mm: slices across "
                    "them, as coarse as that, are what the network gets; look at the result, or use a network trained "
                    f"on such stacks and its {_OTHER_AXCODES}"
                )
                logger.warning("%s: %s", name, volume.meta[DOUBT_KEY])
            if max(planned[key].peek_pending_shape()[:2]) == 1 < min(height, width):
                sides = " x ".join(f"{mm:g}" for mm in self.spacing_transform.pixdim[:2])
                raise InputError(
                    f"the slices of {name} become a single pixel of {sides} mm; correct the spacing in its header or "
                    "the unit of it, or give another --spacing."
                )
        shapes = [volume.peek_pending_shape() for volume in (*volumes.values(), *planned.values())]
        leaning = any(upright[key] is not volume for key, volume in volumes.items())
        if lazy or self.lazy or (max(map(math.prod, shapes), default=0) <= MAX_SLAB and not leaning):
            return {**data, **super().__call__(volumes, lazy)}
        resampled = {key: self._resample(volume, upright[key], planned[key]) for key, volume in volumes.items()}
        return {**data, **resampled}

    def _resample(self, volume: MetaTensor, upright: MetaTensor, planned: MetaTensor) -> MetaTensor:
        """A volume on the grid of what MONAI would make of it lazily, a few slices at a time."""
        affine, shape = planned.peek_pending_affine(), tuple(planned.peek_pending_shape())
        if upright is not volume:
            affine = volume.affine @ torch.linalg.solve(upright.affine, affine.to(upright.affine))
        options = {name: planned.pending_operations[-1]["extra_info"][name] for name in ("mode", "padding_mode")}
        resample = partial(self.spacing_transform.sp_resample, dst_affine=affine, **options)
        count = volume.shape[-1]
        if shape[-1] != count or not slices_stay(volume.affine, affine):  # axes that are not quite at right angles
            return resample(volume, spatial_size=shape)
        size = max(MAX_SLAB // max(math.prod(volume.shape[1:-1]), math.prod(shape[:-1])), 1)
        result = None
        for start in range(0, count, size):
            part = volume[..., start : start + size]
            part = resample(part, spatial_size=(*shape[:-1], part.shape[-1]))
            if result is None:
                result = MetaTensor(torch.empty((len(volume), *shape)), meta=part.meta)
                result.applied_operations = part.applied_operations
                result.applied_operations[-1]["orig_size"] = tuple(volume.shape[1:])
            result[..., start : start + size] = part
        return result


def _put_upright(volume: MetaTensor) -> MetaTensor:
    """The volume with its slices over each other, at their distance, where they lean; else the volume itself."""
    affine = convert_to_numpy(volume.affine).astype(np.float64)
    first, second, step = affine[:3, :3].T
    normal = np.cross(first, second)
    normal /= np.linalg.norm(normal)
    distance = float(normal @ step)
    if np.linalg.norm(step - distance * normal) <= MIN_LEAN * np.linalg.norm(step):
        return volume
    affine[:3, 2] = distance * normal
    return MetaTensor(volume.as_tensor(), affine=torch.from_numpy(affine))


def slices_stay(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether the planes of one grid are those of another, (4, 4) affines both, with the slices along the last axis."""
    moved = torch.linalg.solve(torch.as_tensor(before).double(), torch.as_tensor(after).double())
    expected = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    return torch.allclose(moved[2], expected, atol=1e-4) and torch.allclose(moved[:2, 2], expected[:2], atol=1e-4)
