# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The dataset that everything runs on when no other is given: the synthetic one of its task."""

from __future__ import annotations

import logging
import os

from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.tasks import find_task

logger = logging.getLogger(__name__)


SYNTHETIC = "synthetic"  # the dataset_dir that asks for it by name


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
        return os.fspath(dataset_dir)
    logger.info("using the synthetic dataset in %s", synthetic_dir)
    return str(find_task(task).synthesize(synthetic_dir))


def remind_of_synthetic(dataset_dir: str | None, data_dir: str) -> None:
    """Say at the end of a run that what it read in ``data_dir`` was made up, if ``dataset_dir`` asked for that."""
    if _is_synthetic(dataset_dir):
        logger.warning("This run used the synthetic dataset in %s; --dataset_dir takes your own.", data_dir)


def _is_synthetic(dataset_dir: str | None) -> bool:
    return dataset_dir is None or (dataset_dir == SYNTHETIC and not os.path.isdir(SYNTHETIC))
