# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import ClassesToInstancesd, class_map, classes_to_instances

CLASSES = np.array(
    [
        [1, 1, 0, 0, 0, 1],
        [1, 2, 0, 0, 0, 0],
        [0, 0, 1, 0, 2, 2],
        [0, 0, 0, 1, 2, 1],
    ]
)
IDS = np.array(
    [
        [1, 1, 0, 0, 0, 2],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 3, 0, 0, 0],
        [0, 0, 0, 3, 0, 4],
    ]
)


def one_hot(classes: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes).long(), 3).permute(2, 0, 1).float()


def test_interior_is_numbered_with_diagonal_neighbours() -> None:
    ids = classes_to_instances(CLASSES)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, IDS)


def test_no_cells() -> None:
    assert not classes_to_instances(np.full((4, 6), 2), min_size=2, grow=2).any()


def test_small_cells_are_dropped_and_the_others_numbered_anew() -> None:
    np.testing.assert_array_equal(
        classes_to_instances(CLASSES, min_size=2), np.where(IDS == 3, 2, np.where(IDS == 1, 1, 0))
    )
    assert not classes_to_instances(CLASSES, min_size=4).any()


def test_cells_grow_into_their_boundary_only() -> None:
    row = np.array([[0, 2, 1, 2, 2, 2, 2, 2, 2, 1, 0]])
    np.testing.assert_array_equal(classes_to_instances(row, grow=1), [[0, 1, 1, 1, 0, 0, 0, 0, 2, 2, 0]])
    np.testing.assert_array_equal(classes_to_instances(row, grow=9), [[0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0]])


@pytest.mark.parametrize(
    "pred",
    [one_hot(CLASSES), one_hot(CLASSES) * 9 - 4, torch.tensor(CLASSES)[None], torch.tensor(CLASSES)[None].half()],
    ids=["one-hot", "logits", "classes", "float classes"],
)
def test_transform_takes_logits_one_hot_and_classes(pred: torch.Tensor) -> None:
    pred = MetaTensor(pred, meta={"filename_or_obj": "a/b.tif"})
    data = {"image": 1, "pred": pred}
    ids = ClassesToInstancesd("pred")(data)["pred"]
    assert isinstance(ids, MetaTensor) and ids.dtype == torch.int32 and ids.shape == (1, 4, 6)
    assert ids.meta["filename_or_obj"] == "a/b.tif"
    np.testing.assert_array_equal(ids[0].numpy(), IDS)
    assert data["pred"] is pred


def test_transform_gives_meta_tensors_of_plain_ones_and_reads_its_options_from_a_config() -> None:
    config = {
        "_target_": "swinumamba_monai.inference.ClassesToInstancesd",
        "keys": ["pred", "absent"],
        "min_size": 2,
        "grow": 1,
        "allow_missing_keys": True,
    }
    transform = ConfigParser({"t": config}).get_parsed_content("t")
    ids = transform({"pred": one_hot(CLASSES)})["pred"]
    assert isinstance(ids, MetaTensor)
    expected = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0], [0, 0, 0, 2, 2, 0]]
    np.testing.assert_array_equal(ids[0].numpy(), expected)


@pytest.mark.parametrize("pred", [torch.zeros(2, 4, 6), torch.zeros(4, 6), torch.zeros(3, 4, 6, 5)])
def test_other_shapes_are_refused(pred: torch.Tensor) -> None:
    with pytest.raises(InputError, match="cannot be read as cells"):
        class_map(pred)


@pytest.mark.parametrize("value", [3, 0.5, -1, 257])
def test_other_values_are_refused(value: float) -> None:
    pred = torch.zeros(1, 4, 6)
    pred[0, 1, 2] = value
    with pytest.raises(InputError, match="0, 1 and 2"):
        class_map(pred)
