# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's own numbers, Tables I–V, as printed; ``paper_tables.csv`` beside this file is their one place.

In the text of the paper at hand Table IV has lost cells: Swin-UMamba†'s row is Table I's, two parameter counts, one
number of FLOPs and one NSD are missing, and the NSD that is left, 0.8326±0.0979, is taken to stand in the same row as
the FLOPs that are left.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# What a network started from, as paper_tables.csv and the tables of results call it, and in words.
SETTINGS = {
    "scratch": "w/o foundation model",
    "medical": "medical pretraining",
    "imagenet": "ImageNet pretraining",
    "imagenet+medical": "w/ foundation model",
}


@dataclass(frozen=True)
class PublishedRow:
    """A row of one of the paper's tables; of Table V the part that belongs to one task.

    Args:
        table: number of the table, I to V.
        task: a key of :data:`swinumamba_monai.tasks.TASKS`.
        row: name of the row in the table.
        system: a key of :data:`swinumamba_monai.networks.SYSTEMS`.
        setting: a key of :data:`SETTINGS`; in Table IV also the name of the changed structure.
        parameters: number of parameters as printed, like ``28M``; empty where the table has none, as all that follow.
        flops: FLOPs as printed, like ``18.9G``.
        dsc: mean and standard deviation of DSC over cases, like ``0.7767±0.0940``.
        nsd: mean and standard deviation of NSD over cases.
        f1: mean and standard deviation of F1 over cases.
    """

    table: str
    task: str
    row: str
    system: str
    setting: str
    parameters: str
    flops: str
    dsc: str
    nsd: str
    f1: str

    def score(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation of ``dsc``, ``nsd`` or ``f1``; None where the table has none."""
        printed = getattr(self, name)
        return tuple(map(float, printed.split("±"))) if printed else None


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All rows, in the order of the paper."""
    with (Path(__file__).parent / "paper_tables.csv").open(newline="", encoding="utf-8") as file:
        return tuple(PublishedRow(**row) for row in csv.DictReader(file))
