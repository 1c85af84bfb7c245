# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from swinumamba_monai.instances.whole_cells import finish_cells


def test_a_cell_is_its_largest_piece_without_holes() -> None:
    ids = np.array(
        [
            [0, 4, 4, 4, 0, 4],
            [0, 4, 0, 4, 0, 0],
            [0, 4, 4, 4, 2, 2],
            [2, 0, 0, 0, 2, 2],
        ]
    )
    whole, score = finish_cells(ids, np.where(ids == 4, 1.0, 0.5), 0, 0.0)
    np.testing.assert_array_equal(
        whole,
        [
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 2, 2],
            [0, 0, 0, 0, 2, 2],
        ],
    )
    np.testing.assert_allclose(score, [8.5 / 9, 0.5])


def test_a_cell_within_a_hole_stays() -> None:
    ids = np.ones((5, 5), int)
    ids[2, 2] = 2
    whole, _ = finish_cells(ids, np.ones((5, 5)), 0, 0.0)
    np.testing.assert_array_equal(whole, ids)


def test_cells_are_numbered_in_the_order_of_their_first_pixels() -> None:
    ids = np.array([[0, 9, 0, 3], [5, 9, 0, 3]])
    whole, score = finish_cells(ids, np.ones(ids.shape), 2, 0.0)
    np.testing.assert_array_equal(whole, [[0, 1, 0, 2], [0, 1, 0, 2]])
    assert len(score) == 2


def test_pieces_of_touching_cells() -> None:
    """Cells that touch stay two, and a piece of a cell beyond another is no part of it."""
    whole, score = finish_cells(np.array([[1, 1, 2, 2, 2, 1]]), np.array([[0.5, 0.5, 1, 1, 1, 1]]), 0, 0.0)
    np.testing.assert_array_equal(whole, [[1, 1, 2, 2, 2, 0]])
    assert score.tolist() == [0.5, 1]


def test_specks_are_dropped_by_the_size_of_the_others():
    """Of squares: 30 pixels at least, half the median cell where that is less, 10 in any case; a number is a number."""

    def areas(*sides: int, min_size: int | str = "auto") -> list[int]:
        ids = np.zeros((20, 20 * len(sides)), np.int32)
        for number, side in enumerate(sides):
            ids[:side, 20 * number : 20 * number + side] = number + 1
        kept, scores = finish_cells(ids, np.ones(ids.shape), min_size=min_size, min_score=0.5)
        assert len(scores) == kept.max()
        return np.bincount(kept.ravel())[1:].tolist()

    assert areas(12, 10, 5) == [144, 100]  # a speck of 25 beside large cells
    assert areas(5, 6, 5, 4, 3) == [25, 36, 25, 16]  # cells of 25, whose half is 12.5
    assert areas(3, 3, 4) == [16]  # of 9 pixels none is a cell
    assert areas(1, 2) == []
    assert areas(5, 6, 5, 4, min_size=26) == [36]
    assert areas(1, 2, 5, min_size=0) == [1, 4, 25]
