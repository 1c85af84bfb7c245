# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of images in every form that tools give them, as a map of numbers: cells, or ids of classes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from monai.utils import ensure_tuple
from PIL import Image

from swinumamba_monai.data.files import images
from swinumamba_monai.data.files.annotations import read_outlines
from swinumamba_monai.data.files.aperio import read_aperio
from swinumamba_monai.data.files.imagej_roi import read_rois
from swinumamba_monai.data.files.label_map import LabelMap, simple_name
from swinumamba_monai.data.files.limits import MAX_PIXELS
from swinumamba_monai.data.files.matlab import MAP, classes_of_nuclei, has_classes, read_variables
from swinumamba_monai.data.files.numbered import file_and_number
from swinumamba_monai.data.files.picture_kinds import JPEG_SUFFIXES, suffix_of
from swinumamba_monai.data.files.pixel_checks import check_opaque
from swinumamba_monai.data.files.shapes import Annotations, Shape, numbers_of, rasterize
from swinumamba_monai.data.files.yolo import read_yolo
from swinumamba_monai.data.prepare.colour_maps import Colours
from swinumamba_monai.errors import InputError, explained, shown

YOLO_SUFFIX, XML_SUFFIX, _MATLAB_SUFFIX = ".txt", ".xml", ".mat"

LOST_CLASSES = "{} has classes of cells, which are not used: cells are told apart here and have no classes."

# The label of one image: a file (or a plane of one), a mask for every cell, or its part of a file for many images.
Label = Path | Sequence[Path] | Annotations

_OUTLINE_SUFFIXES = (".geojson", ".json", ".zip", ".roi", YOLO_SUFFIX, XML_SUFFIX)
LABEL_SUFFIXES = (*images.IMAGE_SUFFIXES, ".npy", _MATLAB_SUFFIX, *_OUTLINE_SUFFIXES)
# VOC's and CVAT's folders, in lower case, of labels with a colour for each class, and for each object.
CLASSES, OBJECTS = "segmentationclass", "segmentationobject"
_VOID = 0xE0E0C0  # VOC's colour of edges between objects
_PICKLED = "_seg.npy"  # what Cellpose's window saves
_UNDECIDED = "ambiguous"  # what MoNuSAC calls regions whose nuclei cannot be told apart, and which are not scored


def cells_of(
    label: Label, size: tuple[int, int], threshold: float | None = None, odd: list[str] | None = None
) -> np.ndarray:
    """The cells of an image, numbered.

    Args:
        label: the label in any form; of several files each is the mask of one cell, a single one may number them.
        size: height and width of the image in pixels, which outlines are painted into.
        threshold: the least value of a pixel that belongs to the cell of a mask; None for every value but 0.
        odd: see :func:`~swinumamba_monai.data.files.shapes.rasterize`.

    Returns:
        (H, W) int32.

    Raises:
        InputError: the label cannot be read, or is none of cells.
    """
    label = as_outlines(label)
    if isinstance(label, Annotations):
        label = _without_undecided(label, odd)
        return rasterize(label, numbers_of(label.shapes), size, odd)
    if isinstance(label, Path) and is_of_objects(label):
        return _by_object(label)
    if isinstance(label, Path):
        if odd is not None and _is_matlab(label) and has_classes(label):
            odd.append(LOST_CLASSES.format(label))
        return images.read_instances(label) if is_image_name(label) else _read_array(label)
    if len(label) == 1 and threshold is None:
        (only,) = label
        numbers = cells_of(only, size, odd=odd)
        return (numbers > 0).astype(np.int32) if np.unique(numbers).size == 2 else numbers
    cells = None
    for number, file in enumerate(label, start=1):
        mask = images.without_copies(check_opaque(images.read_image(file), file))
        mask = mask > 0 if threshold is None else mask >= threshold
        cells = np.zeros(mask.shape[:2], np.int32) if cells is None else cells
        if mask.ndim != 2 or mask.shape != cells.shape:
            raise InputError(f"{file} is {mask.shape}, but the masks of an image must be gray and of one size.")
        cells[mask & (cells == 0)] = number
    return cells


