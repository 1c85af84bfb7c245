# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM segmentations as labels, written by pydicom as dcmqi and highdicom do, and one that pydicom brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from test_dicom import PIXELS, STEP, write_series

from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.files.volumes import VolumeLabelReader, VolumeReader, read_volume, read_volume_label
from swinumamba_monai.data.sampling.slice_crops import SliceDataset
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

pydicom = pytest.importorskip("pydicom")

LABELS = LabelMap.of_names(["background", "liver", "spleen"])
SHAPE = PIXELS.shape  # slices, rows, columns
TRUTH = np.zeros(SHAPE, np.int32)
TRUTH[1:, 2:7, 3:9], TRUTH[2, 10:14, 5:20] = 1, 2


def item(**attributes) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def write_seg(path: Path, truth=TRUTH, kind="BINARY", bits=1, **attributes) -> Path:
    """A frame for each segment of each slice that has it, the last slices first; of a label map one for each slice."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.pixel_data_handlers.numpy_handler import pack_bits

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.3.9", "1.2.840.10008.1.2.1"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality, dataset.SegmentationType = "1.2.3.8", "SEG", kind
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *SHAPE[1:], 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    segments = [int(number) for number in np.unique(truth) if number]
    dataset.SegmentSequence = [item(SegmentNumber=n, SegmentLabel=LABELS.names[n]) for n in segments]
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])],
            PixelMeasuresSequence=[item(PixelSpacing=[1.5, 0.75], SliceThickness=4, SpacingBetweenSlices=4)],
        )
    ]
    frames, groups = [], []
    for place in reversed(range(len(truth))):
        for number in [0] if kind == "LABELMAP" else segments:
            plane = truth[place] if kind == "LABELMAP" else truth[place] == number
            if not plane.any():
                continue
            frames.append(plane * (200 if kind == "FRACTIONAL" else 1))
            position = [float(value) for value in place * STEP]
            group = item(PlanePositionSequence=[item(ImagePositionPatient=position)])
            if number:
                group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=number)]
            groups.append(group)
    dataset.NumberOfFrames, dataset.PerFrameFunctionalGroupsSequence = len(frames), groups
    pixels = np.array(frames)
    dataset.PixelData = pack_bits(pixels.ravel()) if bits == 1 else pixels.astype(f"<u{bits // 8}").tobytes()
    dataset["PixelData"].VR = "OB" if bits < 16 else "OW"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(("kind", "bits"), [("BINARY", 1), ("FRACTIONAL", 8), ("LABELMAP", 8), ("LABELMAP", 16)])
def test_segments_lie_where_the_image_does(tmp_path, kind, bits):
    affine = read_volume(write_series(tmp_path / "image"))[1]
    file = write_seg(tmp_path / "a.dcm", kind=kind, bits=bits, MaximumFractionalValue=255)
    ids, label_affine = read_volume_label(file)
    np.testing.assert_array_equal(ids, np.transpose(TRUTH[1:], (2, 1, 0)))  # the first slice has no frame
    expected = affine.copy()
    expected[:3, 3] += affine[:3, 2]
    np.testing.assert_allclose(label_affine, expected, atol=1e-6)


@pytest.mark.parametrize("place", ["labels/{}.dcm", "labels/{}/study/seg"])
def test_a_dataset_of_series_with_segmentations(tmp_path, place):
    for name in "abc":
        write_series(tmp_path / "in" / "images" / name)
        write_seg(tmp_path / "in" / place.format(name))
    prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=LABELS)
    made, affine = read_volume_label(tmp_path / "out" / "labels" / "b.nii.gz")
    np.testing.assert_array_equal(made, np.transpose(TRUTH, (2, 1, 0)))
    np.testing.assert_allclose(affine, read_volume(tmp_path / "in" / "images" / "b")[1], atol=1e-5)


def test_slices_between_without_a_frame_are_background(tmp_path):
    truth = np.zeros((7, *SHAPE[1:]), np.int32)
    truth[[1, 4, 6], 3:5, 4:9] = 1
    ids, _ = read_volume_label(write_seg(tmp_path / "a.dcm", truth))
    np.testing.assert_array_equal(ids, np.transpose(truth[1:], (2, 1, 0)))


def test_frames_far_apart(tmp_path):
    """A kilobyte may name slices that take gigabytes."""
    for name in "abcd":
        write_series(tmp_path / "in" / "images" / name)
        path = write_seg(tmp_path / "in" / "labels" / name / "seg.dcm")
    dataset = pydicom.dcmread(path)
    place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    place.ImagePositionPatient = [float(value) for value in STEP * 5000]
    dataset.save_as(path)
    with pytest.raises(InputError, match="frames, but as far apart as 5000 slices"):
        prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=LABELS)


def test_segments_that_overlap_are_said(tmp_path, caplog):
    dataset = pydicom.dcmread(write_seg(tmp_path / "a.dcm", bits=8))
    read_volume_label(tmp_path / "a.dcm")
    assert "overlap" not in caplog.text
    pixels = np.frombuffer(dataset.PixelData, np.uint8).reshape(-1, *SHAPE[1:]).copy()
    pixels[1] |= pixels[0]  # the frames of both segments of the last slice
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(tmp_path / "b.dcm")
    for _ in range(2):
        np.testing.assert_array_equal(read_volume_label(tmp_path / "b.dcm")[0], np.transpose(TRUTH[1:], (2, 1, 0)))
    assert caplog.text.count("b.dcm has segments that overlap: 2 loses 30 voxels to those before it") == 1


def test_a_segmentation_that_pydicom_brings(tmp_path):
    """One frame of dcmqi's, cut out of a file whose header still describes three."""
    dataset = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "liver_1frame.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[1:]
    dataset.save_as(tmp_path / "a.dcm")
    ids, affine = read_volume_label(tmp_path / "a.dcm")
    np.testing.assert_array_equal(ids[..., 0], dataset.pixel_array.T)
    place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    np.testing.assert_allclose(affine[:3, 3] * [-1, -1, 1], place)
    assert ids.max() == 1


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"NumberOfFrames": 2}, "descriptions of 2 frames"),
        ({"NumberOfFrames": 1 << 40}, "claims"),
        ({"BitsAllocated": 32}, "of 32 bits"),
        ({"PixelData": bytes(10)}, "cannot be decoded"),
        ({"PerFrameFunctionalGroupsSequence": []}, "cannot be decoded"),
    ],
)
def test_bad_segmentations(tmp_path, attributes, words):
    with pytest.raises(InputError, match=words) as error:
        read_volume_label(write_seg(tmp_path / "a.dcm", **attributes))
    assert "a.dcm" in str(error.value)


