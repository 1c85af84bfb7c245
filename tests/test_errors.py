# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The sentence reaches the user whatever wraps it on the way."""

from __future__ import annotations

import sys

import pytest
from monai.data import DataLoader, Dataset

from swinumamba_monai.errors import InputError, find_input_error, report_plainly


def refuse(item):
    raise InputError("the sentence")


def test_behind_what_is_raised_from_it():
    with pytest.raises(RuntimeError) as caught:
        try:
            refuse(None)
        except InputError as error:
            raise RuntimeError("wrapped") from error
    assert str(find_input_error(caught.value)) == "the sentence"


def test_from_a_worker_of_a_data_loader():
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Dataset([1], transform=refuse), num_workers=1))
    assert caught.value.__cause__ is None, "nothing but text comes out of a worker"
    assert str(find_input_error(caught.value)) == "the sentence"


def test_other_errors_are_not_taken_for_it():
    assert find_input_error(RuntimeError("an InputError: somewhere in a text")) is None


def test_hook(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    report_plainly()
    sys.excepthook(InputError, InputError("the sentence"), None)
    assert capsys.readouterr().err == "error: the sentence\n"
    sys.excepthook(KeyError, KeyError("other"), None)
    assert "KeyError: 'other'" in capsys.readouterr().err
