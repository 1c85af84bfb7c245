# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Colours of numbered pixels over an image."""

from __future__ import annotations

import numpy as np
import pytest

from swinumamba_monai.painting import display_range, paint, palette


def test_a_few_bright_pixels_do_not_make_the_rest_black():
    image = np.linspace(0, 1, 10_000)
    image[-1] = 1e6
    low, span = display_range(image)
    assert (low, low + span) == pytest.approx((0.005, 0.995), abs=1e-3)
    assert display_range(np.ones(5))[1] > 0, "a constant image can be divided by it"


def test_neighbouring_numbers_have_different_colours():
    colours = palette(200)
    assert colours.shape == (201, 3) and colours.min() >= 0 and colours.max() <= 1
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 0.3


def test_the_rim_is_opaque_and_zero_is_not_painted():
    numbers = np.zeros((7, 7), int)
    numbers[1:6, 1:6] = 2
    picture = np.zeros((7, 7, 3))
    paint(picture, numbers, palette(2), opacity=0.25)
    colour = palette(2)[2]
    np.testing.assert_allclose(picture[1, 3], colour)
    np.testing.assert_allclose(picture[3, 3], 0.25 * colour)
    assert not picture[0].any()
