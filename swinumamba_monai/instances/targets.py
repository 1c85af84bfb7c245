# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The two things that a network can learn of cells, by name: ``flows``, and the paper's three ``classes``."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from swinumamba_monai.cells import cell_scores, class_map, classes_to_instances
from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.instances.flows import FLOW_CHANNELS, flows_to_instances

# The channels of a network's output; they differ, so that weights for one are refused where the other is wanted.
_CHANNELS = {"flows": FLOW_CHANNELS, "classes": 3}


def cell_channels(target: str) -> int:
    """The number of channels that a network needs for a target; an InputError if there is no such target.

    >>> cell_channels("flows"), cell_channels("classes")
    (4, 3)
    """
    if target not in _CHANNELS:
        raise InputError(f"target is {shown(str(target))}, but it can be {' or '.join(_CHANNELS)}.")
    return _CHANNELS[target]


def find_cells(output: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The cells in a network's output, flows (4, H, W) or logits (3, H, W), with the usual settings.

    Returns:
        instance ids of shape (H, W), int32, 1 to n, and the scores of the cells, shape (n,), float32.
    """
    if output.shape[0] == FLOW_CHANNELS:
        return flows_to_instances(output)
    ids = classes_to_instances(class_map(output), min_size=12, grow=1)
    return ids, cell_scores(output, ids)
