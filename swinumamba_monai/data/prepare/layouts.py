# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The folder layouts of volumes: nnU-Net v2, the Decathlon, AMOS 2022, plain, and labels beside their images.

And what ``dataset.json`` says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from swinumamba_monai.data.datalist import DATALIST_NAME, SECTION_WORDS
from swinumamba_monai.data.files.dicom_pixels import is_dicom_file
from swinumamba_monai.data.files.dicom_seg import CONTOURS_ALONE, find_segmentation, has_contours
from swinumamba_monai.data.files.dicom_series import is_dicom_folder
from swinumamba_monai.data.files.label_map import LabelMap, each_once, parse_label_map, select_classes
from swinumamba_monai.data.files.volume_listing import CHANNEL, FOLDERS, LABEL_NAME, LABEL_WORDS, list_volumes
from swinumamba_monai.data.files.volumes import is_volume_file, volume_name
from swinumamba_monai.data.files.walk import find_files, is_hidden
from swinumamba_monai.data.prepare.found_pairs import FURTHER_CHANNEL, FoundPairs
from swinumamba_monai.data.prepare.volume_layouts import MASKS
from swinumamba_monai.errors import InputError, explained, listed

_PARTS = ("Tr", "Va", "Ts")  # ends of the names of a Decathlon-like dataset's folders; AMOS 2022 alone has Va
_KINDS = "NIfTI, FreeSurfer, NRRD or MetaImage files, or folders with a DICOM series each,"


def find_pairs(source: Path, series: str | None = None) -> FoundPairs:
    """Match volumes and labels in ``imagesTr`` and ``labelsTr`` (and ``Va``, ``Ts``), or in ``images`` and ``labels``.

    The latter may also be called ``Masks``, ``volumes`` and the like. Without them labels may lie beside their images:
    in a folder for each case, or anywhere with the name of the image and a word behind it.

    Images may have nnU-Net's ``_0000`` after their names, and further channels ``_0001`` and so on. ``imagesTs``
    without ``labelsTs``, as challenges give it, is not used: its images cannot be evaluated.

    Args:
        source: the downloaded dataset.
        series: see :func:`~swinumamba_monai.data.files.volume_listing.list_volumes`.

    Raises:
        InputError: The layout is unknown.
    """
    problems: list[str] = []
    list_files = partial(list_volumes, series=series, problems=problems)
    if not (source / "imagesTr").is_dir():
        images, labels = (list_files(folder) if (folder := _called(source, words)) else [] for words in _PLAIN)
        if not images or not labels:
            below = [place for place in sorted(source.iterdir()) if place.is_dir() and _is_dataset(place)]
            if not below and (beside := _find_cases(source, list_files) or _find_by_name(source)):
                beside.problems += problems
                return beside
            hint = f" {below[0]} has them: give that folder." if below else _contours_in(_called(source, _PLAIN[1]))
            raise InputError(
                f"{source} has no known layout; it needs the folders imagesTr and labelsTr (nnU-Net v2, Decathlon, "
                f"AMOS 2022), or images and labels, with {_KINDS} in them; or a folder for each case with an image and "
                f"its label, which is called label, seg or mask or ends so; or in one folder "
                f"a.nii.gz and a_seg.nii.gz.{hint}"
            )
        found = FoundPairs("folders images and labels", source)
        _match_channels(images, labels, found)
        found.problems += problems
        return found
    found = FoundPairs("folders imagesTr and labelsTr", source)
    for part in _PARTS:
        folders = source / f"images{part}", source / f"labels{part}"
        if all(folder.is_dir() for folder in folders):
            before = set(found.pairs)
            images, labels = (list_files(folder) for folder in folders)
            _match_channels(images, labels, found)
            found.split[SECTION_WORDS[part.lower()]] = [name for name in found.pairs if name not in before]
        elif folders[0].is_dir() and any(list_files(folders[0])):
            found.warnings.append(f"{folders[0]} is not used, because there is no {folders[1].name}.")
    found.split = {section: names for section, names in found.split.items() if names}
    found.problems += problems
    return found


