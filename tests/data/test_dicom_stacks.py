# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Which slices of DICOM folders are a volume: of one series or of many, of several times, patients and directions."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice
from test_strange_volumes import NORMAL, PLANES, VOXELS, check, series

from swinumamba_monai import Predictor
from swinumamba_monai.cli import main
from swinumamba_monai.data.files import dicom_series
from swinumamba_monai.data.files.dicom_pixels import read_header
from swinumamba_monai.data.files.dicom_series import list_series
from swinumamba_monai.data.files.volumes import VolumeReader, read_volume
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.errors import InputError


def lone_slices(folder: Path, depths, own_folders=False, **attributes) -> Path:
    """Slices with a SeriesInstanceUID each, one stack for the scanner."""
    for number, (depth, plane) in enumerate(zip(depths, PLANES, strict=True)):
        place = folder / f"s{number}" if own_folders else folder
        place.mkdir(parents=True, exist_ok=True)
        given = {"StudyInstanceUID": "1.9", "FrameOfReferenceUID": "1.8", "SeriesDescription": "T2"} | attributes
        given = {name: value[number] if isinstance(value, list) else value for name, value in given.items()}
        write_slice(place / f"{number}.dcm", plane, NORMAL * depth, number + 1, series=f"1.2.{number}", **given)
    return folder


@pytest.mark.parametrize("own_folders", [False, True])
def test_slices_with_a_series_each_are_one_stack(own_folders, tmp_path, caplog):
    check(lone_slices(tmp_path / "a", [0, 4, 8, 12, 16], own_folders))
    assert "5 slices with a SeriesInstanceUID each are put together into stacks" in caplog.text


@pytest.mark.parametrize(
    ("depths", "attributes", "why"),
    [
        ([0, 4, 8, 16, 20], {}, "5 slices with a SeriesInstanceUID each agree, but are no stack"),  # one is missing
        ([0, 4, 8, 8, 12], {}, "or two at one place"),
        ([0, 4, 8, 12, 16], {"StudyInstanceUID": ["1.1", "1.2", "1.3", "1.4", "1.5"]}, ""),
        ([0, 4, 8, 12, 16], {"SeriesDescription": ["T1", "T2", "T1", "DWI", "FLAIR"]}, ""),
    ],
)
def test_slices_that_are_no_stack_stay_series(depths, attributes, why, tmp_path, caplog):
    with pytest.raises(InputError, match="slices of 5 series"):
        load_volumes(lone_slices(tmp_path / "a", depths, **attributes), reader=VolumeReader())
    assert "put together into stacks" not in caplog.text
    assert why in caplog.text and bool(why) == ("but are no stack" in caplog.text)


@pytest.mark.parametrize(
    ("tags", "called"),
    [
        ([{"EchoTime": echo, "TemporalPositionIdentifier": t} for echo in (2, 4) for t in (1, 2)], "4, Tem.* 2"),
        ([{"DiffusionBValue": 0.0}, *({"DiffusionBValue": 800.0, "DiffusionGradientOrientation": way}
         for way in ([1.0, 0, 0], [0, 1.0, 0]))], "Orientation 0 1 0"),
        ([{"FlipAngle": 5}, {"FlipAngle": 15}], "FlipAngle 15"),
        ([{"InversionTime": 50}, {"InversionTime": 900}], "InversionTime 900"),
        ([{"AcquisitionTime": "120000.1"}, {"AcquisitionTime": "120000.6"}], "AcquisitionTime 120000.6"),
    ],
)  # fmt: skip
def test_two_things_may_tell_volumes_apart(tags, called, tmp_path):
    """Every echo at every time, and the directions of diffusion: the last volume has 100 more each."""
    for number, attributes in enumerate(tags):
        series(tmp_path / "a", PLANES + 100 * number, first=5 * number, **attributes)
    with pytest.raises(InputError, match=f"slices of {len(tags)} series: .*{called}") as error:
        load_volumes(tmp_path / "a", reader=VolumeReader())
    words = next(words for words in str(error.value).split("'")[1::2] if re.search(called, words))
    check(tmp_path / "a", VOXELS + 100 * (len(tags) - 1), series=words)


def test_slices_with_a_time_each_are_no_volumes(tmp_path):
    for number in range(10):
        depth = NORMAL * 4 * (number // 2)
        write_slice(tmp_path / f"{number}.dcm", PLANES[0], depth, number, AcquisitionTime=f"1200{number}0")
    with pytest.raises(InputError, match="lie at one position"):
        load_volumes(tmp_path, reader=VolumeReader())


def test_a_localizer_that_is_not_called_so(tmp_path, caplog):
    """A slice in each direction in a series of its own, one of them parallel to the stack."""
    series(tmp_path / "a")
    for number, way in enumerate(([1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0.8, -0.6])):
        place = tmp_path / "a" / f"l{number}.dcm"
        write_slice(place, PLANES[0], [0, 0, 50 * number], number, series="1.9", ImageOrientationPatient=way)
    check(tmp_path / "a")
    assert caplog.text.count("3 of 8 DICOM files are set aside") == 1


def test_what_one_patient_has_sets_nothing_of_another_aside(tmp_path, caplog):
    """A stack here, a single coronal slice and a secondary capture of other patients there."""
    series(tmp_path / "a", StudyInstanceUID="1.1")
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "StudyInstanceUID": "1.2"}
    capture = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "StudyInstanceUID": "1.3"}
    for name, attributes in (("b", coronal), ("c", capture)):
        (tmp_path / name).mkdir()
        write_slice(tmp_path / name / "0.dcm", PLANES[0], NORMAL, 1, series=f"1.7.{ord(name)}", **attributes)
    items = load_volumes(tmp_path, reader=VolumeReader())
    assert [Path(item["image"]).name for item in items] == ["a.dicom", "b.dicom", "c.dicom"]
    assert "set aside" not in caplog.text


