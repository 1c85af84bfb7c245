# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions as one COCO file, which CVAT imports ("COCO 1.0") and most tools for annotation read.

What has no hole is a list of polygons, what has one a run-length code, because a COCO polygon cannot have holes; both
hold the very pixels of the prediction.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.utils import ensure_tuple

from swinumamba_monai.atomic import write_file
from swinumamba_monai.data import load_images, read_image
from swinumamba_monai.data.files.limits import check_file
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.polygons import CELL, class_names, outlines, regions
from swinumamba_monai.inference.writers import RowsFirstWriter
from swinumamba_monai.weight_files import find_checkpoint

# Ends of the names of files that the bundles write: numbers of cells, numbers of classes.
POSTFIXES = ("instances", "classes")
SUFFIXES = RowsFirstWriter.suffixes


def to_coco(items: Iterable[tuple[str, np.ndarray]], names: Mapping[int, str] | None = None) -> dict:
    """The content of a COCO file of instances.

    Args:
        items: file name of each image, and the map of numbers (H, W) that was predicted for it, 0 is background.
        names: names of the classes by number; None where the numbers are those of cells.

    Returns:
        images, categories, and an annotation for every cell, or every class of an image; ids count from 1, x goes to
        the right and y down, in pixels from the upper left corner.
    """
    categories = {1: CELL} if names is None else names
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name, "supercategory": ""} for number, name in categories.items()]
    for image_id, (file_name, numbers) in enumerate(items, start=1):
        height, width = numbers.shape
        content["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for number, mask, (top, left) in regions(numbers):
            annotation = {"id": len(content["annotations"]) + 1, "image_id": image_id}
            annotation |= {"category_id": 1 if names is None else number, "area": int(mask.sum())}
            annotation["bbox"] = [left, top, mask.shape[1], mask.shape[0]]  # x, y, width, height
            content["annotations"].append(annotation | _segmentation(mask, (top, left), (height, width)))
    return content


def write_coco(
    predictions: PathLike,
    images: PathLike,
    output_file: PathLike,
    metadata: PathLike | None = None,
    ckpt_path: PathLike | Sequence[PathLike] = (),
) -> tuple[int, int]:
    """One COCO file of a folder of predictions; the numbers of images and of annotations are returned.

    Args:
        predictions: folder with NAME_instances or NAME_classes files, as the bundles' inference writes them.
        images: images, as the inference took them; those without a prediction are left out.
        output_file: ``.json`` file to write, whole or not at all.
        metadata: ``metadata.json`` of the bundle, which names the classes; not needed for cells.
        ckpt_path: weights that predicted, one file or several, whose training may have left its own names beside them;
            without any those of the bundle.

    Raises:
        InputError: no prediction or no such weights are there, predictions of two kinds, classes without ``metadata``,
            or a class that neither it nor the training names.
    """
    files, kinds = {}, set()
    paths = [Path(item["image"]) for item in load_images(images)]
    root = os.path.commonpath([path.parent for path in paths])
    for image in paths:
        place = image.relative_to(root)  # the predictions of images in several folders lie in folders of the same names
        for postfix, suffix in itertools.product(POSTFIXES, SUFFIXES):
            path = Path(predictions) / place.with_name(f"{place.stem}_{postfix}{suffix}")
            if path.is_file():
                files.setdefault(place.as_posix(), path)
                kinds.add(postfix)
    if not files:
        raise InputError(f"{predictions} has no NAME_instances.png or NAME_classes.png of an image in {images}.")
    if len(kinds) > 1:
        raise InputError(f"{predictions} holds classes beside instances; give the predictions of one bundle.")
    are_classes = kinds == {"classes"}
    if are_classes and metadata is None:
        raise InputError(f"{predictions} holds classes; give the metadata.json of the bundle, which names them.")
    for path in ensure_tuple(ckpt_path):
        check_file(Path(path))
    names = None
    if metadata is not None:  # also where cells need none: a wrong path is one
        models = Path(metadata).resolve().parent.with_name("models")
        names = class_names(metadata, ckpt_path=ckpt_path or find_checkpoint(models))
    class_of = names if are_classes else None
    items = []
    for name, path in files.items():
        numbers = read_image(path).astype(np.int64)
        unknown = set(np.unique(numbers).tolist()) - {0} - (class_of or {}).keys() if are_classes else ()
        if unknown:
            raise InputError(f"{path} holds class {min(unknown)}, which neither {metadata} nor the training names.")
        items.append((name, numbers))
    content = to_coco(items, class_of)
    write_file(output_file, json.dumps(content))
    return len(content["images"]), len(content["annotations"])


def _segmentation(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict:
    """Polygons, or a run-length code where there is a hole, of the mask of a region at ``corner`` of an image."""
    polygons = outlines(mask, corner)
    if all(len(rings) == 1 for rings in polygons):
        return {"segmentation": [[n for point in ring[:-1] for n in point] for (ring,) in polygons], "iscrowd": 0}
    # Runs go down the columns of the image, beginning with how many zeros there are.
    columns, rows = np.nonzero(mask.T)
    places = (columns + corner[1]) * size[0] + rows + corner[0]
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts, ends = places[np.concatenate([[0], breaks + 1])], places[np.concatenate([breaks, [-1]])] + 1
    counts = np.diff(np.concatenate([[0], np.stack([starts, ends], axis=1).ravel()])).tolist()
    rest = size[0] * size[1] - int(ends[-1])
    return {"segmentation": {"counts": [*counts, rest] if rest else counts, "size": list(size)}, "iscrowd": 1}
