# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which file of a folder is an image, which a label, and what both are called: the layouts of 2-D datasets.

Files are told apart by the folders that they lie in (``images`` and ``labels`` or ``masks``, also nnU-Net's
``imagesTr`` and ``labelsTr``), or by the ends of their names (``a.png`` and ``a_masks.png``). What is left of a path
without these words is what an image and its label have in common, so that a folder for each section, video or patient
may be above or below them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from swinumamba_monai.data.datalist import DATALIST_NAME, SECTION_WORDS
from swinumamba_monai.data.files.aperio import is_aperio
from swinumamba_monai.data.files.images import IMAGE_SUFFIXES
from swinumamba_monai.data.files.picture_kinds import JPEG_SUFFIXES
from swinumamba_monai.data.files.walk import find_files, is_hidden
from swinumamba_monai.data.prepare.label_forms import (
    CLASSES,
    LABEL_SUFFIXES,
    OBJECTS,
    XML_SUFFIX,
    YOLO_SUFFIX,
    is_of_objects,
)

# The folders, with a section before or behind: train_images, imagesTs. VOC, CVC-ClinicDB, EndoVis 2018, MoNuSeg and
# Lizard have words of their own.
_SECTION = "|".join(sorted(SECTION_WORDS, key=len, reverse=True))
_IMAGE_FOLDER, _LABEL_FOLDER = (
    re.compile(rf"(?:({_SECTION})[ _-])?(?:{words})(?:[ _-]?({_SECTION}))?", re.IGNORECASE)
    for words in (
        r"(?:(?:raw|tissue)[ _]?)?images?|imgs?|(?:left[ _])?frames|jpegimages|original|lizard[ _]images\d",
        f"(?:lizard[ _])?labels?|lbls?|masks?|annotations?|ground[ _]?truths?|gt|{CLASSES}|{OBJECTS}",
    )
)
# Ends of the names of labels, the best first: of CholecSeg8k's three the one with class numbers; Cellpose's window
# saves its project as _seg.npy, beside which the masks may lie too.
LABEL_ENDS = ("_watershed_mask", "_cp_masks", "_masks", "_color_mask", "_mask", "_labels", "_label", "_instances")
LABEL_ENDS += ("_rois", "_roiset", "_seg", "_segmentation", "_gt", "-labelled")
LABEL_ENDS += ("_simple segmentation", "_object identities")  # ilastik's; -labelled is QuPath's
# What Cellpose saves beside an image besides its masks: flows, outlines and a figure, its word for masks behind them.
_RESULT_ENDS = ("_flows", "_dp", "_cp_output", "_outlines")
_CELLPOSE_END = "_cp_masks"
_IMAGE_ENDS = ("_0000", "_img", "_image", "_raw", ".ome")
# The Dresden dataset has image07.png and mask07.png in one folder.
_IMAGE_START, _LABEL_START = re.compile(r"(?:image|img|frame)[ _-]?(?=\d)"), re.compile(r"(?:mask|label)[ _-]?(?=\d)")

# What QuPath puts behind the name of a slide for each tile: the downsampling, the place and the size.
_TILE = re.compile(r"(.+?) \[(?:d=[\d.]+,)?x=-?\d+,y=-?\d+,w=\d+,h=\d+.*\]")
# The patient in the names of slides of TCGA, and of what is cut out of them.
_OF_TCGA = re.compile(r"(?<![A-Za-z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Za-z0-9])")


class Key(NamedTuple):
    """What an image and its label have in common."""

    section: str  # "training", "validation", "test" or nothing
    folders: tuple[str, ...]  # of the video, the patient or the sample
    name: str


class Pictures(NamedTuple):
    """The files of a dataset by what they are."""

    images: list[Path]
    labels: list[Path]
    for_many: list[Path]  # JSON and XML files that may have the labels of many images
    in_folders: bool  # whether folders tell labels from images


