# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The ``datalist.json`` of a prepared dataset: which image and label files make up its three sections.

The file has the form of the Medical Segmentation Decathlon, as ``monai.data.load_decathlon_datalist`` reads it, and
names the folder of the files, so that a dataset can be prepared without copying it::

    {
        "name": "endoscopy",
        "description": "...",
        "labels": {"0": "background", "1": "shaft", ...},
        "source_dir": "/data/surgeries",
        "training": [{"image": "images/a.png", "label": "labels/a.png"}, ...],
        "validation": [...],
        "test": [...]
    }

"name" is the task and decides what a pair is: a volume with the volume of its classes, a frame with the mask of its
classes, or an image with the map of its cells, which alone has no "labels".

Images are found below ``source_dir``, labels below ``label_dir`` where that is given and else below ``source_dir``
too; both are absolute or relative to the folder of the datalist. A path never leads out of these folders, not through
a link either, unless into the folder ``linked_dir`` where one is named; and it names an image of the task by its suffix
(or a folder, for a DICOM series), or the list of those of its channels. So a datalist that somebody sends can
name no other files than images below the folders that it states, which the log repeats.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.atomic import write_file
from swinumamba_monai.data.files.label_map import IGNORE_NAME, IGNORED
from swinumamba_monai.data.files.numbered import file_and_number
from swinumamba_monai.data.files.volumes import volume_path
from swinumamba_monai.data.inputs import Inputs
from swinumamba_monai.data.prepare.inspection import check_pairs
from swinumamba_monai.errors import InputError, explained, shown
from swinumamba_monai.tasks import Task, find_task

logger = logging.getLogger(__name__)

DATALIST_NAME = "datalist.json"

SECTIONS = ("training", "validation", "test")
# What folders and tables of datasets call them; the longer names are those of MoNuSeg, MoNuSAC and Kumar.
SECTION_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), "training"),
    **dict.fromkeys(("monuseg 2018 training data", "monusac_images_and_annotations"), "training"),
    **dict.fromkeys(("val", "valid", "validation", "va"), "validation"),
    **dict.fromkeys(("test", "testing", "ts", "test_same", "test_diff"), "test"),
    **dict.fromkeys(("monusegtestdata", "monusac testing data and annotations"), "test"),
}

_NO_DATALIST = "not a datalist with images and labels"
_PREPARE = "python -m swinumamba_monai prepare {} --source_dir ... --output_dir ..."


def write_datalist(
    dataset_dir: PathLike,
    sections: Mapping[str, Sequence[Mapping[str, str]]],
    description: str,
    source_dir: str = ".",
    label_dir: str | None = None,
    task: str = "microscopy",
    class_names: Sequence[str] = (),
    regions: Mapping[str, Sequence[int]] | None = None,
    linked_dir: str | None = None,
) -> Path:
    """Write ``datalist.json``, whole or not at all; its path is returned.

    Args:
        dataset_dir: existing folder that the file is written into.
        sections: the items of each of ``SECTIONS``, with the relative paths "image" and "label".
        description: one line about the data.
        source_dir: folder of the files, absolute or relative to ``dataset_dir``.
        label_dir: folder of the labels when it is another one.
        task: a key of :data:`~swinumamba_monai.tasks.TASKS`.
        class_names: names of the numbers in the labels, background first, "ignore" last; none for cells.
        regions: unions of classes that are scored instead of them, by name the numbers of the classes.
        linked_dir: folder outside of ``source_dir`` that images and labels in it may be links into.

    Raises:
        InputError: The folder has a ``datalist.json`` with other content.
    """
    content: dict[str, object] = {"name": task, "description": description, "source_dir": source_dir}
    if class_names:
        numbers = (IGNORED if name == IGNORE_NAME else number for number, name in enumerate(class_names))
        content["labels"] = {str(number): name for number, name in zip(numbers, class_names)}
    if regions:
        content["regions"] = {name: list(numbers) for name, numbers in regions.items()}
    if label_dir is not None:
        content["label_dir"] = label_dir
    if linked_dir is not None:
        content["linked_dir"] = linked_dir
    text = json.dumps({**content, **{name: sections[name] for name in SECTIONS}}, indent=1) + "\n"
    path = Path(dataset_dir) / DATALIST_NAME
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"{path} exists and describes other data; give another output_dir.")
        return path
    write_file(path, text)
    return path


