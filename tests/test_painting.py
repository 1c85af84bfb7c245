# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Colours of numbered pixels over an image."""

from __future__ import annotations

import numpy as np
import pytest

from swinumamba_monai.painting import display_range, outlined, paint, palette


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


def test_the_picture_of_a_large_image_shows_every_second_pixel(monkeypatch):
    monkeypatch.setattr("swinumamba_monai.painting.MAX_PICTURE", 80)
    labels = np.zeros((8, 20), int)
    assert outlined(np.zeros((8, 20, 2)), labels, True).shape == (4, 10, 3)
    assert outlined(np.zeros((8, 10)), labels[:, :10], False).shape == (8, 10, 3)


def test_the_picture_of_a_long_strip_shows_all_its_pixels():
    """Every 25th of 64 rows would be three rows, in which no cell can be seen."""
    labels = np.zeros((64, 100_000), int)
    labels[20:40, 90_000:90_020] = 1
    picture = outlined(np.zeros(labels.shape, np.uint8), labels, one_colour=True)
    assert picture.shape == (64, 100_000, 3)
    assert picture[20, 90_000].any() and picture[39, 90_019].any() and not picture[30, 90_010].any()


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
def test_outlines_are_on_the_rim_of_every_number(shape):
    labels = np.zeros((20, 30), int)
    labels[5:15, 5:15], labels[5:15, 15:25] = 1, 2
    picture = outlined(np.full(shape, 3.0), labels, one_colour=True)
    green = (picture == picture[5, 5]).all(-1)
    assert green[10, 14] and green[10, 15] and not green[10, 10] and not green[0, 0], "also between two that touch"


@pytest.mark.parametrize(
    "brightness, colour",
    [((1, 1, 1), (26, 255, 26)), ((0, 0, 1), (26, 255, 26)), ((0, 1, 0), (255, 26, 255)), ((0, 1), (255, 26, 255))],
    ids=["gray", "blue", "green", "second of two channels"],
)
def test_outlines_can_be_seen_on_cells_of_any_colour(brightness, colour):
    labels = np.zeros((20, 30), int)
    labels[5:15, 5:15] = 1
    picture = outlined((labels > 0)[..., None] * np.array(brightness) * 200.0, labels, one_colour=True)
    assert tuple(picture[5, 5]) == colour and tuple(picture[10, 10]) != colour


def test_green_and_red_cells_of_one_picture():
    labels = np.zeros((20, 30), int)
    labels[5:15, 5:15], labels[5:15, 18:28] = 1, 2
    image = np.stack([labels == 2, labels == 1], -1) * 200.0
    picture = outlined(image, labels, one_colour=True)
    assert tuple(picture[5, 5]) == (255, 26, 255) and tuple(picture[5, 18]) == (26, 255, 26)


def test_of_a_volume_the_slice_with_most_is_outlined():
    labels = np.zeros((20, 30, 4), int)
    labels[2:18, 2:28, 2] = 1
    picture = outlined(np.zeros(labels.shape), labels, one_colour=False)
    assert picture.shape == (20, 30, 3) and picture[2, 2].any() and not picture[10, 10].any()
