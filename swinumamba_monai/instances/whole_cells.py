# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the way from a network's output to cells ends with: whole cells, none too small, numbered, with scores."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.measure import label, regionprops

from swinumamba_monai.cells import keep_cells

AUTO = "auto"
AUTO_SIZES = 10, 30  # pixels that a cell has at the least, by itself and beside large ones


def finish_cells(
    ids: np.ndarray, probability: np.ndarray, min_size: int | str, min_score: float, agreement: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Make each cell one piece without holes, drop what is too small or too doubtful, and number the rest.

    Args:
        ids: instance ids of shape (H, W), integers, 0 background; a cell may be in several pieces.
        probability: probability that a pixel belongs to a cell, shape (H, W).
        min_size: cells with fewer pixels are dropped; ``"auto"``: fewer than half the median cell, but than 10 in any
            case and at the most than 30, so that specks go and an image at half the size keeps its cells.
        min_score: cells with a lower score are dropped.
        agreement: another reason for a cell to be one, between 0 and 1, shape (H, W).

    Returns:
        instance ids of shape (H, W), int32, 1 to n in the order of the cells' first pixels; and the scores, shape (n,),
        float32: the mean probability over the cell, times its mean agreement.
    """
    whole = _fill_holes(_largest_pieces(ids))
    values, first = np.unique(whole, return_index=True)
    cells = values[values > 0][np.argsort(first[values > 0])]
    number = np.zeros(whole.max() + 1, np.int32)
    number[cells] = np.arange(1, len(cells) + 1)
    whole = number[whole]
    area = np.bincount(whole.ravel(), minlength=len(cells) + 1)
    score = _cell_means(whole, probability, area)
    if agreement is not None:
        score = score * _cell_means(whole, agreement, area)
    least, most = AUTO_SIZES if min_size == AUTO else (min_size, None)
    keep = (area >= least) & (score >= min_score)
    keep[0] = False
    if most is not None and keep.any():
        keep &= area >= min(most, np.median(area[keep]) / 2)
    return keep_cells(whole, keep), score[keep].astype(np.float32)


def resize_cells(ids: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Bring cells to a smaller grid, without those that no pixel is left of; each stays one piece.

    Args:
        ids: instance ids of shape (H, W), int32, 1 to n, 0 background.
        scores: score of each cell, shape (n,).
        size: rows and columns of the other grid; each of its pixels belongs to the cell under its centre.

    Returns:
        instance ids of that size, int32, 1 to m in the same order; and their scores, shape (m,).
    """
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, ids.shape))
    smaller = _largest_pieces(ids[np.ix_(rows, columns)])
    keep = np.bincount(smaller.ravel(), minlength=len(scores) + 1) > 0
    return keep_cells(smaller, keep), scores[keep[1:]]


def _cell_means(ids: np.ndarray, values: np.ndarray, area: np.ndarray) -> np.ndarray:
    return np.bincount(ids.ravel(), values.ravel(), len(area)) / np.maximum(area, 1)


def _largest_pieces(ids: np.ndarray) -> np.ndarray:
    """Each cell's largest 4-connected piece; the others become background."""
    pieces, count = label(ids, background=0, connectivity=1, return_num=True)  # cells that touch are two
    if count == 0:
        return np.zeros(ids.shape, np.int32)
    area = np.bincount(pieces.ravel(), minlength=count + 1)
    area[0] = 0
    owner = np.zeros(count + 1, np.int64)
    owner[pieces] = ids  # all pixels of a piece have one owner
    by_size = np.lexsort((-area, owner))
    is_first = np.r_[True, np.diff(owner[by_size]) > 0]
    keep = np.zeros(count + 1, bool)
    keep[by_size[is_first]] = True
    keep[0] = False
    return np.where(keep[pieces], ids, 0)


def _fill_holes(ids: np.ndarray) -> np.ndarray:
    """Give background that one cell encloses to that cell."""
    filled = ids.copy()
    for cell in regionprops(ids):
        hole = ndimage.binary_fill_holes(cell.image) & (ids[cell.slice] == 0)
        filled[cell.slice][hole] = cell.label
    return filled
