# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which DICOM files of a folder belong together, and what the series are called."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from swinumamba_monai.data.files import dicom_parts
from swinumamba_monai.data.files.dicom_aside import across_stacks, copies_in, no_scans, of_another_size, why_no_image
from swinumamba_monai.data.files.dicom_frames import Frame, volumes_in
from swinumamba_monai.data.files.dicom_pixels import has_pydicom, is_dicom_file, read_header
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.errors import InputError, listed, log_once, shown

if TYPE_CHECKING:
    import pydicom

    from swinumamba_monai.data.files.dicom_parts import Headers

logger = logging.getLogger(__name__)

_TAGS = "SOPClassUID SOPInstanceUID SeriesInstanceUID SeriesNumber NumberOfFrames ImagePositionPatient".split()
_TAGS += [*dicom_parts.STACK_TAGS, *dicom_parts.PART_TAGS]

SERIES_SUFFIX = ".dicom"
_MAX_LISTED = 8
_NO_UID = "none"


@dataclass(frozen=True)
class Series:
    """The files of one series.

    Attributes:
        key: its UID, without what no name of a file can hold, and which part of it this is.
        files: sorted by path; broken ones of the same folder are among them.
        number: number that the scanner gave it, or "".
        description: what the scanner called it, or "".
        frames: frames of this volume, of files that hold several; None for all.
    """

    key: str
    files: tuple[Path, ...]
    number: str = ""
    description: str = ""
    frames: frozenset[Frame] | None = None

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    def __str__(self) -> str:
        count = f"{len(self.files)} files" if self.frames is None else f"{len(self.frames)} frames"
        return f"{self.number or '-'} '{self.description}' ({count}, {self.key})"

    def is_called(self, wanted: str) -> bool:
        """Whether ``wanted`` is the UID or the number, or is in the description."""
        return wanted in (self.key, self.number) or wanted.lower() in self.description.lower()


def is_dicom_folder(folder: Path) -> bool:
    """Whether there is a DICOM file in a folder or below."""
    return folder.is_dir() and any(map(is_dicom_file, find_files(folder)))


def holds_volume(file: Path) -> bool:
    """Whether a file with the suffix ``.dcm`` holds all slices of a volume itself, or a segmentation."""
    if file.suffix.lower() != ".dcm" or not has_pydicom or not is_dicom_file(file):
        return False
    try:
        header = read_header(file, ("NumberOfFrames", "ImageType", "Modality"))
        return dicom_parts.holds_several(header) or str(header.get("Modality")) == "SEG"
    except Exception:  # pydicom has no common class for a broken file
        return False


def find_series(folder: Path) -> list[Series]:
    """The series of images in a folder and below; what is none is set aside, by name, in the log.

    A series with several slices at one place is taken apart by folder, echo, time or the like, into one for each;
    slices that have a series each, and are a stack together, become one.

    Set aside are copies of a file in its folder, files without pixels (presentation states, reports, a DICOMDIR),
    segmentations and doses; and where others are left in a study or a folder, secondary captures, localizers, and
    series of slices in other directions than those of a stack.

    Args:
        folder: the folder; other files in it are passed over.

    Returns:
        The series by folder and number; none where there are no images.

    Raises:
        InputError: pydicom is not installed.
    """
    files = [file for file in find_files(folder) if is_dicom_file(file)]
    if files and not has_pydicom:
        raise InputError(f"{folder} holds DICOM files, which need pydicom; install swinumamba-monai[dicom].")
    states = (file.stat() for file in files)
    return list(_find_series(folder, tuple((f, state.st_size, state.st_mtime_ns) for f, state in zip(files, states))))


