# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Outlines become pixels: those whose middle lies inside, of the shape that lies on top."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from swinumamba_monai.data.files.shapes import Annotations, Shape, decode_runs, rasterize
from swinumamba_monai.errors import InputError


def test_overlaps_and_runs():
    square = np.array([(0, 0), (4, 0), (4, 4), (0, 4)], float)
    shapes = [Shape("a", [[square]]), Shape("b", [[square + 2]]), Shape("c", masks=[(np.ones((2, 2), bool), (-1, -1))])]
    painted = rasterize(Annotations(Path("x"), shapes, layered=True), [1, 2, 3], (6, 6))
    assert (painted[:4, :4] == 1).all() and (painted == 2).sum() == 12 and (painted == 3).sum() == 0
    assert decode_runs([1, 2, 1], 2, 2, "F", "x").tolist() == [[False, True], [True, False]]
    assert decode_runs([1, 2], 2, 2, "C", "x").tolist() == [[False, True], [True, False]]
    with pytest.raises(InputError, match="no lengths"):
        decode_runs([5, -1], 2, 2, "F", "x")


@pytest.mark.parametrize("corners", [3, 7, 40])
def test_a_pixel_belongs_to_the_outline_that_its_middle_lies_in(corners):
    random = np.random.default_rng(corners)
    middles = np.argwhere(np.ones((30, 40)))[:, ::-1] + 0.5
    for _ in range(20):
        radius, angles = (
            random.uniform(3, 22, corners),
            (np.arange(corners) + random.random(corners) / 2) * 2 * np.pi / corners,
        )
        ring = random.uniform(0, 30, 2) + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        painted = rasterize(
            Annotations(Path("x"), [Shape("", [[ring]]), Shape("", masks=[(np.ones((30, 40), bool), (0, 0))])]),
            [1, 2],
            (30, 40),
        )
        inside = Outline(np.concatenate([ring, ring[:1]])).contains_points(middles).reshape(30, 40)
        np.testing.assert_array_equal(painted == 1, inside)


def test_a_jagged_outline_of_a_slide_takes_no_minutes():
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    ring = 1000 + (900 + 5 * np.sin(5000 * angles))[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    start = time.process_time()
    painted = rasterize(Annotations(Path("x"), [Shape("", [[ring]])]), [1], (2000, 2000))
    assert time.process_time() - start < 5  # each of four million pixels against each corner is a quarter of an hour
    assert painted.sum() == pytest.approx(np.pi * 900**2, rel=0.01)


def test_what_lies_within_another_is_on_top_where_the_file_does_not_say(caplog):
    """QuPath lists a region before what is marked within it, and COCO has no order."""
    square = np.array([(0, 0), (6, 0), (6, 6), (0, 6)], float)
    shapes = [Shape("around", [[square]]), Shape("within", [[square / 3 + 1]]), Shape("same", [[square / 3 + 1]])]
    painted = rasterize(Annotations(Path("x.json"), shapes), [1, 2, 3], (6, 6))
    assert (painted[1:3, 1:3] == 2).all() and (painted == 1).sum() == 32
    assert "x.json has 1 shapes that lie under others and have no pixel left" in caplog.text
    caplog.clear()
    rasterize(Annotations(Path("x.json"), shapes[:2], layered=True), [1, 2], (6, 6))
    assert "1 shapes that lie under others" in caplog.text
    caplog.clear()
    rasterize(Annotations(Path("x.json"), shapes[:2], layered=True), [1, 1], (6, 6))
    assert not caplog.text, "both are of one thing"


def test_shapes_smaller_than_a_pixel_are_said(caplog):
    sliver = np.array([(3.6, 1.0), (3.8, 1.0), (3.7, 4.0)])
    shapes = [Shape("", [[sliver]]), Shape("", [[sliver * 0 + 3]]), Shape("", masks=[(np.ones((1, 1), bool), (0, 0))])]
    painted = rasterize(Annotations(Path("x.json"), shapes), [1, 2, 3], (6, 6))
    assert painted.sum() == 3 and "x.json has 2 shapes that are smaller than a pixel" in caplog.text
