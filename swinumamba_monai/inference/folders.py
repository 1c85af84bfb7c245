# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Where results go, so that none overwrites another and each is called as its case."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from monai.config import PathLike
from monai.data import FolderLayout
from monai.transforms import Compose, SaveImaged
from monai.utils import ensure_tuple

from swinumamba_monai.data.files.volume_listing import case_names
from swinumamba_monai.errors import InputError

_SUFFIX = re.compile(r"(\.nii)?\.gz$|\.[^.]*$", re.IGNORECASE)


class ResultLayout(FolderLayout):
    """MONAI's layout with a name for every image; other images are named as MONAI names them.

    Args:
        names: name of an image's results, below their folder, by the path of the image.
        options: options of MONAI's ``FolderLayout``.
    """

    def __init__(self, names: Mapping[str, str], **options: object) -> None:
        super().__init__(**options)
        self.names = names

    def filename(self, subject: PathLike = "subject", idx: object = None, **kwargs: object) -> PathLike:
        name = self.names.get(str(subject))
        # A suffix, because MONAI cuts one off.
        return super().filename(subject if name is None else f"{name}.image", idx, **kwargs)


def keep_folders(postprocessing: Compose, items: Sequence[Mapping[str, str | Sequence[str]]]) -> None:
    """Let every ``SaveImaged`` keep the folders of the images below the one that holds all of them.

    Images of one folder give results in one folder. The frames of several surgeries have the same names in each.

    Args:
        postprocessing: transforms, among which are those that save.
        items: dictionaries with "image", a path or those of several channels, one of every image that will be saved.

    Raises:
        InputError: two images differ in their suffix alone, or a writer cannot write the kind of file it is to write.
    """
    root, images = result_names([ensure_tuple(item["image"])[0] for item in items])
    names = {image: os.path.join(root, name) for name, image in images.items()}
    for transform in postprocessing.flatten().transforms:
        if isinstance(transform, SaveImaged):
            saver = transform.saver
            for writer in saver.writers:
                if hasattr(writer, "check_suffix"):
                    writer.check_suffix(saver.output_ext)
            old = saver.folder_layout
            saver.folder_layout = ResultLayout(
                names,
                output_dir=old.output_dir,
                postfix=old.postfix,
                extension=saver.output_ext,
                parent=old.parent,
                makedirs=old.makedirs,
                data_root_dir=root,
            )


def result_names(images: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What the results of images are called: as the images, without suffix and nnU-Net's number of the first channel.

    Args:
        images: their paths.

    Returns:
        the folder that holds all images, and by name of a result, the path below that folder without suffix, the image.

    Raises:
        InputError: two images differ in their suffix alone.
    """
    sources: dict[str, str] = {}
    for image in images:
        name = image if Path(image).is_dir() else _SUFFIX.sub("", image)
        if name in sources:
            raise InputError(f"{image} and {sources[name]} would give one result; rename one of them.")
        sources[name] = image
    root = os.path.commonpath([Path(name).parent for name in sources])
    cases = case_names(list(sources))
    return root, {os.path.relpath(cases[name], root): image for name, image in sources.items()}