@lru_cache(maxsize=4)  # the headers of all slices are read, and a series is looked for whenever a volume of it is
def _find_series(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> tuple[Series, ...]:
    """:func:`find_series`; sizes and times tell the files from those before them of the same names."""
    images, aside, broken = _read_headers([file for file, *_ in files])
    aside |= copies_in(images)
    visits = dicom_parts.visits_of(_without(images, aside))
    for visit in visits:
        aside |= no_scans({file: images[file] for file in visit})
    groups, joined, alike = dicom_parts.join_lone_slices(_by_uid(_without(images, aside), visits))
    if joined:
        _warn(f"{folder}: {joined} slices with a SeriesInstanceUID each are put together into stacks")
    if alike:
        _warn(
            f"{folder}: {alike} slices with a SeriesInstanceUID each agree, but are no stack: they lie at uneven "
            "distances, as if some were missing, or two at one place"
        )
    for group in groups.values():
        aside |= of_another_size(group)
    for visit in visits:
        aside |= across_stacks([group for group in groups.values() if next(iter(group)) in visit])
    if aside:
        names = listed((f"{file.name} ({reason})" for file, reason in aside.items()), _MAX_LISTED)
        _warn(f"{folder}: {len(aside)} of {len(files)} DICOM files are set aside: {names}")
    series = [
        one
        for (_, key), group in groups.items()
        if (kept := _without(group, aside))
        for whole in dicom_parts.by_folder(kept)
        for one in _series(key, whole, broken)
    ]
    places = {file.parent for one in series for file in one.files}
    for place in sorted({file.parent for file in broken} - places):
        series.append(Series(_NO_UID, tuple(file for file in broken if file.parent == place)))
    order = sorted(series, key=lambda one: (one.folder, len(one.number), one.number, one.key, one.files))
    return tuple(_with_names(order))


def _read_headers(files: Sequence[Path]) -> tuple[Headers, dict[Path, str], list[Path]]:
    """The headers of images, what the other files are, and which cannot be read."""
    images: Headers = {}
    others: dict[Path, str] = {}
    broken: list[Path] = []
    for file in files:
        try:
            header = read_header(file, _TAGS)
            for tag in _TAGS:
                getattr(header, tag, None)
            if reason := why_no_image(header):
                others[file] = reason
            else:
                images[file] = header
        except Exception:  # pydicom has no common class for a broken file; reading it says what is wrong
            broken.append(file)
    return images, others, broken


def _without(images: Headers, aside: Container[Path]) -> Headers:
    return {file: header for file, header in images.items() if file not in aside}


def _by_uid(images: Headers, visits: Sequence[set[Path]]) -> dict[tuple[int, str], Headers]:
    """The files of each series, by the number of their visit where that tells series apart, and by their UID."""
    visit_of = {file: number for number, visit in enumerate(visits) for file in visit}

    def key_of(file: Path, header: pydicom.Dataset) -> tuple[int, str]:
        key = _key(header)  # which two patients share where somebody made all alike, or took them out
        tells = key == _NO_UID or getattr(header, "StudyInstanceUID", None)
        return visit_of[file] if tells else 0, key

    return dicom_parts.grouped(images, key_of)


def _with_names(series: Sequence[Series]) -> list[Series]:
    """The series, with a number behind the key where several of one key have their files below one folder."""
    seen: Counter[tuple[Path, str]] = Counter()
    named = []
    for one in series:
        seen[one.folder, one.key] += 1
        count = seen[one.folder, one.key]
        named.append(one if count == 1 else replace(one, key=f"{one.key}-{count}"))
    return named


def choose_series(folder: Path, found: Sequence[Series], wanted: str | None = None) -> list[Series]:
    """The series of a folder that are asked for.

    Args:
        folder: the folder that the sentence names.
        found: its series.
        wanted: a UID, a number, a part of the description, or "all"; None where there is one alone.

    Raises:
        InputError: There are several and none is asked for, or none of that name; they are listed.
    """
    wanted = None if wanted is None else str(wanted)
    chosen = [one for one in found if wanted in (None, "all") or one.is_called(wanted)]
    if chosen and (wanted is not None or len(chosen) == 1):
        return chosen
    if not found:
        raise InputError(f"{folder} has no DICOM file of an image; give a NIfTI file or the folder of a DICOM series.")
    series = listed(found, _MAX_LISTED)
    none = f", but none is {shown(wanted)}" if wanted is not None else ""
    raise InputError(
        f"{folder} has slices of {len(found)} series: {series}{none}; choose with --series, by number, UID or a "
        "part of the name, or take --series all."
    )


def list_series(
    folder: Path, wanted: str | None = None, problems: list[str] | None = None, beside_others: bool = False
) -> list[str]:
    """What the series in a folder and below are called, for :func:`find_named`.

    A series that is alone in its folder is called after it, ``FOLDER.dicom``, and one of several ``FOLDER/UID.dicom``:
    with a suffix, because writers cut names at the last dot. Beside other volumes it is ``FOLDER/FOLDER.dicom``, so
    that results are in one folder. These are texts, as MONAI's ``LoadImage`` wants them.

    Args:
        folder: a folder with DICOM files, or with folders of them.
        wanted: see :func:`choose_series`; where folders have a series each, None takes all of them.
        problems: gets a sentence for each folder of which no series is chosen; None raises the first.
        beside_others: whether ``folder`` holds volumes in files too.

    Raises:
        InputError: as :func:`choose_series`.
    """
    found = find_series(folder)
    names = []
    kept = found if wanted is None else choose_series(folder, found, wanted)
    for place, of_place in groupby(kept, lambda one: one.folder):  # by which series are sorted
        group = list(of_place)
        below = [one for one in found if one.folder.is_relative_to(place)]
        with noting(problems):
            chosen = group if wanted is not None else choose_series(place, group)
            own = place / place.name if beside_others and place == folder else place
            names += [f"{own if len(below) == 1 else place / one.key}{SERIES_SUFFIX}" for one in chosen]
    return names


def find_named(path: Path) -> Series:
    """The series of a folder, or the one of several, that :func:`list_series` calls so; else an InputError."""
    if path.is_dir():
        return choose_series(path, find_series(path))[0]
    key = path.name.removesuffix(SERIES_SUFFIX)
    if (folder := path.with_name(key)).is_dir():
        return choose_series(folder, find_series(folder))[0]
    found = find_series(path.parent)
    if key == path.parent.name and len(found) == 1:
        return found[0]
    alike = [one for one in found if one.key == key]  # a copy in a folder below has its key
    return choose_series(path, [one for one in alike if one.folder == path.parent] or alike)[0]


def is_series_there(path: Path) -> bool:
    """Whether there still is the folder of a series that :func:`list_series` calls so; its files are not read."""
    folder, place = path.with_name(path.name.removesuffix(SERIES_SUFFIX)), path.parent
    if folder.is_dir() or not place.is_dir():
        return folder.is_dir()
    return folder.name == place.name or any(map(is_dicom_file, place.iterdir()))


def _warn(sentence: str) -> None:
    log_once(logger, logging.WARNING, sentence)  # a series is looked for whenever it is read


def _series(name: str, whole: Headers, broken: Sequence[Path]) -> Iterator[Series]:
    """The volumes of what one name is given to, each as a series."""
    parts = [(key, group, words, None) for key, group, words in dicom_parts.parts_of(name, whole)]
    if all(map(dicom_parts.holds_several, whole.values())) and (volumes := volumes_in(name, whole)):
        parts = [
            (key, {file: whole[file] for file in sorted({file for file, _ in frames})}, words, frames)
            for key, frames, words in volumes
        ]
    for key, group, words, frames in parts:
        files = set(group)
        files |= {file for file in broken if file.parent in {one.parent for one in group}}
        first = next(iter(group.values()))
        number, text = (shown(getattr(first, tag, None) or "") for tag in ("SeriesNumber", "SeriesDescription"))
        description = ", ".join(part for part in (text, words) if part)
        yield Series(key, tuple(sorted(files)), number, description, frames)


def _key(header: pydicom.Dataset) -> str:
    """The UID as a part of a path that cannot lead anywhere else."""
    text = re.sub(dicom_parts.NO_NAME, "_", str(getattr(header, "SeriesInstanceUID", None) or _NO_UID))
    return text[:64].lstrip(".") or _NO_UID
