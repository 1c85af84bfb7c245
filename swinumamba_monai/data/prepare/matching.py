# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Images and labels of a 2-D dataset put together, in whatever layout and form they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from monai.utils import ensure_tuple

from swinumamba_monai.data.datalist import leads_outside
from swinumamba_monai.data.files.annotations import read_annotations
from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, image_names, stated_orientation
from swinumamba_monai.data.files.limits import MAX_CHANNELS
from swinumamba_monai.data.files.picture_kinds import UPRIGHT
from swinumamba_monai.data.files.shapes import Annotations
from swinumamba_monai.data.files.video import VIDEO_SUFFIXES
from swinumamba_monai.data.files.walk import find_files
from swinumamba_monai.data.inputs import Inputs, not_taken_of
from swinumamba_monai.data.prepare.found_pairs import FURTHER_CHANNEL, FoundPairs
from swinumamba_monai.data.prepare.label_forms import LABEL_SUFFIXES, Label
from swinumamba_monai.data.prepare.pictures import (
    LABEL_ENDS,
    Key,
    Pictures,
    image_keys,
    label_keys,
    patient_of,
    same_text,
    section_in,
    slide_of,
    sort_files,
)
from swinumamba_monai.errors import InputError, listed


class FoundPictures(FoundPairs):
    """The images of a 2-D dataset with their labels in the forms that they have."""

    def take(self, key: Key, image: Path, label: Label) -> None:
        """Take an image with its label, called by what both share, stacks plane by plane, or note why not."""
        files = [label.source] if isinstance(label, Annotations) else ensure_tuple(label)
        self.used |= {image, *files}
        of_itself = key.folders[-1:] == (key.name,)  # a folder for each image, and both of one name
        name = "_".join(key.folders if of_itself else [*key.folders, key.name])
        if name in self.pairs and key.section:
            name = f"{key.section}_{name}"
        planes = image_names(image)
        if any(leads_outside(file, self.source) for file in (image, *files)):
            self.problems.append(
                f"{image} or its label is a link out of {self.source}; give the folder that it leads to."
            )
        elif name in self.pairs or f"{name}#000000" in self.pairs:
            self.problems.append(f"{image} has the name of another image, {name}; rename one.")
        elif len(planes) > 1:
            self._take_planes(key, name, image, planes, label)
        elif not isinstance(label, Annotations) and _is_turned(image, files):
            self.problems.append(
                f"{image} is to be turned before it is seen (its orientation is {stated_orientation(image)}), but its "
                f"label {files[0]} does not say that it is turned like this; save both upright."
            )
        else:
            self._add(key, name, image, label)

    def _take_planes(self, key: Key, name: str, image: Path, planes: Sequence[str], label: Label) -> None:
        labels = image_names(label) if isinstance(label, Path) else []
        if len(labels) != len(planes):
            are_channels = len(planes) <= MAX_CHANNELS
            hint = ", or, if they are channels, save them as such (RGB, or ImageJ's or OME's)" if are_channels else ""
            self.problems.append(
                f"{image} is a stack of {len(planes)} planes, but its label has {len(labels)}; give a stack of as "
                f"many{hint}."
            )
            return
        for number, (plane, plane_label) in enumerate(zip(planes, labels)):
            self._add(key, f"{name}#{number:06d}", Path(plane), Path(plane_label))
            self.groups[f"{name}#{number:06d}"] = name

    def _add(self, key: Key, name: str, image: Path, label: Label) -> None:
        self.pairs[name] = (image, label)
        self.split.setdefault(key.section, []).append(name)
        if patient := patient_of(key.name):
            self.groups[name] = patient
        elif (slide := slide_of(key.name)) or key.folders:
            self.groups[name] = "/".join([*key.folders, *([slide] if slide else [])])


