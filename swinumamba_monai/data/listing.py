# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What there is to run inference on: the images, frames or volumes in a file, a folder or a prepared dataset.

Each is a list of dictionaries with "image" that knows what was passed over, and why:
:class:`~swinumamba_monai.data.inputs.Inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ensure_tuple

from swinumamba_monai.data.datalist import is_prepared, load_datalist
from swinumamba_monai.data.files.dicom_pixels import is_dicom_file
from swinumamba_monai.data.files.dicom_series import is_dicom_folder
from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, image_names, is_image_file
from swinumamba_monai.data.files.numbered import without_number
from swinumamba_monai.data.files.pixel_checks import check_channel
from swinumamba_monai.data.files.video import VIDEO_SUFFIXES, frame_names
from swinumamba_monai.data.files.volume_listing import find_volumes, names_of_results
from swinumamba_monai.data.files.volumes import VOLUME_SUFFIXES, volume_files
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.inputs import Inputs, not_taken_of, noting, refuse_or_leave_out
from swinumamba_monai.data.prepare.pictures import labels_among
from swinumamba_monai.errors import InputError

if TYPE_CHECKING:
    from swinumamba_monai.data.files.tiff_rows import TiffRows
    from swinumamba_monai.inference.blocks import BlockInference

Reader = ImageReader | type[ImageReader]
Need = Callable[[object, np.ndarray, Mapping], None]  # a check of the name, the array and the metadata of an image


def load_images(
    path: PathLike,
    reader: Reader | None = None,
    skip_bad: bool = False,
    memory: Need | None = None,
    blocks: BlockInference | None = None,
    channel: int | None = None,
) -> Inputs:
    """The images to run inference on.

    Args:
        path: an image file, a folder of images (its subfolders are not searched), or a prepared dataset, of which the
            test section is taken.
        reader: reader of ``LoadImage``, which reads every image first, so that a bad one is found before there is work
            to lose.
        skip_bad: leave bad ones out, instead of refusing them all.
        memory: refuses what was read and is too large to be predicted, such as ``MemoryNeed(...).check`` of
            :mod:`swinumamba_monai.inference.memory`.
        blocks: says by ``open`` which images are too large to be read as a whole, and checks them; they are ``large``
            in what is returned, and not in the list.
        channel: number of the channel that is looked at, from 0, which every image must have that ``reader`` reads;
            None where none is chosen.

    Returns:
        Dictionaries with the absolute path "image", sorted by file name for a folder. A TIFF stack gives one for each
        of its planes, as :func:`~swinumamba_monai.data.files.images.image_names` calls them.

    Raises:
        InputError: There is nothing at ``path``, or no image of a kind that can be read; or a bad one and not
            ``skip_bad``.
    """

    def images(file: Path) -> list[str]:
        return image_names(file) if is_image_file(file) else []

    found = _list(path, images, "image", "an image, a folder of images", IMAGE_SUFFIXES, skip_bad)
    return _checked(found, reader, skip_bad, memory, blocks, channel)


def load_frames(
    path: PathLike, reader: Reader | None = None, skip_bad: bool = False, memory: Need | None = None
) -> Inputs:
    """The frames to run inference on.

    Args:
        path: an image or video file, a folder of both (its subfolders are not searched), or a prepared dataset, of
            which the test section is taken.
        reader: the same as for :func:`load_images`; the frames of a video are decoded to count them, and not once more.
        skip_bad, memory: the same as for :func:`load_images`.

    Returns:
        Dictionaries with the name "image": the absolute path of an image, or the name of a frame of a video or of a
        plane of a TIFF stack. Files are sorted by name, frames and planes are in their order.

    Raises:
        InputError: As for :func:`load_images`, and when a video cannot be opened.
    """

    def frames(file: Path) -> list[str]:
        return image_names(file) if is_image_file(file) else frame_names(file)

    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    found = _list(path, frames, "frame", "a frame, a video, a folder of both", suffixes, skip_bad)
    return _checked(found, reader, skip_bad, memory)


def load_volumes(
    path: PathLike,
    series: str | None = None,
    channels: int = 1,
    reader: Reader | None = None,
    skip_bad: bool = False,
    memory: Need | None = None,
) -> Inputs:
    """The volumes to run inference on.

    Args:
        path: a file; a folder, of which all folders are searched; or a prepared dataset, of which the test section is
            taken.
        series: the DICOM series to be taken: a UID, a number, a part of the description, or "all".
        channels: number of channels of an image; see :func:`~swinumamba_monai.data.files.volume_listing.find_volumes`.
        reader, skip_bad, memory: the same as for :func:`load_images`.

    Returns:
        Dictionaries with "image", sorted by name: the absolute path of a file, those of the
        channels of one image, or what :func:`~swinumamba_monai.data.files.dicom_series.list_series` calls a series.

    Raises:
        InputError: As for :func:`load_images`, or several series of which none is chosen.
    """
    kinds = (f"{', '.join(VOLUME_SUFFIXES)} files or DICOM series",)
    problems: list[str] = []

    def volumes(place: Path) -> list[str | tuple[str, ...]]:
        found = find_volumes(place, series, channels, problems)
        if problems and not found:
            raise InputError(problems.pop(0))
        return found

    found = _list(path, volumes, "volume", "a volume, a folder of volumes", kinds, skip_bad, by_entry=False)
    _check_series(path, series)
    found.bad += refuse_or_leave_out(problems, skip_bad, path)
    if Path(path).is_dir() and not is_prepared(path):
        taken: set[Path] = set()
        for name in (name for item in found for name in ensure_tuple(item["image"])):
            with suppress(InputError):  # which reading it says
                taken.update(volume_files(name))
        found.not_taken = not_taken_of(
            file for file in find_files(Path(path).absolute(), pipes=True) if file not in taken
        )
    elif is_dicom_file(file := Path(path)) and (
        beside := [other.name for other in sorted(file.parent.iterdir()) if other != file and is_dicom_file(other)]
    ):
        found.not_taken["DICOM files beside it, so give the folder if they are slices of one series"] = beside
    return _checked(found, reader, skip_bad, memory)


def _check_series(path: PathLike, series: str | None) -> None:
    """Refuse to choose a series where there are none to choose from."""
    if series is None or series == "all":
        return
    if is_prepared(path):
        raise InputError(f"the series of {path} were chosen when it was prepared; leave series out.")
    if not is_dicom_folder(Path(path)):
        raise InputError(f"series chooses among DICOM series, and {path} is no folder with any; leave it out.")


def _checked(
    found: Inputs,
    reader: Reader | None,
    skip_bad: bool,
    memory: Need | None,
    blocks: BlockInference | None = None,
    channel: int | None = None,
) -> Inputs:
    """The inputs, with large ones apart and without what is bad, as far as the reader tells."""

    def open_large(name: str | tuple[str, ...]) -> TiffRows | None:
        return None if blocks is None else blocks.open(name)

    large = []
    for item in found:
        if image := open_large(item["image"]):
            image.close()
            large.append(item)
    if reader is not None:
        reader = reader() if isinstance(reader, type) else reader

        def read(name: str | tuple[str, ...]) -> None:
            if image := open_large(name):
                with image:
                    blocks.check(image)
                    check_channel(image.path, np.atleast_3d(image.read(0, 1)).shape[2], channel)
                    blocks.read_once(image)
            elif Path(ensure_tuple(name)[0]).suffix.lower() not in VIDEO_SUFFIXES:
                image, meta = reader.get_data(reader.read(name))
                check_channel(name, np.atleast_3d(image).shape[2], channel)
                if memory is not None:
                    memory(ensure_tuple(name)[0], image, meta)

        found.check(read, skip_bad)
    found.large = [item for item in found if item in large]
    found[:] = [item for item in found if item not in large]
    found.log()
    return found


def _list(
    path: PathLike,
    names_of: Callable[[Path], list[str]],
    kind: str,
    wanted: str,
    readable: tuple[str, ...],
    skip_bad: bool,
    by_entry: bool = True,
) -> Inputs:
    """What ``names_of`` finds in a file, and in a folder or, with ``by_entry``, in each of its entries."""
    path = Path(path)
    if is_prepared(path):
        items = load_datalist(path, "test", check=False)
        return Inputs(({"image": item["image"]} for item in items), f"the test section of {path}")
    if not path.exists():
        raise InputError(f"{path} does not exist; give {wanted} or a prepared dataset.")
    entries = sorted(path.iterdir()) if path.is_dir() and by_entry else [path]
    names, others, problems = [], [], []
    # The frames of a video and the planes of a stack have a result each.
    written = names_of_results([without_number(entry.stem) for entry in entries])
    results = {entry for entry in entries if entry.is_file() and without_number(entry.stem) in written}
    labels = labels_among(entries) - results
    for entry in entries:
        if entry in results or entry in labels:
            continue
        with noting(problems):
            found = names_of(entry.absolute())
            names += found
            others += [] if found else [entry] if by_entry or entry.is_file() else find_files(entry)
    inputs = Inputs(({"image": name} for name in names), path, not_taken_of(others))
    if results:
        inputs.not_taken["results of earlier runs"] = sorted(entry.name for entry in results)
    if labels:
        inputs.not_taken["labels of others"] = sorted(entry.name for entry in labels)
    inputs.bad += refuse_or_leave_out(problems, skip_bad, path)
    if problems and not inputs and not others:
        raise InputError("\n".join(problems))
    if not inputs:
        files = f"{', '.join(readable)}{' files' if len(readable) > 1 else ''}"
        there = f", but {inputs.reasons}" if path.is_dir() and inputs.reasons else ""
        raise InputError("\n".join([f"{path} has no {kind} that can be read here{there}; use {files}.", *problems]))
    return inputs
