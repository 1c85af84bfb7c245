# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which image and which label of a folder of volumes are a pair, by their names and grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from volume_datasets import LABELS, SHAPE, classes, noise, save

from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri


@pytest.mark.parametrize(
    ("image", "label"),
    [("img000{}", "label000{}"), ("volume-{}", "segmentation-{}"), ("000{}_image", "000{}_mask"), ("{}", "seg_{}")],
)
def test_names_that_differ_in_the_words_for_image_and_label_are_one(image, label, tmp_path):
    source = tmp_path / "source"
    for case in range(4):
        save(source / "images" / f"{image.format(case)}.nii.gz", noise(*SHAPE))
        save(source / "labels" / f"{label.format(case)}.nii.gz", classes())
    prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    sections = ("training", "validation", "test")
    pairs = [item for section in sections for item in load_datalist(tmp_path / "out", section)]
    names = sorted((Path(item["image"]).name, Path(item["label"]).name) for item in pairs)
    assert names == [(f"{image.format(case)}.nii.gz", f"{label.format(case)}.nii.gz") for case in range(4)]


def test_a_label_of_another_number_is_no_partner(tmp_path):
    source = tmp_path / "source"
    for case in range(4):
        save(source / "images" / f"img{case}.nii.gz", noise(*SHAPE))
        save(source / "labels" / f"label{case}{case}.nii.gz", classes())
    with pytest.raises(InputError, match=r"img1\.nii\.gz has no label") as error:
        prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
    assert str(error.value).count("has no image") == 4


def test_several_labels_of_an_image_are_named_and_none_is_taken(tmp_path):
    for case in "ab":
        save(tmp_path / f"{case}.nii.gz", noise(*SHAPE))
        save(tmp_path / f"{case}_seg.nii.gz", classes())
    save(tmp_path / "a_mask.nii.gz", classes())
    with pytest.raises(InputError, match=r"/a\.nii\.gz has 2 labels \(a_mask\.nii\.gz, a_seg\.nii\.gz\), but"):
        prepare_abdomen_mri(tmp_path, tmp_path / "out", label_map=LABELS)


def test_a_label_with_exchanged_axes_is_no_part_of_the_grid(tmp_path):
    """Its voxels may all be voxels of the image by the header, and nothing but background beyond it."""
    source = tmp_path / "source"
    for case in range(4):
        label = np.zeros(SHAPE, np.uint8)
        label[1:4, 2:6] = 1
        save(source / "images" / f"{case}.nii.gz", noise(*SHAPE))
        save(source / "labels" / f"{case}.nii.gz", label if case else label.transpose(1, 0, 2))
    with pytest.raises(InputError, match=r"1 problem.*\n.*0.nii.gz has.*\(9, 8, 4\)"):
        prepare_abdomen_mri(source, tmp_path / "out", label_map=LABELS)
