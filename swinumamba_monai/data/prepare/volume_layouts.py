# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes whose labels are in pieces: CHAOS and TotalSegmentator, as they are downloaded."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swinumamba_monai.data.datalist import SECTION_WORDS
from swinumamba_monai.data.files.dicom_series import choose_series, find_series
from swinumamba_monai.data.files.dicom_volume import read_dicom_files
from swinumamba_monai.data.files.grids import SAME_PLACE, corners_apart
from swinumamba_monai.data.files.images import read_classes
from swinumamba_monai.data.files.label_map import LabelMap, select_classes, simple_name
from swinumamba_monai.data.files.volume_writing import write_volume
from swinumamba_monai.data.files.volumes import read_volume_label
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.errors import InputError, explained, listed

# The gray values of CHAOS's organs in MRI, each with those around it.
_CHAOS_ORGANS = {"liver": (55, 70), "right kidney": (110, 135), "left kidney": (175, 200), "spleen": (240, 255)}
_CHAOS_SEQUENCES = ("T2SPIR", "InPhase", "OutPhase")  # sequences, of which the first that there is is taken
_TOTALSEGMENTATOR_IMAGES = ("ct.nii.gz", "mri.nii.gz")  # the last that there is counts
MASKS = "segmentations"  # TotalSegmentator's folder of them, beside an image


def find_chaos(
    source: Path, made: Path, given: LabelMap | None, series: str | None = None
) -> tuple[FoundPairs, LabelMap] | None:
    """The MRI of CHAOS: ``MR/PATIENT/SEQUENCE`` with DICOM files and a ``Ground`` of a PNG file for every slice.

    Args:
        source: a folder above ``MR``.
        made: folder that the label volumes are written into.
        given: the classes; by default the four organs.
        series: the sequence, T2SPIR, InPhase or OutPhase; by default the first of these that there is.

    Returns:
        The pairs, with labels that are classes, and the classes; None for another layout.
    """
    grounds = sorted({file.parent for file in find_files(source) if file.parent.name == "Ground"})
    if not grounds:
        return None
    found = FoundPairs("CHAOS, a folder a patient with DICOM files and PNG labels", source, made=made)
    folders = {
        (sequence, ground): place
        for ground in grounds
        if "CT" not in ground.relative_to(source).parts
        for sequence in _CHAOS_SEQUENCES
        for place in (ground.with_name("DICOM_anon"), ground.with_name("DICOM_anon") / sequence)
        if place.is_dir() and sequence in (ground.parent.name, place.name)
    }
    there = [sequence for sequence in _CHAOS_SEQUENCES if any(sequence == key for key, _ in folders)]
    wanted = there[:1] if series is None else [one for one in there if one.lower() == str(series).lower()]
    if not wanted:
        raise InputError(f"{source} has no MRI of that series; give --series {' or '.join(there or _CHAOS_SEQUENCES)}.")
    if others := [sequence for sequence in there if sequence not in wanted]:
        found.warnings.append(f"{wanted[0]} alone is used; --series takes {' or '.join(others)} instead.")
    if any("CT" in ground.relative_to(source).parts for ground in grounds):
        found.warnings.append("the CT volumes of CHAOS are left out.")
    organs = LabelMap.of_names(["background", *_CHAOS_ORGANS])
    numbers = organs if given is None else _by_name(_CHAOS_ORGANS, given)
    found.used.update(grounds, folders.values())
    made.mkdir()
    for (sequence, ground), place in folders.items():
        if sequence not in wanted:
            continue
        name = f"chaos_{ground.parents[1].name}_{sequence}"
        with noting(found.problems):
            ids, affine = _read_ground(ground, place)
            write_volume(made / f"{name}.nii.gz", numbers.to_classes(ids, ground), affine)
            found.pairs[name] = (place, made / f"{name}.nii.gz")
    return found, LabelMap.of_names((given or organs).names)


