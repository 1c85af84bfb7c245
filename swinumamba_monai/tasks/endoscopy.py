# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Endoscopy: frames and videos, whose labels have a class for every pixel."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from monai.config import PathLike

from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, is_image_file, read_classes
from swinumamba_monai.data.files.label_map import ENDOSCOPY_CLASSES, LabelMap, as_label_map, select_classes, simple_name
from swinumamba_monai.data.files.shapes import Annotations
from swinumamba_monai.data.files.video import FrameReader
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.data.listing import load_frames
from swinumamba_monai.data.prepare import colour_maps, dataset, label_forms
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.data.prepare.inspection import inspect_frames
from swinumamba_monai.data.prepare.layouts import choose_label_map
from swinumamba_monai.data.prepare.matching import match_pictures
from swinumamba_monai.data.prepare.split import sequence_of
from swinumamba_monai.data.synthetic.endoscopy import synthesize_endoscopy
from swinumamba_monai.errors import InputError, explained
from swinumamba_monai.tasks import TaskFiles

# The files of EndoVis 2017 that number its instruments; mappings.json of some copies numbers their parts instead.
_MAPPINGS = ("instrument_type_mapping.json", "mappings.json")

# What EndoVis 2017's folders have around the name of the instrument: the hand, a subtype, and the word labels.
_AROUND = re.compile(r"(^|_)(left|right|maryland|labels?)(?=_|$)", re.IGNORECASE)

# The folders of the Dresden Surgical Anatomy Dataset, which hold organ/NN/mask07.png.
_DRESDEN = set(
    "abdominal_wall colon inferior_mesenteric_artery intestinal_veins liver multilabel pancreas small_intestine spleen "
    "stomach ureter vesicular_glands".split()
)
_DRESDEN_MASK = re.compile(r"mask\d+")

_LOOKED_AT = 50  # masks that tell whether all are black and white; others are refused when they are not
_ONE_CLASS = ("background", "foreground")
_BLACK_AND_WHITE = ({0, 255}, {255})


def prepare_endoscopy(
    source_dir: PathLike,
    output_dir: PathLike,
    options: dataset.PrepareOptions | None = None,
    label_map: LabelMap | PathLike | None = None,
) -> dataset.PreparedDataset:
    """Find frames and masks, check every pair, divide them into three sections and write the datalist.

    docs/own_data.md lists the layouts and the forms of labels. Of labels that are no images of class numbers masks of
    numbers are written into ``output_dir/labels``. What no split says is divided by folder, and else by sequence,
    because the frames of one surgery look alike.

    EndoVis 2017 has sequences with ``left_frames``, and ``ground_truth`` with a folder of masks for every instrument,
    or ``TypeSegmentation`` with one mask of instrument numbers. Sequences below a folder with "test" in its name are
    the test section. ``instrument_type_mapping.json`` or ``mappings.json``, in the source folder or at the sequences,
    gives the number of every instrument. The masks of a frame are joined into one in ``output_dir/labels``; a pixel of
    two instruments stays with the first folder by name.

    Args:
        source_dir, output_dir, options: see :meth:`swinumamba_monai.tasks.Task.prepare`.
        label_map: the classes and their numbers in the masks, or the JSON file of them or of their colours. Default:
            see above for EndoVis 2017; the names of outlines; and else the paper's seven instruments, by their names in
            ``dataset.json`` where there is one.

    Raises:
        InputError: The layout is unknown, the instruments of EndoVis 2017 have no numbers, or there are several organs
            of the Dresden dataset; for the rest see :func:`~swinumamba_monai.data.prepare.dataset.check_and_write`.
    """
    source, output = dataset.open_source(source_dir), Path(output_dir).resolve()
    in_colours = colour_maps.read_cvat_colours(source) if label_map is None else colour_maps.read_colours(label_map)
    label_map, colours = in_colours or (as_label_map(label_map), None)
    options = options or dataset.PrepareOptions()
    threshold = options.mask_threshold
    if colours is not None and threshold is not None:
        raise InputError("the label map has colours, so it takes no mask_threshold; leave one of them out.")
    sequences = sorted(path.parent for path in source.rglob("left_frames") if path.is_dir())
    sequences = sequences if any(map(_is_of_2017, sequences)) else []
    with dataset.label_folder() as made:

        def make(name: str, image: Path, label: Path | Annotations) -> Path:
            size = label_forms.size_of(image, label)
            ids = label_forms.class_ids_of(label, size, labels, threshold, colours, found.warnings)
            of_label = label.source if isinstance(label, Annotations) else label
            return label_forms.write_numbers(labels.to_classes(ids, of_label), made / name)

        if sequences:
            labels = label_map or _read_mappings(source, sequences)
            found = _find_sequences(source, sequences, labels, made, threshold)
        else:
            found = match_pictures(source, output)
            _check_organs(found)
            labels = label_map or _labels_of(found, threshold)
            if colours is not None or threshold is not None or not _are_numbers(found, labels):
                found.make_labels(made, make)
        # Frames of one recording look alike, and are called alike but for their number.
        found.groups = {name: found.groups.get(name, sequence_of(name)) for name in found.pairs}
        return dataset.check_and_write("endoscopy", found, output, options, labels)


