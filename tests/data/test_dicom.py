# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What DICOM pixels mean, what is no part of a series, and how several series are told apart."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_compressed, write_slice

from swinumamba_monai.data.files.dicom_pixels import DECODERS, read_pixels
from swinumamba_monai.data.files.dicom_series import find_series
from swinumamba_monai.data.files.volumes import read_volume
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.errors import InputError

pydicom = pytest.importorskip("pydicom")
imagecodecs = pytest.importorskip("imagecodecs")

CASES = Path(__file__).parents[3] / "shared" / "cases" / "mri"
SIEMENS = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz"
PIXELS = np.random.default_rng(2).integers(0, 4096, (3, 16, 24)).astype(np.uint16)
STEP = 4 * np.array([0, 0.6, 0.8])  # along the normal of write_slice's plane


def write_series(folder, pixels=PIXELS, first=0, write=write_slice, **attributes):
    """A slice for each plane of ``pixels``, which may be stored in another way."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(pixels, start=first):
        write(folder / f"im{number}.dcm", plane, number * STEP, number + 1, **attributes)
    return folder


def stored(folder):
    return np.transpose(read_volume(folder)[0], (2, 1, 0))


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")
@pytest.mark.parametrize("name", sorted(path.name for path in CASES.iterdir()) if CASES.is_dir() else [])
def test_every_case_reads_as_the_plain_one(name):
    voxels, affine = read_volume(CASES / name)
    plain, expected = read_volume(CASES / "plain")
    np.testing.assert_array_equal(voxels, plain)
    np.testing.assert_allclose(affine, expected)
    assert plain.shape == (96, 80, 12) and plain.max() < 4096


# What the pixels mean


@pytest.mark.parametrize(
    ("values", "attributes"),
    [
        (4095 - PIXELS, {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}),
        (PIXELS | 0x9000, {"BitsStored": 12, "HighBit": 11}),
        (PIXELS << 4 | 3, {"BitsStored": 12, "HighBit": 15}),
    ],
    ids=["inverted", "overlay above", "overlay below"],
)
def test_bits_are_read_as_the_header_means_them(values, attributes, tmp_path):
    np.testing.assert_array_equal(stored(write_series(tmp_path / "s", values, **attributes)), PIXELS)


def test_signed_values_keep_their_sign(tmp_path):
    signed = PIXELS.astype(np.int16) - 2048  # 12 bits
    for name, values in (("extended", signed.view(np.uint16)), ("cleared", signed.view(np.uint16) & 0xFFF)):
        folder = write_series(tmp_path / name, values, PixelRepresentation=1, BitsStored=12, HighBit=11)
        assert read_volume(folder)[0].dtype == np.int16
        np.testing.assert_array_equal(stored(folder), signed)
    inverted = (-1 - signed).view(np.uint16)
    folder = write_series(tmp_path / "i", inverted, PixelRepresentation=1, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(stored(folder), signed)


@pytest.mark.parametrize("kind", ["RGB", "PALETTE COLOR"])
def test_colours_are_refused(kind, tmp_path):
    with pytest.raises(InputError, match=rf"im0\.dcm is in colour \({kind}\)"):
        read_volume(write_series(tmp_path / "s", PhotometricInterpretation=kind))


LOSSLESS = {
    "57": lambda pixels: imagecodecs.ljpeg_encode(pixels, bitspersample=16),
    "70": lambda pixels: imagecodecs.ljpeg_encode(pixels, bitspersample=16),
    "80": imagecodecs.jpegls_encode,
    "90": lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k"),
}


@pytest.mark.parametrize("end", LOSSLESS)
def test_lossless_syntaxes(end, tmp_path):
    syntax = f"1.2.840.10008.1.2.4.{end}"
    assert syntax in DECODERS
    folder = write_series(tmp_path / "s", write=write_compressed, syntax=syntax, encode=LOSSLESS[end])
    np.testing.assert_array_equal(stored(folder), PIXELS)


def test_signed_jpeg_2000(tmp_path):
    signed = PIXELS.astype(np.int16) - 2048
    folder = write_series(
        tmp_path / "s",
        signed,
        write=write_compressed,
        syntax="1.2.840.10008.1.2.4.90",
        encode=LOSSLESS["90"],
        PixelRepresentation=1,
    )
    np.testing.assert_array_equal(stored(folder), signed)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm"])
def test_files_of_others(name):
    """Lossy ones too: all have something in them and none leaves its 12 or 16 bits."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / name).exists():
        pytest.skip("this pydicom has no such file")
    dataset, frames = read_pixels(folder / name, 1 << 24)
    assert frames.shape == (1, dataset.Rows, dataset.Columns) and len(np.unique(frames)) > 50
    assert frames.max() < 1 << dataset.BitsStored


