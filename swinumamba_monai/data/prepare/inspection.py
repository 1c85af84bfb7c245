# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""An image and its label, decoded and checked: what is wrong with them, and what the fingerprint needs to know."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.utils import ensure_tuple
from scipy import ndimage
from skimage import measure

from swinumamba_monai.data.files.grids import SAME_PLACE, corners_apart, spacing_of
from swinumamba_monai.data.files.images import number_of_black, read_classes, read_image, read_instances
from swinumamba_monai.data.files.label_map import IGNORED, LabelMap
from swinumamba_monai.data.files.volumes import read_channels, read_volume_label
from swinumamba_monai.errors import InputError

logger = logging.getLogger(__name__)

# Pixels of an image that its part of the dataset's intensity statistics is computed from.
SAMPLE_SIZE = 2000

# Label maps with so few numbers may be masks of classes; a cell in so many pieces is none. Cells cut by a mask of
# something else do have two or three.
MAX_CLASS_LIKE, MANY_PIECES = 3, 10
# A number that so many others lie within is a region that was marked around cells.
MANY_WITHIN = 3


@dataclass(frozen=True)
class PairReport:
    """What is known of an image and its label after decoding both.

    Attributes:
        problem: the sentence that says why the pair cannot be used, or None.
        warning: the sentence that says what is odd about it, or None.
        shape: (H, W), (H, W, C) or (X, Y, Z) of the image, volumes along right-left, anterior-posterior,
            superior-inferior; empty when there is a problem.
        spacing: the size of a voxel along the axes of a volume in mm; empty for pixels, which have none.
        dtype: data type of the image file.
        orientation: letters of where the axes of a volume file lead, as in "LPS"; empty for pixels.
        num_instances: the number of cells in the label.
        class_counts: the number of pixels of each class.
        sample: (N, C) intensities of at most ``SAMPLE_SIZE`` foreground pixels; of any pixels without foreground.
    """

    problem: str | None = None
    warning: str | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    dtype: str = ""
    orientation: str = ""
    num_instances: int = 0
    class_counts: Mapping[int, int] = field(default_factory=dict)
    sample: np.ndarray = field(default_factory=lambda: np.empty((0, 1), dtype=np.float32), repr=False)


def inspect_cells(image: PathLike, label: PathLike) -> PairReport:
    """Decode an image and its instance map and say what is wrong with them, or how large they are."""
    try:
        pixels, instances = read_image(image), read_instances(label)
        _check_sizes(image, pixels.shape[:2], label, instances.shape)
    except InputError as error:
        return PairReport(problem=str(error))
    numbers, sizes = np.unique(instances, return_counts=True)
    cells = int(np.count_nonzero(numbers))
    warning = _odd_cells(label, instances, dict(zip(numbers.tolist(), sizes.tolist())))
    return _describe_pixels(pixels, (instances > 0).astype(np.uint8), warning, num_instances=cells)


def _odd_cells(label: PathLike, instances: np.ndarray, sizes: Mapping[int, int]) -> str | None:
    """What makes a map with the pixels ``sizes`` of each number unlike one of cells, or None."""
    cells = {number: size for number, size in sizes.items() if number}
    if not cells:
        return f"{label} has no cell."
    largest = max(cells, key=cells.get)
    if 0 not in sizes and cells[largest] > instances.size / 2:
        return f"{label} has no 0, and {largest} covers over half of it: if that is the background, make it 0."
    if (within := _count_within(instances, largest)) >= MANY_WITHIN:
        return f"{label} has one cell, {largest}, around {within} others, like a region that was marked; remove it."
    pieces = measure.label(instances, background=0, connectivity=2)
    owners = instances.ravel()[np.unique(pieces, return_index=True)[1]]
    counts = Counter(owners[owners > 0].tolist())
    most = max(counts, key=counts.get)
    in_all = sum(counts.values())
    if len(cells) <= MAX_CLASS_LIKE and in_all >= 2 * len(cells):
        like = "one number" if len(cells) == 1 else f"{len(cells)} numbers"
        return f"{label} has {like} for {in_all} pieces, like a mask of classes; give every cell its own number."
    if counts[most] >= MANY_PIECES:
        return f"{label} has {counts[most]} pieces of the number {most}; give every cell its own number."
    if cells[largest] > instances.size / 2:
        return f"{label} has one cell, {largest}, over half of the image; check that it is one."
    return None