def sort_files(source: Path, output: Path, objects: bool = False) -> Pictures:
    """Sort the files of a dataset into images and labels.

    Where the dataset itself has folders of images and of labels, only these are searched. In one folder a PNG or TIFF
    file is the label of a JPEG file of its name, where no name says more: a label is no JPEG.

    Args:
        source: folder of the dataset.
        output: folder of the prepared dataset, which is not searched.
        objects: whether labels are of single objects, of which VOC has a folder beside that of the classes.
    """
    skipped = {output, source / "labels"} if _made_here(source) else {output}
    folders = [
        path for path in sorted(source.iterdir()) if path.is_dir() and not is_hidden(path.name) and path not in skipped
    ]
    own = [[p for p in folders if kind.fullmatch(p.name)] for kind in (_IMAGE_FOLDER, _LABEL_FOLDER)]
    roots = own[0] + own[1] if own[0] and own[1] else [source]
    files = sorted(
        set().union(*(find_files(root, skipped) for root in roots))
        | {p for p in source.iterdir() if p.is_file() and not is_hidden(p.name)}
    )
    stems = {file.with_suffix("") for file in files}
    files = [file for file in files if not _is_result(file, stems)]
    outlines = set(filter(_has_outlines, files))
    kinds = {file: _kind(file, source) for file in files}
    in_folders = "label" in kinds.values()
    if in_folders:  # MoNuSeg's images for the test lie beside their outlines, unlike those to train on
        beside = {file.with_suffix("") for file in outlines if kinds[file] is None}
        kinds |= {file: "label" if file in outlines else "image" for file in files if file.with_suffix("") in beside}
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    images = [file for file in pictures if kinds[file] == "image"]
    if not images:
        others = [file for file in pictures if kinds[file] is None]
        called = set() if in_folders else set(filter(_is_called_label, others)) or _beside_jpeg(others)
        images = [file for file in others if file not in called]
    suffixes = {*LABEL_SUFFIXES} - {XML_SUFFIX}  # XML may say anything
    labels = [file for file in files if file.suffix.lower() in suffixes or file in outlines]
    if in_folders:
        labels = _without_the_other([file for file in labels if kinds[file] == "label"], objects)
    else:
        taken = set(images)
        # A text beside an image, and not in a folder of labels, may say anything.
        labels = [file for file in labels if file not in taken and file.suffix.lower() != YOLO_SUFFIX]
    return Pictures(images, labels, [f for f in files if f.suffix.lower() in (".json", ".xml")], in_folders)


def _has_outlines(file: Path) -> bool:
    """Whether a file is XML with the outlines of one image, and not CVAT's for many, or VOC's with boxes."""
    return file.suffix.lower() == XML_SUFFIX and file.is_file() and is_aperio(file)


def _is_called_label(file: Path) -> bool:
    stem = file.stem.lower()
    return stem.endswith(LABEL_ENDS) or _LABEL_START.match(stem) is not None


def _is_result(file: Path, stems: Collection[Path]) -> bool:
    """Whether a file is what Cellpose saved beside another, which ``stems`` has without its suffix."""
    stem = file.stem[: -len(_CELLPOSE_END)] if file.stem.lower().endswith(_CELLPOSE_END) else file.stem
    ends = [end for end in _RESULT_ENDS if stem.lower().endswith(end) and len(stem) > len(end)]
    return any(file.with_name(stem[: -len(end)]) in stems for end in ends)


def _beside_jpeg(files: Iterable[Path]) -> set[Path]:
    """Those that a JPEG file beside them is called like, as QuPath saves tiles and their labels."""
    jpegs = {file.with_suffix("") for file in files if file.suffix.lower() in JPEG_SUFFIXES}
    return {file for file in files if file.with_suffix("") in jpegs and file.suffix.lower() not in JPEG_SUFFIXES}


