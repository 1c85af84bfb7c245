# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Check a downloaded dataset of cell images and write the ``datalist.json`` that training and inference start from."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from monai.config import PathLike
from PIL import Image

from swinumamba_monai.data.datalist import (
    SECTIONS,
    PairReport,
    inspect_pairs,
    leads_outside,
    list_images,
    write_datalist,
)
from swinumamba_monai.data.readers import read_image
from swinumamba_monai.errors import InputError

logger = logging.getLogger(__name__)

_SPLIT_KEYS = {"train": "training", "validation": "validation", "val": "validation", "test": "test"}


@dataclass
class _Found:
    """The pairs of image and label in a source folder, by name, and a sentence for everything that is no pair."""

    layout: str
    pairs: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def prepare_microscopy(
    source_dir: PathLike,
    output_dir: PathLike,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Find images and instance maps, check every pair, divide them into three sections and write the datalist.

    Three layouts are known:

    - folders ``images`` and ``labels`` with files of the same name, or with ``_label`` after the name of the label as
      in NeurIPS 2022 CellSeg; ``split.json`` may give ``train`` and ``test`` (and ``validation``), lists of names
      without suffix;
    - the same files in one folder, the labels with ``_label``;
    - DSB-2018 as Kaggle gives it: ``<id>/images/<id>.png`` and one mask per nucleus in ``<id>/masks``. The masks become
      instance maps in ``output_dir/labels``; a pixel of two masks stays with the first one by file name.

    Originals are referred to and never copied.

    Args:
        source_dir: the downloaded dataset.
        output_dir: where the datalist is written; it may be ``source_dir``.
        val_fraction: the part of the training images that becomes the validation section when no split names one.
        test_fraction: the part of all images that becomes the test section when there is no ``split.json``.
        seed: of the division. Both parts are spread over the image sizes, in which the microscopes differ.
        skip_bad: leave out what cannot be used instead of stopping.
        progress: called with the number of pairs checked and of all pairs.

    Returns:
        The report: "layout"; "source_dir"; "output_dir"; the number of images in "training", "validation" and "test";
        "sizes", how many images have each; "instances", the number of cells; "problems" and "warnings", sentences.

    Raises:
        InputError: The layout is unknown; there are problems and not ``skip_bad`` (all are listed, one per line, and
            nothing is written); too few images are left; ``output_dir`` holds another dataset.
    """
    source, output = Path(source_dir).resolve(), Path(output_dir).resolve()
    if not source.is_dir():
        raise InputError(f"{source_dir} is not a folder; give the folder of the downloaded dataset.")
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1):
        raise InputError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must be between 0 and 1.")
    split = _read_split(source / "split.json")
    with tempfile.TemporaryDirectory() as temporary:
        maps = Path(temporary) / "labels"  # instance maps wait here until everything is found to be good
        found = _find_masks(source, maps) if any(source.glob("*/masks")) else _find_pairs(source)
        items = [{"image": str(image), "label": str(label)} for image, label in found.pairs.values()]
        reports = dict(zip(found.pairs, inspect_pairs(items, progress), strict=True))
        problems = found.problems + [report.problem for report in reports.values() if report.problem]
        problems += [
            f"split.json names {name}, but there is no such pair of image and label."
            for name in chain.from_iterable(split.values())
            if name not in found.pairs
        ]
        if problems and not skip_bad:
            raise InputError(
                f"{source} has {len(problems)} problem(s); correct them, or use skip_bad to leave out what they "
                "concern:\n" + "\n".join(problems)
            )
        good = {name: report for name, report in reports.items() if not report.problem}
        sections = _divide(good, split, val_fraction, test_fraction, seed)
        used = [name for section in SECTIONS for name in sections[section]]
        instances = sum(good[name].num_instances for name in used)
        warnings = [report.warning for report in good.values() if report.warning]
        if len(used) < len(good):
            warnings.append(f"{len(good) - len(used)} images are in no section of split.json and are not used.")
        description = f"{instances} cells in {len(used)} images of {source.name}"
        _write(found.pairs, sections, description, source, output, maps)
    logger.info("%s: %d images with %d cells (%s)", output, len(used), instances, found.layout)
    return {
        "layout": found.layout,
        "source_dir": str(source),
        "output_dir": str(output),
        **{section: len(sections[section]) for section in SECTIONS},
        "sizes": dict(Counter("{}x{}".format(*good[name].shape) for name in used).most_common()),
        "instances": instances,
        "problems": problems,
        "warnings": warnings,
    }


def _find_pairs(source: Path) -> _Found:
    """Match images and labels by name, in their two folders or in one."""
    if (source / "images").is_dir() and (source / "labels").is_dir():
        found = _Found("folders images and labels")
        images, labels = list_images(source / "images"), list_images(source / "labels")
    else:
        found = _Found("images and labels in one folder")
        files = list_images(source)
        labels = [file for file in files if file.stem.endswith("_label")]
        images = [file for file in files if file not in labels]
    if not images or not labels:
        raise InputError(
            f"{source} has no known layout; it needs folders images and labels, or images next to files named "
            "<name>_label, or a folder with masks for every image."
        )
    image_of, label_of = _by_name(images, found.problems), _by_name(labels, found.problems)
    for name, image in image_of.items():
        label = label_of.pop(name, None) or label_of.pop(f"{name}_label", None)
        if label is None:
            found.problems.append(f"{image} has no label.")
        elif leads_outside(image, source) or leads_outside(label, source):
            found.problems.append(f"{image} or its label is a link out of {source}; give the folder that it leads to.")
        else:
            found.pairs[name] = (image, label)
    found.problems += [f"{label} has no image." for label in label_of.values()]
    return found


def _by_name(files: Sequence[Path], problems: list[str]) -> dict[str, Path]:
    """The files by their names without suffix; of two with one name the second is a problem."""
    by_name: dict[str, Path] = {}
    for file in files:
        if by_name.setdefault(file.stem, file) != file:
            problems.append(f"{file} has the name of {by_name[file.stem]}; rename one.")
    return by_name


def _find_masks(source: Path, maps: Path) -> _Found:
    """Join the masks of every DSB-2018 image into an instance map in the folder ``maps``."""
    found = _Found("DSB-2018 with a mask per nucleus")
    maps.mkdir()
    for folder in sorted(path for path in source.iterdir() if (path / "images").is_dir()):
        images = list_images(folder / "images")
        masks = list_images(folder / "masks") if (folder / "masks").is_dir() else []
        if len(images) != 1 or not masks:
            found.problems.append(
                f"{folder} has {len(images)} images and {len(masks)} masks, but needs 1 and at least 1."
            )
        elif leads_outside(images[0], source):
            found.problems.append(f"{images[0]} is a link out of {source}; give the folder that it leads to.")
        else:
            try:
                instances = _join_masks(masks)
            except InputError as error:
                found.problems.append(str(error))
                continue
            label = maps / f"{folder.name}.png"
            Image.fromarray(instances).save(label)
            found.pairs[folder.name] = (images[0], label)
    return found


def _join_masks(masks: Sequence[Path]) -> np.ndarray:
    """The instance map (H, W) uint16 of binary masks, numbered in their order."""
    instances: np.ndarray | None = None
    for number, file in enumerate(masks, start=1):
        mask = read_image(file) > 0
        if instances is None:
            instances = np.zeros(mask.shape, dtype=np.uint16)
        if mask.ndim != 2 or mask.shape != instances.shape:
            raise InputError(f"{file} is {mask.shape}, but the masks of an image must be gray and of one size.")
        instances[mask & (instances == 0)] = number
    return instances


def _read_split(path: Path) -> dict[str, list[str]]:
    """The names of each section that ``split.json`` gives; nothing without the file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        split = {section: list(content[key]) for key, section in _SPLIT_KEYS.items() if key in content}
        twice = [name for name, count in Counter(chain.from_iterable(split.values())).items() if count > 1]
    except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} has no lists of names ({error!r}); correct or remove it.") from error
    if "training" not in split or "test" not in split:
        raise InputError(f"{path} needs the lists 'train' and 'test'; correct or remove it.")
    if twice:
        raise InputError(f"{path} names {twice[0]} twice ({len(twice)} such names), but sections must not overlap.")
    return split


