# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The ``datalist.json`` of a prepared dataset: which image and label files make up its three sections.

The file has the form of the Medical Segmentation Decathlon, as ``monai.data.load_decathlon_datalist`` reads it, and
names the folder of the files, so that a dataset can be prepared without copying it::

    {
        "name": "microscopy",
        "description": "...",
        "source_dir": "/data/cells",
        "training": [{"image": "images/a.png", "label": "labels/a.png"}, ...],
        "validation": [...],
        "test": [...]
    }

Images are found below ``source_dir``, labels below ``label_dir`` where that is given and else below ``source_dir``
too; both are relative to the folder of the datalist. A path never leads out of its folder: a datalist that somebody
sends cannot make the training read other files.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.config import PathLike
from scipy import ndimage

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data.readers import IMAGE_SUFFIXES, read_image, read_instances
from swinumamba_monai.errors import InputError

logger = logging.getLogger(__name__)

DATALIST_NAME = "datalist.json"
SECTIONS = ("training", "validation", "test")

_PREPARE = "python -m swinumamba_monai prepare microscopy --source_dir ... --output_dir ..."


@dataclass(frozen=True)
class PairReport:
    """What is known of an image and its label after decoding both.

    Attributes:
        problem: the sentence that says why the pair cannot be used, or None.
        warning: the sentence that says what is odd about it, or None.
        shape: (H, W) or (H, W, C) of the image; empty when there is a problem.
        num_instances: the number of cells in the label.
    """

    problem: str | None = None
    warning: str | None = None
    shape: tuple[int, ...] = ()
    num_instances: int = 0