def match_pictures(source: Path, output: Path, masks_of_cells: bool = False) -> FoundPictures:
    """Find the images of a folder and their labels.

    Args:
        source: the dataset.
        output: folder that is written into, which is not searched.
        masks_of_cells: whether several files may be the label of one image, each the mask of one cell.

    Raises:
        InputError: there are no images, or no labels.
    """
    files = sort_files(source, output, objects=masks_of_cells)
    layout = "folders images and labels" if files.in_folders else "images and labels in one folder"
    found = FoundPictures(layout, source)
    label_of: dict[Key, list[Path]] = defaultdict(list)  # the labels by every key that they may have, the best first
    for label in sorted(files.labels, key=_rank):
        for key in label_keys(label, source):
            label_of[key].append(label)
    keys = {image: next(filter(label_of.__contains__, image_keys(image, source)), None) for image in files.images}
    pairs = {image: (key, label_of[key]) for image, key in keys.items() if key is not None}
    samples = _samples(files, source, pairs) if masks_of_cells else {}
    if samples:
        found.layout = "DSB-2018 with a mask per nucleus, or a folder with a label map for every image"
        for key, (images, masks) in samples.items():
            found.used |= {*images, *masks}
            if len(images) == 1 and masks:
                found.take(key, images[0], masks)
            else:
                folder = source.joinpath(*key.folders, key.name)
                found.problems.append(
                    f"{folder} has {len(images)} images and {len(masks)} masks, but needs 1 and at least 1."
                )
    for_many = {} if pairs or samples else _for_many(files, found)
    masks = [label for label in files.labels if label.suffix.lower() in IMAGE_SUFFIXES]
    if for_many:
        found.layout = "outlines of all images in one file"
        _match_annotations(found, files, for_many)
    elif not pairs and not samples and not (files.images and masks):
        raise InputError("\n".join([*found.problems, _no_layout(source, files, masks)]))
    else:
        _match_files(found, files, pairs)
    _set_sections(found)
    return found


def _no_layout(source: Path, files: Pictures, masks: Sequence[Path]) -> str:
    """The sentence for a folder in which nothing fits together: what was found, and what would be known."""
    rest = {*find_files(source)} - {*files.images, *files.labels}
    others = Inputs((), source, not_taken_of(rest)).reasons
    parts = [f"{len(files.images)} images and {len(masks)} masks were found"]
    if drawn := [label.name for label in files.labels if label not in masks]:
        parts.append(f"{len(drawn)} files that may be labels, but fit no image by name and place ({listed(drawn)})")
    parts += [f"and besides {others}"] if others else []
    videos = any(file.suffix.lower() in VIDEO_SUFFIXES for file in rest)
    hint = " Videos are read for inference alone: save the frames that have labels as images." if videos else ""
    return (
        f"{source} has no known layout ({', '.join(parts)}); it needs folders images and labels (or masks; also "
        "imagesTr and labelsTr), labels next to their images named <name>_label or <name>_masks, a folder with masks "
        f"for every image, or a COCO or CVAT file.{hint}"
    )


def _rank(label: Path) -> tuple[int, int]:
    """How good a label is for an image that has several: 0 and 0 is the best."""
    end = next((place for place, end in enumerate(LABEL_ENDS) if label.stem.lower().endswith(end)), -1)
    form = LABEL_SUFFIXES.index(label.suffix.lower())
    return end, max(0, form - len(IMAGE_SUFFIXES) + 1)


def _match_files(found: FoundPictures, files: Pictures, pairs: dict[Path, tuple[Key, list[Path]]]) -> None:
    """Take the pairs, and note which images have no label and which labels no image."""
    seen, taken = {}, set()
    without: dict[str, list[Path]] = defaultdict(list)
    for image in files.images:
        if image in found.used:
            continue
        if image not in pairs:
            without[image_keys(image, found.source)[0].section].append(image)
            continue
        key, labels = pairs[image]
        taken.update(labels)
        equal = [label for label in labels if _rank(label) == _rank(labels[0])]
        if key in seen:
            found.problems.append(f"{image} has the name of {seen[key]}; rename one.")
            found.used.add(image)
        elif len(equal) > 1:
            found.problems.append(f"{equal[1]} has the name of {equal[0]}; rename one.")
            found.used |= {image, *equal}
        else:
            seen[key] = image
            found.take(key, image, labels[0])
    stems = {image.stem for image in files.images}
    with_labels = {key.section for key, _ in pairs.values()}
    for section, images in without.items():
        found.used.update(images)
        if section and section not in with_labels and with_labels:
            found.warnings.append(f"{len(images)} images of the {section} section are not used: it has no labels.")
            continue
        for image in images:
            if FURTHER_CHANNEL.search(image.stem) and f"{image.stem[:-4]}0000" in stems:
                found.problems.append(
                    f"{image} is a further channel of its image; save all channels in one file, or keep _0000 alone."
                )
            else:
                found.problems.append(f"{image} has no label.")
    taken |= found.used
    for label in files.labels:
        if label not in taken and label.suffix.lower() in IMAGE_SUFFIXES:
            found.problems.append(f"{label} has no image.")
            found.used.add(label)