def load_datalist(
    dataset_dir: PathLike,
    section: str,
    check: bool = True,
    num_classes: int | None = None,
    skip_bad: bool = False,
    may_be_empty: bool = False,
    **reading: object,
) -> Inputs:
    """The items of one section, ready for ``LoadImaged``.

    Args:
        dataset_dir: folder with a ``datalist.json``.
        section: one of ``SECTIONS``.
        check: decode every file first (:func:`check_pairs`), so that a bad one is found before the training starts.
        num_classes: number of classes of the network, background included; None compares nothing.
        skip_bad: leave out what ``check`` finds to be bad, instead of refusing it.
        may_be_empty: whether the section may have no items.
        reading: options of the task's :attr:`~swinumamba_monai.tasks.TaskFiles.inspect`, as its reader gets them.

    Returns:
        Dictionaries with the absolute paths "image" and "label"; "image" is a tuple where every channel has a file.

    Raises:
        InputError: There is no such dataset or section, the datalist is no such file, is of no task here, leads out of
            its folders or names what is no image, it has another number of classes, or ``check`` found a problem and
            not ``skip_bad``.
    """
    content, path = _read(dataset_dir)
    if num_classes is not None and len(names := load_class_names(dataset_dir)) not in (0, num_classes):
        raise InputError(
            f"{path} has {len(names)} classes ({', '.join(names)}), but num_classes is {num_classes}; give "
            f"--num_classes {len(names)}."
        )
    task = _task_of(content, path)
    malformed = AttributeError, KeyError, TypeError
    with explained(f"{path} is {_NO_DATALIST}", f"run `{_PREPARE.format(task.name)}`", *malformed):
        entries = [(entry["image"], entry["label"]) for entry in content.get(section, [])]
        image_dir = path.parent / content.get("source_dir", ".")
        label_dir = path.parent / content.get("label_dir", content.get("source_dir", "."))
        linked = [path.parent / content["linked_dir"]] if "linked_dir" in content else []
        image_path, label_path = (
            partial(_inside, (folder, *linked), datalist=path, task=task) for folder in (image_dir, label_dir)
        )
        pairs = [
            {
                "image": tuple(map(image_path, image)) if isinstance(image, list) and image else image_path(image),
                "label": label_path(label),
            }
            for image, label in entries
        ]
    items = Inputs(pairs, f"the {section} section of {path.parent}")
    if not items and (not may_be_empty or section not in SECTIONS):
        raise InputError(f"{path} has no {section!r} images; its sections are {', '.join(SECTIONS)}.")
    if leads_outside(image_dir, path.parent):
        logger.info("%s takes its images from %s", path, image_dir)
    for folder in linked:
        logger.info("%s takes what is linked in them from %s", path, folder)
    if check and items:
        class_names = _class_names(content, path)
        problems = check_pairs(items, lambda image, label: task.files.inspect(image, label, class_names, **reading))
        items.leave_out(problems, skip_bad)
        items.log()
    return items


def is_prepared(folder: PathLike) -> bool:
    """Whether a folder is a prepared dataset."""
    return (Path(folder) / DATALIST_NAME).is_file()


def load_class_names(dataset_dir: PathLike) -> list[str]:
    """What the numbers in the labels of a prepared dataset mean, background first; empty for cells.

    Raises:
        InputError: There is no such dataset, or its "labels" are no numbers 0, 1, ... with names.
    """
    return [name for name in _class_names(*_read(dataset_dir)) if name != IGNORE_NAME]


def load_regions(dataset_dir: PathLike) -> dict[str, list[int]]:
    """The regions that are scored instead of the classes, by name the numbers of their classes; empty where none are.

    Raises:
        InputError: There is no such dataset, or its "regions" are no lists of its classes.
    """
    content, path = _read(dataset_dir)
    regions, classes = content.get("regions", {}), range(1, len(load_class_names(dataset_dir)))
    if not isinstance(regions, dict) or not all(
        isinstance(numbers, list) and numbers and all(type(number) is int and number in classes for number in numbers)
        for numbers in regions.values()
    ):
        raise InputError(f'{path} has "regions" that are no lists of its classes; prepare the dataset again.')
    return regions


def has_ignored(dataset_dir: PathLike) -> bool:
    """Whether labels of a prepared dataset may leave open what a pixel is, as :func:`load_class_names` reads them.

    Those of any other folder do not: MONAI Label trains on what was drawn, and names its items itself.
    """
    return is_prepared(dataset_dir) and IGNORE_NAME in _class_names(*_read(dataset_dir))


def _class_names(content: Mapping, path: Path) -> list[str]:
    """The names of the classes in a datalist, and "ignore" behind them where it has it."""
    labels = content.get("labels", {})
    numbers = list(labels) if isinstance(labels, dict) else None
    if numbers and labels.get(str(IGNORED)) == IGNORE_NAME:
        numbers.remove(str(IGNORED))
    if numbers is None or numbers != [str(number) for number in range(len(numbers))]:
        raise InputError(f'{path} needs "labels" like {{"0": "background", "1": ...}}; prepare the dataset again.')
    return [str(name) for name in labels.values()]


def _read(dataset_dir: PathLike) -> tuple[dict, Path]:
    """The content of a datalist and its path."""
    path = Path(dataset_dir) / DATALIST_NAME
    prepare = _PREPARE.format("TASK")
    if not path.is_file():
        raise InputError(f"{dataset_dir} is no prepared dataset (it has no {DATALIST_NAME}); run `{prepare}`.")
    with explained(f"{path} is {_NO_DATALIST}", f"run `{prepare}`"):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}")
    return content, path


def _task_of(content: Mapping, path: Path) -> Task:
    """The task that a datalist is of; those written before there were several do not name theirs."""
    try:
        return find_task(content.get("name", "microscopy"))
    except InputError as error:
        raise InputError(f"{path} has the name '{shown(content['name'])}', but {error}") from error


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a path, which need not exist, ends outside of a folder: by ``..``, as an absolute one, through a link."""
    return not path.resolve().is_relative_to(folder.resolve())


def _inside(folders: Sequence[Path], relative: str, datalist: Path, task: Task) -> str:
    """The absolute path of ``relative`` to the first folder, which must not lead out of all and name an image."""
    path = folders[0] / relative
    try:
        path.exists()  # or an error, for what no file can be called
        file, _ = file_and_number(volume_path(path))  # of a series, or of a plane of a stack
        outside = any(all(leads_outside(end, folder) for folder in folders) for end in (path, file))
        resolved, is_image = path.resolve(), task.files.is_image(path)
    except (OSError, RuntimeError, ValueError) as error:  # no name of a file, or a circle of links
        raise InputError(f"{datalist}: {shown(ascii(relative))} is no path ({type(error).__name__}).") from error
    name = shown(repr(relative))
    if outside:
        raise InputError(f"{datalist} names {name}, which is outside of {folders[0]}; name only files inside of it.")
    if not is_image:
        raise InputError(f"{datalist} names {name}, which is no image of {task.name}; name only images.")
    # A link out keeps its name: stores of data call the file by its hash.
    return str(path.absolute() if leads_outside(path, folders[0]) else resolved)