def write_datalist(
    dataset_dir: PathLike,
    sections: Mapping[str, Sequence[Mapping[str, str]]],
    description: str,
    source_dir: str = ".",
    label_dir: str | None = None,
) -> Path:
    """Write ``datalist.json``, whole or not at all.

    Args:
        dataset_dir: existing folder that the file is written into.
        sections: for each of ``SECTIONS``, items with the relative paths "image" and "label".
        description: one line about the data.
        source_dir: folder of the files, absolute or relative to ``dataset_dir``.
        label_dir: folder of the labels when it is another one.

    Returns:
        The path of the file.

    Raises:
        InputError: The folder has a ``datalist.json`` with other content.
    """
    content = {"name": "microscopy", "description": description, "source_dir": source_dir}
    if label_dir is not None:
        content["label_dir"] = label_dir
    text = json.dumps({**content, **{name: sections[name] for name in SECTIONS}}, indent=1) + "\n"
    path = Path(dataset_dir) / DATALIST_NAME
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"{path} exists and describes other data; give another output_dir.")
        return path
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def load_datalist(dataset_dir: PathLike, section: str, check: bool = True) -> list[dict[str, str]]:
    """The items of one section, ready for ``LoadImaged``.

    Args:
        dataset_dir: folder with a ``datalist.json``.
        section: one of ``SECTIONS``.
        check: decode every file first (:func:`check_pairs`), so that a bad one is found before the training starts.

    Returns:
        Dictionaries with the absolute paths "image" and "label".

    Raises:
        InputError: There is no such dataset or section, the datalist is no such file or leads out of its folders, or
            ``check`` found a problem.
    """
    path = Path(dataset_dir) / DATALIST_NAME
    if not path.is_file():
        raise InputError(f"{dataset_dir} is no prepared dataset (it has no {DATALIST_NAME}); run `{_PREPARE}`.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [(entry["image"], entry["label"]) for entry in content.get(section, [])]
        image_dir = path.parent / content.get("source_dir", ".")
        label_dir = path.parent / content.get("label_dir", content.get("source_dir", "."))
        items = [
            {"image": _inside(image_dir, image, path), "label": _inside(label_dir, label, path)}
            for image, label in entries
        ]
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a datalist with images and labels ({error!r}); run `{_PREPARE}`.") from error
    if not items:
        raise InputError(f"{path} has no {section!r} images; its sections are {', '.join(SECTIONS)}.")
    if check:
        check_pairs(items)
    return items


def load_images(path: PathLike) -> list[dict[str, str]]:
    """The images to run inference on.

    Args:
        path: an image file, a folder of images (its subfolders are not searched), or a prepared dataset, of which the
            test section is taken.

    Returns:
        Dictionaries with the absolute path "image", sorted by file name for a folder.

    Raises:
        InputError: There is nothing at ``path``, or no image of a kind that can be read.
    """
    path = Path(path)
    if (path / DATALIST_NAME).is_file():
        return [{"image": item["image"]} for item in load_datalist(path, "test", check=False)]
    if not path.exists():
        raise InputError(f"{path} does not exist; give an image, a folder of images or a prepared dataset.")
    files = list_images(path) if path.is_dir() else [path] if path.suffix.lower() in IMAGE_SUFFIXES else []
    if not files:
        raise InputError(f"{path} has no image that can be read here; use {', '.join(IMAGE_SUFFIXES)} files.")
    return [{"image": str(file.absolute())} for file in files]


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder by name, without hidden ones (macOS puts a ``._name.png`` next to ``name.png``)."""
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )


def inspect_pair(image: PathLike, label: PathLike) -> PairReport:
    """Decode an image and its instance map and say what is wrong with them, or how large they are."""
    try:
        pixels, instances = read_image(image), read_instances(label)
    except InputError as error:
        return PairReport(problem=str(error))
    if pixels.shape[:2] != instances.shape:
        return PairReport(
            f"{label} has {instances.shape} pixels but its image {image} has {pixels.shape[:2]}; both need one size."
        )
    cells = np.unique(instances[instances > 0]).size
    warning = None
    if cells == 0:
        warning = f"{label} has no cell."
    elif cells == 1 and (pieces := ndimage.label(instances)[1]) > 1:
        warning = f"{label} has one number for {pieces} pieces, like a binary mask; give every cell its own number."
    return PairReport(None, warning, pixels.shape, cells)


def inspect_pairs(
    items: Sequence[Mapping[str, str]], progress: Callable[[int, int], None] | None = None
) -> list[PairReport]:
    """:func:`inspect_pair` for many items, a few at a time; the decoders leave the Python lock.

    Args:
        items: dictionaries with the paths "image" and "label".
        progress: called with the number of items done and of all items.

    Returns:
        One report per item, in their order.
    """
    reports = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for report in pool.map(lambda item: inspect_pair(item["image"], item["label"]), items):
            reports.append(report)
            if progress is not None:
                progress(len(reports), len(items))
    return reports


def check_pair(image: PathLike, label: PathLike) -> str | None:
    """The sentence that says why an image and its label cannot be used, or None."""
    return inspect_pair(image, label).problem


def check_pairs(items: Sequence[Mapping[str, str]]) -> None:
    """Decode every image and label; labels that are empty or look like binary masks are only logged.

    Args:
        items: dictionaries with the paths "image" and "label".

    Raises:
        InputError: Some cannot be used; the first three are named.
    """
    reports = inspect_pairs(items)
    problems = [report.problem for report in reports if report.problem]
    if problems:
        more = f" And {len(problems) - 3} more." if len(problems) > 3 else ""
        raise InputError(" ".join(problems[:3]) + more)
    warnings = [report.warning for report in reports if report.warning]
    if warnings:
        logger.warning("%d of %d labels are odd, the first: %s", len(warnings), len(items), warnings[0])


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a path ends outside of a folder, by ``..``, as an absolute path or through a symbolic link."""
    return not path.resolve().is_relative_to(folder.resolve())


def _inside(folder: Path, relative: str, datalist: Path) -> str:
    """The absolute path of ``relative``, which must not lead out of ``folder``."""
    path = folder / relative
    if leads_outside(path, folder):
        raise InputError(f"{datalist} names {relative!r}, which is outside of {folder}; name only files inside of it.")
    return str(path.resolve())
