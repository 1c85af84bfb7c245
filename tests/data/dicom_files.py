# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM files for tests, written by pydicom."""

from __future__ import annotations

import pytest


def write_slice(path, pixels, position, number, series="1.2.3", **attributes):
    """One slice with the axes of an oblique plane."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.InstanceNumber, dataset.Modality = series, number, "MR"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelSpacing, dataset.SliceThickness = [1.5, 0.75], 4
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.8, -0.6]
    dataset.ImagePositionPatient = [float(value) for value in position]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path)
    return dataset


def write_compressed(path, pixels, position, number, syntax, encode, **attributes):
    """One slice whose pixels ``encode`` compressed."""
    from pydicom.encaps import encapsulate

    dataset = write_slice(path, pixels, position, number, **attributes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([encode(pixels)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
