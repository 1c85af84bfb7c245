# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Abdominal MRI: volumes, whose labels have a class for every voxel, trained on and predicted slice by slice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike

from swinumamba_monai.data.files import grids, volumes
from swinumamba_monai.data.files.dicom_series import choose_series, find_series
from swinumamba_monai.data.files.label_map import ABDOMEN_CLASSES, LabelMap, as_label_map
from swinumamba_monai.data.files.nifti import NIFTI_SUFFIXES, read_nifti_grid
from swinumamba_monai.data.files.volume_writing import write_volume
from swinumamba_monai.data.inputs import noting
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.data.prepare import dataset, segment_names
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.data.prepare.inspection import inspect_volumes
from swinumamba_monai.data.prepare.layouts import choose_label_map, find_pairs, read_dataset_json
from swinumamba_monai.data.prepare.volume_layouts import find_chaos, find_totalsegmentator
from swinumamba_monai.data.synthetic.abdomen_mri import synthesize_abdomen_mri
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import TaskFiles

# AMOS 2022 numbers its CT volumes up to 500 and its MRI volumes from there.
_AMOS = re.compile(r"^amos_(\d{4})$")
_LAST_AMOS_CT = 500


def prepare_abdomen_mri(
    source_dir: PathLike,
    output_dir: PathLike,
    options: dataset.PrepareOptions | None = None,
    label_map: LabelMap | PathLike | None = None,
) -> dataset.PreparedDataset:
    """Find volumes and label volumes, check every pair, divide them into three sections and write the datalist.

    docs/own_data.md lists the layouts, of which AMOS 2022 loses its CT volumes; orientation and spacing may be any.
    When the numbers in the label files are not the classes themselves, or a label is not stored on the grid of its
    image, label volumes that have the classes on these grids are written to ``output_dir/labels``.

    Args:
        source_dir, output_dir, options: see :meth:`swinumamba_monai.tasks.Task.prepare`.
        label_map: the classes and their numbers in the files, or the JSON file of them. Default: the paper's 13 organs,
            by their names in ``dataset.json`` where there is one; the classes of that file where it lacks one of them;
            without it those that the labels name themselves, see
            :mod:`~swinumamba_monai.data.prepare.segment_names`.

    Raises:
        InputError: The layout is unknown; for the rest see
            :func:`~swinumamba_monai.data.prepare.dataset.check_and_write`.
    """
    label_map, options = as_label_map(label_map), options or dataset.PrepareOptions()
    source = dataset.open_source(source_dir)
    if options.mask_threshold is not None:
        raise InputError("mask_threshold is for masks of images; the labels of volumes have class numbers.")
    with dataset.label_folder() as made:
        pieces = find_chaos(source, made, label_map, options.series)
        pieces = pieces or find_totalsegmentator(source, made, label_map, ABDOMEN_CLASSES)
        if pieces:
            found, labels = pieces
        else:
            found = find_pairs(source, options.series)
            _leave_out_other_series(found, options.series)
            _leave_out_ct(found)
            named = {name: volumes.names_of_numbers(label) for name, (_, label) in found.pairs.items()}
            labels = label_map or segment_names.classes_of(named, source, ABDOMEN_CLASSES)
            labels = labels or choose_label_map(found, ABDOMEN_CLASSES)
        channels = _count_channels(found, options.in_channels)
        if not pieces:
            _write_classes(found, labels, named, made, channels, options)
        return dataset.check_and_write(
            "abdomen_mri", found, output_dir, options, labels, channels=channels, nan=options.nan
        )


def _leave_out_ct(found: FoundPairs) -> None:
    """Drop the CT volumes of AMOS 2022."""
    numbers = {name: int(match[1]) for name in found.pairs if (match := _AMOS.match(name))}
    ct = {name for name, number in numbers.items() if number <= _LAST_AMOS_CT}
    if ct:
        found.warnings.append(f"{len(ct)} CT volumes of AMOS 2022 (numbers up to {_LAST_AMOS_CT}) are left out.")
        found.pairs = {name: pair for name, pair in found.pairs.items() if name not in ct}
        found.split = {part: [name for name in names if name not in ct] for part, names in found.split.items()}
        found.split = {part: names for part, names in found.split.items() if names}


