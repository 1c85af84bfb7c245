# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The files of one DICOM series that are copies, and the volumes in it: echoes and times have slices at one place."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from swinumamba_monai.errors import shown

if TYPE_CHECKING:
    import pydicom

NO_NAME = r"[^0-9A-Za-z.-]"  # what no part of a path made of a UID has
# In what the volumes of one series may differ that have slices at the same places, the plainest first.
PART_TAGS = (
    "EchoTime EchoNumbers AcquisitionNumber TemporalPositionIdentifier DiffusionBValue TriggerTime ImageType".split()
)


def copies_in(images: dict[Path, pydicom.Dataset]) -> dict[Path, str]:
    """Files that are the same as one before, to the last byte, in the same folder."""
    copies: dict[Path, str] = {}
    first: dict[tuple[Path, str], list[Path]] = {}
    for file, header in images.items():
        alike = first.setdefault((file.parent, str(getattr(header, "SOPInstanceUID", ""))), [])
        if same := next((one for one in alike if filecmp.cmp(one, file, shallow=False)), None):
            copies[file] = f"a copy of {same.name}"
        else:
            alike.append(file)
    return copies


def parts_of(key: str, group: dict[Path, pydicom.Dataset]) -> list[tuple[str, dict[Path, pydicom.Dataset], str]]:
    """The volumes of a series.

    Args:
        key: key of the series.
        group: its files with their headers.

    Returns:
        For each volume its key, its files, and what tells it from the others; the series itself where it is one, or
        where nothing in the headers tells slices at one place apart.
    """
    if _has_places_once(group):
        return [(key, group, "")]
    for tag in PART_TAGS:
        parts: dict[str, dict[Path, pydicom.Dataset]] = {}
        for file, header in group.items():
            parts.setdefault(_text(getattr(header, tag, "")), {})[file] = header
        if len(parts) > 1 and all(map(_has_places_once, parts.values())):
            return [
                (re.sub(NO_NAME, "_", f"{key}-{tag}-{value}"), part, f"{tag} {value}") for value, part in parts.items()
            ]
    return [(key, group, "")]


def _has_places_once(group: dict[Path, pydicom.Dataset]) -> bool:
    places = [_text(getattr(header, "ImagePositionPatient", "")) for header in group.values()]
    return len(set(places)) == len(places) or "" in places


def _text(value: object) -> str:
    """A value or several of a header as text, numbers alike however they are written."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    texts = []
    for one in several:
        with suppress(TypeError, ValueError):
            one = f"{round(float(one), 3):g}"
        texts.append(shown("" if one is None else one))
    return " ".join(texts)
