# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The dataset that everything runs on when no other is given: the synthetic one of its task."""

from __future__ import annotations

import logging
import os

from swinumamba_monai.tasks import find_task

logger = logging.getLogger(__name__)


def dataset_dir_or_synthetic(dataset_dir: str | None, synthetic_dir: str, task: str = "microscopy") -> str:
    """``dataset_dir``, or the synthetic dataset of a task where there is none.

    Args:
        dataset_dir: folder of a prepared dataset, or None.
        synthetic_dir: folder that the synthetic dataset is written into once, and found in later.
        task: a key of :data:`~swinumamba_monai.tasks.TASKS`.

    Returns:
        The folder to read.

    Raises:
        InputError: ``synthetic_dir`` holds something else, or there is no such task.
    """
    if dataset_dir is not None:
        return os.fspath(dataset_dir)
    logger.info("no dataset_dir given: using the synthetic dataset in %s", synthetic_dir)
    return str(find_task(task).synthesize(synthetic_dir))
