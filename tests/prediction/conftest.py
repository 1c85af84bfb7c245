# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""For every bundle two synthetic images, and a small network with random weights that finds something in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from small_weights import SMALL_NETWORK

from swinumamba_monai.distribution.network_of_config import build_bundle_network
from swinumamba_monai.prediction import find_bundle
from swinumamba_monai.tasks import find_task

OF_TASK = {"abdomen_mri": {"spacing": [6.0, 7.0]}, "endoscopy": {}, "microscopy": {"min_size": 2, "target": "classes"}}


@dataclass
class Small:
    """What a test needs of a bundle.

    Args:
        task: its name.
        folder: folder of its two images.
        checkpoint: weights of the small network.
        options: the network's, for the config.
    """

    task: str
    folder: Path
    checkpoint: Path
    options: dict = field(default_factory=dict)

    @property
    def images(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def words(self, output_dir: Path, *further: object) -> list[str]:
        """The command line behind ``python -m swinumamba_monai``."""
        given = [f"{name}={value}".replace(" ", "") for name, value in self.options.items()]
        words = ["predict", self.task, self.folder, "--output_dir", output_dir, "--checkpoint", self.checkpoint]
        return [str(word) for word in (*words, "--device", "cpu", *further, "--set", *given)]


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory):
    @cache
    def get(task: str) -> Small:
        place = tmp_path_factory.mktemp(task)
        counts = {"num_train": 1, "num_validation": 1, "num_test": 2}
        find_task(task).synthesize(place / "data", **counts, **find_task(task).small_data)
        (place / "my_images").mkdir()
        for image in sorted((place / "data" / "images").iterdir())[:2]:
            (place / "my_images" / image.name).write_bytes(image.read_bytes())
        options = {**SMALL_NETWORK, **OF_TASK[task]}
        torch.manual_seed(1)
        network = build_bundle_network(find_bundle(task) / "configs" / "inference.json", options)
        torch.save(network.state_dict(), place / "model.pt")
        return Small(task, place / "my_images", place / "model.pt", options)

    return get
