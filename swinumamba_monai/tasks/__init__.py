# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every task by its name: what the paper says of it, and the module beside this one that knows its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swinumamba_monai.errors import InputError

__all__ = ["TASKS", "Task", "find_task"]


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
        small_data: arguments of the module's ``synthesize`` that make its smallest useful dataset.
    """

    name: str
    table: str
    scores: Sequence[str]
    in_channels: int
    num_classes: int
    roi_size: tuple[int, int]
    small_data: Mapping[str, object] = field(default_factory=dict)


TASKS = {
    task.name: task
    for task in (
        Task("abdomen_mri", "I", ("dsc", "nsd"), 1, 14, (320, 320), {"image_size": (48, 64), "num_slices": 4}),
        Task("endoscopy", "II", ("dsc", "nsd"), 3, 8, (384, 640), {"image_size": (64, 96)}),
        Task("microscopy", "III", ("f1",), 3, 3, (512, 512), {"image_size": (64, 80)}),
    )
}


def find_task(name: object) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none; the sentence lists them.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; choose from {', '.join(TASKS)}.")
    return TASKS[name]
