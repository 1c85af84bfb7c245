# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which number in a label file is which class: the label map."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.config import PathLike

from swinumamba_monai.errors import InputError, explained, listed, shown

# The classes of the paper's AbdomenMRI and Endoscopy data, in its order; 0 is background.
ABDOMEN_CLASSES = (
    *("background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava"),
    *("right adrenal gland", "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"),
)
ENDOSCOPY_CLASSES = (
    *("background", "large needle driver", "prograsp forceps", "monopolar curved scissors", "cadiere forceps"),
    *("bipolar forceps", "vessel sealer", "drop-in ultrasound probe"),
)

_EXAMPLE = 'write {"background": 0, "liver": 1, ...}'

# The class of what is neither learnt nor scored, and its name, which is nnU-Net's.
IGNORED, IGNORE_NAME = 255, "ignore"

# Names that datasets use for the same organ, as simple_name makes them.
_SYNONYMS = {
    "arota": "aorta",  # as AMOS 2022 writes it
    "postcava": "inferiorvenacava",
    "ivc": "inferiorvenacava",
    "oesophagus": "esophagus",
    "rightadrenal": "rightadrenalgland",
    "leftadrenal": "leftadrenalgland",
}


@dataclass(frozen=True)
class LabelMap:
    """The classes of a dataset and the numbers that its label files use for them.

    Attributes:
        names: the name of every class, background first; the position is the number that the network predicts.
        ids: numbers in the label files that mean a class, for every class.
        ignored: the numbers of what is neither learnt nor scored; :data:`IGNORED` where there are classes already.
        regions: names of unions of classes, with their numbers, which are scored instead of the classes.
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()
    regions: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @classmethod
    def of_names(cls, names: Iterable[str]) -> LabelMap:
        """The map of files whose numbers are the classes themselves; the name "ignore" is :data:`IGNORED`."""
        names = tuple(names)
        kept = tuple(name for name in names if name != IGNORE_NAME)
        return cls(kept, tuple((index,) for index in range(len(kept))), (IGNORED,) if IGNORE_NAME in names else ())

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names for :meth:`of_names` of files that have the classes."""
        return (*self.names, IGNORE_NAME) if self.ignored else self.names

    @property
    def is_identity(self) -> bool:
        """Whether the numbers in the files are the classes themselves."""
        plain = LabelMap.of_names(self.all_names)
        return (self.ids, self.ignored) == (plain.ids, plain.ignored)

    def to_classes(self, label: np.ndarray, name: object) -> np.ndarray:
        """The classes, uint8, of the numbers of a label file, :data:`IGNORED` where nothing is known.

        Args:
            label: whole numbers, of any shape, as the file has them.
            name: path of the file, for the sentence.

        Raises:
            InputError: a number of ``label`` is not in the map.
        """
        found = np.unique(label)
        class_of = {number: index for index, ids in enumerate(self.ids) for number in ids}
        class_of |= dict.fromkeys(self.ignored, IGNORED)
        if unknown := [number for number in found.tolist() if number not in class_of]:
            known = ", ".join(map(str, sorted(class_of)))
            raise InputError(
                f"{name} has the label ids {listed(unknown, 5)}, but the classes have {known}; give them a class, or "
                'list them under "background", in a label map, --label_map of prepare.'
            )
        classes = np.array([class_of[number] for number in found.tolist()], dtype=np.uint8)
        return classes[np.searchsorted(found, label)]


