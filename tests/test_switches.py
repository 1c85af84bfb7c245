# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from swinumamba_monai.errors import InputError
from swinumamba_monai.switches import is_on


@pytest.mark.parametrize("value", [True, "True", "true"])
def test_on(value):
    assert is_on(value) is True


@pytest.mark.parametrize("value", [False, "False", "false"])
def test_off(value):
    assert is_on(value) is False


@pytest.mark.parametrize("value", ["no", "", 0, 1, None, ["true"]])
def test_anything_else_is_refused(value):
    with pytest.raises(InputError, match="must be True or False"):
        is_on(value)
