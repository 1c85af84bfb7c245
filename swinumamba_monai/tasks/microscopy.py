# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Microscopy: images whose labels number their cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from PIL import Image

from swinumamba_monai.data.datalist import leads_outside
from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, ImageFileReader, list_image_files, read_image
from swinumamba_monai.data.listing import load_images
from swinumamba_monai.data.prepare.dataset import (
    FoundPairs,
    PreparedDataset,
    PrepareOptions,
    check_and_write,
    label_folder,
    match_by_name,
    open_source,
)
from swinumamba_monai.data.prepare.inspection import inspect_cells
from swinumamba_monai.data.synthetic.microscopy import synthesize_microscopy
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import TaskFiles


def prepare_microscopy(
    source_dir: PathLike, output_dir: PathLike, options: PrepareOptions | None = None
) -> PreparedDataset:
    """Find images and instance maps, check every pair, divide them into three sections and write the datalist.

    Three layouts are known:

    - folders ``images`` and ``labels`` with files of the same name, or with ``_label`` after the name of the label as
      in NeurIPS 2022 CellSeg; ``split.json`` may give ``train`` and ``test`` (and ``validation``), lists of names
      without suffix;
    - the same files in one folder, the labels with ``_label``;
    - DSB-2018 as Kaggle gives it: ``<id>/images/<id>.png`` and one mask per nucleus in ``<id>/masks``. The masks become
      instance maps in ``output_dir/labels``; a pixel of two masks stays with the first one by file name.

    Originals are referred to and never copied.

    Args:
        source_dir: the downloaded dataset.
        output_dir: where the datalist is written; it may be ``source_dir``.
        options: see :class:`~swinumamba_monai.data.prepare.dataset.PrepareOptions`.

    Returns:
        What was made.

    Raises:
        InputError: The layout is unknown; for the rest see
            :func:`~swinumamba_monai.data.prepare.dataset.check_and_write`.
    """
    source = open_source(source_dir)
    with label_folder() as maps:
        found = _find_masks(source, maps) if any(source.glob("*/masks")) else _find_pairs(source)
        return check_and_write(
            "microscopy", found, source, output_dir, options or PrepareOptions(), inspect_cells, maps
        )


def _find_pairs(source: Path) -> FoundPairs:
    """Match images and labels by name, in their two folders or in one."""
    if (source / "images").is_dir() and (source / "labels").is_dir():
        found = FoundPairs("folders images and labels")
        images, labels = list_image_files(source / "images"), list_image_files(source / "labels")
    else:
        found = FoundPairs("images and labels in one folder")
        files = list_image_files(source)
        labels = [file for file in files if file.stem.endswith("_label")]
        images = [file for file in files if file not in labels]
    if not images or not labels:
        raise InputError(
            f"{source} has no known layout; it needs folders images and labels, or images next to files named "
            "<name>_label, or a folder with masks for every image."
        )
    match_by_name(images, labels, source, found, lambda file: file.stem)
    return found


def _find_masks(source: Path, maps: Path) -> FoundPairs:
    """Join the masks of every DSB-2018 image into an instance map in the folder ``maps``."""
    found = FoundPairs("DSB-2018 with a mask per nucleus")
    maps.mkdir()
    for folder in sorted(path for path in source.iterdir() if (path / "images").is_dir()):
        images = list_image_files(folder / "images")
        masks = list_image_files(folder / "masks") if (folder / "masks").is_dir() else []
        found.used.update(images, masks)
        if len(images) != 1 or not masks:
            found.problems.append(
                f"{folder} has {len(images)} images and {len(masks)} masks, but needs 1 and at least 1."
            )
        elif leads_outside(images[0], source):
            found.problems.append(f"{images[0]} is a link out of {source}; give the folder that it leads to.")
        else:
            try:
                instances = _join_masks(masks)
            except InputError as error:
                found.problems.append(str(error))
                continue
            label = maps / f"{folder.name}.png"
            Image.fromarray(instances).save(label)
            found.pairs[folder.name] = (images[0], label)
    return found


def _join_masks(masks: Sequence[Path]) -> np.ndarray:
    """The instance map (H, W) uint16 of binary masks, numbered in their order."""
    instances: np.ndarray | None = None
    for number, file in enumerate(masks, start=1):
        mask = read_image(file) > 0
        if instances is None:
            instances = np.zeros(mask.shape, dtype=np.uint16)
        if mask.ndim != 2 or mask.shape != instances.shape:
            raise InputError(f"{file} is {mask.shape}, but the masks of an image must be gray and of one size.")
        instances[mask & (instances == 0)] = number
    return instances


FILES = TaskFiles(
    class_names=(),
    reader=ImageFileReader,
    is_image=lambda path: path.suffix.lower() in IMAGE_SUFFIXES,
    list_images=load_images,
    inspect=lambda image, label, class_names: inspect_cells(image, label),
    prepare=prepare_microscopy,
    synthesize=synthesize_microscopy,
)