def _without_the_other(labels: list[Path], objects: bool) -> list[Path]:
    """The labels without VOC's of objects, or without those of classes where the ones of objects are wanted."""
    if not objects:
        return [label for label in labels if not is_of_objects(label)]
    there = any(map(is_of_objects, labels))
    return [label for label in labels if not (there and label.parent.name.lower() == CLASSES)]


def section_in(name: str) -> str:
    """The section that a word of a name says: ``instances_train2017``."""
    words = re.findall(rf"(?<![a-z])({_SECTION})(?![a-z])", name.lower())
    return SECTION_WORDS[words[-1]] if words else ""


def _keys_of(file: Path, source: Path, ends: Iterable[str], start: re.Pattern) -> list[Key]:
    """The keys that a file may have: with its whole name, without one of the ends of names, and without a start."""
    section, folders = "", []
    for part in file.relative_to(source).parts[:-1]:
        matched = _IMAGE_FOLDER.fullmatch(part) or _LABEL_FOLDER.fullmatch(part)
        word = (matched[1] or matched[2] or "") if matched else part
        section = SECTION_WORDS.get(word.lower(), section)
        if not matched and word.lower() not in SECTION_WORDS:
            folders.append(same_text(part))
    stem = same_text(file.stem)
    if Path(stem).suffix.lower() in IMAGE_SUFFIXES:
        stem = Path(stem).stem  # QuPath calls the outlines of a.tif a.tif.geojson
    stems = [stem, *(stem[: -len(end)] for end in ends if stem.lower().endswith(end) and len(stem) > len(end))]
    stems += [start.sub("", stem.lower(), count=1)] if start.match(stem.lower()) else []
    return [Key(section, tuple(folders), name) for name in stems]


# What an image and its label may have in common, the whole name first.
image_keys = partial(_keys_of, ends=_IMAGE_ENDS, start=_IMAGE_START)
label_keys = partial(_keys_of, ends=LABEL_ENDS, start=_LABEL_START)


def labels_among(files: Collection[Path]) -> set[Path]:
    """The pictures of one folder that are called like another one but for a word: ``a_mask.png``, ``mask07.png``."""
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    stems = {file.stem.lower() for file in pictures}
    stems |= {stem[: -len(end)] for stem in stems for end in _IMAGE_ENDS if stem.endswith(end)}
    numbers = {_IMAGE_START.sub("", stem, count=1) for stem in stems if _IMAGE_START.match(stem)}

    def is_label(stem: str) -> bool:
        of_number = _LABEL_START.match(stem) and _LABEL_START.sub("", stem, count=1) in numbers
        return bool(of_number) or any(stem.endswith(end) and stem[: -len(end)] in stems for end in LABEL_ENDS)

    return {file for file in pictures if is_label(file.stem.lower())}


def slide_of(name: str) -> str | None:
    """The slide that an image is a tile of, as QuPath calls tiles; None for another image."""
    tile = _TILE.fullmatch(name)
    return tile[1] if tile else None


def patient_of(name: str) -> str | None:
    """The patient of TCGA in the name of an image, or None."""
    found = _OF_TCGA.search(name)
    return found[0] if found else None


def same_text(text: str) -> str:
    """One spelling of names that look the same: macOS takes an umlaut apart, other systems do not."""
    return unicodedata.normalize("NFC", text)


def _kind(file: Path, source: Path) -> str | None:
    """Whether the nearest folder that says so is one of images or of labels."""
    for part in reversed(file.relative_to(source).parts[:-1]):
        if _LABEL_FOLDER.fullmatch(part):
            return "label"
        if _IMAGE_FOLDER.fullmatch(part):
            return "image"
    return None


def _made_here(source: Path) -> bool:
    """Whether a former preparation has written labels of its own into this very folder."""
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        file = source / DATALIST_NAME
        if file.is_file():  # and no pipe, whose end would be waited for
            content = json.loads(file.read_text(encoding="utf-8"))
            return content.get("source_dir") == content.get("label_dir") == "."
    return False
