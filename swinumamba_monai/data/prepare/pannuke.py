# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""PanNuke: arrays of patches and of the numbers of their nuclei, one of each for a fold, made into files of a patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from swinumamba_monai.data.datalist import SECTIONS
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.data.prepare.label_forms import LOST_CLASSES, check_numbers, write_numbers
from swinumamba_monai.errors import InputError, explained

_IMAGES, _MASKS, _TYPES = "images.npy", "masks.npy", "types.npy"
_CHANNELS = {_IMAGES: 3, _MASKS: 6}  # of the masks one for each class of nuclei, the last of the background


def find_pannuke(source: Path, output: Path, folder: Path) -> FoundPairs | None:
    """The patches of ``images/fold1/images.npy`` and ``masks/fold1/masks.npy`` (or beside), None where there are none.

    Three folds are for training, validation and test, in the order of their names; more are divided by chance, as
    wholes, and of one or two the last patches validate. A folder images and one labels with files called
    ``fold1_000012.png`` are made in ``folder``.

    Args:
        source: the dataset.
        output: folder that is written into, which is not searched.
        folder: folder of what is made.
    """
    folds = {images: _masks_of(images) for images in find_files(source, {output}) if images.name == _IMAGES}
    if not any(masks.is_file() for masks in folds.values()):
        return None
    found = FoundPairs("PanNuke", source, made=folder / "labels", made_images=folder / "images")
    found.warnings += [
        LOST_CLASSES.format(source),
        f"{source} does not say which slide a patch is of, so that patches of one slide may be in several sections.",
    ]
    for part in (found.made, found.made_images):
        part.mkdir()
    for images, masks in folds.items():
        found.used |= {images, masks, images.with_name(_TYPES)}  # the last has texts as a pickle, and is never opened
        with noting(found.problems):
            _take(found, images, masks)
    names = {fold: [name for name, own in found.groups.items() if own == fold] for fold in found.groups.values()}
    if len(names) == len(SECTIONS):
        found.split = dict(zip(SECTIONS, (names[fold] for fold in sorted(names))))
    return found


def _masks_of(images: Path) -> Path:
    beside = images.with_name(_MASKS)
    return beside if beside.is_file() else images.parent.parent.parent / "masks" / images.parent.name / _MASKS


def _take(found: FoundPairs, images: Path, masks: Path) -> None:
    """Write the patches of a fold; bad ones are problems."""
    pixels, numbers, fold = _open(images), _open(masks), images.parent.name
    of_masks, of_images = ("{} patches of {} x {} pixels".format(*array.shape) for array in (numbers, pixels))
    if of_masks != of_images:
        raise InputError(f"{masks} has {of_masks}, but {images} has {of_images}; download them again.")
    if fold in found.groups.values():
        raise InputError(f"{images} lies in a folder called {fold} as those of another fold do; rename one.")
    for place in range(len(pixels)):
        with noting(found.problems):
            name, of = f"{fold}_{place:06d}", f"(patch {place})"
            patch, cells = _colours(pixels[place], f"{images} {of}"), _join(numbers[place], f"{masks} {of}")
            image = found.made_images / f"{name}.png"
            Image.fromarray(patch).save(image)
            found.pairs[name] = (image, write_numbers(cells, found.made / name))
            found.groups[name] = fold


def _open(path: Path) -> np.ndarray:
    """An array (N, H, W, C) on disk."""
    with explained(f"{path} is no plain array", "download it again"):
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    channels = _CHANNELS[path.name]
    if array.ndim != 4 or array.shape[3] != channels or array.dtype.kind not in "uif":
        raise InputError(
            f"{path} has the shape {array.shape} and the type {array.dtype}, but PanNuke's are numbers "
            f"(patches, height, width, {channels}); download it again."
        )
    return array


def _colours(patch: np.ndarray, source: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        pixels = patch.astype(np.uint8)
    if (pixels != patch).any():
        raise InputError(f"{source} has other pixels than whole numbers from 0 to 255; download it again.")
    return pixels


def _join(masks: np.ndarray, source: str) -> np.ndarray:
    """The nuclei of all classes (H, W, 6) in one map (H, W) int32; of two that overlap the one of the first class."""
    cells = np.zeros(masks.shape[:2], np.int32)
    for mask in np.moveaxis(masks, -1, 0)[:-1]:
        mask = check_numbers(mask, source)
        numbers, free = np.unique(mask[mask > 0]), (mask > 0) & (cells == 0)
        cells[free] = cells.max() + 1 + np.searchsorted(numbers, mask[free])
    return cells
