# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which volumes there are in a folder: files, DICOM series, and files that are the channels of one image."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from swinumamba_monai.data.files import dicom_series
from swinumamba_monai.data.files.dicom_pixels import is_dicom_file
from swinumamba_monai.data.files.limits import check_file
from swinumamba_monai.data.files.volumes import is_volume, is_volume_file, volume_name
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.errors import InputError, listed

logger = logging.getLogger(__name__)

# What inference and predict put behind the name of an image.
_RESULTS = ("classes", "instances", "overlay", "outlines", "probabilities", "entropy")
# What tells a label from an image where no folder does: the whole name, or its end, as 3D Slicer and BIDS have it too.
LABEL_WORDS = "labels?|seg|segmentation|masks?|gt|dseg"
LABEL_NAME = re.compile(rf"(?:(.+)[ _.-])?(?:{LABEL_WORDS})", re.IGNORECASE)
# What folders of images are called, and those of labels.
FOLDERS = ("images?|imgs?|volumes?|scans?", "labels?|masks?|segmentations?|annotations?|ground[ _]?truths?|gt")
_IMAGE_FOLDER, _LABEL_FOLDER = (re.compile(rf"(?:{words})(?:Tr|Va|Ts)?", re.IGNORECASE) for words in FOLDERS)
# The number of a channel that nnU-Net puts behind the name of a case.
CHANNEL = re.compile(r"(.+)_(\d{4})")


def list_volumes(folder: Path, series: str | None = None, problems: list[str] | None = None) -> list[Path]:
    """The files of a folder, and its folders with DICOM files in them or below, by name.

    Where ``series`` says which of several in a folder to take, such a volume is called ``NAME/UID.dicom``.

    Args:
        folder: a folder of volumes.
        series: see :func:`~swinumamba_monai.data.files.dicom_series.choose_series`; None takes folders as they are.
        problems: gets a sentence for each folder that has no series of that name, or several; None raises the first.
    """
    volumes = sorted(filter(is_volume, folder.iterdir()))
    if series is None:
        return volumes
    chosen = []
    for volume in volumes:
        with noting(problems):
            chosen.append(_chosen(volume, series))
    if problems and not chosen:
        raise InputError(problems[0])
    return chosen


def _chosen(volume: Path, series: str) -> Path:
    found = dicom_series.find_series(volume) if volume.is_dir() else []
    if len(found) < 2:
        return volume
    (chosen,) = dicom_series.choose_series(volume, dicom_series.choose_series(volume, found, series))
    return volume / f"{chosen.key}{dicom_series.SERIES_SUFFIX}"


def find_volumes(
    path: Path, series: str | None = None, channels: int = 1, problems: list[str] | None = None
) -> list[str | tuple[str, ...]]:
    """The volumes of a file, or of a folder and all folders in it.

    Args:
        path: a file or a folder.
        series: the DICOM series to be taken: see :func:`~swinumamba_monai.data.files.dicom_series.choose_series`.
        channels: number of channels of an image; with several, files ``NAME_0000``, ``NAME_0001``, ... are those of
            one.
        problems: gets a sentence for each place that cannot be used; None raises the first.

    Returns:
        The path of each file, those of the channels of one image, and the name of each series, sorted. What inference
        wrote for one of them is left out, and named in the log, and so are the labels of others.

    Raises:
        InputError: There is neither a file nor a folder at ``path``; a folder has several series and none is chosen; a
            channel is missing.
    """
    if not path.is_dir():
        check_file(path)
        return [str(path)] if is_volume_file(path) or is_dicom_file(path) else []
    files = list(filter(is_volume_file, find_files(path)))
    is_dicom = dicom_series.is_dicom_folder(path)
    found = dicom_series.list_series(path, series, problems, bool(files)) if is_dicom else []
    written = names_of_results([volume_name(file) for file in files] + [Path(name).stem for name in found])
    results = {file: None for file in files if volume_name(file) in written}
    if results:
        names = listed(file.name for file in results)
        logger.warning("%s: %d results of earlier runs are not taken: %s", path, len(results), names)
    files = [file for file in files if file not in results]
    if labels := dict.fromkeys(_labels_among(files, [Path(name).parent for name in found])):
        logger.warning("%s: %d labels of others are not taken: %s", path, len(labels), listed(f.name for f in labels))
    grouped = _group_channels([file for file in files if file not in labels], channels, problems)
    return sorted([*grouped, *found], key=lambda name: name if isinstance(name, str) else name[0])


def _labels_among(files: Sequence[Path], series: Sequence[Path]) -> list[Path]:
    """The files that are labels of others: by their folder, beside one of images, or by their name, beside an image.

    The folders of DICOM series are images too.
    """
    images = {file.parent for file in files if not LABEL_NAME.fullmatch(volume_name(file))} | {*series}
    with_images = images | {folder.parent for folder in images if _IMAGE_FOLDER.fullmatch(folder.name)}
    names = {name for file in files for name in (volume_name(file), volume_name(file).removesuffix("_0000"))}
    labels = []
    for file in files:
        named = LABEL_NAME.fullmatch(volume_name(file))
        in_folder = _LABEL_FOLDER.fullmatch(file.parent.name) and file.parent.parent in with_images
        if in_folder or (named and (named[1] in names or file.parent in images)):
            labels.append(file)
    return labels


def case_names(names: Sequence[str]) -> dict[str, str]:
    """The name of the case for every name of an image: without nnU-Net's number of the only or first channel.

    Where several names differ in such a number alone, they are cases of their own and keep it.

    >>> case_names(["liver_0000", "amos_0507", "amos_0508"])
    {'liver_0000': 'liver', 'amos_0507': 'amos_0507', 'amos_0508': 'amos_0508'}
    """
    cases: dict[str, list[str]] = {}
    for name in names:
        match = CHANNEL.fullmatch(name)
        cases.setdefault(match[1] if match else name, []).append(name)
    return {
        name: case if len(alike) == 1 and name.endswith("_0000") else name
        for case, alike in cases.items()
        for name in alike
    }


def names_of_results(names: Sequence[str]) -> set[str]:
    """What inference calls what it writes for images of these names, all without suffix."""
    cases = {*names, *case_names(names).values()}
    return {f"{case}_{kind}" for case in cases for kind in _RESULTS}


def _group_channels(files: Sequence[Path], channels: int, problems: list[str] | None) -> list[str | tuple[str, ...]]:
    """Each file, and the files of one case together."""
    if channels == 1:
        return [str(file) for file in files]
    groups: dict[Path, dict[int, Path]] = {}
    found: list[str | tuple[str, ...]] = []
    for file in files:
        if match := CHANNEL.fullmatch(volume_name(file)):
            groups.setdefault(file.with_name(match[1]), {})[int(match[2])] = file
        else:
            found.append(str(file))
    for case, parts in groups.items():
        with noting(problems):
            if sorted(parts) != list(range(channels)):
                numbers = ", ".join(f"{number:04d}" for number in sorted(parts))
                raise InputError(
                    f"{case} has the channels {numbers}, but 0000 to {channels - 1:04d} are needed for in_channels "
                    f"{channels}; complete them."
                )
            found.append(tuple(str(parts[number]) for number in range(channels)))
    return found
