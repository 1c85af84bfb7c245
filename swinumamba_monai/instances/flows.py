# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells as flows: every pixel of a cell learns in which direction the cell's centre lies, and pixels that arrive at one
place are one cell, however closely it touches the next.

Source: Stringer et al., "Cellpose: a generalist algorithm for cellular segmentation", Nature Methods 18 (2021). As
there, the directions are those of the gradient of heat that flows from the centre and leaves at the cell's edge. Here
the heat is what stays after infinite time, the solution of one sparse linear system for all cells, and steps along the
flow are doubled instead of counted.

A network has four channels: the logits of background and cell, and the direction to the centre along rows and along
columns, of length 1 in a cell. Its target has three: 1 in a cell and 0 elsewhere, and the direction, 0 outside.

Flows beside the two other usual ways, at the same minutes, are in docs/results_nuclei.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type, convert_to_tensor
from scipy import ndimage
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

from swinumamba_monai.errors import InputError
from swinumamba_monai.instances.whole_cells import AUTO, finish_cells, resize_cells

FLOW_CHANNELS = 4  # number of channels of a network's output: background, cell, rows, columns
FLOW_WEIGHT = 12.5  # weight of the squared error of the flow, as in Cellpose: half of the error of five times the flow
STEPS = 4  # pixels walked one by one before the distances are doubled
MIN_ARRIVALS = 3  # pixels that must arrive at a place before it can be the centre of a cell
STRAY = 4.0  # pixels from a centre, up to which single arrivals still belong to it

_NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def flow_targets(instances: np.ndarray) -> np.ndarray:
    """What the network has to learn of an instance map.

    Args:
        instances: instance ids of shape (H, W), integers, 0 background. The array's edge is an edge of the cells on it.

    Returns:
        targets of shape (3, H, W), float32, see the module's docstring.
    """
    heat = heat_from_centres(instances)
    inside = instances > 0
    flow = np.stack([_same_cell_gradient(heat, instances, axis) for axis in (0, 1)])
    length = np.sqrt((flow**2).sum(0))
    flow = np.divide(flow, length, out=np.zeros_like(flow), where=length > 0)
    return np.concatenate([inside[None], flow]).astype(np.float32)


def heat_from_centres(instances: np.ndarray) -> np.ndarray:
    """Steady heat of a source at each cell's centre, the cell pixel nearest to its centroid; 0 outside of the cell.

    Args:
        instances: instance ids of shape (H, W), integers, 0 background.

    Returns:
        the logarithm of the heat in cells, 0 elsewhere, shape (H, W), float64. The logarithm has gradients of the same
        direction, and of a size that does not vanish far from the centre of a long cell.
    """
    ids = np.pad(instances, 1)
    inside = ids > 0
    count = np.count_nonzero(inside)
    result = np.zeros(instances.shape)
    if count == 0:
        return result
    number = np.zeros(ids.shape, np.int64)
    number[inside] = np.arange(count)
    rows, columns = [np.arange(count)], [np.arange(count)]
    for shift in _NEIGHBOURS:
        same = inside & (np.roll(ids, shift, (0, 1)) == ids)
        rows.append(number[same])
        columns.append(np.roll(number, shift, (0, 1))[same])
    values = np.concatenate([np.full(count, 4.0), np.full(sum(map(len, rows)) - count, -1.0)])
    laplacian = csc_matrix((values, (np.concatenate(rows), np.concatenate(columns))), shape=(count, count))
    source = np.zeros(count)
    source[_centres(ids)] = 1
    heat = spsolve(laplacian, source, permc_spec="MMD_AT_PLUS_A")
    result[instances > 0] = np.log(np.maximum(heat, 1e-300))  # pieces of a cell without its centre stay cold
    return result


def _centres(ids: np.ndarray) -> np.ndarray:
    """For every cell the place, among all cell pixels in their order, of the one nearest to the cell's centroid."""
    pixels = np.argwhere(ids)
    _, cell, area = np.unique(ids[ids > 0], return_inverse=True, return_counts=True)
    centroid = np.stack([np.bincount(cell, pixels[:, axis]) / area for axis in (0, 1)], 1)
    distance = ((pixels - centroid[cell]) ** 2).sum(1)
    order = np.lexsort((distance, cell))
    return order[np.r_[0, np.cumsum(area)[:-1]]]


def _same_cell_gradient(heat: np.ndarray, ids: np.ndarray, axis: int) -> np.ndarray:
    """Difference of the heat between the two neighbours along an axis, in cells.

    A neighbour outside of the cell is cold: it counts as what the pixel itself has, less one.
    """
    heat, ids = np.moveaxis(heat, axis, 0), np.moveaxis(ids, axis, 0)
    steps = np.where(ids[1:] == ids[:-1], heat[1:] - heat[:-1], 0.0)
    ends = np.where(ids[1:] == ids[:-1], 0.0, 1.0)
    one = np.ones((1, *heat.shape[1:]))
    after = np.concatenate([np.where(ends, -1.0, steps), -one])
    before = np.concatenate([one, np.where(ends, 1.0, steps)])
    return np.moveaxis(np.where(ids > 0, after + before, 0.0), 0, axis)


