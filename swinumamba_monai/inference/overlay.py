# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Predicted classes painted over the frame that they were predicted from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy

from swinumamba_monai.painting import display_range, paint, palette

OPACITY = 0.4  # opacity of a class; its rim is opaque


class Overlayd(MapTransform):
    """Paint classes over an image: half-transparent, with a rim, each in a colour that it has in every frame.

    Args:
        keys: key of the classes, (1, H, W).
        image_key: key of the image, gray or RGB, (C, H, W). Values of 0 to 255 are shown as they are, others (16 bits)
            from their 0.5 % to their 99.5 % quantile.
        overlay_key: key of the picture that is added, (3, H, W) uint8, with the metadata of the classes.
        allow_missing_keys: whether absent classes are passed over, instead of being an error.
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
            picture = class_overlay(convert_to_numpy(result[self.image_key]), classes)
            result[self.overlay_key] = convert_to_dst_type(picture, result[key], dtype=torch.uint8)[0]
        return result


def class_overlay(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Classes (H, W), of which 0 is not painted, over a gray or RGB image (C, H, W): a picture (3, H, W), uint8."""
    channels = image[:3] if image.shape[0] >= 3 else np.repeat(image[:1], 3, axis=0)
    low, span = (0, 255) if image.min() >= 0 and image.max() <= 255 else display_range(channels)
    picture = np.moveaxis(np.clip((channels - low) * (255 / span), 0, 255), 0, -1)
    paint(picture, classes, 255 * palette(classes.max()), OPACITY)
    return np.rint(np.moveaxis(picture, -1, 0)).astype(np.uint8)