def read_label_map(path: PathLike) -> LabelMap:
    """Read a label map from a JSON file.

    The class numbers follow the order in the file, background first. Three forms are known: a name with its number in
    the label files, ``{"background": 0, "liver": 1}`` as in nnU-Net v2; with a list of numbers that become one class,
    ``{"background": [0, 14, 15], "kidneys": [2, 3]}``; a number with its name, ``{"0": "background", "1": "liver"}``,
    as in the Medical Segmentation Decathlon. A file with a key "labels" (any ``dataset.json``) is read from there. The
    name "ignore" is nnU-Net's: what has its numbers is neither learnt nor scored.

    Beside "labels" there may be nnU-Net's "regions_class_order": then the names may share numbers, as regions that
    overlap. What each combination of them has for itself is a class, and the regions are scored.

    Raises:
        InputError: The file is missing or of another form, names no background, or uses a name or number twice.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give the JSON file of the label map.")
    with explained(f"{path} is no label map", _EXAMPLE):
        content = json.loads(path.read_bytes(), object_pairs_hook=each_once)
        return parse_label_map(content.get("labels", content), path, "regions_class_order" in content)


def as_label_map(given: LabelMap | PathLike | None) -> LabelMap | None:
    """A label map, or that of the JSON file given in its place, as :func:`read_label_map` reads it; None for None."""
    return given if given is None or isinstance(given, LabelMap) else read_label_map(given)


def parse_label_map(content: Mapping[str, object], source: object, with_regions: bool = False) -> LabelMap:
    """The map that a dictionary in one of the forms of :func:`read_label_map` stands for.

    Args:
        content: names with numbers, or numbers with names.
        source: file that it comes from, which sentences about it name.
        with_regions: whether names may share numbers, as regions that overlap.
    """
    with explained(f"{source} is no label map", _EXAMPLE):
        if all(str(key).lstrip("-").isdigit() for key in content):
            pairs = [(str(name), (int(key),)) for key, name in content.items()]
        else:
            pairs = [
                (str(name), tuple(map(_whole, value if isinstance(value, list) else [value])))
                for name, value in content.items()
            ]
    regions = [pair for pair in pairs if 0 not in pair[1] and pair[0].lower() != IGNORE_NAME] if with_regions else []
    if regions:
        pairs = [pair for pair in pairs if pair not in regions] + _combinations(regions)
    ignored = tuple(number for name, ids in pairs for number in ids if name.lower() == IGNORE_NAME)
    pairs = [(name, ids) for name, ids in pairs if name.lower() != IGNORE_NAME]
    numbers = [number for _, ids in pairs for number in ids] + list(ignored)
    if any(abs(number) > np.iinfo(np.int32).max for number in numbers):
        raise InputError(f"{source} has numbers of over 32 bits, which no label file holds; correct it.")
    names = [name for name, _ in pairs]
    if len(set(numbers)) < len(numbers) or len(set(names)) < len(names) or len(pairs) > IGNORED:
        raise InputError(
            f"{source} uses a name or a number twice, or has over 255 classes; every class needs its own, and regions "
            'that overlap need "regions_class_order", as nnU-Net has it, beside "labels".'
        )
    background = [pair for pair in pairs if pair[0].lower() == "background" or 0 in pair[1]]
    if len(background) != 1 or len(pairs) < 2:
        raise InputError(f'{source} needs one entry "background" that has the number 0, and a class beside it.')
    pairs = background + [pair for pair in pairs if pair not in background]
    return LabelMap(
        names=tuple(shown(name) for name, _ in pairs),
        ids=tuple(ids for _, ids in pairs),
        ignored=ignored,
        regions=tuple(
            (shown(name), tuple(number for number, (_, own) in enumerate(pairs) if set(own) <= set(ids)))
            for name, ids in regions
        ),
    )


def each_once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """An object of a JSON file, for ``object_pairs_hook``: of two entries with one name json keeps the last."""
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{listed(twice)} is there twice")
    return dict(pairs)


def _whole(value: object) -> int:
    """The whole number that a file gives as one, or as text; a ValueError for any other, which int would cut."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def _combinations(regions: Sequence[tuple[str, tuple[int, ...]]]) -> list[tuple[str, tuple[int, ...]]]:
    """The numbers that are in the same regions, as a class each, in the order of their lowest number."""
    inside: dict[tuple[str, ...], list[int]] = {}
    for number in sorted({number for _, ids in regions for number in ids}):
        inside.setdefault(tuple(name for name, ids in regions if number in ids), []).append(number)
    return [(" + ".join(names), tuple(numbers)) for names, numbers in inside.items()]


def select_classes(available: LabelMap, names: Iterable[str]) -> LabelMap | None:
    """The classes of these names, background first, of a dataset with more, or another order; None if one lacks.

    Names are compared as :func:`simple_name` makes them. What is not selected becomes background.
    """
    ids_of = {simple_name(name): ids for name, ids in zip(available.names, available.ids, strict=True)}
    names = tuple(names)
    selected = [ids_of.pop(simple_name(name), None) for name in names]
    if None in selected:
        return None
    rest = tuple(sorted(number for ids in ids_of.values() for number in ids))
    return LabelMap(names, (selected[0] + rest, *selected[1:]), available.ignored)


def simple_name(name: str) -> str:
    """A class name without case, spaces and punctuation, its side in front, and one of its synonyms.

    >>> simple_name("kidney_right") == simple_name("Right kidney")
    True
    """
    words = re.findall(r"[^\W_]+", name.lower())
    simple = "".join(sorted(words, key=lambda word: word not in ("left", "right")))
    return _SYNONYMS.get(simple, simple)
