# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Numbered cells as the three classes that a network predicts (background, interior, boundary), and the way back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import (
    TransformBackends,
    convert_data_type,
    convert_to_dst_type,
    convert_to_numpy,
    convert_to_tensor,
    ensure_tuple,
)
from scipy import ndimage
from skimage.segmentation import expand_labels

from swinumamba_monai.errors import InputError

INTERIOR, BOUNDARY = 1, 2


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

    >>> two = np.repeat([[[1] * 5 + [2] * 5]], 4, axis=1)  # two cells side by side, (1, 4, 10)
    >>> print(InstancesToClasses(min_interior=0)(two)[0, 1])
    [1 1 1 1 2 2 1 1 1 1]
    """

    backend = (TransformBackends.NUMPY,)

    def __init__(self, boundary_dilation: int = 0, min_interior: int = 16) -> None:
        if boundary_dilation < 0 or min_interior < 0:
            raise ValueError(f"boundary_dilation {boundary_dilation} and min_interior {min_interior} must be >= 0.")
        self.boundary_dilation = boundary_dilation
        self.min_interior = min_interior

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Make of an instance map (1, H, W), else an InputError, a class map (1, H, W), uint8, of its kind."""
        if img.ndim != 3 or img.shape[0] != 1:
            raise InputError(f"An instance map has the shape (1, H, W), but this one has {tuple(img.shape)}.")
        instances = convert_data_type(img, np.ndarray)[0][0]
        boundary = _inner_boundary(instances)
        if self.boundary_dilation:
            boundary = ndimage.binary_dilation(boundary, iterations=self.boundary_dilation)
        interior = (instances > 0) & ~boundary
        if self.min_interior > 1:
            pieces, _ = ndimage.label(interior)
            interior &= np.bincount(pieces.ravel())[pieces] >= self.min_interior
        classes = interior.astype(np.uint8)
        classes[boundary] = BOUNDARY
        return convert_to_dst_type(classes[None], dst=img, dtype=np.uint8)[0]


class InstancesToClassesd(MapTransform):
    """Dictionary version of :class:`InstancesToClasses`.

    Args:
        keys: the instance maps, replaced by class maps.
        instances_key: when given, the untouched instance map is stored under it, for evaluation; ``keys`` is then one.
        boundary_dilation, min_interior: see :class:`InstancesToClasses`.
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


def _inner_boundary(instances: np.ndarray) -> np.ndarray:
    """Cell pixels with a 4-neighbour of another number, (H, W) bool.

    The same as ``skimage.segmentation.find_boundaries(mode="inner")``, at a tenth of its time.
    """
    boundary = np.zeros(instances.shape, dtype=bool)
    for after, before in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):  # below and above, right and left
        differs = instances[after] != instances[before]
        boundary[after] |= differs
        boundary[before] |= differs
    return boundary & (instances > 0)


def class_map(pred: torch.Tensor) -> np.ndarray:
    """The class of every pixel, (H, W) uint8: 0 background, 1 cell interior, 2 cell boundary.

    Args:
        pred: logits, probabilities or one-hot of shape (3, H, W), or class indices of shape (1, H, W).

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

    >>> print(classes_to_instances(np.array([[0, 1, 1, 2, 2, 1, 1]]), grow=1))
    [[0 1 1 1 2 2 2]]
    """
    ids = np.empty(classes.shape, np.int32)
    count = ndimage.label(classes == INTERIOR, structure=np.ones((3, 3)), output=ids)
    if not isinstance(min_size, (int, np.integer)):
        raise InputError(f"min_size {min_size} is for the target flows; give a number of pixels.")
    if min_size > 0:
        ids = keep_cells(ids, np.bincount(ids.ravel(), minlength=count + 1) >= min_size)
    if grow > 0:
        ids = np.where(classes == BOUNDARY, expand_labels(ids, distance=grow), ids)
    return ids


def keep_cells(ids: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Some of the cells, numbered anew from 1 on in their order, (H, W) int32; the others become background.

    Args:
        ids: instance ids of shape (H, W), 0 background, up to n.
        keep: whether a cell is kept, by its number, (n + 1,) bool; background stays background.
    """
    kept = keep & (np.arange(len(keep)) > 0)
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[ids]


def cell_scores(logits: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """How sure the network is of the cells 1 to n, (n,) float32: the mean probability that a pixel is not background.

    Args:
        logits: logits (classes, H, W), background first.
        ids: instance ids of shape (H, W), 0 background, 1 to n.
    """
    count = int(ids.max(initial=0)) + 1
    total, area = np.zeros(count), np.bincount(ids.ravel(), minlength=count)
    for part, numbers in zip(logits.unbind(1), ids):  # by rows: the probabilities of a slide need much memory
        foreground = 1 - part.float().softmax(0)[0]
        total += np.bincount(numbers, foreground.cpu().numpy(), count)
    return (total / np.maximum(area, 1))[1:].astype(np.float32)


class ClassesToInstancesd(MapTransform):
    """Postprocessing: replace a three-class prediction by instance ids.

    Takes what :func:`class_map` takes and gives a (1, H, W) int32 :class:`~monai.data.MetaTensor` that remembers where
    the prediction came from, so that ``SaveImaged`` can name the file.

    Args:
        keys: keys of the predictions.
        min_size, grow: see :func:`classes_to_instances`, pixels.
        allow_missing_keys: do not fail when a key is absent.
        scores_key: key of the :func:`cell_scores` that are added; the prediction must then be three logits. With None
            there are none.

    Raises:
        InputError: when a prediction cannot be read as three classes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        min_size: int = 0,
        grow: int = 0,
        allow_missing_keys: bool = False,
        scores_key: str | None = None,
    ):
        super().__init__(keys, allow_missing_keys)
        self.scores_key = scores_key
        self.min_size = min_size
        self.grow = grow

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            pred = convert_to_tensor(result[key], track_meta=True)
            ids = classes_to_instances(class_map(pred), self.min_size, self.grow)
            if self.scores_key is not None:
                result[self.scores_key] = cell_scores(convert_to_tensor(pred, track_meta=False), ids)
            result[key] = convert_to_dst_type(ids[None], pred, dtype=torch.int32)[0]
        return result