def _divide(
    reports: Mapping[str, PairReport],
    split: Mapping[str, Sequence[str]],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, list[str]]:
    """The names of the three sections: those of the split, and a part of the training names for what it lacks."""
    rng = np.random.default_rng(seed)
    sections = {section: [name for name in names if name in reports] for section, names in split.items()}
    sections.setdefault("training", list(reports))
    for section, fraction in (("test", test_fraction), ("validation", val_fraction)):
        if section not in sections:
            sections[section] = _sample(sections["training"], fraction, reports, rng)
            sections["training"] = [name for name in sections["training"] if name not in sections[section]]
    empty = [section for section in SECTIONS if not sections[section]]
    if empty:
        raise InputError(f"{len(reports)} usable images leave none for {', '.join(empty)}; add images to the dataset.")
    return sections


def _sample(
    names: Sequence[str], fraction: float, reports: Mapping[str, PairReport], rng: np.random.Generator
) -> list[str]:
    """At least one of the names, in proportion from every image size: sort shuffled names by size, take every n-th."""
    shuffled = [names[index] for index in rng.permutation(len(names))]
    by_size = sorted(shuffled, key=lambda name: reports[name].shape)
    count = min(max(1, round(fraction * len(names))), len(names))
    return sorted(by_size[int((number + 0.5) * len(names) / count)] for number in range(count))


def _write(
    pairs: Mapping[str, tuple[Path, Path]],
    sections: Mapping[str, Sequence[str]],
    description: str,
    source: Path,
    output: Path,
    maps: Path,
) -> None:
    """Write the datalist, and the instance maps where there are any, into ``output``; replace no file by another."""
    from_masks = maps.is_dir()
    labels_root = maps.parent if from_masks else source
    if from_masks:
        for file in maps.iterdir():
            target = output / "labels" / file.name
            if target.exists() and target.read_bytes() != file.read_bytes():
                raise InputError(f"{target} exists and is another label; give another output_dir.")
    items = {
        name: {"image": image.relative_to(source).as_posix(), "label": label.relative_to(labels_root).as_posix()}
        for name, (image, label) in pairs.items()
    }
    output.mkdir(parents=True, exist_ok=True)
    write_datalist(
        output,
        {section: [items[name] for name in names] for section, names in sections.items()},
        description,
        source_dir="." if source == output else str(source),
        label_dir="." if from_masks and source != output else None,
    )
    if from_masks:
        shutil.copytree(maps, output / "labels", dirs_exist_ok=True)
