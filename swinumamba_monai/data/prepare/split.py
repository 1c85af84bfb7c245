# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which images train, validate and test: as ``split.json`` says, and for the rest by chance."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from swinumamba_monai.data.datalist import SECTIONS
from swinumamba_monai.data.files.label_map import each_once
from swinumamba_monai.errors import InputError, explained

SPLIT, NNUNET_SPLITS = "split.json", "splits_final.json"
_SPLIT_KEYS = {"train": "training", "validation": "validation", "val": "validation", "test": "test"}


def split_file(path: Path, fold: int | None) -> Path:
    """The file that divides a dataset: ``split.json``, or, for a fold, nnU-Net's where that alone is there."""
    nnunet = path.with_name(NNUNET_SPLITS)
    return nnunet if fold is not None and not path.is_file() and nnunet.is_file() else path


def read_split(path: Path, fold: int | None = None) -> dict[str, list[str]]:
    """The names of each section that a ``split.json`` gives.

    The file has the lists "train" and "test" and may have "val" or "validation". It may hold several such divisions:
    one under "default", and a list of folds under any other key; or it is a list of folds itself, as nnU-Net's
    ``splits_final.json``, which is taken beside ``path`` for a fold where there is no file at ``path``. A fold may lack
    "test".

    Args:
        path: the file; without it the result is empty.
        fold: the number of the fold, from 0; None for the default.

    Raises:
        InputError: The file has another form, names something twice in a division, or has no such fold.
    """
    path = split_file(path, fold)
    if not path.is_file():
        if fold is not None:
            raise InputError(f"{path} does not exist, so there is no fold {fold}; leave the fold out.")
        return {}
    with explained(f"{path} has no lists of names", "correct or remove it"):
        content = json.loads(path.read_bytes(), object_pairs_hook=each_once)
        if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
            if fold is None:
                raise InputError(f"{path} is a list of {len(content)} folds; choose one with --fold 0.")
            content = {"folds": content}
        content = content if isinstance(content, dict) else {}  # what has no lists is told which it needs
        if fold is not None:
            content = _fold(content, fold, path)
        elif isinstance(content.get("default"), dict):
            content = content["default"]
        if "val" in content and "validation" in content:
            raise InputError(f"{path} has both val and validation; leave one of them.")
        split = {section: list(content[key]) for key, section in _SPLIT_KEYS.items() if key in content}
        twice = [name for name, count in Counter(chain.from_iterable(split.values())).items() if count > 1]
    other = "test" if fold is None else "validation"
    if "training" not in split or not {"test", other} & set(split):
        kinds = "'train' and 'test'" if fold is None else "'train' and 'val' in every fold"
        raise InputError(f"{path} needs the lists {kinds}; correct or remove it.")
    if twice:
        raise InputError(f"{path} names {twice[0]} twice ({len(twice)} such names), but sections must not overlap.")
    return split


def _fold(content: Mapping, fold: int, path: Path) -> Mapping:
    """The division number ``fold`` of the only list of divisions in a split file."""
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) != 1:
        raise InputError(f"{path} has {len(lists)} lists of folds, but one is needed to take fold {fold} from.")
    if not 0 <= fold < len(lists[0]):
        raise InputError(f"{path} has the folds 0 to {len(lists[0]) - 1}, but no fold {fold}.")
    return lists[0][fold]


def divide(
    shapes: Mapping[str, tuple[int, ...]],
    split: Mapping[str, Sequence[str]],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """The names of the three sections: those of the split, and a part of the training names for what it lacks.

    Args:
        shapes: the size of every usable image by its name.
        split: result of :func:`read_split`.
        val_fraction: the part of the training names that becomes the validation section.
        test_fraction: the part of all names that becomes the test section.
        seed: seed of the random choices. They are spread over the image sizes, in which scanners and microscopes
            differ.
        groups: the recording, the stack, or what else a name is a part of, for names that look alike because of it:
            whole groups are chosen. Of a single one the last names are taken.

    Raises:
        InputError: A section would be empty.
    """
    rng = np.random.default_rng(seed)
    groups = groups or {}
    group_of = {name: groups.get(name, name) for name in shapes}
    sections = {section: [name for name in names if name in shapes] for section, names in split.items()}
    sections.setdefault("training", list(shapes))
    for section, fraction in (("test", test_fraction), ("validation", val_fraction)):
        if section not in sections:
            names = sections["training"]
            if groups:
                sections[section] = _sequences(names, fraction, rng, group_of)
            else:
                sections[section] = _sample(names, fraction, shapes, rng)
            chosen = set(sections[section])
            sections["training"] = [name for name in names if name not in chosen]
    empty = [section for section in SECTIONS if not sections[section]]
    if empty:
        if unnamed := [section for section in empty if section in split and not split[section]]:
            raise InputError(
                f"the split of the dataset (split.json) gives none for {', '.join(unnamed)}; name images there, or "
                "remove it, for them to be chosen by chance."
            )
        raise InputError(f"{len(shapes)} usable images leave none for {', '.join(empty)}; add images to the dataset.")
    return sections


def sequence_of(name: str) -> str:
    """The recording that a frame belongs to, by its name without the last number: of ``op1_07`` and ``op1_08`` one."""
    return re.sub(r"[_\-. ]*[A-Za-z]*\d+$", "", name)


def _in_time(name: str) -> list[str | int]:
    """What puts the frames of a recording in order: ``frame9`` before ``frame10``, whose neighbour it is."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", name))]


def _sample(
    names: Sequence[str], fraction: float, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> list[str]:
    """At least one of the names, in proportion from every image size: sort shuffled names by size, take every n-th."""
    shuffled = [names[index] for index in rng.permutation(len(names))]
    by_size = sorted(shuffled, key=lambda name: shapes[name])
    count = min(max(1, round(fraction * len(names))), len(names))
    return sorted(by_size[int((number + 0.5) * len(names) / count)] for number in range(count))


def _sequences(
    names: Sequence[str], fraction: float, rng: np.random.Generator, group_of: Mapping[str, str]
) -> list[str]:
    """Whole recordings, drawn until they hold the fraction of the frames; one is always left."""
    recordings: dict[str, list[str]] = {}
    for name in names:
        recordings.setdefault(group_of[name], []).append(name)
    if len(recordings) < 2:
        count = max(1, round(fraction * len(names)))
        return sorted(names, key=_in_time)[len(names) - count :] if len(names) > 1 else []
    chosen: list[str] = []
    for index in rng.permutation(len(recordings))[:-1]:
        chosen += list(recordings.values())[index]
        if len(chosen) >= fraction * len(names):
            break
    return sorted(chosen)
