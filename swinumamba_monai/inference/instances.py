# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""From the three classes a network predicts (background, cell interior, cell boundary) to numbered cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor
from scipy import ndimage
from skimage.segmentation import expand_labels

from swinumamba_monai.errors import InputError

INTERIOR, BOUNDARY = 1, 2


def class_map(pred: torch.Tensor) -> np.ndarray:
    """The class of every pixel.

    Args:
        pred: logits, probabilities or one-hot of shape (3, H, W), or class indices of shape (1, H, W).

    Returns:
        classes of shape (H, W), uint8: 0 background, 1 cell interior, 2 cell boundary.

    Raises:
        InputError: another shape, or a single channel that holds anything but 0, 1 and 2.
    """
    if pred.ndim != 3 or pred.shape[0] not in (1, 3):
        raise InputError(
            f"A prediction of shape {tuple(pred.shape)} cannot be read as cells: give (3, H, W) scores of background, "
            "interior and boundary, or (1, H, W) class indices."
        )
    scores = pred.argmax(0) if pred.shape[0] == 3 else pred[0]
    classes = scores.to(torch.uint8)
    if classes.max() > BOUNDARY or (classes != scores).any():
        raise InputError(
            f"A one-channel prediction must hold the classes 0, 1 and 2, but this one goes from {scores.min():g} to "
            f"{scores.max():g}: turn probabilities into classes first, and do not number the cells twice."
        )
    return convert_to_numpy(classes)


def classes_to_instances(classes: np.ndarray, min_size: int = 0, grow: int = 0) -> np.ndarray:
    """Number the cells: every 8-connected piece of cell interior is one.

    The published evaluation script takes the interior alone, so cells come out one boundary thinner than they are.
    ``grow`` gives the boundary back; it is off by default because published numbers are without it.

    Args:
        classes: class of every pixel, shape (H, W): 0 background, 1 cell interior, 2 cell boundary.
        min_size: pieces of interior with fewer pixels are dropped, before growing; 0 keeps all.
        grow: distance in pixels by which every cell grows back, into pixels of the boundary class only; where two
            cells reach the same pixel, the nearest has it.

    Returns:
        instance ids of shape (H, W), int32: 0 background, 1 to n in the order of the cells' first pixels.
    """
    ids = np.empty(classes.shape, np.int32)
    count = ndimage.label(classes == INTERIOR, structure=np.ones((3, 3)), output=ids)
    if min_size > 0:
        keep = np.bincount(ids.ravel(), minlength=count + 1) >= min_size
        keep[0] = False
        ids = np.where(keep, np.cumsum(keep), 0).astype(np.int32)[ids]
    if grow > 0:
        ids = np.where(classes == BOUNDARY, expand_labels(ids, distance=grow), ids)
    return ids


class ClassesToInstancesd(MapTransform):
    """Postprocessing: replace a three-class prediction by instance ids.

    Takes what :func:`class_map` takes and gives a (1, H, W) int32 :class:`~monai.data.MetaTensor` that remembers where
    the prediction came from, so that ``SaveImaged`` can name the file.

    Args:
        keys: keys of the predictions.
        min_size: see :func:`classes_to_instances`, pixels.
        grow: see :func:`classes_to_instances`, pixels; 0 is the published script's way.
        allow_missing_keys: do not fail when a key is absent.

    Raises:
        InputError: when a prediction cannot be read as three classes.
    """

    def __init__(self, keys: KeysCollection, min_size: int = 0, grow: int = 0, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.min_size = min_size
        self.grow = grow

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            pred = convert_to_tensor(result[key], track_meta=True)
            ids = classes_to_instances(class_map(pred), self.min_size, self.grow)
            result[key] = convert_to_dst_type(ids[None], pred, dtype=torch.int32)[0]
        return result