def flows_to_instances(
    output: Tensor, foreground: float = 0.5, merge: int = 5, min_size: int | str = AUTO, min_score: float = 0.4
) -> tuple[np.ndarray, np.ndarray]:
    """Number the cells: pixels whose walks along the flow end at one place are one cell.

    The defaults were chosen on the validation images of DSB-2018. Deterministic; memory is some 100 bytes a pixel;
    1024 × 1024 pixels take about half a second on one core.

    Args:
        output: a network's output of shape (4, H, W), see the module's docstring.
        foreground: probability from which on a pixel belongs to a cell.
        merge: distance in pixels, along the rows or columns, up to which ends of walks are the same centre; 1 for cells
            of four pixels across.
        min_size: cells with fewer pixels are dropped; ``"auto"``: see :func:`.whole_cells.finish_cells`.
        min_score: cells with a lower score are dropped.

    Returns:
        instance ids of shape (H, W), int32, 0 background, 1 to n in the order of the cells' first pixels; and the score
        of each cell, shape (n,), float32, between 0 and 1: the mean over its pixels of the foreground's probability,
        times the mean agreement of the flow with the way to the cell's centre.

    Raises:
        InputError: another shape.
    """
    if output.ndim != 3 or output.shape[0] != FLOW_CHANNELS:
        raise InputError(
            f"A prediction of shape {tuple(output.shape)} cannot be read as flows: give (4, H, W), the logits of "
            "background and cell and the direction along rows and columns; --target classes reads three classes."
        )
    output = convert_data_type(output, Tensor, device="cpu")[0].float()
    probability = (output[1] - output[0]).sigmoid()
    inside = probability >= foreground
    flow = output[2:] * inside
    flow = flow / flow.norm(dim=0).clamp_min(1)  # a network may overshoot, but no walk is faster than a pixel a step
    pixels, ends = _walk(flow, inside)
    ids = np.zeros(inside.shape, np.int32)
    if not len(pixels):
        return ids, np.zeros(0, np.float32)
    centres = _find_centres(ends, ids.shape, merge)
    ids[tuple(pixels.T)] = centres[tuple(ends.T)]
    agreement = _agreement(flow.numpy(), ids)
    return finish_cells(ids, probability.numpy(), min_size, min_score, agreement)


