# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A volume and its label, which the tests of docs/own_data.md write in every form that the page names."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from swinumamba_monai.data.files.volumes import read_channels, read_volume
from swinumamba_monai.errors import InputError

pydicom = pytest.importorskip("pydicom")
SHAPE = (7, 6, 5)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, -2.0, 0, -30], [0, 0, 1.25, 7], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 250, SHAPE).astype(np.int16)
LABEL = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def save(path: Path, voxels=VOXELS, affine=AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def series(folder: Path, voxels=VOXELS, encode=None, syntax="1.2.840.10008.1.2.1", **attributes) -> Path:
    """Axial slices of voxels (columns, rows, slices), with the affine ``AFFINE``."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(np.moveaxis(voxels, -1, 0)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = f"1.2.3.{number}", syntax
        dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.Modality = "1.2.3", "MR"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *plane.T.shape, 1
        dataset.PixelSpacing, dataset.PhotometricInterpretation = [2.0, 1.5], "MONOCHROME2"
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = (
            [1, 0, 0, 0, 1, 0],
            [-40, 30, 7 + 1.25 * number],
        )
        bits = 8 * voxels.dtype.itemsize
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
            bits,
            bits,
            bits - 1,
            0,
        )
        pixels = np.ascontiguousarray(plane.T)
        dataset.PixelData = encapsulate([encode(pixels)]) if encode else pixels.tobytes()
        dataset["PixelData"].is_undefined_length = encode is not None
        dataset["PixelData"].VR = "OW"
        for name, value in attributes.items():
            setattr(dataset, name, value)
        dataset.is_little_endian, dataset.is_implicit_VR = True, syntax == "1.2.840.10008.1.2"
        dataset.save_as(folder / f"{number}.dcm")
    return folder


def check(path: Path, expected=VOXELS, channels: int = 1) -> None:
    voxels, affine, _ = read_channels(path, channels)
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


def mosaic(folder: Path) -> None:
    source = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz"
    (folder / "a.dcm").write_bytes(gzip.decompress(source.read_bytes()))
    assert read_volume(folder)[0].shape == (128, 128, 48)
    with pytest.raises(InputError, match="MOSAIC"):
        read_volume(series(folder / "other", ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]))


def refused(words: str, make: Callable[[Path], Path], folder: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_volume(make(folder))