def test_several_segmentations_are_no_label(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        write_seg(tmp_path / "label" / name)
    with pytest.raises(InputError, match="has 2 DICOM segmentations"):
        read_volume_label(tmp_path / "label")


def test_training_takes_a_segmentation_in_a_folder(tmp_path):
    """On the grid of its image it stays where it is, and the cache is named by its file."""
    for name in "abc":
        write_series(tmp_path / "in" / "images" / name)
        write_seg(tmp_path / "in" / "labels" / name / "1.dcm", np.maximum(TRUTH, 1))
    prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=LABELS)
    assert not (tmp_path / "out" / "labels").exists()
    (item, *_) = load_datalist(tmp_path / "out", "training")
    keys = ("image", "label")
    load = [LoadImaged("image", VolumeReader), LoadImaged("label", VolumeLabelReader), EnsureChannelFirstd(keys)]
    (folder,) = SliceDataset([item], Compose(load), tmp_path / "cache").folders
    np.testing.assert_array_equal(np.load(folder / "label.npy"), np.maximum(TRUTH, 1).transpose(0, 2, 1))
    write_seg(Path(item["label"]) / "1.dcm", np.minimum(TRUTH + 1, 2))
    assert SliceDataset([item], Compose(load), tmp_path / "cache").folders != [folder]


@pytest.mark.parametrize("place", ["labels/{}.dcm", "labels/{}/1/rs.dcm"])
def test_contours_are_refused_by_their_name(place, tmp_path):
    for name in "abcd":
        (tmp_path / "in" / "images" / name).mkdir(parents=True)
        write_series(tmp_path / "in" / "images" / name)
        write_seg(tmp_path / "in" / place.format(name), Modality="RTSTRUCT")
    with pytest.raises(InputError, match=r"\(RTSTRUCT\), whose contours are not read; convert it to NIfTI"):
        prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=LABELS)


@pytest.mark.parametrize("place", ["{}/1.2.9/1-1.dcm", "{}/slices/1-1.dcm", "{}/seg.dcm"])
def test_a_folder_for_each_case_with_its_segmentation(place, tmp_path):
    """As archives give series: in folders of their own, in one, or all in the folder of the case."""
    for name in "abcd":
        slices = tmp_path / "in" / name / ("" if place == "{}/seg.dcm" else "slices")
        slices.mkdir(parents=True)
        write_series(slices)
        write_seg(tmp_path / "in" / place.format(name))
    prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=LABELS)
    (item, *_) = load_datalist(tmp_path / "out", "training")
    np.testing.assert_array_equal(read_volume_label(item["label"])[0].T, TRUTH)
    np.testing.assert_array_equal(read_volume(item["image"])[0].T, PIXELS)
