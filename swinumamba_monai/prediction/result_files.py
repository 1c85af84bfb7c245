# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The files that a prediction of many images leaves for each of them, and how they are called."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from swinumamba_monai.atomic import replacing, write_file
from swinumamba_monai.data.files.images import read_image
from swinumamba_monai.errors import plain_errors
from swinumamba_monai.formulas import as_cell
from swinumamba_monai.inference.coco import SUFFIXES, to_coco
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.painting import outlined
from swinumamba_monai.prediction.objects import seen_in
from swinumamba_monai.prediction.predictor import Prediction, Predictor
from swinumamba_monai.prediction.rois import write_rois
from swinumamba_monai.prediction.summary import as_text

FORMATS = ("masks", "geojson", "coco", "roi")
OUTLINES, OBJECTS = "_outlines.png", "_objects.csv"  # what is added to the name of an image
FURTHER = {"geojson": ".geojson", "roi": "_rois.zip"}  # the same of the formats
# Bytes of the name of a file, which has a dot, 32 digits and a hyphen before it while it is written.
MAX_NAME = 255 - 34


class ResultFiles:
    """Writes what was found in an image: the mask as the bundle does, outlines, a table of the objects, and formats.

    Args:
        folder: folder of the results.
        predictor: predictor whose results they are.
        formats: some of :data:`FORMATS`.

    Attributes:
        mask: ending of the mask, which a large image has as TIFF.
    """

    def __init__(self, folder: Path, predictor: Predictor, formats: Sequence[str]) -> None:
        self.folder, self.predictor, self.formats = folder, predictor, formats
        layouts = [saver.saver.folder_layout for saver in predictor.savers]
        self.mask, *others = [(f"_{layout.postfix}" if layout.postfix else "") + layout.ext for layout in layouts]
        self._others = [*others, OUTLINES, OBJECTS, *(ending for name, ending in FURTHER.items() if name in formats)]

    def path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}{ending}"

    def large_mask(self, name: str) -> Path:
        """Where the mask of an image that is predicted by blocks goes."""
        return self.path(name, self.mask).with_suffix(".tif")

    def polygons(self, name: str) -> Path | None:
        """Where the polygons go, if they are wanted."""
        return self.path(name, FURTHER["geojson"]) if "geojson" in self.formats else None

    def are_too_long(self, name: str) -> bool:
        """Whether a file system would refuse the names of an image's files."""
        return any(len(os.fsencode(self.path(name, ending).name)) > MAX_NAME for ending in (self.mask, *self._others))

    def are_there(self, name: str) -> bool:
        """Whether an image has all its files."""
        masks = self.path(name, self.mask), self.large_mask(name)
        return any(map(Path.is_file, masks)) and all(self.path(name, ending).is_file() for ending in self._others)

    def of_other_forms(self, names: Iterable[str]) -> list[Path]:
        """What is there of these images, when they are written, in forms that were not."""
        paths = [self.path(name, end) for end in set(FURTHER.values()) - set(self._others) for name in names]
        for name in names:
            masks = [self.path(name, self.mask).with_suffix(suffix) for suffix in SUFFIXES]
            paths += sorted(filter(Path.is_file, masks), key=lambda path: path.stat().st_mtime)[:-1]
        return [path for path in paths if path.is_file()]

    def called(self, names: Sequence[str]) -> list[str]:
        """What the files of finished images are called, with NAME for an image's."""
        if not names:
            return []
        large = [name for name in names if not self.path(name, self.mask).is_file()]
        masks = [f"NAME{self.mask}"] * (len(large) < len(names)) + [self.large_mask("NAME").name] * bool(large)
        return [*masks, *(f"NAME{ending}" for ending in self._others)]

    def write(self, name: str, found: Prediction) -> None:
        seen, class_names = seen_in(found.image, self.predictor.channel), self.predictor.class_names
        self.write_table(name, found.table, outlined(seen, found.labels, class_names is None))
        if path := self.polygons(name):
            write_file(path, json.dumps(geojson(found.labels, class_names)))
        if "roi" in self.formats:
            write_rois(self.path(name, FURTHER["roi"]), found.labels)
        with plain_errors():
            for saver in self.predictor.savers:
                saver(found.data)

    def write_table(self, name: str, objects: Mapping[str, np.ndarray], outlines: np.ndarray) -> None:
        """Write the table and the picture of the outlines (H, W, 3)."""
        self.make_folder(name)
        with (
            replacing(self.path(name, OBJECTS)) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(objects)
            table.writerows([as_text(as_cell(value)) for value in row] for row in zip(*objects.values()))
        with replacing(self.path(name, OUTLINES)) as temporary:
            Image.fromarray(outlines).save(temporary)

    def make_folder(self, name: str) -> None:
        """That of an image's files: those of images in several folders have folders of their own."""
        self.path(name, OBJECTS).parent.mkdir(parents=True, exist_ok=True)

    def write_coco(self, file: Path, images: Mapping[str, str]) -> None:
        """One file of many images, whose masks are there; images by the names of their files."""
        masks = (read_image(self.path(name, self.mask)).astype(np.int64) for name in images)
        items = zip((f"{name}{Path(image).suffix}" for name, image in images.items()), masks)
        write_file(file, json.dumps(to_coco(items, self.predictor.class_names)))