def _count_within(instances: np.ndarray, number: int) -> int:
    """How many other cells lie within the outline of one."""
    rows, columns = (np.flatnonzero((instances == number).any(axis=axis)) for axis in (1, 0))
    part = instances[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    within = ndimage.binary_fill_holes(part == number) & (part != number)
    return int(np.count_nonzero(np.unique(part[within])))


def inspect_frames(image: PathLike, label: PathLike, label_map: LabelMap) -> PairReport:
    """Decode a frame, or a plane of a stack, and its class mask and say what is wrong with them, or what they hold."""
    try:
        pixels, classes = read_image(image), read_classes(label)
        # Before the map, which takes several times the mask's memory.
        _check_sizes(image, pixels.shape[:2], label, classes.shape)
        numbers, classes = classes, label_map.to_classes(classes, label)
    except InputError as error:
        return PairReport(problem=str(error))
    classes = np.where(classes == IGNORED, 0, classes)
    black = number_of_black(Path(label))
    if black is not None and (numbers == 0).any() and (numbers == black).any():
        warning = (
            f"{label} has a palette whose black is number {black}, and 0 is another colour; numbers count and not "
            "colours: if black is the background, prepare with a --label_map of the colours."
        )
    else:
        warning = None if classes.any() else f"{label} has background only."
    return _describe_pixels(pixels, classes, warning)


def inspect_volumes(
    image: PathLike | Sequence[PathLike],
    label: PathLike,
    label_map: LabelMap,
    channels: int = 1,
    nan: float | None = None,
) -> PairReport:
    """Decode a volume and its label volume and say what is wrong with them, or what they hold.

    Args:
        image: its path, or those of its channels.
        channels, nan: see :func:`~swinumamba_monai.data.files.volumes.read_volume`.
        label: path of the label volume.
        label_map: the classes of the numbers in it.
    """
    try:
        (voxels, affine, _), (ids, label_affine) = read_channels(image, channels, nan), read_volume_label(label)
        image = ensure_tuple(image)[0]
        _check_sizes(image, voxels.shape[:3], label, ids.shape, "voxels")
        apart = corners_apart(affine, label_affine, ids.shape)
        if apart > SAME_PLACE:
            raise InputError(
                f"{label} lies elsewhere than its image {Path(image).name}: the affines differ, and corners are "
                f"{apart * min(spacing_of(affine)):.2f} mm apart; resample the label onto the image, or prepare "
                "with --label_grid image if the voxels match."
            )
        classes = label_map.to_classes(ids, label)
        classes[classes == IGNORED] = 0
    except InputError as error:
        return PairReport(problem=str(error))
    warning = None
    orientation = nib.io_orientation(affine)
    if 1 in voxels.shape:
        warning = f"{image} has one slice only ({voxels.shape}); it is used as it is."
    elif not classes.any():
        warning = f"{label} has background only."
    elif voxels.min() == voxels.max():
        warning = f"{image} has the same value everywhere."
    # The axes of the file, put in the order and direction of RAS.
    to_ras = np.argsort(orientation[:, 0])
    return PairReport(
        warning=warning,
        shape=tuple(int(voxels.shape[axis]) for axis in to_ras),
        spacing=tuple(spacing_of(affine)[axis] for axis in to_ras),
        dtype=str(voxels.dtype),
        orientation="".join(nib.aff2axcodes(affine)),
        class_counts=_count(classes),
        sample=_sample(voxels.reshape(*ids.shape, channels), classes),
    )


def inspect_pairs(
    items: Sequence[Mapping[str, str]],
    inspect: Callable[[PathLike, PathLike], PairReport],
    progress: Callable[[int, int], None] | None = None,
) -> list[PairReport]:
    """Inspect many items, a few at a time, for a report each; the decoders leave the Python lock.

    Args:
        items: dictionaries with the paths "image" and "label".
        inspect: one of the functions above.
        progress: called with the number of items done and of all items.
    """
    reports = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for report in pool.map(lambda item: inspect(item["image"], item["label"]), items):
            reports.append(report)
            if progress is not None:
                progress(len(reports), len(items))
    return reports


def check_pairs(
    items: Sequence[Mapping[str, str]], inspect: Callable[[PathLike, PathLike], PairReport]
) -> list[str | None]:
    """Inspect items as :func:`inspect_pairs`: for each the sentence that says why it cannot be used, or None.

    What is only odd about them is logged.
    """
    reports = inspect_pairs(items, inspect)
    warnings = [report.warning for report in reports if report.warning]
    if warnings:
        logger.warning("%d of %d labels are odd, the first: %s", len(warnings), len(items), warnings[0])
    return [report.problem for report in reports]


def _check_sizes(image: PathLike, size: tuple, label: PathLike, label_size: tuple, unit: str = "pixels") -> None:
    if size != label_size:
        raise InputError(f"{label} has {label_size} {unit} but its image {image} has {size}; both need one size.")


def _describe_pixels(
    pixels: np.ndarray, classes: np.ndarray, warning: str | None, num_instances: int = 0
) -> PairReport:
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    return PairReport(
        warning=warning,
        shape=pixels.shape,
        dtype=str(pixels.dtype),
        num_instances=num_instances,
        class_counts=_count(classes),
        sample=_sample(channels, classes),
    )


def _count(classes: np.ndarray) -> dict[int, int]:
    return {number: int(count) for number, count in enumerate(np.bincount(classes.ravel())) if count}


def _sample(channels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Intensities (N, C) at evenly chosen foreground pixels of ``channels`` (..., C)."""
    places = np.flatnonzero(classes)
    if places.size == 0:
        places = np.arange(classes.size)
    chosen = places[np.linspace(0, places.size - 1, min(SAMPLE_SIZE, places.size)).astype(np.int64)]
    return np.stack([channels[..., c].ravel()[chosen] for c in range(channels.shape[-1])], axis=-1).astype(np.float32)
