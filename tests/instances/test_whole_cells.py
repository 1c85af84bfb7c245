# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from swinumamba_monai.instances.whole_cells import finish_cells, split_pieces


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
    pieces, count = split_pieces(np.array([[1, 1, 2, 2, 0, 1]]))
    np.testing.assert_array_equal(pieces, [[1, 1, 2, 2, 0, 3]])
    assert count == 3