def _walk(flow: Tensor, inside: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where each cell pixel ends: (n, 2) rows and columns of the pixels, and of their ends, integers."""
    height, width = inside.shape
    pixels = inside.nonzero()
    if not len(pixels):
        return pixels.numpy(), pixels.numpy()
    limit = torch.tensor([height - 1, width - 1])
    place = pixels.float()
    for _ in range(STEPS):
        place = (place + _between_pixels(flow, place)).clamp(torch.zeros(2), limit)
    # Where a pixel is after n steps, the pixel there knows where it is after n more: 4, 8, 16, ... steps. Twice the
    # longer side is enough for the way through any cell that is not a spiral.
    landing = torch.arange(height * width)
    landing[inside.flatten()] = (place.round().long() * torch.tensor([width, 1])).sum(1)
    for _ in range(int(np.ceil(np.log2(max(2 * max(height, width) / STEPS, 2))))):
        landing = landing[landing]
    ends = landing[inside.flatten()]
    return pixels.numpy(), torch.stack([ends // width, ends % width], 1).numpy()


def _between_pixels(flow: Tensor, place: Tensor) -> Tensor:
    """The flow (n, 2) at places (n, 2) between pixels, interpolated linearly."""
    sides = torch.tensor(flow.shape[1:])
    grid = (2 * place + 1) / sides - 1  # in grid_sample's units: -1 and 1 are the outer edges of the image
    return F.grid_sample(flow[None], grid.flip(1)[None, None], padding_mode="border", align_corners=False)[0, :, 0].T


def _find_centres(ends: np.ndarray, shape: tuple[int, int], merge: int) -> np.ndarray:
    """Number the places where walks end, (H, W) int32; those that few walks reached belong to the nearest other."""
    arrivals = np.bincount(np.ravel_multi_index(tuple(ends.T), shape), minlength=np.prod(shape)).reshape(shape)
    crowd = ndimage.uniform_filter(arrivals.astype(np.float32), 3) * 9
    seeds = (arrivals > 0) & (crowd >= MIN_ARRIVALS)
    centres, count = ndimage.label(ndimage.binary_dilation(seeds, np.ones((merge, merge))), np.ones((3, 3)))
    if count == 0:
        return centres.astype(np.int32)
    distance, nearest = ndimage.distance_transform_edt(centres == 0, return_indices=True)
    return np.where(distance <= STRAY, centres[tuple(nearest)], 0).astype(np.int32)


def _agreement(flow: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """At each cell pixel how far the flow goes to the centroid of the pixel's cell: 1 straight there, 0 or less not."""
    rows, columns = np.nonzero(ids)
    cell = ids[rows, columns]
    area = np.maximum(np.bincount(cell), 1)
    way = np.stack([(np.bincount(cell, at) / area)[cell] - at for at in (rows, columns)])
    length = np.sqrt((way**2).sum(0))
    result = np.ones(ids.shape, np.float32)
    cosine = (flow[:, rows, columns] * way).sum(0) / np.maximum(length, 1e-6)
    result[rows, columns] = np.where(length > 2, cosine.clip(0), 1)  # at the centre there is no direction
    return result


class FlowLoss(nn.Module):
    """Cellpose's loss: binary cross-entropy of the foreground, and 12.5 times the squared error of the flow."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar, of a network's output (b, 4, h, w) and targets (b, 3, h, w).

        A fourth channel of the targets, if there is one, weighs the pixels (0: nothing is known; of all of them, the
        loss is 0). Other numbers of channels are a ValueError.
        """
        if output.shape[1] != FLOW_CHANNELS or target.shape[1] not in (3, 4):
            raise ValueError(f"Flows have 4 channels and their targets 3, not {output.shape[1]} and {target.shape[1]}.")
        output = output.float()
        foreground = F.binary_cross_entropy_with_logits(output[:, 1] - output[:, 0], target[:, 0], reduction="none")
        flow = ((output[:, 2:] - target[:, 1:3]) ** 2).mean(1)
        loss = foreground + FLOW_WEIGHT * flow
        if target.shape[1] == 3:
            return loss.mean()
        return (loss * target[:, 3]).sum() / target[:, 3].sum().clamp_min(1)


class InstancesToFlowsd(MapTransform):
    """Replace instance maps (1, H, W) by their :func:`flow_targets` (3, H, W).

    Args:
        keys: the instance maps.
        instances_key: when given, the untouched instance map is stored under it, for evaluation.
        allow_missing_keys: skip keys that are not there.
    """

    def __init__(
        self, keys: KeysCollection, instances_key: str | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.instances_key = instances_key

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        items = dict(data)
        for key in self.key_iterator(items):
            if self.instances_key is not None:
                items[self.instances_key] = items[key]
            ids = convert_data_type(items[key], np.ndarray)[0][0]
            items[key] = convert_to_dst_type(flow_targets(ids), dst=items[key], dtype=np.float32)[0]
        return items


class FlowsToInstancesd(MapTransform):
    """Postprocessing: replace a network's flows (4, H, W) by instance ids (1, H, W), int32.

    Args:
        keys: keys of the predictions.
        foreground, merge, min_size, min_score: see :func:`flows_to_instances`.
        scores_key: when given, the scores of the cells 1 to n, (n,) float32, are stored under it.
        image_key: when given, the cells are brought to the size of the image (C, h, w) under it, which may be smaller
            than the flows: those of cells of a few pixels are followed where they are larger. ``min_size`` counts
            pixels of the image then, but for ``"auto"``.
        allow_missing_keys: do not fail when a key is absent.

    Raises:
        InputError: a prediction of another shape.
    """

    def __init__(
        self,
        keys: KeysCollection,
        foreground: float = 0.5,
        merge: int = 5,
        min_size: int | str = AUTO,
        min_score: float = 0.4,
        scores_key: str | None = None,
        image_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.options = {"foreground": foreground, "merge": merge, "min_score": min_score}
        self.min_size = min_size
        self.scores_key = scores_key
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            pred = convert_to_tensor(result[key], track_meta=True)
            size = tuple((pred if self.image_key is None else result[self.image_key]).shape[1:])
            if any(own < of_image for own, of_image in zip(pred.shape[1:], size)):
                raise InputError(f"the network gave flows of {tuple(pred.shape[1:])} pixels for an image of {size}.")
            pixels = pred[0].numel() / (size[0] * size[1])  # of the flows, for each of the image
            min_size = self.min_size if self.min_size == AUTO else self.min_size * pixels
            ids, scores = flows_to_instances(pred, min_size=min_size, **self.options)
            if ids.shape != size:
                ids, scores = resize_cells(ids, scores, size)
            result[key] = convert_to_dst_type(ids[None], pred, dtype=torch.int32)[0]
            if self.scores_key is not None:
                result[self.scores_key] = scores
        return result
