# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The volumes in one DICOM series: echoes, times and directions of slices, and slices that make one together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swinumamba_monai.errors import shown

if TYPE_CHECKING:
    import pydicom

    Headers = dict[Path, pydicom.Dataset]  # headers of files, in their order

NO_NAME = r"[^0-9A-Za-z.-]"  # what no part of a path made of a UID has
# In what the volumes of one series may differ that have slices at the same places, the plainest first.
PART_TAGS = (
    "EchoTime EchoNumbers AcquisitionNumber TemporalPositionIdentifier DiffusionBValue DiffusionGradientOrientation "
    "TriggerTime InversionTime FlipAngle ImageType AcquisitionTime"
).split()
_MOST_TAGS = 2  # number of tags that tell volumes apart together: every echo at every time
PARALLEL = 1e-2  # how far direction cosines of parallel slices may differ
# How much the distances of neighbouring slices may differ, relative to their median: positions are rounded in files.
SPACING_TOLERANCE = 0.05
# What slices agree in that are one stack although each has a series of its own, and how many they are at least.
STACK_TAGS = (
    "StudyInstanceUID FrameOfReferenceUID Modality SeriesDescription ImageOrientationPatient PixelSpacing Rows Columns"
).split()
_LEAST_STACK = 3
_PLANES = ("sagittal", "coronal", "axial")  # the plane of a slice, by the axis that its normal is next to


def grouped(group: Headers, key_of: Callable[[Path, pydicom.Dataset], Hashable]) -> dict[Hashable, Headers]:
    """The files with one key together, by the key, which is made of a file and its header."""
    parts: dict[Hashable, Headers] = {}
    for file, header in group.items():
        parts.setdefault(key_of(file, header), {})[file] = header
    return parts


def by_folder(group: Headers) -> list[Headers]:
    """The files of each folder, where all folders have slices at the same places, and no header tells them apart.

    Folders that share the slices of one stack, as a CD has them, stay together.
    """
    if len(parts_of("", group)) > 1:
        return [group]
    folders = list(grouped(group, lambda file, _: file.parent).values())
    places = [{_text(header, "ImagePositionPatient") for header in part.values()} for part in folders]
    return folders if all(place == places[0] for place in places) else [group]


def visits_of(images: Headers) -> list[set[Path]]:
    """The files that are of one study or in one folder, and so of one patient."""
    visits: list[tuple[set[str], set[Path]]] = []
    for file, header in images.items():
        names = {str(file.parent), str(getattr(header, "StudyInstanceUID", None) or file.parent)}
        first, *others = [visit for visit in visits if visit[0] & names] or [(set(), set())]
        for known, files in [*others, (names, {file})]:
            first[0].update(known)
            first[1].update(files)
        visits = [visit for visit in visits if visit not in (first, *others)] + [first]
    return [files for _, files in visits]


def join_lone_slices(
    groups: dict[tuple[int, str], Headers],
) -> tuple[dict[tuple[int, str], Headers], int, int]:
    """Make one series of slices that have a series each, as some scanners and anonymizers leave them.

    They agree in ``STACK_TAGS`` (without a study they lie in one folder), and are three or more at even distances;
    slices at one place are told apart as :func:`parts_of` does.

    Args:
        groups: files with their headers by the number of their visit and the key of their series.

    Returns:
        The groups, the joined ones under the key of their first file; how many were joined; and how many agree and are
        no stack.
    """
    alike: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for key, group in groups.items():
        file, header = next(iter(group.items()))
        if len(group) == 1 and not holds_several(header):
            study, *agreed = (_text(header, tag) for tag in STACK_TAGS)
            alike.setdefault((study or file.parent, *agreed), []).append(key)
    joined: dict[tuple[int, str], tuple[int, str]] = {}
    others = 0
    for keys in alike.values():
        stack = {file: header for key in keys for file, header in groups[key].items()}
        if all(is_stack(part) for _, part, _ in parts_of("", stack)):
            joined |= dict.fromkeys(keys, keys[0])
        elif len(keys) >= _LEAST_STACK:
            others += len(keys)
    result: dict[tuple[int, str], Headers] = {}
    for key, group in groups.items():
        result.setdefault(joined.get(key, key), {}).update(group)
    return result, len(joined), others


def is_stack(group: Headers) -> bool:
    """Whether slices, which are parallel, are three or more at even distances."""
    try:
        positions = np.array([header.ImagePositionPatient for header in group.values()], dtype=np.float64)
        way = next(map(direction_of, group.values()))
        depths = np.sort(positions @ np.cross(way[:3], way[3:]))
    except (AttributeError, TypeError, ValueError):  # without a place
        return False
    gaps = np.diff(depths)
    return len(depths) >= _LEAST_STACK and gaps.min() > 0 and not uneven(gaps)


