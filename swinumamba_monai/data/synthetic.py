# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The dataset that everything runs on when no other is given: a synthetic one for every task."""

from __future__ import annotations

import logging
import os

from swinumamba_monai.data.synthetic_abdomen import synthesize_abdomen_mri
from swinumamba_monai.data.synthetic_endoscopy import synthesize_endoscopy
from swinumamba_monai.data.synthetic_microscopy import synthesize_microscopy

logger = logging.getLogger(__name__)

SYNTHESIZERS = {
    "abdomen_mri": synthesize_abdomen_mri,
    "endoscopy": synthesize_endoscopy,
    "microscopy": synthesize_microscopy,
}


def dataset_dir_or_synthetic(dataset_dir: str | None, synthetic_dir: str, task: str = "microscopy") -> str:
    """``dataset_dir``, or the synthetic dataset of a task where there is none.

    Args:
        dataset_dir: a prepared dataset, or None.
        synthetic_dir: where the synthetic dataset is written once, and found later.
        task: one of :data:`~swinumamba_monai.data.datalist.TASKS`.

    Returns:
        The folder to read.

    Raises:
        InputError: ``synthetic_dir`` holds something else.
    """
    if dataset_dir is not None:
        return os.fspath(dataset_dir)
    logger.info("no dataset_dir given: using the synthetic dataset in %s", synthetic_dir)
    return str(SYNTHESIZERS[task](synthetic_dir))