def _check_organs(found: FoundPairs) -> None:
    """Refuse the Dresden dataset as a whole: every organ would be one class, and its patients would not stay apart."""
    masks = [label for _, label in found.pairs.values() if isinstance(label, Path)]
    places = {mask.parents[1] for mask in masks if _DRESDEN_MASK.fullmatch(mask.stem)}
    organs = sorted(place for place in places if place.name in _DRESDEN)
    if len(organs) > 1:
        raise InputError(
            f"{found.source} has a folder for each of {len(organs)} organs, whose masks are of that organ alone and "
            f"would all become one class; give the folder of one, such as {organs[0]}."
        )


def _labels_of(found: FoundPairs, threshold: float | None) -> LabelMap:
    """The classes where none are given: of ``dataset.json``, of outlines, of black and white, or the paper's."""
    labels = [label for _, label in found.pairs.values()]
    if not (found.source / "dataset.json").is_file():
        outlines = [label for label in map(_outlines_or_none, labels) if label is not None]
        names = dict.fromkeys(name for label in outlines for name in label.names if simple_name(name) != "background")
        if names == {"": None}:  # outlines without a class
            return LabelMap.of_names(_ONE_CLASS)
        if names := [name for name in names if name]:
            available = LabelMap.of_names(["background", *names])
            return select_classes(available, ENDOSCOPY_CLASSES) or available
        if threshold is not None or label_forms.values_of(labels[:_LOOKED_AT]) in _BLACK_AND_WHITE:
            return LabelMap.of_names(_ONE_CLASS)
    return choose_label_map(found, ENDOSCOPY_CLASSES)


def _outlines_or_none(label: Path | Annotations) -> Annotations | None:
    """The outlines that a label is, if it is a file of them that can be read."""
    with suppress(InputError):
        outlines = label_forms.as_outlines(label)
        return outlines if isinstance(outlines, Annotations) else None
    return None


def _are_numbers(found: FoundPairs, labels: LabelMap) -> bool:
    """Whether every label is an image of class numbers already; of two classes 255 may stand for the other."""
    masks = [label for _, label in found.pairs.values()]
    if not labels.is_identity or not all(map(label_forms.is_image_name, masks)):
        return False
    if len(labels.names) > 2:
        return True
    values = label_forms.values_of(masks[:_LOOKED_AT])
    if values in _BLACK_AND_WHITE:
        found.warnings.append(f"masks of 0 and 255: 255 is taken for {labels.names[1]}.")
    return values <= {0, 1}


def _is_of_2017(sequence: Path) -> bool:
    """Whether a sequence has the masks of EndoVis 2017; those of 2018 lie in ``labels``."""
    return (sequence / "ground_truth").is_dir() or any(path.is_dir() for path in sequence.rglob("TypeSegmentation"))


def instrument_of(folder: str) -> str:
    """The instrument that a mask folder of EndoVis 2017 is for: ``Left_Prograsp_Forceps_labels`` is prograspforceps."""
    return simple_name(_AROUND.sub("", folder))


