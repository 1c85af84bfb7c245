# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Microscopy: images whose labels number their cells."""

from __future__ import annotations

from pathlib import Path

from monai.config import PathLike

from swinumamba_monai.data.files.images import IMAGE_SUFFIXES, ImageFileReader
from swinumamba_monai.data.files.shapes import Annotations
from swinumamba_monai.data.listing import load_images
from swinumamba_monai.data.prepare import dataset, label_forms
from swinumamba_monai.data.prepare.inspection import inspect_cells
from swinumamba_monai.data.prepare.matching import match_pictures
from swinumamba_monai.data.prepare.pannuke import find_pannuke
from swinumamba_monai.data.prepare.pictures import patient_of, slide_of
from swinumamba_monai.data.synthetic.microscopy import synthesize_microscopy
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import TaskFiles


def prepare_microscopy(
    source_dir: PathLike, output_dir: PathLike, options: dataset.PrepareOptions | None = None
) -> dataset.PreparedDataset:
    """Find images and instance maps, check every pair, divide them into three sections and write the datalist.

    docs/own_data.md lists the layouts and the forms of labels. Those that are no images of numbers become instance maps
    in ``output_dir/labels``; of two masks the first keeps a pixel, of two outlines that on top. The patches in the
    arrays of PanNuke become images in ``output_dir/images``. The planes of a stack stay in one section, and QuPath's
    tiles of a slide, and the images of a patient of TCGA.

    Args:
        source_dir, output_dir, options: see :meth:`swinumamba_monai.tasks.Task.prepare`.

    Raises:
        InputError: The layout is unknown; for the rest see
            :func:`~swinumamba_monai.data.prepare.dataset.check_and_write`.
    """
    source, output = dataset.open_source(source_dir), Path(output_dir).resolve()
    options = options or dataset.PrepareOptions()
    with dataset.label_folder() as maps:
        found = find_pannuke(source, output, maps.parent)
        if found is None:
            found = match_pictures(source, output, masks_of_cells=True)
            found.groups = {n: whole for n, whole in found.groups.items() if "#" in n or slide_of(n) or patient_of(n)}
        labels = [label for _, label in found.pairs.values()]
        if options.mask_threshold is not None and any(isinstance(label, (Path, Annotations)) for label in labels):
            raise InputError(
                "mask_threshold is for masks of one cell each, but labels here number the cells; leave it out."
            )

        def make(name: str, image: Path, label: label_forms.Label) -> Path:
            size = label_forms.size_of(image, label)
            cells = label_forms.cells_of(label, size, options.mask_threshold, found.warnings)
            return label_forms.write_numbers(cells, maps / name)

        if not all(label_forms.is_image_name(label) and not label_forms.is_of_objects(label) for label in labels):
            found.make_labels(maps, make)
        return dataset.check_and_write("microscopy", found, output, options)


FILES = TaskFiles(
    class_names=(),
    reader=ImageFileReader,
    is_image=lambda path: path.suffix.lower() in IMAGE_SUFFIXES,
    list_images=load_images,
    inspect=lambda image, label, class_names: inspect_cells(image, label),
    prepare=prepare_microscopy,
    synthesize=synthesize_microscopy,
)