def class_ids_of(
    label: Path | Annotations,
    size: tuple[int, int],
    labels: LabelMap,
    threshold: float | None = None,
    colours: Colours | None = None,
    odd: list[str] | None = None,
) -> np.ndarray:
    """The class ids of an image, as ``labels`` has them.

    Args:
        label: a file, or the image's part of a file for many.
        labels: the classes; outlines are matched by their names, or the number of the class in the file.
        threshold: the least value of a pixel of the only class; None for masks of ids.
        colours: the class of every colour of a mask in colours.
        size, odd: see :func:`cells_of`.

    Returns:
        (H, W) int32.

    Raises:
        InputError: the label cannot be read, or has what is no class.
    """
    label = as_outlines(label)
    if isinstance(label, Annotations):
        return rasterize(label, [_class_id(shape, labels, label) for shape in label.shapes], size, odd)
    if not is_image_name(label):
        numbers = _read_array(label)
        return check_numbers(classes_of_nuclei(label, numbers), label) if _is_matlab(label) else numbers
    if threshold is not None:
        if len(labels.names) != 2:
            raise InputError(f"mask_threshold parts one class from the background, but there are {labels.names[1:]}.")
        return np.where(marked_in(label, threshold), labels.ids[1][0], labels.ids[0][0]).astype(np.int32)
    if colours is not None:
        return _by_colour(label, colours)
    ids = images.read_classes(label)
    known = {number for numbers in labels.ids for number in numbers}.union(labels.ignored)
    found = np.unique(ids).tolist()
    if len(labels.names) == 2 and found in ([0, 255], [255]) and 255 not in known:
        return np.where(ids == 255, labels.ids[1][0], labels.ids[0][0]).astype(np.int32)  # black and white
    if found[0] == 0 and found[-1] > 250 and len(found) > len(known) and not set(found) <= known:
        raise InputError(
            f"{label} has {len(found)} values from 0 to {found[-1]}, like the soft edges of a mask of black and white; "
            "give mask_threshold 128, or the mask before it was smoothed."
        )
    return ids


def marked_in(mask: Path, threshold: float | None) -> np.ndarray:
    """Where a black and white mask is not black, or as bright as the threshold, (H, W) bool; some are in colour."""
    pixels = check_opaque(images.read_image(mask), mask)
    pixels = pixels if pixels.ndim == 2 else pixels[..., :3].max(-1)
    return pixels > 0 if threshold is None else pixels >= threshold


def as_outlines(label: Label) -> Label:
    """The label, or its outlines where it is a file of them.

    Raises:
        InputError: such a file cannot be read.
    """
    if not isinstance(label, Path) or not _is_drawn(label):
        return label
    readers = {".zip": read_rois, ".roi": read_rois, YOLO_SUFFIX: read_yolo, XML_SUFFIX: read_aperio}
    return readers.get(label.suffix.lower(), read_outlines)(label)


def _is_matlab(file: Path) -> bool:
    return file.suffix.lower() == _MATLAB_SUFFIX


def _is_drawn(file: Path) -> bool:
    return file.suffix.lower() in _OUTLINE_SUFFIXES


def _without_undecided(label: Annotations, odd: list[str] | None) -> Annotations:
    """The annotations without MoNuSAC's undecided regions; ``odd`` gets a sentence on these, and on lost classes."""
    odd = [] if odd is None else odd
    shapes = [shape for shape in label.shapes if shape.name.lower() != _UNDECIDED]
    if undecided := len(label.shapes) - len(shapes):
        odd.append(f"{label} has regions called Ambiguous ({undecided}), which are no cells; they are background here.")
    if len({shape.name for shape in shapes}) > 1:
        odd.append(LOST_CLASSES.format(label))
    return replace(label, shapes=shapes)


def values_of(labels: Sequence[Label]) -> set[int]:
    """The values in those labels that are images; those that cannot be read are left to the checks."""
    values: set[int] = set()
    for label in labels:
        if is_image_name(label):
            with suppress(InputError):
                values |= set(np.unique(images.read_classes(label)).tolist())
    return values


def _codes_of(label: Path) -> np.ndarray:
    """The colours of a mask as numbers, (H, W) int32: red, green and blue, 8 bits each."""
    mask = check_opaque(images.read_image(label), label)
    mask = np.repeat(mask[..., None], 3, axis=-1) if mask.ndim == 2 else mask[..., :3]
    if mask.dtype != np.uint8 or mask.shape[2] != 3 or suffix_of(label) in JPEG_SUFFIXES:
        raise InputError(
            f"{label} is no mask of exact colours (8 bits of red, green and blue, no JPEG); save it as PNG."
        )
    return (mask.astype(np.int32) * (1 << 16, 1 << 8, 1)).sum(-1)


def is_of_objects(label: Label) -> bool:
    """Whether a label is one of VOC's that have a colour for each object, as CVAT writes them too, by its folder."""
    return isinstance(label, Path) and label.parent.name.lower() == OBJECTS


