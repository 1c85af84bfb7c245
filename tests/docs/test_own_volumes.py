# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of files of volumes in docs/own_data.md is made, and read again as it says."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from doc_tables import rows
from own_volumes import AFFINE, LABEL, VOXELS, check, mosaic, refused, save, series

from swinumamba_monai.data.files.volume_writing import WRITABLE_SUFFIXES, write_volume
from swinumamba_monai.data.files.volumes import VOLUME_SUFFIXES, read_volume
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.errors import InputError


def nifti(folder: Path) -> None:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        for name in ("a.nii", "a.nii.gz"):
            for unit, size in (("mm", 1), ("meter", 1e-3), ("micron", 1e3)):
                image = kind(VOXELS, np.diag([size, size, size, 1]) @ AFFINE)
                image.header.set_xyzt_units(unit)
                for content in (image.to_bytes(), gzip.compress(image.to_bytes())):
                    (folder / name).write_bytes(content)
                    check(folder / name)


def written(suffixes: tuple[str, ...], folder: Path) -> None:
    for suffix in suffixes:
        if suffix in (".nhdr", ".mhd"):  # a header of voxels in another file
            sitk = pytest.importorskip("SimpleITK")
            write_volume(folder / "whole.mha", VOXELS, AFFINE)
            sitk.WriteImage(sitk.ReadImage(str(folder / "whole.mha")), str(folder / f"a{suffix}"))
        else:
            if suffix in (".nrrd", ".mha"):
                pytest.importorskip("SimpleITK")
            write_volume(folder / f"a{suffix}", VOXELS, AFFINE)
        check(folder / f"a{suffix}")


def four_dimensions(folder: Path) -> None:
    check(save(folder / "a.nii.gz", np.stack([VOXELS, LABEL], -1)), np.stack([VOXELS, LABEL], -1), 2)


def pair(folder: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), folder / "a.hdr")
    check(folder / "a.hdr")


def one_slice(folder: Path) -> None:
    check(save(folder / "a.nii.gz", VOXELS[..., 0]), VOXELS[..., :1])


def numbered(folder: Path) -> None:
    save(folder / "a_0000.nii.gz"), save(folder / "a_0001.nii.gz", LABEL)
    ((item,),) = (load_volumes(folder, channels=2),)
    check(item["image"], np.stack([VOXELS, LABEL], -1), 2)


def dicom_folder(folder: Path) -> None:
    check(series(folder / "study" / "1"))
    check(folder)
    series(folder / "study" / "2", SeriesInstanceUID="9")
    with pytest.raises(InputError, match="--series"):
        read_volume(folder)
    assert len(load_volumes(folder, "9")) == 1 and len(load_volumes(folder)) == 2


def dicom_file(folder: Path) -> None:
    mosaic(folder)
    assert read_volume(folder / "a.dcm")[0].shape == (128, 128, 48)


FILE_ROWS: dict[str, Callable[[Path], None]] = {
    "`.nii`, `.nii.gz`": nifti,
    "`.hdr`": pair,
    "`.nii.gz` with two dimensions": one_slice,
    "`.mgh`, `.mgz`": partial(written, (".mgh", ".mgz")),
    "`.nrrd`, `.nhdr`": partial(written, (".nrrd", ".nhdr")),
    "`.mha`, `.mhd`": partial(written, (".mha", ".mhd")),
    "`.nii.gz` with four dimensions": four_dimensions,
    "`a_0000.nii.gz`, `a_0001.nii.gz`": numbered,
    "a folder with DICOM files, in it or below": dicom_folder,
    "`.dcm`": dicom_file,
    "NaN": lambda folder: nan(folder, np.nan),
    "infinite voxels, and those beyond 1e30, by which some programs mark what is missing": lambda folder: infinite(
        folder
    ),
    "colours, complex numbers": partial(
        refused, "one number per voxel", lambda folder: save(folder / "a.nii", VOXELS.astype(np.complex64))
    ),
    "axes more than 45 degrees from right angles": partial(
        refused, "right angles", lambda folder: save(folder / "a.nii", affine=AFFINE + np.eye(4, k=2) * 3)
    ),
    "a time series": partial(
        refused, "4 dimensions", lambda folder: save(folder / "a.nii", np.stack([VOXELS, VOXELS], -1))
    ),
}


def nan(folder: Path, value: float) -> None:
    voxels = VOXELS.astype(np.float32)
    voxels[0, 0, 0] = value
    refused("NaN or infinite", lambda folder: save(folder / "a.nii", voxels), folder)
    if np.isnan(value):
        assert read_volume(folder / "a.nii", nan=0)[0][0, 0, 0] == 0


def infinite(folder: Path) -> None:
    nan(folder, np.inf)
    for value, kind in ((3e38, np.float32), (-1e300, np.float64)):
        voxels = VOXELS.astype(kind)
        voxels[0, 0, 0] = value
        refused("beyond 1e\\+30", lambda folder, voxels=voxels: save(folder / "a.nii", voxels), folder)


@pytest.mark.parametrize("row", rows("Files of volumes"))
def test_files(row, tmp_path):
    FILE_ROWS[row](tmp_path)


def test_every_suffix_is_in_the_table():
    suffixes = {suffix for row in rows("Files of volumes") for suffix in re.findall(r"`(\.[\w.]+)`", row)}
    assert suffixes == {*VOLUME_SUFFIXES, ".dcm"}
    text = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"Results are NIfTI, or what `--output_ext` says: (.*)\. They", text)
    assert {*re.findall(r"`(\.\w+)`", sentence), ".nii.gz"} == set(WRITABLE_SUFFIXES)
