# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The files of an image that is predicted by blocks: as those of any other, gathered from what each block gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data.files.tiff_rows import TiffRows
from swinumamba_monai.inference.blocks import Block
from swinumamba_monai.inference.kept_blocks import KeptBlocks
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.painting import outlined, picture_step
from swinumamba_monai.prediction.artefacts import artefact_cells, dark_cells
from swinumamba_monai.prediction.objects import object_table, seen_in
from swinumamba_monai.prediction.predictor import Predictor


def predict_large(
    predictor: Predictor, image: TiffRows, file: Path, polygons: Path | None = None, kept: KeptBlocks | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[str, ...]]:
    """Predict an image by blocks.

    Args:
        predictor: the predictor, which has ``blocks``.
        image: an image that its ``blocks.open`` gave.
        file: ``.tif`` file to write, whole or not at all: the cells.
        polygons: GeoJSON file to write likewise, or none.
        kept: what is kept of its blocks; None keeps none.

    Returns:
        table and doubts of a :class:`~swinumamba_monai.prediction.predictor.Prediction`, the table in the order of the
        blocks, and between them the picture with outlines (H, W, 3), of every n-th pixel.

    Raises:
        InputError: it cannot be predicted in blocks, or not with the memory there is; its file is damaged.
    """
    picture, tables, artefacts, dark = _Picture(image), [], [], []

    def gather(block: Block) -> None:
        seen = seen_in(block.image, predictor.channel)
        tables.append(_table_of(block, predictor.channel))
        artefacts.append(artefact_cells(block.labels, seen) + block.before)
        dark.append(dark_cells(block.labels, seen) + block.before)
        picture.add(block, seen)
        add_features(block)

    with _features_in(polygons) as add_features:
        overview, cut = predictor.blocks.write(image, file, gather, kept)
    table = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    of_cells = {"artefacts": np.concatenate(artefacts), "dark": np.concatenate(dark)}
    doubts = predictor.doubts(seen_in(overview, predictor.channel), table, **of_cells)
    if cut:
        doubts = (*doubts, predictor.blocks.doubt(cut))
    return table, outlined(picture.image, picture.labels, one_colour=True), doubts


def _table_of(block: Block, channel: int | None) -> dict[str, np.ndarray]:
    """The rows of a block's cells, with the places and numbers that they have in the image."""
    table = object_table(block.labels, block.image, block.scores, channel=channel)
    table["label"] += block.before
    for axis, start in enumerate(block.corner):
        for name in (f"centroid-{axis}", f"bbox-{axis}", f"bbox-{axis + 2}"):
            table[name] += start
    return table


class _Picture:
    """Every n-th pixel of the image and of its map, as many as a picture of outlines has."""

    def __init__(self, image: TiffRows) -> None:
        self.step = picture_step(image.shape)
        self.labels = np.zeros([-(-side // self.step) for side in image.shape], np.int32)
        self.image: np.ndarray | None = None

    def add(self, block: Block, seen: np.ndarray) -> None:
        if self.image is None:
            self.image = np.zeros((*self.labels.shape, *seen.shape[2:]), seen.dtype)
        self._paste(self.image, seen, block.corner)
        self._paste(self.labels, block.rows, (block.corner[0], 0))

    def _paste(self, whole: np.ndarray, part: np.ndarray, corner: tuple[int, int]) -> None:
        first = [-start % self.step for start in corner]
        part = part[first[0] :: self.step, first[1] :: self.step]
        top, left = (-(-start // self.step) for start in corner)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part


@contextmanager
def _features_in(path: Path | None) -> Iterator[Callable[[Block], None]]:
    """What adds the cells of a block to a GeoJSON file, which is there whole or not at all; nothing without a file."""
    if path is None:
        yield lambda block: None
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = ""

        def add(block: Block) -> None:
            nonlocal separator
            for feature in geojson(block.labels, corner=block.corner, before=block.before)["features"]:
                file.write(separator + json.dumps(feature))
                separator = ", "

        file.write('{"type": "FeatureCollection", "features": [')
        yield add
        file.write("]}")
