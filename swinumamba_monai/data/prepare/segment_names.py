# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Label volumes that call their numbers by names themselves: segments of 3D Slicer and of DICOM.

Tools number segments in the order in which they were drawn, so that one organ has another number in the next file. A
name that is a class counts, therefore, whatever its number is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from swinumamba_monai.data.files.label_map import LabelMap, select_classes, simple_name
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.data.prepare.layouts import read_dataset_json
from swinumamba_monai.errors import InputError, listed, shown

_BACKGROUND = "background"


Names = Mapping[str, Mapping[int, str]]  # for each pair what its label calls its numbers, as names_of_numbers reads it


def classes_of(named: Names, source: Path, classes: Sequence[str]) -> LabelMap | None:
    """The classes that all labels of a dataset together name, numbered as they come.

    Args:
        named: the names in the labels.
        source: folder of the dataset; a ``dataset.json`` with labels in it counts more.
        classes: the paper's, whose order is kept where the labels name just these.

    Returns:
        The classes; None where a label has no names, or ``dataset.json`` has some.
    """
    if read_dataset_json(source).get("labels") or not named or not all(named.values()):
        return None
    names = {simple_name(name): shown(name) for of_label in named.values() for name in of_label.values()}
    names.pop(_BACKGROUND, None)
    available = LabelMap.of_names([_BACKGROUND, *names.values()])
    are_known = len(available.names) == len(classes) and select_classes(available, classes) is not None
    return LabelMap.of_names(classes) if are_known else available


def maps_of(found: FoundPairs, named: Names, labels: LabelMap) -> dict[str, LabelMap]:
    """The label map of each label that names its numbers, and means other classes by them than the label map does.

    Args:
        found: the pairs, by whose names the maps are; a label of which some names are those of other classes than
            their numbers, and some of none, becomes a problem. It gets warnings of what names and numbers say.
        named: the names in the labels.
        labels: the classes, and the numbers of labels without names.
    """
    maps: dict[str, LabelMap] = {}
    taken: dict[str, str] = {}
    pairs, found.pairs = found.pairs, {}
    for name, (image, label) in pairs.items():
        with noting(found.problems):
            own = _map_by_names(labels, named[name], label)
            found.pairs[name] = image, label
            if own is not labels:
                maps[name] = own
                continue
            taken |= _taken_by_number(labels, named[name])
    if maps:
        first = next(iter(maps))
        numbers = listed([f"{number} {shown(name)}" for number, name in sorted(named[first].items())], 5)
        found.warnings.append(
            f"{len(maps)} labels number their segments otherwise than the label map; the names of their segments "
            f"count, as in {found.pairs[first][1].name}: {numbers}."
        )
    if taken:
        numbers = listed([f"'{name}' for {of_class}" for name, of_class in taken.items()], 5)
        found.warnings.append(f"segments whose names are no classes are taken by their numbers: {numbers}.")
    return maps


def _numbers_of(labels: LabelMap) -> dict[int, int]:
    return {number: index for index, ids in enumerate(labels.ids) for number in ids}


def _map_by_names(labels: LabelMap, names: Mapping[int, str], label: Path) -> LabelMap:
    """The map by the names of a label; ``labels`` itself where no name is that of another class than its number's."""
    class_of = {simple_name(name): index for index, name in enumerate(labels.names)}
    of_number = _numbers_of(labels)
    named = {number: class_of.get(simple_name(name)) for number, name in names.items()}
    moved = [number for number, index in named.items() if index is not None and of_number.get(number) != index]
    if not moved:
        return labels
    if unknown := [shown(names[number]) for number, index in named.items() if index is None]:
        raise InputError(
            f"{label} calls its number {moved[0]} '{shown(names[moved[0]])}', which the label map does not, so that "
            f"names count in it, but {listed(unknown)} in it is no class; rename or remove it, or add it to the map."
        )
    ids = [tuple(number for number, index in named.items() if index == place) for place in range(len(labels.names))]
    ids[0] = (0, *(number for number in ids[0] if number))
    return LabelMap(labels.names, tuple(ids), tuple(n for n in labels.ignored if n not in names), labels.regions)


def _taken_by_number(labels: LabelMap, names: Mapping[int, str]) -> dict[str, str]:
    """The names that are no class, each with the class of its number."""
    known = {simple_name(name) for name in labels.names}
    return {
        shown(name): labels.names[index]
        for number, name in names.items()
        if (index := _numbers_of(labels).get(number)) is not None and simple_name(name) not in known
    }
