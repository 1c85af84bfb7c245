# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a prediction found, as a table, and what about it is to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from skimage.measure import regionprops_table

__all__ = ["find_doubts", "join_tables", "object_table"]

PROPERTIES = ("label", "area", "centroid", "bbox", "intensity_mean")


def object_table(
    labels: np.ndarray, image: np.ndarray, scores: np.ndarray, names: Mapping[int, str] | None = None
) -> dict[str, np.ndarray]:
    """A row for every object, as :func:`skimage.measure.regionprops_table` makes it; ``pandas.DataFrame`` takes it.

    Args:
        labels: number of the object at every pixel (H, W) or voxel (X, Y, Z), 0 is background.
        image: image of that shape, perhaps with channels as a last axis; of four channels the last is an alpha.
        scores: how sure each object is, shape (n,) for the numbers 1 to n.
        names: names of the classes, where the numbers are classes and not cells.

    Returns:
        columns of one length: ``label``, ``area`` in pixels, ``centroid-0``, ... (rows, columns), ``bbox-0``, ...
        (first row and column, and those behind the last), ``intensity_mean`` (``intensity_mean-0``, ... for channels),
        ``score`` from 0 to 1, and ``name`` of classes.
    """
    if image.ndim > labels.ndim and image.shape[-1] == 4:
        image = image[..., :3]
    table = regionprops_table(labels, image, properties=PROPERTIES)
    table["score"] = np.asarray(scores, np.float32)[table["label"] - 1]
    if names is not None:
        table["name"] = np.array([names.get(number, f"class {number}") for number in table["label"].tolist()], str)
    return table


def join_tables(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tables of slices as one, with the number of the slice, from 0 on, as a first column ``slice``."""
    lengths = [len(table["label"]) for table in tables]
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return {"slice": np.repeat(np.arange(len(tables)), lengths), **joined}


def find_doubts(image: np.ndarray, labels: np.ndarray) -> list[str]:
    """Why an answer is not to be trusted, a phrase each; none where nothing speaks against it.

    Args:
        image: the image, as it was read.
        labels: what was found in it, 0 is background.
    """
    if not labels.any() and image.min() < image.max():
        return ["nothing was found, though the image is not flat"]
    return []
