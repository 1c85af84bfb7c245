# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Predicted classes painted over the frame that they were predicted from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from colorsys import hsv_to_rgb

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy
from skimage.segmentation import find_boundaries

OPACITY = 0.4  # of a class; its rim is opaque


class Overlayd(MapTransform):
    """Paint classes over an image: half-transparent, with a rim, each in a colour that it has in every frame.

    Args:
        keys: the classes, (1, H, W), one key.
        image_key: the image, gray or RGB, (C, H, W). Values of 0 to 255 are shown as they are, others (16 bits) from
            their 0.5 % to their 99.5 % quantile.
        overlay_key: of the picture, (3, H, W) uint8, that remembers where the classes came from.
        allow_missing_keys: do nothing when the classes are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "frame",
        overlay_key: str = "overlay",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.overlay_key = overlay_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            classes = convert_to_numpy(result[key])[0].astype(np.int64)
            picture = paint(convert_to_numpy(result[self.image_key]), classes)
            result[self.overlay_key] = convert_to_dst_type(picture, result[key], dtype=torch.uint8)[0]
        return result


def paint(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The picture (3, H, W) uint8 of an image (C, H, W) and classes (H, W); 0 is not painted."""
    channels = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, axis=0)
    low, high = (0, 255) if image.min() >= 0 and image.max() <= 255 else np.percentile(channels, (0.5, 99.5))
    picture = np.clip((channels - low) * (255 / max(high - low, 1e-6)), 0, 255)
    painted = classes > 0
    # The golden ratio keeps the hues of neighbouring classes apart.
    colours = np.array([hsv_to_rgb(number * 0.618034 % 1, 0.85, 0.95) for number in range(classes.max() + 1)]) * 255
    opacity = np.where(find_boundaries(classes, mode="inner"), 1.0, OPACITY)[painted]
    picture[:, painted] = (1 - opacity) * picture[:, painted] + opacity * colours[classes[painted]].T
    return np.rint(picture).astype(np.uint8)
