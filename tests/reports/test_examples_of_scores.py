# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of scores, inference and reports give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    *("metrics.cells", "metrics.segmentation", "reports.tables"),
    *("inference.mirroring", "inference.polygons", "inference.uncertainty"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(f"swinumamba_monai.{name}"))
    assert found.attempted > 0 and found.failed == 0
