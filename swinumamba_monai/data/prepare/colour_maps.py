# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps that give the classes of masks by colours: our JSON, EndoVis 2018's, and CVAT's ``labelmap.txt``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.data.files.label_map import LabelMap, each_once
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.errors import InputError, explained, shown

Colours = Mapping[tuple[int, int, int], int]


def read_colours(path: PathLike | LabelMap | None) -> tuple[LabelMap, Colours] | None:
    """The classes of a label map that gives colours, ``{"grasper": [255, 0, 0]}``, and the class of every colour.

    A class may have several colours, in a list. The background is black where the map does not name it. Lists of three
    numbers that could be ids, because none comes twice and the background has its own, are taken for ids;
    ``[[10, 20, 30]]`` is always a colour. EndoVis 2018's ``labels.json`` is such a map too, a list of names with
    colours, of which the black one is the background whatever it is called.

    Args:
        path: the JSON file; with anything else, or in a file that has no colours, the result is None.

    Raises:
        InputError: a colour is no red, green and blue from 0 to 255, or is there twice.
    """
    if path is None or isinstance(path, LabelMap) or not Path(path).is_file():
        return None
    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=each_once)
        of_endovis = isinstance(content, list)
        content = _of_endovis(content) if of_endovis else dict(content.get("labels", content))
    except (AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError):
        return None  # read_label_map says what is wrong with it
    if of_endovis:
        return _classes_of_colours(content, path)
    background = next((name for name in content if name.lower() == "background"), "background")
    given = {name: value for name, value in content.items() if name != background}
    triples = [value for value in given.values() if _is_colour(value)]
    numbers = [number for value in triples for number in value]
    nested = any(isinstance(value, list) and value and isinstance(value[0], list) for value in given.values())
    of_background = content.get(background)
    has_ids = of_background is not None and not (_is_colour(of_background) and len(set(of_background)) < 3)
    if not given or (not nested and (len(triples) < len(given) or (has_ids and len(set(numbers)) == len(numbers)))):
        return None
    return _classes_of_colours(content, path)


def _of_endovis(entries: list) -> dict[str, list[int]]:
    """The colours of EndoVis 2018's list; what is wrong with them is told by who takes them for classes."""
    colours = {str(entry["name"]): list(entry["color"]) for entry in entries}
    if len(colours) < len(entries):
        raise ValueError("a name is there twice")
    return {"background" if colour == [0, 0, 0] else name: colour for name, colour in colours.items()}


def read_cvat_colours(source: Path) -> tuple[LabelMap, Colours] | None:
    """The same of the ``labelmap.txt`` that CVAT puts beside its "Segmentation mask 1.1"; None where there is none.

    Raises:
        InputError: a line is no ``name:red,green,blue::``, a colour is there twice, or files of several exports differ.
    """
    paths = [path for path in find_files(source) if path.name == "labelmap.txt"]
    read = [_classes_of_colours(_read_cvat_lines(path), path) for path in paths]
    if other := next((path for path, content in zip(paths, read) if content != read[0]), None):
        raise InputError(
            f"{other} has other classes or colours than {paths[0]}; prepare each export by itself, or give all colours "
            "by --label_map."
        )
    return read[0] if read else None


def _read_cvat_lines(path: Path) -> dict[str, list[int]]:
    with explained(f"{path} has a line that is no name:red,green,blue::", "correct it"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        return {line.split(":")[0]: [int(part) for part in line.split(":")[1].split(",")] for line in lines}


def _classes_of_colours(content: Mapping[str, object], path: PathLike) -> tuple[LabelMap, Colours]:
    background = next((name for name in content if name.lower() == "background"), "background")
    given = {name: value for name, value in content.items() if name != background}
    black = content.get(background, 0)
    by_class = [black if isinstance(black, list) else [0, 0, 0], *given.values()]
    colours: dict[tuple[int, int, int], int] = {}
    for number, value in enumerate(by_class):
        for colour in [value] if _is_colour(value) else value:
            if not _is_colour(colour) or tuple(colour) in colours:
                raise InputError(
                    f"{path} has {shown(colour)}, which is no colour of one class; give [red, green, blue]."
                )
            colours[tuple(colour)] = number
    return LabelMap.of_names([shown(name) for name in (background, *given)]), colours


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