def _by_object(label: Path) -> np.ndarray:
    """The objects of such a label, numbered; black is none, nor is VOC's colour of what is undecided."""
    codes = _codes_of(label)
    codes[codes == _VOID] = 0
    found, places = np.unique(codes, return_inverse=True)
    return (places.reshape(codes.shape) + (found[0] != 0)).astype(np.int32)


def _by_colour(label: Path, colours: Colours) -> np.ndarray:
    codes = _codes_of(label)
    found = np.unique(codes)
    class_of = {(red << 16) + (green << 8) + blue: number for (red, green, blue), number in colours.items()}
    unknown = [code for code in found.tolist() if code not in class_of]
    if unknown:
        shown_colours = ", ".join(str([code >> 16, code >> 8 & 255, code & 255]) for code in unknown[:3])
        raise InputError(
            f"{label} has {len(unknown)} colours that the label map lacks ({shown_colours}); give them a class, or "
            "save the mask without soft edges."
        )
    return np.array([class_of[code] for code in found.tolist()], np.int32)[np.searchsorted(found, codes)]


def _class_id(shape: Shape, labels: LabelMap, annotations: Annotations) -> int:
    """The id of the class of a shape, by its name; 0 for a number that the label map lists under the background.

    Shapes without a name are of the only class, if there is one alone and none in the file has a name.
    """
    if not shape.name:
        if len(labels.names) != 2 or any(other.name for other in annotations.shapes):
            raise InputError(f"{annotations} has a shape without a class; give it one, or remove it.")
        return labels.ids[1][0]
    for name, ids in zip(labels.names, labels.ids):
        if simple_name(name) == simple_name(shape.name):
            return ids[0]
    if shape.number in labels.ids[0]:
        return labels.ids[0][0]
    raise InputError(
        f"{annotations} has a shape of '{shown(shape.name)}', which is no class of the label map; add it, or "
        "leave it out."
    )


def is_image_name(label: Label) -> bool:
    """Whether a label is an image, or a plane of one, by its name."""
    return isinstance(label, Path) and file_and_number(label)[0].suffix.lower() in images.IMAGE_SUFFIXES


def size_of(image: Path, label: Label) -> tuple[int, int]:
    """Height and width of an image in pixels; of one whose label has pixels of its own nothing is opened, and it is 0.

    Raises:
        InputError: the image cannot be read.
    """
    drawn = isinstance(label, Annotations) or any(map(_is_drawn, ensure_tuple(label)))
    return images.read_image(image).shape[:2] if drawn else (0, 0)


def write_numbers(numbers: np.ndarray, place: Path) -> Path:
    """Write a map of numbers (H, W), not negative, as a PNG image of 8 or 16 bits, or as TIFF where they need more.

    The path of the file, which is returned, is ``place`` with a suffix.
    """
    largest = numbers.max(initial=0)
    if largest > np.iinfo(np.uint16).max:
        path = Path(f"{place}.tif")
        tifffile.imwrite(path, numbers.astype(np.uint32), photometric="minisblack", compression="zlib")
        return path
    path = Path(f"{place}.png")
    Image.fromarray(numbers.astype(np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)).save(path)
    return path


def _read_array(path: Path) -> np.ndarray:
    """The numbers of a ``.npy`` file, or of the nuclei in a ``.mat`` file, (H, W) int32; nothing in it is run."""
    if _is_matlab(path):
        return check_numbers(read_variables(path, MAP)[MAP], path)
    if path.name.lower().endswith(_PICKLED):
        raise InputError(
            f"{path} is a project of Cellpose's window, a pickle that could run code and is not opened; save its masks "
            "(File, Save masks as PNG) and give the _cp_masks file."
        )
    with explained(f"{path} is no plain array", "save whole numbers with numpy.save"):
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    return check_numbers(np.squeeze(array) if isinstance(array, np.ndarray) else np.empty(0), path)


def check_numbers(array: np.ndarray, source: object) -> np.ndarray:
    """An array as a map of numbers (H, W) int32, 0 for the background.

    Raises:
        InputError: it has another shape, or others than whole numbers up to 2,147,483,647; ``source`` says whose it is.
    """
    is_map = array.dtype.kind in "uibf" and array.ndim == 2 and 0 < array.size <= MAX_PIXELS
    whole = is_map and (array.dtype.kind != "f" or bool((np.trunc(array) == array).all()))
    if not whole or array.min() < 0 or array.max().item() > np.iinfo(np.int32).max:  # half precision ends below
        raise InputError(
            f"{source} is no map of numbers (H, W): it has the type {array.dtype} and the shape {array.shape}; save "
            "whole numbers, with 0 for the background."
        )
    return np.asarray(array).astype(np.int32)
