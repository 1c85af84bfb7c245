# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a pretraining that needs no labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.data.datalist import DATALIST_NAME, SECTIONS, load_datalist
from swinumamba_monai.data.files.volumes import volume_path
from swinumamba_monai.data.listing import load_images
from swinumamba_monai.errors import InputError

logger = logging.getLogger(__name__)

Image = str | tuple[str, ...]  # a path, or those of channels

HELD_OUT = 10  # every so many images of a plain folder


def load_unlabelled(
    dataset_dir: PathLike,
    section: str,
    extra_image_dir: PathLike | None = None,
    list_folder: Callable[[PathLike], Sequence[dict[str, str]]] = load_images,
) -> list[dict[str, str]]:
    """The images of one section, without labels: dictionaries with the absolute path "image".

    Of a plain folder every tenth image is the validation section. One with fewer than ten images is validated on what
    it is trained on, which a warning says.

    Args:
        dataset_dir: a prepared dataset, of which the section is taken, or a folder of images.
        section: "training" or "validation".
        extra_image_dir: folder of further images (or another prepared dataset, of which the training section is
            taken) for "training". Images that the datalist of ``dataset_dir`` names are left out: what it validates
            and tests on is not trained on, not even without labels.
        list_folder: finds the images of a plain folder: :func:`~swinumamba_monai.data.load_images` or
            :func:`~swinumamba_monai.data.load_volumes`.

    Raises:
        InputError: There are no such images.
    """
    if _is_prepared(dataset_dir):
        images = _section(dataset_dir, section)
        others = {path for name in SECTIONS if name != section for path in _section(dataset_dir, name, required=False)}
    else:
        images, others = _split_folder(_folder(dataset_dir, list_folder), section)
    if section == "training" and extra_image_dir is not None:
        prepared = _is_prepared(extra_image_dir)
        extra = _section(extra_image_dir, section) if prepared else _folder(extra_image_dir, list_folder)
        known = others.union(images)
        new = [path for path in extra if path not in known]
        logger.info("%d unlabelled images, and %d of %s", len(images), len(new), extra_image_dir)
        images += new
    return [{"image": path} for path in images]


def _is_prepared(folder: PathLike) -> bool:
    return (Path(folder) / DATALIST_NAME).is_file()


def _folder(path: PathLike, list_folder: Callable[[PathLike], Sequence[dict[str, str]]]) -> list[Image]:
    return [_resolved(item["image"]) for item in list_folder(path)]


def _resolved(image: Image) -> Image:
    """The path of an image, or the paths of its channels, as those of a prepared dataset are."""
    if isinstance(image, tuple):
        return tuple(map(_resolved, image))
    return str(volume_path(image).resolve())


def _section(dataset_dir: PathLike, section: str, required: bool = True) -> list[Image]:
    try:
        return [item["image"] for item in load_datalist(dataset_dir, section, check=False)]
    except InputError:
        if required:
            raise
        return []


def _split_folder(images: list[Image], section: str) -> tuple[list[Image], set[Image]]:
    """The images of a section of a plain folder, and those of the other."""
    if len(images) < HELD_OUT:
        if section == "training":
            logger.warning("only %d images to pretrain on: the validation has to use the same", len(images))
        return images, set()
    validation = images[::HELD_OUT]
    training = [image for number, image in enumerate(images) if number % HELD_OUT]
    return (training, set(validation)) if section == "training" else (validation, set(training))
