# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The Python of ``docs/predict.md`` runs, that for napari without napari's window."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from doc_commands import ROOT
from short_runs import SMALL

from swinumamba_monai import Predictor
from swinumamba_monai.data import read_image

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "predict.md").read_text(), re.MULTILINE | re.DOTALL)


class Viewer:
    """What the recipe uses of ``napari.Viewer``, with one layer that is selected."""

    def __init__(self, **layer: object) -> None:
        self.keys, self.labels = {}, []
        self.layers = SimpleNamespace(selection=SimpleNamespace(active=SimpleNamespace(**layer)))

    def bind_key(self, key):
        return lambda function: self.keys.setdefault(key, function)

    def add_labels(self, data, **options):
        self.labels.append((data, options))


@pytest.fixture
def image(workplace, tmp_path, monkeypatch):
    """An image; in the working directory is what the page names, and the network is a small one that was trained."""
    workplace("microscopy", tmp_path)
    monkeypatch.chdir(tmp_path)
    small = {f"network_def#{option}": value for option, value in SMALL["SwinUMambaD"].items()}
    small |= {"bundle_dir": "bundles", "roi_size": 64, "device": "cpu"}
    monkeypatch.setattr("swinumamba_monai.Predictor", partial(Predictor, **small))
    return read_image("my_image.png")


def test_the_calls(image):
    call, _ = BLOCKS
    names = {"image": image, "stack": np.stack([image, image])}
    exec(call, names)
    assert names["labels"].shape == names["stack"].shape[:3]
    assert len(names["table"]["slice"]) == len(names["table"]["label"])


@pytest.mark.parametrize("stacked", [False, True])
def test_the_recipe_for_napari(image, stacked):
    _, recipe = BLOCKS
    assert len([line for line in recipe.splitlines() if line]) <= 10, "ten lines"
    data = np.stack([image, image]) if stacked else image
    viewer = Viewer(data=data, ndim=2 + stacked, name="plate", scale=(0.5,) * (2 + stacked))
    exec(recipe, {"viewer": viewer})
    viewer.keys["Shift-P"](viewer)
    ((labels, options),) = viewer.labels
    assert labels.shape == data.shape[: 2 + stacked] and labels.dtype == np.int32
    assert options["name"] == "plate nuclei" and len(options["scale"]) == labels.ndim
    assert np.array_equal(options["features"]["index"], np.unique(labels[labels > 0]))
