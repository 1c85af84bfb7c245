# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A small synthetic dataset for every bundle, and a network trained on it for two iterations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from bundle_runs import PRETRAIN, SHORT, run

from swinumamba_monai.tasks import find_task

COUNTS = {
    "abdomen_mri": {"num_train": 3, "num_validation": 2, "num_test": 2},
    "endoscopy": {"num_train": 4, "num_validation": 2, "num_test": 2},
    "microscopy": {"num_train": 4, "num_validation": 2, "num_test": 2},
}


@pytest.fixture(scope="session")
def dataset_of(tmp_path_factory) -> Callable[[str], Path]:
    """The dataset of a bundle."""

    @cache
    def get(bundle: str) -> Path:
        task = find_task(bundle)
        return task.synthesize(tmp_path_factory.mktemp("data") / bundle, **COUNTS[bundle], **task.small_data)

    return get


@pytest.fixture(scope="session")
def trained_in(tmp_path_factory, dataset_of) -> Callable[[str], Path]:
    """The folder of a training run of a bundle; nothing is to be changed in it."""

    @cache
    def get(bundle: str) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        run(bundle, "train", folder, dataset_dir=str(dataset_of(bundle)), **SHORT)
        return folder

    return get


@pytest.fixture(scope="session")
def pretrained_in(tmp_path_factory, dataset_of) -> Callable[[str], Path]:
    """The folder of a pretraining run of a bundle, with pictures."""

    @cache
    def get(bundle: str) -> Path:
        folder = tmp_path_factory.mktemp("pretrained")
        options = {**PRETRAIN, "max_epochs": 2, "picture_interval": 1}
        run(bundle, "pretrain", folder, dataset_dir=str(dataset_of(bundle)), **options)
        return folder

    return get


@pytest.fixture(scope="session")
def dataset(dataset_of) -> Path:
    """That of microscopy, on which what every bundle does is tried."""
    return dataset_of("microscopy")


@pytest.fixture(scope="session")
def trained(trained_in) -> Path:
    return trained_in("microscopy")
