# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of YOLO segmentation: a text for each image, with a line for each outline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from monai.utils import optional_import

from swinumamba_monai.data.files.shapes import Annotations, Shape
from swinumamba_monai.errors import InputError, explained, shown

yaml, _has_yaml = optional_import("yaml")

_OUTSIDE = 0.5  # how far outlines may leave the image, in parts of it; tools clip them, or do not
_NAME_FILES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
_FOLDERS_ABOVE = 3  # labels/train/a.txt


def read_yolo(path: Path) -> Annotations:
    """Read ``class x1 y1 x2 y2 x3 y3 ...``, with places in parts of the width and the height, a line for each outline.

    An empty text is an image without any. Classes are called as ``classes.txt`` or ``data.yaml`` above the file say,
    and ``class 0``, ``class 1`` and so on where there are no such files.

    Raises:
        InputError: The file is no such text, or has boxes.
    """
    names = _names_for(path)
    shapes = []
    problem = (
        f"{path} has no outlines of YOLO segmentation, a class number and parts of width and height from 0 to 1 a line"
    )
    with explained(problem, "export again", OSError, ValueError, OverflowError):
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in filter(str.strip, lines):
            number, *values = line.split()
            name = names.get(int(number), f"class {int(number)}")
            if len(values) == 4:
                raise InputError(f"{path} has a box of '{shown(name)}', which has no pixels; export YOLO segmentation.")
            ring = np.array(values, dtype=np.float64).reshape(-1, 2)
            if len(ring) < 3 or not (np.abs(ring - 0.5) <= 0.5 + _OUTSIDE).all():
                raise ValueError(f"{line[:40]}...")
            shapes.append(Shape(name, [[ring]]))
    numbered = sorted({shape.name for shape in shapes}, key=lambda name: (len(name), name))
    return Annotations(path, shapes, names=tuple(names.values() or numbered), relative=True)


def _names_for(path: Path) -> Mapping[int, str]:
    """The names of the classes by their numbers, from the nearest file that has them; none where there is none."""
    for folder in list(path.parents)[:_FOLDERS_ABOVE]:
        for file in filter(Path.is_file, (folder / name for name in _NAME_FILES)):
            with explained(f"{file} has no names of classes that can be read", "save it in UTF-8", OSError, ValueError):
                text = file.read_text(encoding="utf-8")
            names = _names_of_yaml(file, text) if file.suffix == ".yaml" else dict(enumerate(text.splitlines()))
            return {number: str(name).strip() for number, name in names.items() if str(name).strip()}
    return {}


def _names_of_yaml(file: Path, text: str) -> dict[int, str | int]:
    if not _has_yaml:
        raise InputError(f"{file} names the classes, and needs PyYAML; install pyyaml, or write them to classes.txt.")
    kinds = (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError)
    with explained(f"{file} has no names of classes", "correct it", *kinds):
        names = yaml.safe_load(text)["names"]
        names = {int(number): name for number, name in (names.items() if isinstance(names, dict) else enumerate(names))}
        if not all(isinstance(name, (str, int)) for name in names.values()):
            raise TypeError("not all are texts")  # lists of lists of lists may unfold without end
        return names