@pytest.mark.parametrize("uid", ["1.2.3", ""])
def test_patients_whose_series_have_one_name_stay_apart(uid, tmp_path):
    """Of one the slices end where those of the other begin, as if both were a stack."""
    for patient, first in (("a", 0), ("b", 3)):
        for number in range(first, first + 3):
            path = tmp_path / patient / f"{number}.dcm"
            path.parent.mkdir(exist_ok=True)
            write_slice(
                path, PLANES[0] + number, NORMAL * 4 * number, number, uid, StudyInstanceUID=f"7.{ord(patient)}"
            )
    names = list_series(tmp_path)
    assert names == [str(tmp_path / "a.dicom"), str(tmp_path / "b.dicom")]
    for name, first in zip(names, (0, 3)):
        np.testing.assert_array_equal(read_volume(name)[0][0, 0], PLANES[0][0, 0] + np.arange(first, first + 3))


def test_one_study_may_have_its_slices_in_two_folders(tmp_path):
    for number in range(6):
        path = tmp_path / "case" / str(number // 3) / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_slice(path, PLANES[0] + number, NORMAL * 4 * number, number, StudyInstanceUID="7.1")
    (name,) = list_series(tmp_path / "case")
    assert read_volume(name)[0].shape[2] == 6


@pytest.mark.parametrize("folders", [("a", "b"), ("a", "a/copy")])
def test_a_series_that_lies_twice_in_folders_of_its_own_is_two_volumes(folders, tmp_path):
    for times, folder in enumerate(folders, start=1):
        (tmp_path / folder).mkdir()
        for number, plane in enumerate(PLANES):
            write_slice(tmp_path / folder / f"{number}.dcm", plane * times, NORMAL * 4 * number, number)
    one, two = (read_volume(name)[0] for name in list_series(tmp_path))
    assert one.shape[2] == len(PLANES) and np.array_equal(two, one * 2)


def test_a_slice_of_another_size_is_set_aside_and_named(tmp_path, caplog):
    for number, plane in enumerate(PLANES):
        write_slice(tmp_path / f"{number}.dcm", plane, NORMAL * 4 * number, number)
    write_slice(tmp_path / "picture.dcm", np.zeros((9, 7), np.uint16), NORMAL * 4 * len(PLANES), len(PLANES))
    (name,) = list_series(tmp_path)
    assert read_volume(name)[0].shape[2] == len(PLANES)
    assert "picture.dcm (a slice of another size)" in caplog.text


def test_stacks_of_two_sizes_in_a_series_are_a_volume_each(tmp_path):
    for number, plane in enumerate(PLANES):
        write_slice(tmp_path / f"large{number}.dcm", plane, NORMAL * 4 * number, number)
        write_slice(tmp_path / f"small{number}.dcm", plane[1:, 2:], NORMAL * 4 * number, 100 + number)
    rows, columns = PLANES[0].shape
    with pytest.raises(InputError, match=f"2 series: .*'{columns} x {rows}'"):
        list_series(tmp_path)
    (name,) = list_series(tmp_path, f"{columns - 2} x {rows - 1}")
    assert read_volume(name)[0].shape == (columns - 2, rows - 1, len(PLANES))


def test_stacks_in_two_directions_with_two_echoes_each_are_four_volumes(tmp_path):
    for number, echo in enumerate((10, 80)):
        series(tmp_path / "a", PLANES + 100 * number, first=5 * number, EchoTime=echo)
        for index, plane in enumerate(PLANES[:4]):
            dataset = write_slice(tmp_path / "coronal.dcm", plane + 100 * number, (0, 3 * index, 0), 50, EchoTime=echo)
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
            dataset.SOPInstanceUID = f"1.5.{number}.{index}"
            dataset.save_as(tmp_path / "a" / f"coronal{number}{index}.dcm")
    with pytest.raises(InputError, match=r"slices of 4 series: .*'coronal, EchoTime 10'"):
        load_volumes(tmp_path / "a", reader=VolumeReader())
    check(tmp_path / "a", VOXELS + 100, series="axial, EchoTime 80")
    (item,) = load_volumes(tmp_path / "a", "coronal, EchoTime 80", reader=VolumeReader())
    np.testing.assert_array_equal(
        np.sort(read_volume(item["image"])[0], axis=2), np.sort(VOXELS[..., :4] + 100, axis=2)
    )


def test_a_series_is_not_replaced_by_the_only_one_of_another_case(tmp_path, capsys):
    source = tmp_path / "source"
    (source / "labels").mkdir(parents=True)
    for case, described in ((0, ("T1", "T2")), (1, ("T1", "T2")), (2, ("T1",)), (3, ("T1", "T2")), (4, ("T1", "T2"))):
        for kind in described:
            place = source / "images" / str(case)
            place.mkdir(parents=True, exist_ok=True)
            for number, plane in enumerate(PLANES):
                given = {"series": f"1.{described.index(kind)}", "SeriesDescription": kind}
                write_slice(place / f"{kind}{number}.dcm", plane, NORMAL * 4 * number, number, **given)
        _, affine = read_volume(list_series(place, "T1")[0])
        label = np.zeros((*PLANES[0].T.shape, len(PLANES)), np.uint8)
        label[:2, :2] = 1
        nib.save(nib.Nifti1Image(label, affine), source / "labels" / f"{case}.nii.gz")
    (tmp_path / "map.json").write_text('{"background": 0, "liver": 1}')
    arguments = ["prepare", "abdomen_mri", "--source_dir", str(source), "--output_dir", str(tmp_path / "out")]
    arguments += ["--label_map", str(tmp_path / "map.json"), "--series"]
    assert main([*arguments, "T2"]) == 1
    assert re.search(r"2 has slices of 1 series: - 'T1' .*, but none is T2", capsys.readouterr().err)
    assert main([*arguments, "T2", "--skip_bad"]) == 1 and (tmp_path / "out" / "datalist.json").is_file()
    assert "all but 1 are done" in capsys.readouterr().err
    assert main([*arguments[:-1], "--series", "T1", "--output_dir", str(tmp_path / "other")]) == 0


def test_a_series_of_what_has_none_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii.gz")
    for place in (tmp_path, tmp_path / "a.nii.gz"):
        with pytest.raises(InputError, match=r"series chooses among DICOM series, and .* is no folder with any"):
            load_volumes(place, "T2")
        assert len(load_volumes(place, "all")) == 1


def test_a_predictor_takes_the_series_of_a_folder_that_it_was_built_for(tmp_path):
    for number, (name, planes) in enumerate([("T1", PLANES), ("T2", PLANES[::-1])]):
        for z, plane in enumerate(planes):
            given = {"series": f"1.{number}", "SeriesDescription": name}
            write_slice(tmp_path / f"{name}{z}.dcm", plane, NORMAL * 4 * z, z, **given)
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    (tmp_path / "model.pt").touch()

    def built(series: str) -> Predictor:
        options = {"network_def": network, "checkpointloader": None, "roi_size": [32, 32], "series": series}
        return Predictor("abdomen_mri", tmp_path / "model.pt", "cpu", **options)

    np.testing.assert_array_equal(built("T2")(tmp_path).image, np.transpose(PLANES[::-1], (2, 1, 0)))
    with pytest.raises(InputError, match="2 volumes of this series"):
        built("all")(tmp_path)
    with pytest.raises(InputError, match="but none is T3"):
        built("T3")(tmp_path)


def test_a_folder_that_alone_is_another_than_in_its_study_does_not_stop_the_rest(tmp_path):
    """A stack and, in a folder of their own, a slice along it and two across: these are set aside beside the stack."""
    series(tmp_path / "a", StudyInstanceUID="1.9")
    for name, way in (("x", [1, 0, 0, 0, 0.8, -0.6]), ("y", [1, 0, 0, 0, 0, -1]), ("z", [0, 1, 0, 0, 0, -1])):
        (tmp_path / "b").mkdir(exist_ok=True)
        attributes = {"StudyInstanceUID": "1.9", "ImageOrientationPatient": way}
        write_slice(
            tmp_path / "b" / f"{name}.dcm", PLANES[0], (0, 0, 0), 1, "1.7" if name == "x" else "1.8", **attributes
        )
    found = load_volumes(tmp_path, reader=VolumeReader(), skip_bad=True)
    assert [item["image"] for item in found] == [str(tmp_path / "a.dicom")]
    assert len(found.bad) == 1 and "b has slices of 2 series" in found.bad[0]


def test_the_headers_of_a_folder_are_read_once_for_all_of_its_volumes(tmp_path, monkeypatch):
    """A dynamic series has thousands of files, and a hundred volumes."""
    folder = series(tmp_path / "a", AcquisitionNumber=1)
    series(folder, first=10, AcquisitionNumber=2)
    read = []
    monkeypatch.setattr(dicom_series, "read_header", lambda file, tags: read.append(file) or read_header(file, tags))
    for item in load_volumes(folder, series="all", reader=VolumeReader()):
        np.testing.assert_array_equal(read_volume(item["image"])[0], VOXELS)
    assert len(read) == 10
    before = (folder / "14.dcm").stat()
    write_slice(folder / "14.dcm", PLANES[4], NORMAL * 16, 14, AcquisitionNumber=1)  # which was of the second
    os.utime(folder / "14.dcm", ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times has it
    with pytest.raises(InputError):
        read_volume(item["image"])
    assert len(read) > 10
