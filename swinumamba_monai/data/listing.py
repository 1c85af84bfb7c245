# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What there is to run inference on: the images, frames or volumes in a file, a folder or a prepared dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.data.datalist import DATALIST_NAME, load_datalist
from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, is_image_file
from swinumamba_monai.data.files.video import VIDEO_SUFFIXES, frame_names
from swinumamba_monai.data.files.volume_listing import find_volumes
from swinumamba_monai.data.files.volumes import VOLUME_SUFFIXES
from swinumamba_monai.errors import InputError

__all__ = ["load_frames", "load_images", "load_volumes"]


def load_images(path: PathLike) -> list[dict[str, str]]:
    """The images to run inference on.

    Args:
        path: an image file, a folder of images (its subfolders are not searched), or a prepared dataset, of which the
            test section is taken.

    Returns:
        Dictionaries with the absolute path "image", sorted by file name for a folder.

    Raises:
        InputError: There is nothing at ``path``, or no image of a kind that can be read.
    """
    return _list(path, lambda file: [str(file)] if is_image_file(file) else [], "image", IMAGE_SUFFIXES)


def load_frames(path: PathLike) -> list[dict[str, str]]:
    """The frames to run inference on.

    Args:
        path: an image or video file, a folder of both (its subfolders are not searched), or a prepared dataset, of
            which the test section is taken.

    Returns:
        Dictionaries with the name "image": the absolute path of an image, or the name of a frame of a video. Files are
        sorted by name, frames are in their order.

    Raises:
        InputError: There is nothing at ``path`` that can be read, or a video cannot be opened.
    """

    def frames(file: Path) -> list[str]:
        return [str(file)] if is_image_file(file) else frame_names(file)

    return _list(path, frames, "frame", IMAGE_SUFFIXES + VIDEO_SUFFIXES, "a frame, a video, a folder of both")


def load_volumes(
    path: PathLike, series: str | None = None, channels: int = 1
) -> list[dict[str, str | tuple[str, ...]]]:
    """The volumes to run inference on.

    Args:
        path: a file; a folder, of which all folders are searched; or a prepared dataset, of which the test section is
            taken.
        series: of DICOM series, which to take: a UID, a number, a part of the description, or "all".
        channels: of an image; see :func:`~swinumamba_monai.data.files.volume_listing.find_volumes`.

    Returns:
        Dictionaries with "image", sorted by name: the absolute path of a file, those of the
        channels of one image, or what :func:`~swinumamba_monai.data.files.dicom_series.list_series` calls a series.

    Raises:
        InputError: There is nothing at ``path`` that can be read, or several series of which none is chosen.
    """
    kinds = (f"{', '.join(VOLUME_SUFFIXES)} files or DICOM series",)
    return _list(
        path, lambda place: find_volumes(place, series, channels), "volume", kinds, whole_folder=lambda folder: True
    )


def _list(
    path: PathLike,
    names_of: Callable[[Path], list[str]],
    kind: str,
    readable: tuple[str, ...],
    wanted: str = "",
    whole_folder: Callable[[Path], bool] = lambda folder: False,
) -> list[dict[str, str]]:
    """What ``names_of`` finds in a file, or in each entry of a folder that is not hidden or itself ``whole_folder``."""
    path = Path(path)
    if (path / DATALIST_NAME).is_file():
        return [{"image": item["image"]} for item in load_datalist(path, "test", check=False)]
    if not path.exists():
        article = "an" if kind[0] in "aeiou" else "a"
        wanted = wanted or f"{article} {kind}, a folder of {kind}s"
        raise InputError(f"{path} does not exist; give {wanted} or a prepared dataset.")
    entries = sorted(path.iterdir()) if path.is_dir() and not whole_folder(path) else [path]
    items = [{"image": name} for entry in entries for name in names_of(entry.absolute())]
    if not items:
        files = f"{', '.join(readable)}{' files' if len(readable) > 1 else ''}"
        raise InputError(f"{path} has no {kind} that can be read here; use {files}.")
    return items