def _leave_out_other_series(found: FoundPairs, series: str | None) -> None:
    """Drop the images that are the only series of their folder, and not the one that is asked for."""
    if series is None or not found.pairs:
        return
    if all(image.is_file() for image, _ in found.pairs.values()):
        raise InputError(f"series chooses among DICOM series, and {found.source} has none; leave it out.")
    pairs, found.pairs = found.pairs, {}
    for name, (image, label) in pairs.items():
        with noting(found.problems):
            if image.is_dir():
                choose_series(image, find_series(image), series)
            found.pairs[name] = (image, label)


def _count_channels(found: FoundPairs, wanted: int | None) -> int:
    """The channels of the images: those in files of their own, wanted, or of ``dataset.json``; what differs goes."""
    if not found.pairs:
        return 1
    counts = {name: len(found.images(name)) for name in found.pairs}
    channels = max(sorted(set(counts.values())), key=list(counts.values()).count)
    for name, count in counts.items():
        if count < channels:
            image, _ = found.pairs.pop(name)
            found.problems.append(f"{image} has no further channel, but others have {channels}; complete them.")
        elif count > channels:
            del found.pairs[name]
            further = found.channels[name][channels:]
            found.problems += [
                f"{image} is a further channel of its image, but others have channels up to {channels - 1:04d}; make "
                "them alike."
                for image in further
            ]
    if wanted is not None and channels not in (1, wanted):
        raise InputError(f"in_channels is {wanted}, but most images have {channels} files of a channel each.")
    if channels > 1 or wanted is not None:
        return wanted or channels
    content = read_dataset_json(found.source)
    return max(1, len(content.get("channel_names") or content.get("modality") or {}))


def _write_classes(
    found: FoundPairs,
    labels: LabelMap,
    named: segment_names.Names,
    folder: Path,
    channels: int,
    options: dataset.PrepareOptions,
) -> None:
    """Write the labels of all pairs as class numbers on the grids of their images, unless all are so already.

    A label may be stored in another orientation at the same place, as converters of DICOM files do, or for a part of
    the image's grid alone, as 3D Slicer does. With ``label_grid="image"`` its place does not count. Where it names its
    numbers itself the names count.
    """
    maps = segment_names.maps_of(found, named, labels)
    turned: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (_, label) in list(found.pairs.items()):
        try:
            shape, affine = _grid(found.images(name), channels, options.nan)
            label_shape, label_affine = _label_grid(label)
            same = label_shape == shape and grids.corners_apart(affine, label_affine, shape) <= grids.SAME_PLACE
            if same:
                continue
            ids, label_affine = volumes.read_volume_label(label)
            if options.label_grid == "image" and ids.shape == shape:
                turned[name] = ids, affine
            else:
                ids, turned_affine = grids.reoriented(ids, label_affine, affine)
                if ids.shape == shape and grids.corners_apart(affine, turned_affine, shape) <= grids.SAME_PLACE:
                    turned[name] = ids, affine
                elif (whole := grids.put_on_grid(ids, turned_affine, affine, shape)) is not None:
                    turned[name] = whole, affine
        except InputError:
            continue  # the inspection says what is wrong
    if labels.is_identity and not turned and not maps:
        return
    if turned:
        found.warnings.append(f"{len(turned)} labels lie otherwise than their images and are written on their grids.")

    def make(name: str, _: Path, label: Path) -> Path:
        ids, affine = turned.get(name) or volumes.read_volume_label(label)
        made = folder / f"{name}.nii.gz"
        write_volume(made, maps.get(name, labels).to_classes(ids, label), affine)
        return made

    found.make_labels(folder, make)


def _grid(paths: Sequence[Path], channels: int, nan: float | None) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape and the affine of a volume; those of a NIfTI file are read without its voxels."""
    first = paths[0]
    if first.name.lower().endswith(NIFTI_SUFFIXES):
        shape, affine = read_nifti_grid(first)
        return (*shape, 1, 1)[:3], affine
    voxels, affine, _ = volumes.read_channels(paths, channels, nan)
    return voxels.shape[:3], affine


def _label_grid(label: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """The same of a label."""
    if label.name.lower().endswith(NIFTI_SUFFIXES):
        return _grid((label,), 1, None)
    ids, affine = volumes.read_volume_label(label)
    return ids.shape, affine


FILES = TaskFiles(
    class_names=ABDOMEN_CLASSES,
    reader=volumes.VolumeReader,
    is_image=volumes.is_volume_name,
    list_images=load_volumes,
    inspect=lambda image, label, class_names, channels=1, nan=None: inspect_volumes(
        image, label, LabelMap.of_names(class_names), channels, nan
    ),
    prepare=prepare_abdomen_mri,
    synthesize=synthesize_abdomen_mri,
)
