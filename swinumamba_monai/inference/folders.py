# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Where results go, so that none overwrites another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.transforms import Compose, SaveImaged

from swinumamba_monai.errors import InputError


def keep_folders(postprocessing: Compose, items: Sequence[Mapping[str, str]]) -> None:
    """Let every ``SaveImaged`` keep the folders of the images below the one that holds all of them.

    Images of one folder give results in one folder. The frames of several surgeries have the same names in each.

    Args:
        postprocessing: transforms, among which are those that save.
        items: dictionaries with the path "image", one of every image that will be saved.

    Raises:
        InputError: two images differ in their suffix alone.
    """
    root, _ = result_names([item["image"] for item in items])
    for transform in postprocessing.flatten().transforms:
        if isinstance(transform, SaveImaged):
            transform.saver.folder_layout.data_root_dir = root


def result_names(images: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What the results of images are called.

    Args:
        images: their paths.

    Returns:
        the folder that holds all images, and by name of a result, the path below that folder without suffix, the image.

    Raises:
        InputError: two images differ in their suffix alone.
    """
    sources: dict[str, str] = {}
    for image in images:
        name = os.path.splitext(image.removesuffix(".gz"))[0]  # what SaveImaged takes for the name
        if name in sources:
            raise InputError(f"{image} and {sources[name]} would give one result; rename one of them.")
        sources[name] = image
    root = os.path.commonpath([Path(name).parent for name in sources])
    return root, {os.path.relpath(name, root): image for name, image in sources.items()}
