# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Enhanced DICOM files with several volumes are taken apart, and each has its own pixels and place."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice

from swinumamba_monai.data import SliceDataset, read_volume
from swinumamba_monai.data.files.dicom_series import list_series
from swinumamba_monai.errors import InputError

pydicom = pytest.importorskip("pydicom")
AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


def item(**sequences) -> pydicom.Dataset:
    """A functional group: for each sequence the attributes of its only item."""
    result = pydicom.Dataset()
    for name, attributes in sequences.items():
        inner = pydicom.Dataset()
        for attribute, value in attributes.items():
            setattr(inner, attribute, value)
        setattr(result, name, pydicom.Sequence([inner]))
    return result


def write_enhanced(path, frames) -> np.ndarray:
    """A file of frames, each a position, an orientation and further sequences; their pixels, (frames, 5, 4)."""
    pixels = np.random.default_rng(0).integers(0, 1000, (len(frames), 5, 4)).astype("<u2")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = write_slice(path, pixels[0], (0, 0, 0), 1)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, name)
    dataset.NumberOfFrames, dataset.PixelData = len(frames), pixels.tobytes()
    dataset.SharedFunctionalGroupsSequence = pydicom.Sequence([item(PixelMeasuresSequence={"PixelSpacing": [1, 1]})])
    dataset.PerFrameFunctionalGroupsSequence = pydicom.Sequence(
        [
            item(
                PlanePositionSequence={"ImagePositionPatient": position},
                PlaneOrientationSequence={"ImageOrientationPatient": orientation},
                **sequences,
            )
            for position, orientation, sequences in frames
        ]
    )
    dataset.save_as(path)
    return pixels


def content(**values) -> dict:
    return {"FrameContentSequence": values}


ECHOES = [([0, 0, 4 * z], AXIAL, {"MREchoSequence": {"EffectiveEchoTime": t}}) for t in (10.0, 80.0) for z in range(3)]
TIMES = [([0, 0, 4 * z], AXIAL, content(TemporalPositionIndex=t)) for z in range(3) for t in (1, 2)]
INDICES = [([0, 0, 4 * z], AXIAL, content(DimensionIndexValues=[z, v])) for z in range(3) for v in (1, 2)]
PLANES = [([0, 0, 4 * z], AXIAL, {}) for z in range(3)] + [([0, 4 * z, 0], CORONAL, {}) for z in range(3)]
BOTH = [(place, way, echo) for _, _, echo in ECHOES[::3] for place, way, _ in PLANES]
STACKS = [([0, 0, place + 4 * z], AXIAL, content(StackID=str(place))) for place in (7, 90) for z in range(3)]


@pytest.mark.parametrize(
    ("frames", "first", "words"),
    [
        (ECHOES, [0, 1, 2], "EchoTime 10"),
        (TIMES, [0, 2, 4], "TemporalPositionIdentifier 1"),
        (INDICES, [0, 2, 4], "DimensionIndex2 1"),
        (PLANES, [0, 1, 2], "axial"),
        (BOTH, [0, 1, 2], "axial, EchoTime 10"),
        (STACKS, [0, 1, 2], "StackID 7"),
    ],
    ids="echoes times indices planes both stacks".split(),
)
def test_each_volume_has_its_own_frames(frames, first, words, tmp_path):
    pixels = write_enhanced(tmp_path / "case" / "a.dcm", frames)
    with pytest.raises(InputError, match=rf"case has slices of {len(frames) // 3} series: - '{words}' \(3 frames"):
        list_series(tmp_path / "case")
    (chosen,) = list_series(tmp_path / "case", words)
    voxels, affine = read_volume(chosen)
    np.testing.assert_array_equal(voxels, np.transpose(pixels[first], (2, 1, 0)))
    np.testing.assert_allclose(affine[:3, 3], np.array(frames[0][0]) * [-1, -1, 1])
    names = list_series(tmp_path / "case", "all")
    others = [number for number in range(len(frames)) if number not in first]
    planes = [plane for name in {*names} - {chosen} for plane in np.moveaxis(read_volume(name)[0], -1, 0)]
    assert len(planes) == len(others)
    assert {plane.tobytes() for plane in planes} == {pixels[number].T.tobytes() for number in others}


def test_volumes_of_one_file_are_preprocessed_each(tmp_path):
    write_enhanced(tmp_path / "case" / "a.dcm", ECHOES)
    items = [{"image": name} for name in list_series(tmp_path / "case", "all")]
    data = SliceDataset(items, load, tmp_path / "cache")
    first, second = (np.load(folder / "image.npy") for folder in data.folders)
    assert (first != second).any()


def load(item: dict) -> dict:
    return {"image": read_volume(item["image"])[0][None].astype(np.float32)}


def test_one_volume_stays_one(tmp_path):
    frames = [([0, 0, 4 * z], AXIAL, content(StackID=str(z // 2))) for z in range(4)]  # two slabs, one on the other
    pixels = write_enhanced(tmp_path / "case" / "a.dcm", frames)
    voxels, affine = read_volume(tmp_path / "case")
    np.testing.assert_array_equal(voxels, np.transpose(pixels, (2, 1, 0)))
    assert nib.affines.voxel_sizes(affine).tolist() == [1, 1, 4]


@pytest.mark.parametrize(("frames", "what"), [(ECHOES, "lie at one position"), (PLANES, "slices of 2 orientations")])
def test_a_file_alone_says_where_its_volumes_are_chosen(frames, what, tmp_path):
    write_enhanced(tmp_path / "a.dcm", frames)
    with pytest.raises(InputError, match=rf"{what}; .* the one file of several, of which --series takes"):
        read_volume(tmp_path / "a.dcm")


@pytest.mark.parametrize("written", [b"1e400 ", b"nan ", b"1\\2 ", b"abc "])
def test_a_number_of_frames_that_is_none(written, tmp_path):
    """In a series of two ways to lie, each of which is asked for it."""
    for number in range(4):
        way = {} if number < 2 else {"ImageOrientationPatient": CORONAL}
        dataset = write_slice(tmp_path / f"{number}.dcm", np.zeros((5, 4)), (0, 0, 4 * number), number, **way)
    tag = pydicom.tag.Tag("NumberOfFrames")
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(written), written, 0, False, True)
    dataset.save_as(tmp_path / "3.dcm")
    with pytest.raises(InputError):
        read_volume(tmp_path)
