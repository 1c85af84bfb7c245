# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""NIfTI and FreeSurfer files: opened by what is in them, measured in mm, and checked before memory is taken."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from swinumamba_monai.data.files.limits import MAX_DEFLATE, MAX_VOXELS
from swinumamba_monai.errors import InputError, explained, log_once

logger = logging.getLogger(__name__)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
PAIR_SUFFIX = ".hdr"  # end of the name of a header that has its voxels beside it, in a file .img or .img.gz
FREESURFER_SUFFIXES = (".mgh", ".mgz")
_MAX_OFFSET = 1 << 24  # bytes
_NO_FORMS = (
    "{} has volumes that do not say where their axes lead (no sform and no qform); they are taken to lead left, "
    "anterior and superior, as nibabel takes them, but other programs differ: correct their headers"
)
_TWO_FORMS = (
    "the axes of {} lead to {} by its sform and to {} by its qform; the sform counts, as for nibabel, but other "
    "programs differ: correct its header"
)
_NO_DIRECTIONS = (
    "{} does not say where its axes lead (it has no directions); they are taken to lead left, inferior and anterior in "
    "steps of 1 mm, as FreeSurfer takes them: correct its header"
)
_MGH_GOOD = slice(28, 30)  # bytes of a FreeSurfer header that say whether it has directions
_GZIP = b"\x1f\x8b"
_PAIRS = (b"ni1\0", b"ni2\0")  # how a header says so, NIfTI-1 at byte 344 and NIfTI-2 at byte 4
_NIFTI_2 = (540).to_bytes(4, "little"), (540).to_bytes(4, "big")  # how its header begins
# The sizes of a header's units in mm; a header without unit means mm, as every program takes it.
_UNITS = {"meter": 1000.0, "micron": 0.001}
_MM = 2  # the code of the unit
# Under which an image has what put_forms needs.
FORMS_KEY = "nifti_forms"
# The fields of a header that say where the voxels lie; "pixdim" begins with a sign that belongs to the quaternion.
_FORMS = (
    "qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z srow_x srow_y srow_z"
).split()


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read a file whatever its name says: gzipped or not, NIfTI-1 or -2, in any unit.

    Args:
        path: a file with one of ``NIFTI_SUFFIXES``, ``FREESURFER_SUFFIXES`` or ``PAIR_SUFFIX``.

    Returns:
        The voxels with the dimensions of the file, scaled as the header says; the affine (4, 4) to mm, RAS+; and both
        forms of the header for :func:`put_forms`, None for a FreeSurfer file, which has one.

    Raises:
        InputError: The file is damaged or of another format, has colours, or claims more than it can hold.
    """
    with _opened(path) as (image, held):
        shape, header, dtype = image.shape, image.header, image.get_data_dtype()
        is_nifti = isinstance(image, nib.Nifti1Pair)
        affine = affine_of(header) if is_nifti else np.asarray(image.affine, dtype=np.float64)
        forms = _forms(header) if is_nifti else None
        if is_nifti:
            _say_what_is_open(path, header)
        if min(shape) < 1 or math.prod(shape) > MAX_VOXELS:
            raise InputError(f"{path} has the size {tuple(shape)}, but 1 to {MAX_VOXELS} voxels can be read.")
        if dtype.fields or dtype.kind not in "uif":
            raise InputError(f"{path} has voxels of type {dtype}; convert it to one number per voxel.")
        # Where the voxels begin is in the header too; what lies before them are notes, which are short.
        offset = int(getattr(image.dataobj, "offset", 0))
        if offset > _MAX_OFFSET:
            raise InputError(f"{path} says that its voxels begin at byte {offset}; it is damaged, so replace it.")
        claimed = offset + math.prod(shape) * dtype.itemsize
        if claimed > held:
            raise InputError(f"{path} claims {claimed} bytes of voxels, which no file of its size holds; replace it.")
        if isinstance(image, nib.Nifti1Image) and offset < header.single_vox_offset:
            raise InputError(
                f"{path} says that its voxels begin at byte {offset}, within its header; save it once more by the "
                "program that you see it right in."
            )
        voxels = np.asanyarray(image.dataobj)
        # What is behind them is short, but at its end gzip says whether all came out as it went in.
        image.dataobj.file_like.read(_MAX_OFFSET)
        return voxels, affine, forms


def read_nifti_grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """The dimensions of a NIfTI file and its affine (4, 4) to mm, without voxels; an InputError if it is damaged."""
    with _opened(path) as (image, _):
        return image.shape, affine_of(image.header)


def affine_of(header: nib.Nifti1Header) -> np.ndarray:
    """The affine (4, 4) to mm that counts: the sform where there is one, else the qform."""
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _UNITS.get(header.get_xyzt_units()[0], 1.0)
    return affine


def _say_what_is_open(path: Path, header: nib.Nifti1Header) -> None:
    """Log that a header does not say where its axes lead, or says it in two ways."""
    if not (header["sform_code"] or header["qform_code"]):
        log_once(logger, logging.WARNING, _NO_FORMS.format(path.parent))
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return
    with suppress(ValueError):  # of a qform that is none, where the sform counts
        forms = header.get_sform(), header.get_qform()
        if (nib.io_orientation(np.linalg.solve(*forms)) != nib.io_orientation(np.eye(4))).any():
            words = ("".join(nib.aff2axcodes(form)) for form in forms)
            log_once(logger, logging.WARNING, _TWO_FORMS.format(path, *words))


def put_forms(header: nib.Nifti1Header, forms: np.ndarray) -> None:
    """Give a header the forms of a file of the same grid, as :func:`read_nifti` gives them, with codes and unit."""
    numbers = iter(np.asarray(forms, dtype=np.float64).ravel().tolist())
    for name in _FORMS:
        header[name] = [next(numbers) for _ in range(4)] if name.startswith("srow") else next(numbers)
    header["pixdim"][:4] = [next(numbers) for _ in range(4)]
    header["xyzt_units"] = next(numbers)


def _forms(header: nib.Nifti1Header) -> np.ndarray:
    unit = int(header["xyzt_units"]) & 7 or _MM
    return np.concatenate(
        [np.ravel(part).astype(np.float64) for part in (*(header[name] for name in _FORMS), header["pixdim"][:4], unit)]
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[nib.spatialimages.SpatialImage, int]]:
    """The image in a file, whose voxels can be read as long as it is open, and how many bytes it can hold."""
    advice = "it is damaged, truncated or no NIfTI file, so replace it"
    with explained(f"{path} cannot be decoded", advice), _stream(path) as stream:
        header = stream.read(348)
        stream.seek(0)
        is_second = header[:4] in _NIFTI_2
        if path.name.lower().endswith(FREESURFER_SUFFIXES):
            if not int.from_bytes(header[_MGH_GOOD], "big"):  # nibabel puts its own there
                log_once(logger, logging.WARNING, _NO_DIRECTIONS.format(path))
            yield nib.MGHImage.from_stream(stream), _bytes_in(path)
        elif header[4:8] in _PAIRS or header[344:] in _PAIRS:
            voxels = voxels_beside(path)
            with _stream(voxels) as second:
                kind = nib.Nifti2Pair if is_second else nib.Nifti1Pair
                holders = {"header": nib.FileHolder(fileobj=stream), "image": nib.FileHolder(fileobj=second)}
                yield kind.from_file_map(holders), _bytes_in(voxels)
        elif header[344:] != b"n+1\0" and path.name.lower().endswith(PAIR_SUFFIX):
            raise InputError(f"{path} is an Analyze header, which does not say where left is; convert it to NIfTI.")
        else:
            yield (nib.Nifti2Image if is_second else nib.Nifti1Image).from_stream(stream), _bytes_in(path)


def voxels_beside(path: Path) -> Path:
    """The file with the voxels of a header that is called alike; an InputError if there is none."""
    places = [path.with_suffix(suffix) for suffix in (".img", ".img.gz", ".IMG")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{path} is the header of voxels in {places[0].name}, which is not beside it; add it.")
    return found


def _stream(path: Path) -> BinaryIO:
    return gzip.open(path) if _is_gzipped(path) else path.open("rb")


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _bytes_in(path: Path) -> int:
    return path.stat().st_size * (MAX_DEFLATE if _is_gzipped(path) else 1)
