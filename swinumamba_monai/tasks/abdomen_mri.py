# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Abdominal MRI: volumes, whose labels have a class for every voxel, trained on and predicted slice by slice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
from monai.config import PathLike

from swinumamba_monai.data.files.label_map import ABDOMEN_CLASSES, LabelMap, as_label_map
from swinumamba_monai.data.files.volume_listing import list_volumes
from swinumamba_monai.data.files.volumes import (
    VolumeReader,
    is_volume_name,
    read_volume_label,
    volume_name,
)
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.data.prepare.dataset import (
    FoundPairs,
    PreparedDataset,
    PrepareOptions,
    check_and_write,
    label_folder,
    open_source,
)
from swinumamba_monai.data.prepare.inspection import PairReport, inspect_volumes
from swinumamba_monai.data.prepare.layouts import choose_label_map, find_pairs
from swinumamba_monai.data.synthetic.abdomen_mri import synthesize_abdomen_mri
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import TaskFiles

# AMOS 2022 numbers its CT volumes up to 500 and its MRI volumes from there.
_AMOS = re.compile(r"^amos_(\d{4})$")
_LAST_AMOS_CT = 500


def prepare_abdomen_mri(
    source_dir: PathLike,
    output_dir: PathLike,
    options: PrepareOptions | None = None,
    label_map: LabelMap | PathLike | None = None,
) -> PreparedDataset:
    """Find volumes and label volumes, check every pair, divide them into three sections and write the datalist.

    Four layouts are known; orientation and spacing may be any:

    - nnU-Net v2 raw: ``imagesTr/NAME_0000.nii.gz`` and ``labelsTr/NAME.nii.gz``, likewise ``Ts``, and ``dataset.json``;
    - the Decathlon: the same without ``_0000``;
    - AMOS 2022: the same with ``imagesVa`` and ``labelsVa`` as validation section; its CT volumes are left out;
    - folders ``images`` and ``labels`` with files of the same name; images may be folders with a DICOM series each.

    ``split.json`` may give ``train`` and ``test`` (and ``validation``), lists of names without suffix, or several such
    divisions. Originals are referred to and never copied. When the numbers in the label files are not the classes
    themselves, label volumes that have the classes are written to ``output_dir/labels``.

    Args:
        source_dir: the downloaded dataset.
        output_dir: where the datalist is written; it may be ``source_dir``.
        options: see :class:`~swinumamba_monai.data.prepare.dataset.PrepareOptions`.
        label_map: the classes and their numbers in the files, or the JSON file of them. Default: the paper's 13 organs,
            by their names in ``dataset.json`` where there is one; the classes of that file where it lacks one of them.

    Returns:
        What was made.

    Raises:
        InputError: The layout is unknown; for the rest see
            :func:`~swinumamba_monai.data.prepare.dataset.check_and_write`.
    """
    label_map = as_label_map(label_map)
    source = open_source(source_dir)
    if options is not None and options.mask_threshold is not None:
        raise InputError("mask_threshold is for masks of images; the labels of volumes have class numbers.")
    found = find_pairs(source, list_volumes, volume_name, "NIfTI volumes")
    _leave_out_ct(found)
    labels = choose_label_map(source, label_map, ABDOMEN_CLASSES, found)
    with label_folder() as made:
        if not labels.is_identity:
            _write_classes(found, labels, made)
            labels = LabelMap.of_names(labels.names)
        inspect = partial(inspect_volumes, label_map=labels)
        return check_and_write(
            "abdomen_mri", found, source, output_dir, options or PrepareOptions(), inspect, made, labels.names
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


def _write_classes(found: FoundPairs, labels: LabelMap, folder: Path) -> None:
    """Write the labels of all pairs as class numbers into ``folder``, in the geometry that they have."""
    folder.mkdir()
    for name, (image, label) in list(found.pairs.items()):
        try:
            ids, affine = read_volume_label(label)
            classes = labels.to_classes(ids, label)
        except InputError as error:
            found.problems.append(str(error))
            del found.pairs[name]
            continue
        made = folder / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(classes, affine), made)
        found.pairs[name] = (image, made)


def _inspect(
    image: PathLike | Sequence[PathLike],
    label: PathLike,
    class_names: Sequence[str],
    channels: int = 1,
    nan: float | None = None,
) -> PairReport:
    return inspect_volumes(image, label, LabelMap.of_names(class_names), channels, nan)


FILES = TaskFiles(
    class_names=ABDOMEN_CLASSES,
    reader=VolumeReader,
    is_image=is_volume_name,
    list_images=load_volumes,
    inspect=_inspect,
    prepare=prepare_abdomen_mri,
    synthesize=synthesize_abdomen_mri,
)