def _samples(
    files: Pictures, source: Path, pairs: dict[Path, tuple[Key, list[Path]]]
) -> dict[Key, tuple[list[Path], list[Path]]]:
    """For every sample folder its images and masks; none at all where names say what belongs together.

    A sample folder has an image and masks of other names. Where there is one, folders without a pair are all such; and
    all folders are, even if the names of an image and of a mask agree by chance (``0.png``), where each has one image.
    """
    images, labels = defaultdict(list), defaultdict(list)
    for of_folder, several, keys_of in ((images, files.images, image_keys), (labels, files.labels, label_keys)):
        for file in several:
            section, folders, _ = keys_of(file, source)[0]
            if folders:
                of_folder[Key(section, folders[:-1], folders[-1])].append(file)
    of_one = all(len(several) == 1 for several in images.values()) and any(
        len(labels[key]) > 1 and not set(labels[key]) <= set(pairs.get(image, (key, []))[1])
        for key, (image,) in images.items()
    )
    samples = {key: (all_, labels[key]) for key, all_ in images.items() if of_one or not set(all_) & pairs.keys()}
    is_there = any(len(several) == 1 and masks for several, masks in samples.values())
    return samples if is_there and files.in_folders else {}


def _for_many(files: Pictures, found: FoundPairs) -> dict[Path, dict[str, Annotations]]:
    """What files have of several images each; those that cannot be read are problems."""
    read = {}
    for path in files.for_many:
        try:
            read[path] = read_annotations(path)
        except InputError as error:
            found.problems.append(str(error))
            found.used.add(path)
    return {path: images for path, images in read.items() if images is not None}


def _match_annotations(found: FoundPictures, files: Pictures, for_many: dict[Path, dict[str, Annotations]]) -> None:
    """Take the images that the files name; of several with one name the one whose folders fit."""
    source = found.source
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in files.images:
        by_name[same_text(image.name)].append(image)
        by_name[same_text(image.stem)].append(image)  # CVAT calls the frames of a video so
    for path, named in for_many.items():
        found.used.add(path)
        section = label_keys(path, source)[0].section or section_in(path.stem)
        for name, label in named.items():
            place = same_text(name.replace("\\", "/"))
            images = by_name[place.rsplit("/", 1)[-1]]
            if not images and not label.shapes:
                continue  # a frame of a video that nothing was marked in, and that was not exported
            near = [image for image in images if _is_at(image, place)]
            images = near or images
            if len(images) > 1:
                images = [image for image in images if image_keys(image, source)[0].section == section] or images
            if len(images) != 1 or images[0] in found.used:
                found.problems.append(f"{path} names {name}, of which there are {len(images)}, or which came before.")
                continue
            key = image_keys(images[0], source)[0]
            found.take(key._replace(section=key.section or section), images[0], label)
    for image in files.images:
        if image not in found.used:
            found.problems.append(f"{image} has no label.")
            found.used.add(image)


def _is_at(image: Path, place: str) -> bool:
    """Whether a path ends with a place, with the image's suffix or without."""
    ends = (f"/{same_text(path.as_posix())}" for path in (image, image.with_suffix("")))
    return any(end.endswith(f"/{place.lstrip('/')}") for end in ends)


def _set_sections(found: FoundPairs) -> None:
    """Keep the sections where there is one to train on; what lies in none is trained on."""
    rest = found.split.pop("", [])
    if "training" in found.split and rest:
        found.split["training"] += rest
    elif "training" not in found.split and found.split:
        found.split = {"training": rest, **found.split} if rest else {}


def _is_turned(image: Path, files: Sequence[Path]) -> bool:
    """Whether an image is to be turned in another way than its label.

    Those in JSON state the size of the image as their programs showed it; of others without pixels nobody knows whether
    they were drawn on the image as it is stored.
    """
    stated = stated_orientation(image)
    of_files = {
        stated_orientation(file) if file.suffix.lower() in IMAGE_SUFFIXES else UPRIGHT
        for file in (files if stated != UPRIGHT else files[:1])  # masks of cells are thousands
        if file.suffix.lower() != ".json"
    }
    return bool(of_files - {stated})
