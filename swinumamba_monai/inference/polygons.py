# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Numbered pixels as polygons: GeoJSON as QuPath imports it.

A polygon goes along the edges of the pixels, not through their middles, so filling it gives the same pixels again.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.utils import ensure_tuple
from scipy import ndimage

from swinumamba_monai.errors import explained, log_once
from swinumamba_monai.inference.writers import RowsFirstWriter
from swinumamba_monai.weight_files import read_record

logger = logging.getLogger(__name__)

CELL = "cell"


def geojson(
    numbers: np.ndarray, names: Mapping[int, str] | None = None, corner: tuple[int, int] = (0, 0), before: int = 0
) -> dict:
    """The polygons of a map of numbers.

    Args:
        numbers: map of numbers (H, W), 0 is background.
        names: names of the classes by number; None where the numbers are those of cells.
        corner: row and column of the map's upper left pixel, of a map that is a part of an image.
        before: number to be added to a cell's to get that in the image.

    Returns:
        A FeatureCollection with a feature for every number: a Polygon, or a MultiPolygon where its pixels lie in
        several 4-connected pieces. x goes to the right, y down, both in pixels from the upper left corner of the image.

    >>> geojson(np.array([[0, 1]]))["features"][0]["geometry"]
    {'type': 'Polygon', 'coordinates': [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]]}
    """
    features = []
    for number, mask, place in regions(numbers):
        polygons = outlines(mask, (corner[0] + place[0], corner[1] + place[1]))
        kind, coordinates = ("Polygon", polygons[0]) if len(polygons) == 1 else ("MultiPolygon", polygons)
        name = CELL if names is None else names.get(number, f"class {number}")
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": kind, "coordinates": coordinates},
                "properties": {
                    "objectType": "annotation",
                    "name": f"{CELL} {before + number}" if names is None else name,
                    "classification": {"name": name},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def regions(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, tuple[int, int]]]:
    """Every number of a map with its pixels, cut out: as many small masks, however large the map or a number is.

    Args:
        numbers: map of numbers (H, W), 0 is background.

    Yields:
        the number, in ascending order; its mask (h, w) bool; row and column of the mask's upper left pixel.
    """
    present = np.unique(numbers[numbers > 0])
    places = np.searchsorted(present, numbers) + 1
    places[numbers <= 0] = 0
    for place, window in enumerate(ndimage.find_objects(places), start=1):
        yield int(present[place - 1]), places[window] == place, (window[0].start, window[1].start)


def outlines(mask: np.ndarray, corner: tuple[int, int]) -> list[list[list[list[int]]]]:
    """The polygons of a mask, one for each 4-connected piece: its outer ring, then its holes, each closed.

    Args:
        mask: (h, w) bool.
        corner: row and column of its upper left pixel in the image.

    Returns:
        polygons, rings, corners, and x and y of each, in pixels of the image.
    """
    pieces, count = ndimage.label(mask)
    polygons = []
    for piece, window in enumerate(ndimage.find_objects(pieces, count), start=1):
        top, left = corner[0] + window[0].start, corner[1] + window[1].start
        polygons.append(_polygon(pieces[window] == piece, top, left))
    return polygons


class PolygonWriter(RowsFirstWriter):
    """Write the outlines of cells or classes, (1, H, W) or (H, W), as GeoJSON; see :func:`geojson`.

    Args:
        metadata: ``metadata.json`` of a bundle, whose output names the classes; None for cells.
        num_classes: see :func:`class_names`.
        ckpt_path: likewise.
        options: options of :class:`~swinumamba_monai.inference.writers.RowsFirstWriter`.

    Raises:
        InputError: there is no such file, or the numbers are not whole.
    """

    content = "outlines"
    suffixes = (".geojson",)

    def __init__(
        self,
        metadata: PathLike | None = None,
        num_classes: int | None = None,
        ckpt_path: PathLike | Sequence[PathLike] = (),
        **options: object,
    ) -> None:
        super().__init__(**options)
        self.names = None if metadata is None else class_names(metadata, num_classes, ckpt_path)

    def pixels(self, array: np.ndarray) -> np.ndarray:
        return self.whole_numbers(array).astype(np.int64)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(geojson(self.data_obj, self.names)), encoding="utf-8")


def class_names(
    metadata: PathLike, num_classes: int | None = None, ckpt_path: PathLike | Sequence[PathLike] = ()
) -> dict[int, str]:
    """Names of the classes by number, without the background: the training's own, or else the bundle's.

    Args:
        metadata: ``metadata.json`` of a bundle.
        num_classes: number of classes of the network with the background; where the file names more or fewer, as of
            another training, they are called by their numbers, and the log says so. None takes as many as are named.
        ckpt_path: weights of the network, one file or several, whose training may have left its names beside them.

    Raises:
        InputError: there is no such file, or it names no classes; or the record of a training is damaged.
    """
    trained = [(read_record(path) or {}).get("class_names") for path in ensure_tuple(ckpt_path)]
    names = trained[0] if trained and trained.count(trained[0]) == len(trained) else None
    if isinstance(names, list) and names and num_classes in (None, len(names)):
        return {number: str(name) for number, name in enumerate(names) if number > 0}
    with explained(f"{metadata} does not name the classes of the polygons", "give that of a bundle"):
        content = json.loads(Path(metadata).read_text(encoding="utf-8"))
        channels = content["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = {int(number): name for number, name in channels.items() if int(number) > 0}
    if num_classes in (None, len(channels)):
        return names
    sentence = (
        f"{metadata} names {len(names)} classes and the network has {num_classes - 1}, so they are called class 1"
    )
    log_once(logger, logging.WARNING, f"{sentence} and so on; name them in the channel_def of a copy of the bundle")
    return {number: f"class {number}" for number in range(1, num_classes)}


def _polygon(piece: np.ndarray, top: int, left: int) -> list[list[list[int]]]:
    """The rings of a 4-connected piece (H, W) bool: the outer one, then the holes; each is closed."""
    steps = _edges(np.pad(piece, 1))
    rings = []
    while steps:
        start = here = min(steps)  # the uppermost corner that is left, so the outer ring comes first
        step, ring = None, []
        while not ring or here != start:
            ways = steps[here]
            # Where two pixels touch at a corner, they close a hole off. The left turn goes on to the other pixel, so
            # the hole is a ring of its own; the right turn would make one ring of both, which touches itself.
            way = (-step[1], step[0]) if len(ways) == 2 and step is not None else ways[0]
            ways.remove(way)
            if not ways:
                del steps[here]
            if way != step:
                ring.append(here)
            here, step = (here[0] + way[0], here[1] + way[1]), way
        rings.append([[column - 1 + left, row - 1 + top] for row, column in [*ring, start]])
    return rings


def _edges(mask: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """From every corner (row, column) the steps along pixel edges that have the mask on their right."""
    steps = defaultdict(list)
    inside = mask[1:, 1:]
    down, right = mask[:-1, 1:] != inside, mask[1:, :-1] != inside
    for row, column in (np.argwhere(down) + 1).tolist():  # a horizontal edge, between a pixel and the one above it
        if mask[row, column]:
            steps[row, column].append((0, 1))
        else:
            steps[row, column + 1].append((0, -1))
    for row, column in (np.argwhere(right) + 1).tolist():  # a vertical edge, between a pixel and the one left of it
        if mask[row, column]:
            steps[row + 1, column].append((-1, 0))
        else:
            steps[row, column].append((1, 0))
    return steps