def test_a_table_takes_the_place_of_the_slope(tmp_path):
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 16])
    table.add_new("LUTData", "US", [5, 10, 20, 40])
    folder = write_series(tmp_path / "s", PIXELS % 4, ModalityLUTSequence=Sequence([table]))
    np.testing.assert_array_equal(stored(folder), np.array([5, 10, 20, 40])[PIXELS % 4])


def test_a_slope_of_nothing_is_one_as_itk_takes_it(tmp_path, caplog):
    folder = write_series(tmp_path / "s", PIXELS, RescaleSlope="0", RescaleIntercept="0")
    np.testing.assert_array_equal(stored(folder), PIXELS)
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(sorted(map(str, folder.iterdir())))
    np.testing.assert_array_equal(np.sort(sitk.GetArrayFromImage(image), axis=None), np.sort(PIXELS, axis=None))
    assert "s: a rescale slope of 0 is taken for 1" in caplog.text


@pytest.mark.parametrize("directions", [[0, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 1, 0]])
def test_directions_that_are_none_are_named(directions, tmp_path):
    folder = write_series(tmp_path / "s", PIXELS, ImageOrientationPatient=directions)
    with pytest.raises(InputError, match=r"\.dcm .*which are no two directions at a right angle.*correct its header"):
        read_volume(folder)


# Slices in one file, or at other places than a stack's


def test_a_mosaic_is_cut_where_its_header_tells(tmp_path):
    """A real one, whose pixels were blanked: every tile gets a value, and the place is nibabel's."""
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    with gzip.open(SIEMENS) as file:
        dataset = pydicom.dcmread(file)
    tiles = np.kron(np.arange(49).reshape(7, 7), np.ones((128, 128))).astype(np.uint16)
    dataset.PixelData = tiles.tobytes()
    dataset.save_as(tmp_path / "a.dcm")
    voxels, affine = read_volume(tmp_path)
    assert voxels.shape == (128, 128, 48)
    np.testing.assert_array_equal(voxels[5, 6], np.arange(48))
    rows_first = np.diag([-1, -1, 1, 1]) @ wrapper_from_data(dataset).affine
    np.testing.assert_allclose(affine, rows_first[:, [1, 0, 2, 3]], atol=1e-6)


def test_a_mosaic_without_its_header_is_refused(tmp_path):
    folder = write_series(tmp_path / "s", PIXELS[:1], ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    with pytest.raises(InputError, match=r"im0\.dcm is a Siemens MOSAIC.*convert it to NIfTI"):
        read_volume(folder)


def enhanced(path, pixels, **attributes):
    """All slices as frames of one file, the last first, with slopes of their own."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def group(**of_frame):
        result = Dataset()
        for name, values in of_frame.items():
            item = Dataset()
            for attribute, value in values.items():
                setattr(item, attribute, value)
            setattr(result, name, Sequence([item]))
        return result

    frames = [
        group(
            PlanePositionSequence={"ImagePositionPatient": list(number * STEP)},
            PixelValueTransformationSequence={"RescaleSlope": number + 1, "RescaleIntercept": -5},
        )
        for number in reversed(range(len(pixels)))
    ]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 0.8, -0.6]},
        PixelMeasuresSequence={"PixelSpacing": [1.5, 0.75], "SliceThickness": 4},
    )
    dataset = write_slice(path, pixels[0], (0, 0, 0), 1, **attributes)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, name)
    dataset.NumberOfFrames, dataset.PixelData = len(pixels), pixels[::-1].tobytes()
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.save_as(path)
    return dataset


def test_enhanced_files_read_as_their_slices(tmp_path):
    _, expected = read_volume(write_series(tmp_path / "plain"))
    (tmp_path / "enhanced").mkdir()
    enhanced(tmp_path / "enhanced" / "a.dcm", PIXELS)
    for path in (tmp_path / "enhanced", tmp_path / "enhanced" / "a.dcm"):
        voxels, affine = read_volume(path)
        np.testing.assert_allclose(affine, expected, atol=1e-9)
        slopes = np.arange(1, 4).reshape(3, 1, 1)
        np.testing.assert_allclose(np.transpose(voxels, (2, 1, 0)), PIXELS * slopes - 5)
    dataset = enhanced(tmp_path / "enhanced" / "a.dcm", PIXELS)
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "enhanced" / "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm has 3 frames without a position for each"):
        read_volume(tmp_path / "enhanced")


@pytest.mark.parametrize(
    ("depths", "words"),
    [
        ((0, 3, 6, 12), "misses slices: .*complete the series"),
        ((0, 3, 6, 10.5, 15), "uneven distances, from 3.00 to 4"),
    ],
    ids=str,
)
def test_uneven_slices_are_not_missing_ones(depths, words, tmp_path):
    for number, depth in enumerate(depths):
        write_slice(tmp_path / f"{number}.dcm", PIXELS[0], depth / 4 * STEP, number)
    with pytest.raises(InputError, match=words) as error:
        read_volume(tmp_path)
    assert ("complete" in str(error.value)) == (depths[-1] == 12)


# What lies beside a series


def write_state(path, series="1.2.3"):
    """A presentation state, which has no pixels."""
    dataset = write_slice(path, PIXELS[0], (0, 0, 0), 9, series)
    dataset.SOPClassUID, dataset.Modality = "1.2.840.10008.5.1.4.1.1.11.1", "PR"
    for name in ("PixelData", "Rows", "Columns"):
        delattr(dataset, name)
    dataset.save_as(path)


def write_directory(path):
    """The list of the files of a CD, whose class is in its file's meta information alone, as the standard has it."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3.4"
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.FileSetID, dataset.DirectoryRecordSequence = "CD", []
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path)


