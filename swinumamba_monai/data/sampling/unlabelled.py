# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a pretraining that needs no labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from monai.config import PathLike

from swinumamba_monai.data.datalist import SECTIONS, is_prepared, load_datalist
from swinumamba_monai.data.files.volumes import volume_path
from swinumamba_monai.data.inputs import Inputs
from swinumamba_monai.data.listing import Reader, load_images
from swinumamba_monai.errors import check_known

logger = logging.getLogger(__name__)

Image = str | tuple[str, ...]  # a path, or those of channels

HELD_OUT = 10  # every so many images of a plain folder


def load_unlabelled(
    dataset_dir: PathLike,
    section: str,
    extra_image_dir: PathLike | None = None,
    list_folder: Callable[..., Inputs] = load_images,
    reader: Reader | None = None,
    skip_bad: bool = False,
) -> Inputs:
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
            :func:`~swinumamba_monai.data.load_volumes`, which get the two below.
        reader: reader of ``LoadImage``, which reads every image first, so that bad ones are all named before the work;
            None opens nothing.
        skip_bad: leave bad ones out, instead of refusing them all.

    Raises:
        InputError: There are no such images, or a bad one and not ``skip_bad``.
    """
    check_known("section", [section], SECTIONS if is_prepared(dataset_dir) else SECTIONS[:2])
    options = {} if reader is None else {"reader": reader, "skip_bad": skip_bad}
    found = [_listed(dataset_dir, section, list_folder, options)]
    images = [_resolved(item["image"]) for item in found[0]]
    if is_prepared(dataset_dir):
        others = {
            _resolved(item["image"])
            for name in SECTIONS
            if name != section
            for item in load_datalist(dataset_dir, name, check=False, may_be_empty=True)
        }
    else:
        images, others = _split_folder(images, section)
        found[0].source = f"{dataset_dir} for {section}"
    if section == "training" and extra_image_dir is not None:
        found.append(_listed(extra_image_dir, section, list_folder, options))
        known = others.union(images)
        new = [path for item in found[1] if (path := _resolved(item["image"])) not in known]
        logger.info("%d unlabelled images, and %d of %s", len(images), len(new), extra_image_dir)
        images += new
    result = Inputs(({"image": path} for path in images), " and ".join(str(part.source) for part in found))
    for part in found:
        result.bad += part.bad
        for reason, names in part.not_taken.items():
            result.not_taken[reason] = [*result.not_taken.get(reason, ()), *names]
    return result


def _listed(path: PathLike, section: str, list_folder: Callable[..., Inputs], options: Mapping[str, object]) -> Inputs:
    """The images of a section of a prepared dataset, or all of a folder; read once by ``reader`` of the options."""
    if not is_prepared(path):
        return list_folder(path, **options)
    items = load_datalist(path, section, check=False)
    if options:
        reader = options["reader"]
        reader = reader() if isinstance(reader, type) else reader
        items.check(lambda name: reader.get_data(reader.read(name)), options["skip_bad"])
    return items


def _resolved(image: Image) -> Image:
    """The path of an image, or the paths of its channels, as those of a prepared dataset are."""
    if isinstance(image, tuple):
        return tuple(map(_resolved, image))
    return str(volume_path(image).resolve())


def _split_folder(images: list[Image], section: str) -> tuple[list[Image], set[Image]]:
    """The images of a section of a plain folder, and those of the other."""
    if len(images) < HELD_OUT:
        if section == "training":
            logger.warning("only %d images to pretrain on: the validation has to use the same", len(images))
        return images, set()
    validation = images[::HELD_OUT]
    training = [image for number, image in enumerate(images) if number % HELD_OUT]
    return (training, set(validation)) if section == "training" else (validation, set(training))