def _find_cases(source: Path, list_files: Callable[[Path], list[Path]]) -> FoundPairs | None:
    """A folder for each case, with one image and one label in it; None where there is no such folder."""
    found = FoundPairs("a folder for each case, with an image and its label", source)
    for folder in sorted(place for place in source.iterdir() if place.is_dir() and not is_hidden(place.name)):
        volumes = list_files(folder)
        labels = list(filter(_is_label, volumes))
        images = [volume for volume in volumes if volume not in labels]
        if labels and not images and is_dicom_folder(folder):
            images = [folder]  # of slices, with a segmentation among them
        if len(images) == len(labels) == 1:
            found.add(folder.name, *images, *labels)
        elif volumes:
            found.used.update(volumes)
            found.problems.append(
                f"{folder} has {len(images)} images and {len(labels)} labels, but needs one of each; take the others "
                "out, or use the folders imagesTr and labelsTr."
            )
    return found if found.pairs else None


def _is_label(volume: Path) -> bool:
    """Whether a volume is a label, by its name or as a DICOM segmentation."""
    if LABEL_NAME.fullmatch(volume_name(volume)):
        return True
    with suppress(InputError):  # of several, which reading them says
        return (volume.is_dir() or is_dicom_file(volume)) and find_segmentation(volume) is not None
    return True


def _find_by_name(source: Path) -> FoundPairs | None:
    """Files of a folder and those below with the name of another and a word behind it; None where there are none.

    What a former preparation has written there is passed over.
    """
    made = {file.parent for file in find_files(source) if file.name == DATALIST_NAME}
    made = {folder / "labels" if folder == source else folder for folder in made}
    volumes = list(filter(is_volume_file, find_files(source, made)))
    labels = [volume for volume in volumes if LABEL_NAME.fullmatch(volume_name(volume))]
    found = FoundPairs("labels beside their images, by their names", source)
    _match_channels([volume for volume in volumes if volume not in labels], labels, found)
    return found if found.pairs else None


def _contours_in(labels: Path | None) -> str:
    """A sentence on a folder of labels whose files are structure sets, else nothing."""
    contours = next(filter(has_contours, sorted(labels.iterdir())), None) if labels else None
    return f" {contours} {CONTOURS_ALONE}" if contours else ""


def _is_dataset(place: Path) -> bool:
    """Whether a folder has one of the layouts of volumes, by its folders."""
    plain = all(_called(place, words) for words in _PLAIN)
    return plain or (place / "imagesTr").is_dir() or any(folder.is_dir() for folder in place.glob(f"*/{MASKS}"))


_PLAIN = tuple(re.compile(words, re.IGNORECASE) for words in FOLDERS)


# BTCV has img0001 and label0001, LiTS volume-0 and segmentation-0, others 1_image and 1_mask.
_IMAGE_WORD, _LABEL_WORD = (
    re.compile(rf"^(?:{words})[ _-]?(?=\d)|(?<=\d)[ _-](?:{words})$", re.IGNORECASE)
    for words in ("image|img|volume|vol|scan", LABEL_WORDS)
)


def match_by_name(
    images: Sequence[Path], labels: Sequence[Path], found: FoundPairs, name_of: Callable[[Path], str]
) -> None:
    """Put images and labels with one name together; a label may have an end like ``_seg`` after it.

    Where the names differ in the words for image and label alone, as ``img0001`` and ``label0001``, they are one too.

    Args:
        images: files of images.
        labels: files of labels.
        found: gets the pairs, and a problem for each file that is of none or has the name of another.
        name_of: gives the name of a file without its suffix.
    """
    by_name: tuple[dict[str, Path], ...] = ({}, {})
    for names, files in zip(by_name, (images, labels)):
        for file in files:
            if names.setdefault(name_of(file), file) != file:
                found.problems.append(f"{file} has the name of {names[name_of(file)]}; rename one.")
    image_of, label_of = by_name
    alike: dict[str, list[str]] = {}
    for name in label_of:
        named = LABEL_NAME.fullmatch(name)
        alike.setdefault(named[1] if named and named[1] else _LABEL_WORD.sub("", name), []).append(name)
    for name, image in image_of.items():
        others = [name] if name in label_of else alike.get(name) or alike.get(_IMAGE_WORD.sub("", name), [])
        own = [label_of.pop(other) for other in others if other in label_of]
        if len(own) == 1:
            found.add(name, image, own[0])
        else:
            names = listed(label.name for label in own)
            there = f"{len(own)} labels ({names}), but needs one; take the others out" if own else "no label"
            found.problems.append(f"{image} has {there}.")
    found.problems += [f"{label} has no image." for label in label_of.values()]
    found.used.update(images, labels)


