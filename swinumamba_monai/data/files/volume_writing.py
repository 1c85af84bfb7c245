# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A volume as a file, of the format that its name says, where its voxels lie."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from swinumamba_monai.data.files.grids import MIN_LEAN, lean_of, spacing_of
from swinumamba_monai.data.files.itk import check_itk, write_itk
from swinumamba_monai.data.files.nifti import FREESURFER_SUFFIXES, NIFTI_SUFFIXES, affine_of, put_forms
from swinumamba_monai.errors import InputError

MAX_NIFTI = 32767  # voxels along an axis
WRITABLE_SUFFIXES = (*NIFTI_SUFFIXES, *FREESURFER_SUFFIXES, ".nrrd", ".mha")


def check_writable(name: str) -> None:
    """Refuse the name or the suffix of a file that cannot be written, or not without what is not installed."""
    if not name.lower().endswith(WRITABLE_SUFFIXES):
        raise InputError(f"'{name}' is no writable volume: set output_ext to {', '.join(WRITABLE_SUFFIXES)}.")
    if not name.lower().endswith(NIFTI_SUFFIXES + FREESURFER_SUFFIXES):
        check_itk(name)


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray, forms: np.ndarray | None = None) -> None:
    """Write voxels of uint8, int16, int32 or float32.

    Args:
        path: path of the file, with one of ``WRITABLE_SUFFIXES``.
        voxels: (X, Y, Z), or (X, Y, Z, C) of several channels.
        affine: (4, 4) to mm, RAS+.
        forms: both forms of the NIfTI file on whose grid the voxels are, see
            :func:`~swinumamba_monai.data.files.nifti.put_forms`; they are passed over where they say another place
            than ``affine``.

    Raises:
        InputError: a NIfTI file cannot have so many voxels along an axis.
    """
    name = path.name.lower()
    if name.endswith(FREESURFER_SUFFIXES):
        nib.save(nib.MGHImage(voxels, affine), path)
    elif name.endswith(NIFTI_SUFFIXES):
        if max(voxels.shape) > MAX_NIFTI:
            raise InputError(
                f"{path} cannot hold {voxels.shape} voxels: a NIfTI file has at most {MAX_NIFTI} along an axis; cut "
                "the volume into parts."
            )
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        if lean_of(affine) > MIN_LEAN:  # of leaning slices programs expect their distance there, as dcm2niix has it
            image.header.set_zooms((*spacing_of(affine), *(1.0 for _ in range(voxels.ndim - 3))))
        if forms is not None:
            header = image.header.copy()
            put_forms(header, forms)
            if np.allclose(affine_of(header), affine, rtol=1e-5, atol=1e-4):
                image = nib.Nifti1Image(voxels, None, header)
        nib.save(image, path)
    else:
        write_itk(path, voxels, affine)
