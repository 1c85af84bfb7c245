# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import swinumamba_monai

PACKAGE = Path(swinumamba_monai.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_examples(file):
    module = importlib.import_module(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
    assert doctest.testmod(module, extraglobs={"np": np, "torch": torch}).failed == 0


def test_there_are_examples():
    assert len(FILES) >= 35