def find_totalsegmentator(
    source: Path, made: Path, given: LabelMap | None, classes: Sequence[str]
) -> tuple[FoundPairs, LabelMap] | None:
    """TotalSegmentator's datasets, as :func:`find_chaos`: a folder a subject, with an image and ``segmentations``.

    Args:
        source: the folder of the subjects.
        made: folder that the label volumes are written into.
        given: the classes, by the names of structures; by default ``classes``, or all structures where one lacks.
        classes: the paper's.
    """
    subjects = [folder for folder in sorted(source.iterdir()) if (folder / MASKS).is_dir()]
    if not subjects:
        return None
    images = {image.parent: image for name in _TOTALSEGMENTATOR_IMAGES for image in sorted(source.glob(f"*/{name}"))}
    structures = sorted({file.name for folder in subjects for file in (folder / MASKS).glob("*.nii.gz")})
    names = [name.removesuffix(".nii.gz") for name in structures]
    available = LabelMap.of_names(["background", *names])
    labels = _by_name(names, given) if given else select_classes(available, classes) or available
    found = FoundPairs("TotalSegmentator, a folder a subject with a mask for each structure", source, made=made)
    first, last = _TOTALSEGMENTATOR_IMAGES
    if both := [folder for folder in subjects if (folder / first).is_file() and (folder / last).is_file()]:
        found.warnings.append(f"of {len(both)} subjects that have both, {last} is taken, and not {first}.")
    wanted = {number for ids in labels.ids[1:] for number in ids}
    found.used |= {*subjects, *images, source / "meta.csv"}
    found.problems += [
        f"{images[folder]} has no {MASKS} beside it." for folder in sorted(images.keys() - set(subjects))
    ]
    made.mkdir()
    for folder in subjects:
        if folder not in images:
            found.problems.append(f"{folder} has no {' or '.join(_TOTALSEGMENTATOR_IMAGES)}.")
            continue
        label = made / f"{folder.name}.nii.gz"
        with noting(found.problems):
            masks = {number: read_volume_label(folder / MASKS / structures[number - 1]) for number in wanted}
            ids, affine = next(iter(masks.values()))
            ids = np.zeros_like(ids)
            for number, (mask, place) in masks.items():
                if mask.shape != ids.shape or corners_apart(affine, place, ids.shape) > SAME_PLACE:
                    raise InputError(f"{folder} has masks on several grids; replace {structures[number - 1]}.")
                ids[mask > 0] = number
            write_volume(label, labels.to_classes(ids, folder), affine)
            found.pairs[folder.name] = (images[folder], label)
    found.split = _read_meta(source / "meta.csv", found)
    return found, LabelMap.of_names(labels.names)


def _by_name(structures: Sequence[str], given: LabelMap) -> LabelMap:
    """The map of numbers from 1 on, in the order of ``structures``, to the classes of these names."""
    selected = select_classes(LabelMap.of_names(["background", *structures]), given.names)
    if selected is None:
        known = {simple_name(name) for name in structures}
        unknown = [name for name in given.names[1:] if simple_name(name) not in known]
        raise InputError(
            f"the label map has {listed(unknown)}, which is no structure of this dataset, where names count; it has "
            f"{listed(structures, 5)}."
        )
    return selected


def _read_ground(ground: Path, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the organs on the grid of a series; slices and pictures go by the numbers in their names."""
    files = sorted(choose_series(place, find_series(place))[0].files, key=_numbers_in)
    pictures = sorted(ground.glob("*.png"), key=_numbers_in)
    if len(pictures) != len(files):
        raise InputError(f"{ground} has {len(pictures)} PNG files for {len(files)} slices; complete them.")
    planes = []
    for picture in pictures:
        gray = read_classes(picture)
        plane = np.zeros(gray.shape, np.uint8)
        for number, (low, high) in enumerate(_CHAOS_ORGANS.values(), start=1):
            plane[(gray >= low) & (gray <= high)] = number
        if (gray[plane == 0] != 0).any():
            raise InputError(f"{picture} has gray values that are no organ of CHAOS; replace it.")
        planes.append(plane)
    return read_dicom_files(place, files, planes)


def _numbers_in(file: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", file.stem)], file.name


def _read_meta(path: Path, found: FoundPairs) -> dict[str, list[str]]:
    """The sections that TotalSegmentator's table gives, of the subjects that there are."""
    if not path.is_file():
        return {}
    problem = explained(f"{path} cannot be read", "save it in UTF-8, with semicolons between its columns")
    with problem, path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    if not all({"image_id", "split"} <= row.keys() for row in rows):
        found.warnings.append(f"{path} has no columns image_id and split between semicolons, so it divides nothing.")
    split: dict[str, list[str]] = {}
    for row in rows:
        section = SECTION_WORDS.get(str(row.get("split")))
        if section and row.get("image_id") in found.pairs:
            split.setdefault(section, []).append(row["image_id"])
    return split
