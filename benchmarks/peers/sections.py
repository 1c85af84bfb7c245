# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What peers are given and what they leave. It needs nothing of the package: peers run in environments of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def read_sections(
    dataset_dir: Path, *sections: str, count: int | None = None
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Names, gray images (H, W) uint8, and instance maps (H, W) of sections of a ``datalist.json``.

    Args:
        dataset_dir: folder that ``prepare microscopy`` wrote.
        sections: names of the sections.
        count: images of each section, the first ones; None for all.
    """
    lists = json.loads((dataset_dir / "datalist.json").read_text())
    folder = dataset_dir / lists.get("source_dir", ".")
    items = [item for section in sections for item in lists[section][:count]]
    images = [np.asarray(Image.open(folder / item["image"]).convert("L")) for item in items]
    labels = [np.asarray(Image.open(folder / item["label"])).astype(np.uint16) for item in items]
    return [Path(item["image"]).stem for item in items], images, labels


def save_instances(output_dir: Path, name: str, instances: np.ndarray) -> None:
    """Write the instance map (H, W) of an image where :mod:`.score` looks for it."""
    Image.fromarray(instances.astype(np.uint16)).save(output_dir / f"{name}_instances.png")


def save_timing(output_dir: Path, timing: Mapping[str, object]) -> None:
    """Write ``timing.json``, and print it."""
    (output_dir / "timing.json").write_text(json.dumps(timing, indent=1))
    print(timing)
