# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every task by its name: what the paper says of it, and the module beside this one that knows its files.

Adding one is a module, a line in :data:`TASKS` and a bundle: docs/adding_a_task.md. Looking a task up loads no reader;
that waits until its :attr:`Task.files` are asked for.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from swinumamba_monai.errors import InputError, check_known
from swinumamba_monai.run_lock import one_run

if TYPE_CHECKING:
    from os import PathLike

    from monai.data import ImageReader

    from swinumamba_monai.data.files.label_map import LabelMap
    from swinumamba_monai.data.prepare.dataset import PreparedDataset, PrepareOptions
    from swinumamba_monai.data.prepare.inspection import PairReport


@dataclass(frozen=True)
class TaskFiles:
    """What a task's module says of its files, as ``FILES``.

    Args:
        class_names: the paper's classes, background first; none for cells, which are told apart instead.
        reader: class of the reader for ``monai.transforms.LoadImage``, of images and labels alike.
        is_image: whether a path names an image of the task, by its name or as a folder; nothing is opened.
        list_images: what a path holds to run inference on: dictionaries with "image".
        inspect: decodes an image and its label of class numbers and says what is wrong with them; called with both
            paths (the image's may be a tuple, of its channels), the names of the classes, and options of its own.
        prepare: makes a prepared dataset of a downloaded one; called with both folders, the options, and for a task
            with classes a label map or None.
        synthesize: writes a synthetic dataset; called with the folder, ``num_train``, ``num_validation``,
            ``num_test``, ``image_size``, ``seed`` and whatever else it takes.
    """

    class_names: Sequence[str]
    reader: type[ImageReader]
    is_image: Callable[[Path], bool]
    list_images: Callable[[PathLike | str], list[dict[str, str]]]
    inspect: Callable[..., PairReport]
    prepare: Callable[..., PreparedDataset]
    synthesize: Callable[..., Path]


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: also that of its bundle's folder and of its module in this package.
        table: number of the paper's table with its results.
        scores: columns of an evaluation that the table shows, the first of which decides.
        in_channels: channels of the paper's images.
        num_classes: classes of the paper's data, background included; for cells interior and boundary.
        roi_size: the paper's crop (h, w) in pixels.
        small_data: arguments of :meth:`synthesize` that make its smallest useful dataset.
    """

    name: str
    table: str
    scores: Sequence[str]
    in_channels: int
    num_classes: int
    roi_size: tuple[int, int]
    small_data: Mapping[str, object] = field(default_factory=dict)

    @property
    def files(self) -> TaskFiles:
        """What the task's module says of its files; the first time loads its readers."""
        return import_module(f"{__name__}.{self.name}").FILES

    def prepare(
        self,
        source_dir: PathLike | str,
        output_dir: PathLike | str,
        options: PrepareOptions | None = None,
        label_map: LabelMap | PathLike | str | None = None,
    ) -> PreparedDataset:
        """Make a prepared dataset of a downloaded one, whose images are referred to and never copied.

        Args:
            source_dir: folder of the downloaded dataset, which stays as it is; a ``split.json`` in it may divide it.
            output_dir: folder of the prepared one, which may be the same.
            options: see :class:`~swinumamba_monai.data.prepare.dataset.PrepareOptions`; None for the defaults.
            label_map: the classes and their numbers in the labels, or the JSON file of them; None for the paper's, or
                those of the dataset.

        Raises:
            InputError: an empty path, a label map where there are no classes, options that are for volumes alone, or
                another process that prepares into ``output_dir``; for the rest see the task's own function.
        """
        _refuse_empty(source_dir=source_dir, output_dir=output_dir)
        if options is not None and "nan" not in inspect.signature(self.files.inspect).parameters:
            for name in ("series", "nan", "in_channels", "label_grid"):
                if getattr(options, name) not in (None, "file"):
                    raise InputError(f"{name} is for volumes, which {self.name} does not have; leave it out.")
        if label_map is not None and not self.files.class_names:
            raise InputError(f"Without classes {self.name} takes no label_map; leave it out.")
        given = (source_dir, output_dir, options) + ((label_map,) if self.files.class_names else ())
        with one_run(output_dir, "prepare"):
            return self.files.prepare(*given)

    def synthesize(self, output_dir: PathLike | str, **given: object) -> Path:
        """Write a synthetic dataset; ``output_dir`` is returned.

        Args:
            output_dir: new or empty folder, or one that holds this very dataset.
            given: ``num_train``, ``num_validation`` and ``num_test``, the numbers of images of each section;
                ``image_size``, height and width in pixels; ``seed`` of the random numbers, the same of which gives the
                same files; and what the task adds, as ``num_slices`` of a volume.

        Raises:
            InputError: an argument that the task does not have, values that are not possible, or a folder that holds
                something else.
        """
        _refuse_empty(output_dir=output_dir)
        known = inspect.signature(self.files.synthesize).parameters
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"{self.name} images have no {unknown[0].removeprefix('num_')}; leave {unknown[0]} out.")
        return self.files.synthesize(output_dir, **given)


TASKS = {
    task.name: task
    for task in (
        Task("abdomen_mri", "I", ("dsc", "nsd"), 1, 14, (320, 320), {"image_size": (48, 64), "num_slices": 4}),
        Task("endoscopy", "II", ("dsc", "nsd"), 3, 8, (384, 640), {"image_size": (64, 96)}),
        Task("microscopy", "III", ("f1",), 3, 3, (512, 512), {"image_size": (64, 80)}),
    )
}


def _refuse_empty(**folders: PathLike | str) -> None:
    """Refuse paths of variables of the shell that are not set, which would be the working directory."""
    for name, folder in folders.items():
        if not os.fspath(folder).strip():
            raise InputError(f"{name} is empty; give a folder.")


def find_task(name: object) -> Task:
    """The task of that name; else an InputError that lists them."""
    check_known("task", [name], TASKS)
    return TASKS[name]