def _find_sequences(
    source: Path, sequences: Sequence[Path], labels: LabelMap, made: Path, threshold: float | None
) -> FoundPairs:
    """Join the masks of every frame of EndoVis 2017 into one in the folder ``made``."""
    made.mkdir()
    found = FoundPairs("EndoVis 2017, sequences with left_frames", source, made=made)
    found.used.update(file for name in _MAPPINGS for file in source.rglob(name))
    class_of = {instrument_of(name): number for number, name in enumerate(labels.names)}
    sections: dict[str, list[str]] = {"training": [], "test": []}
    for sequence in sequences:
        frames = sorted(filter(is_image_file, (sequence / "left_frames").iterdir()))
        types = next((path for path in sorted(sequence.rglob("TypeSegmentation")) if path.is_dir()), None)
        folders = sorted(path for path in (sequence / "ground_truth").glob("*") if path.is_dir())
        if types is None and not folders:
            found.warnings.append(f"{sequence} has no masks, and is not used.")
            continue
        unknown = [folder for folder in folders if types is None and instrument_of(folder.name) not in class_of]
        if unknown:
            found.problems += [f"{folder} is for an instrument that has no number; add it." for folder in unknown]
            continue
        parts = sequence.relative_to(source).parts
        section = "test" if any("test" in part.lower() for part in parts) else "training"
        for frame in frames:
            name = f"{parts[-1]}_{frame.stem}" if len(sequences) > 1 else frame.stem
            if types is not None:
                masks = [(types / frame.name, labels)]
            else:
                masks = [(folder / frame.name, class_of[instrument_of(folder.name)]) for folder in folders]
            masks = [(mask, value) for mask, value in masks if mask.is_file()]
            if not masks:
                found.problems.append(f"{frame} has no mask.")
                continue
            others = (f"{section}_{name}", f"{'_'.join(parts)}_{frame.stem}")  # where sequences have one name
            name = next((one for one in (name, *others) if one not in found.pairs), name)
            found.pairs.pop(name, None)
            found.used |= {frame, *(mask for mask, _ in masks)}
            with noting(found.problems):
                found.pairs[name] = (frame, label_forms.write_numbers(_joined(masks, threshold), made / name))
                sections[section].append(name)
    found.split = {section: names for section, names in sections.items() if names} if sections["test"] else {}
    return found


def _joined(masks: Sequence[tuple[Path, LabelMap | int]], threshold: float | None) -> np.ndarray:
    """The class numbers of a frame (H, W), of masks of numbers or of one instrument each; else an InputError."""
    classes: np.ndarray | None = None
    for file, value in masks:
        if isinstance(value, LabelMap):
            if threshold is not None:
                raise InputError(f"{file} numbers the instruments, so it takes no mask_threshold; leave it out.")
            mask = value.to_classes(read_classes(file), file)
        else:
            mask = np.where(label_forms.marked_in(file, threshold), np.uint8(value), np.uint8(0))
        classes = np.zeros_like(mask) if classes is None else classes
        if mask.shape != classes.shape:
            raise InputError(f"{file} is {mask.shape}, but the masks of a frame must be of one size.")
        classes[classes == 0] = mask[classes == 0]
    return classes


def _read_mappings(source: Path, sequences: Sequence[Path]) -> LabelMap:
    """The numbers of the instruments in the first file that has them."""
    folders = {instrument_of(f.name) for s in sequences for f in (s / "ground_truth").glob("*") if f.is_dir()}
    places = dict.fromkeys([source, *sorted({path.parent for path in sequences}), *sequences])
    seen = []
    for path in (place / name for name in _MAPPINGS for place in places):
        if not path.is_file():
            continue
        with explained(f"{path} has no numbers of instruments", "correct it"):
            numbers = {str(name): int(number) for name, number in json.loads(path.read_bytes()).items()}
        seen.append(str(path))
        numbers = {name: number for name, number in numbers.items() if number > 0}
        if {instrument_of(name) for name in numbers} & folders or (numbers and not folders):
            if sorted(numbers.values()) != list(range(1, len(numbers) + 1)):
                raise InputError(f"{path} must number its instruments 1, 2, 3, ... without a gap; correct it.")
            return LabelMap.of_names(["background", *sorted(numbers, key=numbers.get)])
    where = f"{', '.join(seen)} number(s) none of the mask folders" if seen else f"{source} has no {_MAPPINGS[1]}"
    raise InputError(f"{where}; add the file with the number of every instrument, or give a label map.")


FILES = TaskFiles(
    class_names=ENDOSCOPY_CLASSES,
    reader=FrameReader,
    is_image=lambda path: path.suffix.lower() in IMAGE_SUFFIXES,
    list_images=load_frames,
    inspect=lambda image, label, class_names: inspect_frames(image, label, LabelMap.of_names(class_names)),
    prepare=prepare_endoscopy,
    synthesize=synthesize_endoscopy,
)
