# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a synthetic dataset: written whole, found again, and never in the way of other files.

Everything runs on that of its task when no other dataset is given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike

from swinumamba_monai.atomic import writing_folder
from swinumamba_monai.data.datalist import SECTIONS, is_prepared, write_datalist
from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.tasks import find_task

logger = logging.getLogger(__name__)

SYNTHETIC = "synthetic"  # the dataset_dir that asks for it by name


def write_synthetic(
    output_dir: PathLike,
    task: str,
    counts: Sequence[int],
    suffix: str,
    description: str,
    make: Callable[[np.random.Generator, int, Path, Path], None],
    seed: int,
    class_names: Sequence[str] = (),
) -> Path:
    """Write images, labels and datalist of a synthetic dataset; ``output_dir`` is returned.

    The folder appears as a whole, so that several processes may ask for it at once, and one that exists with these very
    arguments is left as it is.

    Args:
        output_dir: new or empty folder.
        task: one of :data:`~swinumamba_monai.tasks.TASKS`.
        counts: the number of training, validation and test images.
        suffix: suffix of the files.
        description: one line that differs when the arguments of the maker differ.
        make: writes an image and its label; called with a generator, the number of the image, and both paths.
        seed: seed of the random numbers.
        class_names: names of the numbers in the labels, background first; none for cells.

    Raises:
        InputError: The folder holds something else, or a count or the seed is negative.
    """
    if min(counts) < 0:
        raise InputError(f"A dataset of {tuple(counts)} images is not possible; use at least 0.")
    if seed < 0:
        raise InputError(f"The seed of a synthetic dataset is a whole number from 0 on, not {seed}.")
    output = Path(output_dir).absolute()
    names = [f"synthetic_{index:03d}{suffix}" for index in range(sum(counts))]
    items = iter({"image": f"images/{name}", "label": f"labels/{name}"} for name in names)
    sections = {section: [next(items) for _ in range(count)] for section, count in zip(SECTIONS, counts, strict=True)}

    def write_list(folder: Path) -> None:
        write_datalist(folder, sections, description, task=task, class_names=class_names)

    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is no folder; give a new one for the synthetic dataset.")
    if output.is_dir() and any(output.iterdir()):
        if not is_prepared(output):
            raise InputError(f"{output} is not empty; give a new folder for the synthetic dataset.")
        write_list(output)  # refuses a dataset other than this one
        return output
    try:
        with writing_folder(output) as temporary:
            for folder in ("images", "labels"):
                (temporary / folder).mkdir()
            for index, name in enumerate(names):
                # A generator per image: the first images are the same whatever the number of images.
                rng = np.random.default_rng([seed, index])
                make(rng, index, temporary / "images" / name, temporary / "labels" / name)
            write_list(temporary)
    except OSError:
        if not is_prepared(output):
            raise
        write_list(output)  # another process was faster; it must have made the same
    return output


def dataset_dir_or_synthetic(
    dataset_dir: str | None, synthetic_dir: str, task: str = "microscopy", default: bool = True
) -> str:
    """The folder ``dataset_dir``, or that of the synthetic dataset of a task where that is asked for.

    Args:
        dataset_dir: folder of a dataset; None, or ``"synthetic"`` where no folder has this name, for the synthetic one.
        synthetic_dir: folder that the synthetic dataset is written into once, and found in later.
        task: a key of :data:`~swinumamba_monai.tasks.TASKS`.
        default: whether None asks for it. Inference says no: its user has images, and a forgotten option would give
            predictions of others.

    Raises:
        InputError: ``dataset_dir`` is None and ``default`` is False, or it is no path; ``synthetic_dir`` holds
            something else; there is no such task.
    """
    if dataset_dir is None and not default:
        raise InputError(f"--dataset_dir is missing: give the folder of your images, or {SYNTHETIC} for made-up ones.")
    if dataset_dir is not None and not isinstance(dataset_dir, (str, os.PathLike)):
        raise InputError(f"dataset_dir must be the path of a folder, got {shown(repr(dataset_dir))}.")
    if not _is_synthetic(dataset_dir):
        if not os.fspath(dataset_dir).strip():  # of a variable of the shell that is not set
            raise InputError("dataset_dir is empty; give the folder of a dataset.")
        return os.fspath(dataset_dir)
    logger.info("using the synthetic dataset in %s", synthetic_dir)
    return str(find_task(task).synthesize(synthetic_dir))


def remind_of_synthetic(dataset_dir: str | None, data_dir: str) -> None:
    """Say at the end of a run that what it read in ``data_dir`` was made up, if ``dataset_dir`` asked for that."""
    if _is_synthetic(dataset_dir):
        logger.warning("This run used the synthetic dataset in %s; --dataset_dir takes your own.", data_dir)


def _is_synthetic(dataset_dir: str | None) -> bool:
    return dataset_dir is None or (dataset_dir == SYNTHETIC and not os.path.isdir(SYNTHETIC))