def _called(source: Path, words: re.Pattern) -> Path | None:
    """The only folder that is called by one of the words."""
    folders = [place for place in source.iterdir() if place.is_dir() and words.fullmatch(place.name)]
    return folders[0] if len(folders) == 1 else None


def _match_channels(images: Sequence[Path], labels: Sequence[Path], found: FoundPairs) -> None:
    """:func:`match_by_name`, with nnU-Net's number of the channel taken from the images where the labels lack it.

    Images with the further numbers are the further channels of the first.
    """
    label_names = {volume_name(label) for label in labels}
    names: dict[Path, str] = {label: volume_name(label) for label in labels}
    further: dict[str, list[Path]] = {}
    for image in images:
        own = volume_name(image)
        match = CHANNEL.fullmatch(own)
        case = match[1] if match and own not in label_names else own
        if own in label_names or not FURTHER_CHANNEL.search(own):
            names[image] = case
        else:
            further.setdefault(case, []).append(image)
    first = [image for image in images if image in names]
    match_by_name(first, labels, found, names.__getitem__)
    for name, channels in further.items():
        numbers = sorted(int(volume_name(channel)[-4:]) for channel in channels)
        if name not in found.pairs:
            found.problems.append(f"{channels[0]} is a channel of {name}, but there is no {name}_0000.")
        elif numbers == list(range(1, len(numbers) + 1)):
            found.channels[name] = (found.pairs[name][0], *sorted(channels))
        else:
            image, _ = found.pairs.pop(name)
            found.problems.append(
                f"{image} has the further channels {', '.join(f'{number:04d}' for number in numbers)}, but they are "
                "counted from 0001 on without a gap; complete them."
            )
        found.used.update(channels)


def read_dataset_json(source: Path) -> dict:
    """What ``dataset.json`` says, empty where there is none."""
    path = source / "dataset.json"
    with explained(f"{path} cannot be read", "correct it or give a label map"):
        content = json.loads(path.read_bytes(), object_pairs_hook=each_once) if path.is_file() else {}
        if not isinstance(content, dict):
            raise TypeError("no object")
    return content


def choose_label_map(found: FoundPairs, classes: Sequence[str]) -> LabelMap:
    """The paper's ``classes``, by their names in the ``dataset.json`` of a dataset; else the classes of that file.

    Where nothing says what the numbers mean they are taken for ``classes`` in their order, with a warning.

    Raises:
        InputError: ``dataset.json`` cannot be read, or its labels are no label map.
    """
    path = found.source / "dataset.json"
    content = read_dataset_json(found.source)
    if not (labels := content.get("labels")):
        found.warnings.append(
            f"no label map is given and {found.source.name} has none in dataset.json: 1 is taken for {classes[1]}, "
            f"2 for {classes[2]}, and so on."
        )
        return LabelMap.of_names(classes)
    available = parse_label_map(labels, path, "regions_class_order" in content)
    selected = select_classes(available, classes)
    if selected is not None and len(selected.ids[0]) > len(available.ids[0]):
        dropped = len(available.names) - len(classes)
        found.warnings.append(
            f"{dropped} classes of dataset.json are not among the {len(classes)}: they are background."
        )
    return selected or available