def test_foreign_files_are_set_aside_and_named(tmp_path, caplog):
    folder = write_series(tmp_path / "s")
    write_state(folder / "state.dcm")
    write_slice(folder / "capture.dcm", PIXELS[0], (0, 0, 0), 1, "1.8", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_slice(folder / "scout.dcm", PIXELS[0], (9, 9, 9), 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    across = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_slice(folder / "plan.dcm", PIXELS[0], (9, 9, 9), 1, "1.9", **across)
    write_directory(folder / "DICOMDIR")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(stored(folder), PIXELS)
    (record,) = [record.getMessage() for record in caplog.records if "swinumamba" in record.name]
    assert "5 of 8 DICOM files are set aside" in record
    for words in ("state.dcm (Grayscale", "capture.dcm (sec", "scout.dcm (loc", "plan.dcm (slices in", "DICOMDIR (Med"):
        assert words in record
    with pytest.raises(InputError, match="lists the files of a CD; give the folder"):
        read_volume(folder / "DICOMDIR")
    (tmp_path / "only").mkdir()
    write_state(tmp_path / "only" / "a.dcm")
    with pytest.raises(InputError, match="no DICOM file of an image"):
        read_volume(tmp_path / "only")
    write_slice(tmp_path / "only" / "b.dcm", PIXELS[0], (0, 0, 0), 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert stored(tmp_path / "only").shape == (1, 16, 24)  # there is nothing else


def names(items, root):
    return [str(Path(item["image"]).relative_to(root)) for item in items]


def test_nested_folders(tmp_path):
    for place in ("a/study/T2", "a/study/T1", "b/DICOM/0001"):
        write_series(tmp_path / place, series=place.replace("/", "."))
    assert names(load_volumes(tmp_path), tmp_path) == ["a/study/T1.dicom", "a/study/T2.dicom", "b/DICOM/0001.dicom"]
    np.testing.assert_array_equal(stored(tmp_path / "b"), PIXELS)
    spread = tmp_path / "c"
    write_series(spread / "0", PIXELS[:1], series="7")
    write_series(spread / "1", PIXELS[1:], first=1, series="7")
    assert names(load_volumes(spread), tmp_path) == ["c.dicom"]
    np.testing.assert_array_equal(stored(spread), PIXELS)


def test_several_series_in_one_folder_are_chosen_from(tmp_path):
    write_series(tmp_path / "in", series="1.2.1", SeriesNumber=3, SeriesDescription="T2 SPIR")
    other = write_series(tmp_path / "other", PIXELS[::-1], series="1.2.2", SeriesNumber=12, SeriesDescription="T1")
    for file in other.iterdir():
        file.rename(tmp_path / "in" / f"t1_{file.name}")
    for read in (read_volume, load_volumes):
        with pytest.raises(InputError, match=r"2 series: 3 'T2 SPIR' \(3 files, 1\.2\.1\), 12 'T1' .*--series"):
            read(tmp_path / "in")
    for wanted in ("12", 12, "1.2.2", "t1"):
        (item,) = load_volumes(tmp_path / "in", wanted)
        assert item["image"] == str(tmp_path / "in" / "1.2.2.dicom")
        np.testing.assert_array_equal(stored(item["image"]), PIXELS[::-1])
    assert names(load_volumes(tmp_path / "in", "all"), tmp_path) == ["in/1.2.1.dicom", "in/1.2.2.dicom"]
    with pytest.raises(InputError, match="but none is FLAIR"):
        load_volumes(tmp_path / "in", "FLAIR")


def test_a_uid_leads_nowhere(tmp_path):
    for number, uid in enumerate(("../../up", "..", "1/2")):
        write_slice(tmp_path / f"{number}.dcm", PIXELS[0], (0, 0, 0), 1, SeriesInstanceUID=uid)
    assert len(find_series(tmp_path)) == 3
    for one in find_series(tmp_path):
        assert (tmp_path / one.key).parent == tmp_path and one.key not in ("", ".", "..")