def uneven(gaps: np.ndarray) -> bool:
    """Whether the distances of neighbouring slices differ by more than rounding."""
    typical = np.median(gaps)
    return bool(np.abs(gaps - typical).max() > SPACING_TOLERANCE * typical)


def parts_of(key: str, group: Headers, tags: Sequence[str] = PART_TAGS) -> list[tuple[str, Headers, str]]:
    """The volumes of a series.

    Args:
        key: key of the series.
        group: its files, or frames, with their headers.
        tags: names of the elements in which volumes may differ, the plainest first.

    Returns:
        For each volume its key, its files, and what tells it from the others; the series itself where it is one, or
        where nothing in the headers tells slices at one place apart. Stacks in several directions, and of several
        sizes, are volumes each.
    """
    for named in (by_size(group), by_plane(group)):
        if len(named) > 1:
            return [
                (name, files, ", ".join(filter(None, (word, words))))
                for word, part in named.items()
                for name, files, words in parts_of(f"{key}-{word.replace(' ', '')}", part, tags)
            ]
    places = [_text(header, "ImagePositionPatient") for header in group.values()]
    most = max(Counter(places).values())  # slices at one place, so as many volumes
    if most == 1 or "" in places:
        return [(key, group, "")]
    texts = {tag: [_text(header, tag) for header in group.values()] for tag in tags}
    for count in range(1, _MOST_TAGS + 1):
        for some in combinations(tags, count):
            of_files = list(zip(*(texts[tag] for tag in some)))
            if len(set(of_files)) == most and len(set(zip(of_files, places))) == len(group):
                names = {file: ", ".join(map(" ".join, zip(some, values))) for file, values in zip(group, of_files)}
                parts = grouped(group, lambda file, _, names=names: names[file])
                return [(re.sub(NO_NAME, "_", f"{key}-{name.replace(' ', '-')}"), parts[name], name) for name in parts]
    return [(key, group, "")]


def by_plane(group: Headers) -> dict[str, Headers]:
    """The files of each stack by its plane, where all directions have several slices and a plane of their own."""
    stacks = by_direction(group)
    named = {plane_of(next(iter(stack.values()))): stack for stack in stacks if len(stack) > 1}
    return named if len(named) == len(stacks) else {}


def by_direction(group: Headers) -> list[Headers]:
    """The files whose slices are parallel together; those that state no direction are with the first."""
    stacks: list[tuple[np.ndarray | None, Headers]] = []
    for file, header in group.items():
        way = direction_of(header)
        fits = (stack for first, stack in stacks if way is None or first is None or is_parallel(way, first))
        stack = next(fits, None)
        if stack is None:
            stacks.append((way, {file: header}))
        else:
            stack[file] = header
    return [stack for _, stack in stacks]


def by_size(group: Headers) -> dict[str, Headers]:
    """The files whose slices are of one size together, by columns and rows, as in ``256 x 192``."""
    return grouped(group, lambda _, header: f"{_text(header, 'Columns')} x {_text(header, 'Rows')}")


def is_parallel(way: np.ndarray, other: np.ndarray) -> bool:
    """Whether two orientations, direction cosines of rows and columns (6) as in DICOM, are one but for rounding."""
    return bool(np.abs(way - other).max() <= PARALLEL)


def direction_of(header: pydicom.Dataset) -> np.ndarray | None:
    """The direction cosines of a slice along its row and its column (6), or None."""
    try:
        way = np.asarray(header.ImageOrientationPatient, dtype=np.float64)
    except (AttributeError, TypeError, ValueError):
        return None
    return way if way.shape == (6,) else None


def plane_of(header: pydicom.Dataset) -> str:
    """Which plane a slice is in, nearly; "" where it does not say."""
    way = direction_of(header)
    return "" if way is None else _PLANES[int(np.abs(np.cross(way[:3], way[3:])).argmax())]


def holds_several(header: pydicom.Dataset) -> bool:
    """Whether a file holds several slices itself, as frames or in a mosaic."""
    try:
        frames = int(header.NumberOfFrames)
    except (AttributeError, TypeError, ValueError, OverflowError):  # not there, or no number, which reading says
        frames = 1
    return frames > 1 or "MOSAIC" in words_of(header)


def words_of(header: pydicom.Dataset) -> Sequence[str]:
    """The words of what kind of image a file is."""
    kind = getattr(header, "ImageType", None) or ()
    return (str(kind),) if isinstance(kind, str) or not isinstance(kind, Sequence) else [str(word) for word in kind]


def _text(header: pydicom.Dataset, tag: str) -> str:
    """The value of an element, or its several, as text, numbers alike however they are written; "" without one."""
    value = getattr(header, tag, "")
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    texts = []
    for one in several:
        with suppress(TypeError, ValueError):
            one = f"{round(float(one), 3):.12g}"
        texts.append(shown("" if one is None else one))
    return " ".join(texts)
