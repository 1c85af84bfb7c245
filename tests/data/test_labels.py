# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A label map says which number is which class, in every form that datasets come with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from swinumamba_monai.data.files.label_map import (
    ABDOMEN_CLASSES,
    LabelMap,
    parse_label_map,
    read_label_map,
    select_classes,
)
from swinumamba_monai.errors import InputError

# What AMOS 2022's dataset.json has.
AMOS = {
    "0": "background", "1": "spleen", "2": "right kidney", "3": "left kidney", "4": "gall bladder", "5": "esophagus",
    "6": "liver", "7": "stomach", "8": "arota", "9": "postcava", "10": "pancreas", "11": "right adrenal gland",
    "12": "left adrenal gland", "13": "duodenum", "14": "bladder", "15": "prostate/uterus",
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        {"background": 0, "liver": 1, "spleen": 2},
        {"0": "background", "1": "liver", "2": "spleen"},
        {"labels": {"background": 0, "liver": [1], "spleen": 2}, "numTraining": 3},
        {"liver": 1, "background": 0, "spleen": 2},
    ],
)
def test_every_form_is_read(tmp_path, content):
    (tmp_path / "map.json").write_text(json.dumps(content))
    labels = read_label_map(tmp_path / "map.json")
    assert labels == LabelMap.of_names(["background", "liver", "spleen"])
    assert labels.is_identity


def test_numbers_become_classes_in_the_order_of_the_map():
    labels = parse_label_map({"background": [0, 9], "spleen": 7, "kidneys": [2, 3]}, "it")
    assert not labels.is_identity
    classes = labels.to_classes(np.array([[0, 9, 7], [2, 3, 0]]), "it")
    np.testing.assert_array_equal(classes, [[0, 0, 1], [2, 2, 0]])
    assert classes.dtype == np.uint8


def test_ids_outside_the_map_are_refused():
    labels = LabelMap.of_names(["background", "liver"])
    with pytest.raises(InputError, match=r"a\.nii has the label ids 2, 5, but the classes have 0, 1"):
        labels.to_classes(np.array([0, 1, 2, 5]), "a.nii")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no label map"),
        ("[]", "no label map"),
        ('{"background": 0, "liver": "one"}', "no label map"),
        ('{"background": 0, "liver": 1, "spleen": 1}', "twice"),
        ('{"background": 0, "liver": 1, "liver": 2}', "liver is there twice"),
        ('{"0": "background", "1": "liver", "1": "spleen"}', "1 is there twice"),
        ('{"background": 0, "liver": 1.5}', "1.5 is no whole number"),
        ('{"background": 0, "liver": [1, 2.7]}', "2.7 is no whole number"),
        ('{"background": 0, "liver": true}', "True is no whole number"),
        ('{"liver": 1, "spleen": 2}', "needs one entry"),
        ('{"background": 0}', "needs one entry"),
    ],
)
def test_bad_maps_are_refused(tmp_path, text, words):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        read_label_map(tmp_path / "map.json")
    assert "map.json" in str(error.value)


def test_a_missing_map_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.json does not exist"):
        read_label_map(tmp_path / "no.json")


def test_the_organs_of_the_paper_are_found_in_amos_by_name():
    amos = parse_label_map({**AMOS, "8": "aorta"}, "amos")
    labels = select_classes(amos, ABDOMEN_CLASSES)
    ids = dict(zip(labels.names, labels.ids))
    assert ids["liver"] == (6,) and ids["inferior vena cava"] == (9,) and ids["left kidney"] == (3,)
    assert ids["background"] == (0, 14, 15)
    assert labels.names == ABDOMEN_CLASSES
    assert select_classes(parse_label_map({"background": 0, "liver": 1}, "it"), ABDOMEN_CLASSES) is None


def test_the_typing_error_of_amos_is_known():
    """Its dataset.json says "arota"."""
    assert dict(zip(ABDOMEN_CLASSES, select_classes(parse_label_map(AMOS, "amos"), ABDOMEN_CLASSES).ids))["aorta"] == (
        8,
    )


@pytest.mark.parametrize(
    "content",
    ['{"background": 0, "a": Infinity}', '{"background": 0, "a": NaN}', '{"background": 0, "a": 1e400}', "[" * 100_000,
     '{"background": 0, "a": 99999999999999999999}', '{"background": 0, "a": [[1]]}', '{"background": null, "a": 1}'],
)  # fmt: skip
def test_numbers_that_are_none(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=r"is no label map|over 32 bits") as caught:
        read_label_map(tmp_path / "labels.json")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
