# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A small synthetic dataset for every bundle, and a network trained on it for two iterations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_runs import PRETRAIN, SHORT, run

from swinumamba_monai.tasks import find_task

SMALL = {
    "abdomen_mri": {"num_train": 3, "num_validation": 2, "image_size": (48, 64), "num_slices": 4},
    "endoscopy": {"num_train": 4, "num_validation": 2, "image_size": (64, 96)},
    "microscopy": {"num_train": 4, "num_validation": 2, "image_size": (64, 80)},
}


@pytest.fixture(scope="session")
def dataset_of(tmp_path_factory) -> Callable[[str], Path]:
    """The dataset of a bundle."""
    made = {}

    def get(bundle: str) -> Path:
        if bundle not in made:
            folder = tmp_path_factory.mktemp("data") / bundle
            made[bundle] = find_task(bundle).synthesize(folder, num_test=2, **SMALL[bundle])
        return made[bundle]

    return get


@pytest.fixture(scope="session")
def trained_in(tmp_path_factory, dataset_of) -> Callable[[str], Path]:
    """The folder of a training run of a bundle; nothing is to be changed in it."""
    made = {}

    def get(bundle: str) -> Path:
        if bundle not in made:
            made[bundle] = tmp_path_factory.mktemp("trained")
            run(bundle, "train", made[bundle], dataset_dir=str(dataset_of(bundle)), **SHORT)
        return made[bundle]

    return get


@pytest.fixture(scope="session")
def pretrained_in(tmp_path_factory, dataset_of) -> Callable[[str], Path]:
    """The folder of a pretraining run of a bundle, with pictures."""
    made = {}

    def get(bundle: str) -> Path:
        if bundle not in made:
            made[bundle] = tmp_path_factory.mktemp("pretrained")
            options = {**PRETRAIN, "max_epochs": 2, "picture_interval": 1}
            run(bundle, "pretrain", made[bundle], dataset_dir=str(dataset_of(bundle)), **options)
        return made[bundle]

    return get


@pytest.fixture(scope="session")
def dataset(dataset_of) -> Path:
    """That of microscopy, on which what every bundle does is tried."""
    return dataset_of("microscopy")


@pytest.fixture(scope="session")
def trained(trained_in) -> Path:
    return trained_in("microscopy")
