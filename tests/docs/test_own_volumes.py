# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the tables in docs/own_data.md about volumes is made, and read again as it says."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pytest
from doc_tables import rows
from PIL import Image

from swinumamba_monai.data.datalist import has_ignored, load_class_names, load_datalist, load_regions
from swinumamba_monai.data.files.dicom_pixels import DECODERS
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.files.volume_writing import WRITABLE_SUFFIXES, write_volume
from swinumamba_monai.data.files.volumes import VOLUME_SUFFIXES, read_channels, read_volume, read_volume_label
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

pydicom = pytest.importorskip("pydicom")

SHAPE = (7, 6, 5)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, -2.0, 0, -30], [0, 0, 1.25, 7], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 250, SHAPE).astype(np.int16)
LABEL = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
LABELS = LabelMap.of_names(["background", "liver", "spleen"])
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
    voxels, affine = read_channels(path, channels)
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)


# Files


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


def echoes(folder: Path) -> None:
    for number, echo in enumerate((2.3, 4.6)):
        series(folder / f"{number}", VOXELS + number, EchoTime=echo)
    (item,) = load_volumes(folder, "EchoTime 4.6")
    check(item["image"], VOXELS + 1)


def lone(folder: Path) -> None:
    for number in range(SHAPE[2]):
        place = [-40, 30, 7 + 1.25 * number]
        series(folder / f"{number}", VOXELS[..., [number]], SeriesInstanceUID=f"1.2.{number}", StudyInstanceUID="1.4",
               ImagePositionPatient=place, SOPInstanceUID=f"1.5.{number}")  # fmt: skip
    (item,) = load_volumes(folder)
    check(item["image"])


def directions(folder: Path) -> None:
    """A coronal stack of three slices, then its first alone, in the series and at the place of the axial one."""
    series(folder / "one")
    series(folder / "other", VOXELS[..., :3] + 1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    for number in range(3):
        dataset = pydicom.dcmread(folder / "other" / f"{number}.dcm")
        dataset.ImagePositionPatient = [-40, 30 - 1.25 * number, 7]
        dataset.save_as(folder / "one" / f"coronal{number}.dcm")
    with pytest.raises(InputError, match=r"2 series: .*'axial' .*'coronal'.*choose with --series"):
        load_volumes(folder / "one")
    (item,) = load_volumes(folder / "one", "axial")
    check(item["image"])
    (item,) = load_volumes(folder / "one", "coronal")
    voxels, affine = read_volume(item["image"])
    np.testing.assert_array_equal(voxels, VOXELS[..., 2::-1] + 1)  # the normal leads to the back
    np.testing.assert_allclose(affine[:3, 2], [0, -1.25, 0], atol=1e-9)
    for number in (1, 2):
        (folder / "one" / f"coronal{number}.dcm").unlink()
    check(folder / "one")


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


# Pixels of DICOM


def mosaic(folder: Path) -> None:
    source = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz"
    (folder / "a.dcm").write_bytes(gzip.decompress(source.read_bytes()))
    assert read_volume(folder)[0].shape == (128, 128, 48)
    with pytest.raises(InputError, match="MOSAIC"):
        read_volume(series(folder / "other", ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]))


def monochrome1(folder: Path) -> None:
    check(series(folder, 4095 - VOXELS, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11))


def overlays(folder: Path) -> None:
    check(series(folder, VOXELS | 0x7000, BitsStored=12, HighBit=11))


def rescaled(folder: Path) -> None:
    check(series(folder, RescaleSlope=2, RescaleIntercept=-3), VOXELS * 2.0 - 3)
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "US", [3 * number for number in range(256)])
    check(series(folder, ModalityLUTSequence=Sequence([table])), VOXELS * 3)


def enhanced(folder: Path) -> None:
    source = Path(nib.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    (folder / "a.dcm").write_bytes(gzip.decompress(source.read_bytes()))
    assert read_volume(folder)[0].shape == (256, 256, 176)


def refused(words: str, make: Callable[[Path], Path], folder: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_volume(make(folder))


def tilted(folder: Path) -> None:
    voxels, affine = read_volume(series(folder, ImageOrientationPatient=[1, 0, 0, 0, 0.96, -0.28]))
    np.testing.assert_array_equal(voxels, VOXELS)
    expected = AFFINE.copy()
    expected[:3, 1] = 2 * np.array([0, -0.96, -0.28])
    np.testing.assert_allclose(affine, expected, atol=1e-9)


def uneven(folder: Path) -> None:
    series(folder)
    (folder / "2.dcm").unlink()
    refused("misses slices", lambda folder: folder, folder)
    late = pydicom.dcmread(folder / "4.dcm")
    late.ImagePositionPatient = [-40, 30, 13.7]
    late.save_as(folder / "4.dcm")
    (folder / "1.dcm").unlink()
    refused("misses slices|uneven distances", lambda folder: folder, folder)


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
    "infinite voxels": lambda folder: nan(folder, np.inf),
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


def lossy(encode: Callable, scale: int, dtype: type, folder: Path, syntax: str) -> None:
    """Near to the voxels, which are smooth."""
    smooth = (np.add.outer(np.add.outer(np.arange(16), np.arange(16)), np.arange(3)) * scale).astype(dtype)
    voxels, _ = read_volume(series(folder, smooth, encode, syntax))
    assert np.abs(voxels.astype(int) - smooth).max() <= 4 * scale and voxels.shape == smooth.shape


def of_pydicom(name: str, folder: Path, syntax: str) -> None:
    from swinumamba_monai.data.files.dicom_pixels import read_pixels

    if not (FILES / name).exists():
        pytest.skip("this pydicom has no such file")
    dataset, frames = read_pixels(FILES / name, 1 << 24)
    assert dataset.file_meta.TransferSyntaxUID == syntax and len(np.unique(frames)) > 20


def exact(encode: Callable | None, folder: Path, syntax: str) -> None:
    check(series(folder, VOXELS.astype(np.uint16), encode, syntax))


jpeg2000 = partial(imagecodecs.jpeg2k_encode, level=0, codecformat="j2k")
lossless = partial(imagecodecs.ljpeg_encode, bitspersample=16)
SYNTAXES: dict[str, Callable[..., None]] = {
    "1.2.840.10008.1.2": partial(exact, None),
    "1.2.840.10008.1.2.1": partial(exact, None),
    "1.2.840.10008.1.2.1.99": partial(of_pydicom, "image_dfl.dcm"),
    "1.2.840.10008.1.2.2": partial(of_pydicom, "MR_small_bigendian.dcm"),
    "1.2.840.10008.1.2.5": partial(of_pydicom, "MR_small_RLE.dcm"),
    "1.2.840.10008.1.2.4.50": partial(lossy, partial(imagecodecs.jpeg8_encode, level=95), 5, np.uint8),
    "1.2.840.10008.1.2.4.51": partial(of_pydicom, "JPGExtended.dcm"),
    "1.2.840.10008.1.2.4.57": partial(exact, lossless),
    "1.2.840.10008.1.2.4.70": partial(exact, lossless),
    "1.2.840.10008.1.2.4.80": partial(exact, imagecodecs.jpegls_encode),
    "1.2.840.10008.1.2.4.81": partial(lossy, partial(imagecodecs.jpegls_encode, level=3), 5, np.uint16),
    "1.2.840.10008.1.2.4.90": partial(exact, jpeg2000),
    "1.2.840.10008.1.2.4.91": partial(of_pydicom, "JPEG2000.dcm"),
}
THROUGHPUT = {f"1.2.840.10008.1.2.4.{end}" for end in (201, 202, 203)}
PIXEL_ROWS: dict[str, Callable[[Path], None]] = {
    "MONOCHROME1": monochrome1,
    "fewer bits stored than allocated": overlays,
    "a rescale slope or a table": rescaled,
    "frames of an enhanced file": enhanced,
    "slices of several echoes, times or kinds at one place in a series": echoes,
    "stacks in several directions in a series": directions,
    "slices with a SeriesInstanceUID each": lone,
    "Siemens MOSAIC": mosaic,
    "slices that lean, of a tilted gantry": tilted,
    "slices at uneven distances, with one missing, or one beside the others": uneven,
    "in colour": partial(refused, "in colour", partial(series, PhotometricInterpretation="RGB")),
}


@pytest.mark.parametrize("row", rows("Files of volumes"))
def test_files(row, tmp_path):
    FILE_ROWS[row](tmp_path)


def test_every_suffix_is_in_the_table():
    suffixes = {suffix for row in rows("Files of volumes") for suffix in re.findall(r"`(\.[\w.]+)`", row)}
    assert suffixes == {*VOLUME_SUFFIXES, ".dcm"}
    text = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"Results are NIfTI, or what `--output_ext` says: (.*)\. They", text)
    assert {*re.findall(r"`(\.\w+)`", sentence), ".nii.gz"} == set(WRITABLE_SUFFIXES)


@pytest.mark.parametrize("row", rows("DICOM"))
def test_dicom(row, tmp_path):
    if row in PIXEL_ROWS:
        PIXEL_ROWS[row](tmp_path)
    elif row in THROUGHPUT:  # nothing here writes it
        assert DECODERS[row] is DECODERS["1.2.840.10008.1.2.4.90"]
    else:
        SYNTAXES[row](tmp_path, row)


def test_every_syntax_is_in_the_table():
    assert {row for row in rows("DICOM") if row.startswith("1.2.840.10008.1.2.4.")} == set(DECODERS)


# Folders and labels


def make(path: Path, case: int) -> None:
    """What the name of a file in the tables stands for, another one for every case."""
    name = path.name
    if name.endswith(".dcm"):
        series(path.parent)
    elif name.endswith(".png"):
        for number in range(SHAPE[2]):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((63 * (LABEL[..., number].T > 0)).astype(np.uint8)).save(path.parent / f"{number}.png")
    else:
        is_label = "label" in path.parent.name or "segment" in path.parent.name
        save(path, np.minimum(LABEL, 1) if "segment" in path.parent.name else LABEL if is_label else VOXELS + case)


@pytest.mark.parametrize("row", rows("Folders of volumes"))
def test_folders(row, tmp_path):
    paths = re.findall(r"`([^`]+)`", row)
    for case in range(1, 5):
        for path in paths:
            place = path.replace("/1/", f"/{case}/").replace("s0001", f"s000{case}")
            make(tmp_path / "in" / re.sub(r"/a(?=[_./])", f"/a{case}", place), case)
    own = LabelMap.of_names(["background", "liver"]) if "Ground" in row or "segmentations" in row else LABELS
    report = prepare_abdomen_mri(tmp_path / "in", tmp_path / "out", label_map=own)
    assert sum(report.sizes.values()) == 4
    channels = row.count("imagesTr") or 1
    (item, *_) = load_datalist(tmp_path / "out", "training", channels=channels)
    ids, affine = read_volume_label(item["label"])
    np.testing.assert_array_equal(ids, LABEL if own is LABELS else LABEL > 0)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert read_channels(item["image"], channels)[0].shape[:3] == SHAPE


def label_as(voxels: np.ndarray, affine: np.ndarray, folder: Path, **options) -> None:
    for case in range(4):
        save(folder / "images" / f"{case}.nii.gz")
        save(folder / "labels" / f"{case}.nii.gz", voxels, affine)
    prepare_abdomen_mri(folder, folder / "out", PrepareOptions(**options), LABELS)
    (item, *_) = load_datalist(folder / "out", "training")
    np.testing.assert_array_equal(read_volume_label(item["label"])[0], LABEL)


def ignored(folder: Path) -> None:
    for case in range(4):
        save(folder / "images" / f"{case}.nii.gz")
        save(folder / "labels" / f"{case}.nii.gz", LABEL + (LABEL == 2))
    (folder / "map.json").write_text(json.dumps({"background": 0, "liver": 1, "ignore": 3}))
    prepare_abdomen_mri(folder, folder / "out", label_map=folder / "map.json")
    assert has_ignored(folder / "out")


def regions(folder: Path) -> None:
    for case in range(4):
        save(folder / "images" / f"{case}.nii.gz")
        save(folder / "labels" / f"{case}.nii.gz", LABEL)
    labels = {"background": 0, "tumor": [1, 2], "core": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    prepare_abdomen_mri(folder, folder / "out")
    assert load_class_names(folder / "out") == ["background", "tumor", "tumor + core"]
    assert load_regions(folder / "out") == {"tumor": [1, 2], "core": [2]}


def part_of_grid(folder: Path) -> None:
    """Written by SimpleITK, whose axes are the other way round; the voxels around it are background."""
    sitk = pytest.importorskip("SimpleITK")
    for name in "abc":
        save(folder / "source" / "images" / f"{name}.nii.gz")
        (folder / "source" / "labels").mkdir(exist_ok=True)
        part = np.zeros((3, 4, 2), np.uint8)
        part[1:, :2], part[0, 3, 1] = 1, 2
        image = sitk.GetImageFromArray(part.T)
        corner = AFFINE @ [2, 1, 3, 1]
        image.SetSpacing((1.5, 2.0, 1.25))
        image.SetOrigin((-corner[0], -corner[1], corner[2]))
        sitk.WriteImage(image, str(folder / "source" / "labels" / f"{name}.seg.nrrd"))
    prepare_abdomen_mri(folder / "source", folder / "out", label_map=LABELS)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2:5, 1:5, 3:5] = part
    made, affine = read_volume_label(folder / "out" / "labels" / "a.nii.gz")
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_allclose(affine, AFFINE)
    larger = np.zeros((9, 9, 9), np.uint8)  # with background beyond the image
    larger[3:6, 2:6, 4:6] = part
    image = sitk.GetImageFromArray(larger.T)
    corner = AFFINE @ [-1, -1, -1, 1]
    image.SetSpacing((1.5, 2.0, 1.25))
    image.SetOrigin((-corner[0], -corner[1], corner[2]))
    sitk.WriteImage(image, str(folder / "source" / "labels" / "a.seg.nrrd"))
    prepare_abdomen_mri(folder / "source", folder / "again", label_map=LABELS)
    np.testing.assert_array_equal(read_volume_label(folder / "again" / "labels" / "a.nii.gz")[0], expected)
    image.SetOrigin((-corner[0] + 0.4, -corner[1], corner[2]))  # between voxels
    sitk.WriteImage(image, str(folder / "source" / "labels" / "b.seg.nrrd"))
    image.SetOrigin((-corner[0] - 6, -corner[1], corner[2]))  # labels beyond the image
    sitk.WriteImage(image, str(folder / "source" / "labels" / "c.seg.nrrd"))
    with pytest.raises(InputError) as error:
        prepare_abdomen_mri(folder / "source", folder / "other", label_map=LABELS)
    assert str(error.value).count("both need one size") == 2


def segmentation(folder: Path) -> None:
    """A frame of dcmqi's that pydicom brings, and an image of that slice and one more."""
    dataset = pydicom.dcmread(FILES / "liver_1frame.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[1:]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    way = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64)
    row, column = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    thickness = float(shared.PixelMeasuresSequence[0].SliceThickness)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = way[:3] * column, way[3:] * row
    affine[:3, 2] = np.cross(way[:3], way[3:]) * thickness
    affine[:3, 3] = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    shape = (dataset.Columns, dataset.Rows, 2)
    for name in "abc":
        save(folder / "in" / "images" / f"{name}.nii.gz", np.ones(shape, np.int16), np.diag([-1, -1, 1, 1]) @ affine)
        place = folder / "in" / "labels" / (f"{name}.dcm" if name < "c" else f"{name}/1/2.dcm")
        place.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(place)
    prepare_abdomen_mri(folder / "in", folder / "out", label_map=LabelMap.of_names(["background", "liver"]))
    for name in "abc":
        made, _ = read_volume_label(folder / "out" / "labels" / f"{name}.nii.gz")
        np.testing.assert_array_equal(made[..., 0], dataset.pixel_array.T)
        assert made[..., 0].any() and not made[..., 1].any()


LABEL_ROWS: dict[str, Callable[[Path], None]] = {
    "a class number a voxel": partial(label_as, LABEL * np.float32(0.9999), AFFINE),
    "on the grid of the image in another orientation": partial(
        label_as, LABEL[::-1], AFFINE @ [[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    ),
    "on a part of the image's grid": part_of_grid,
    "a DICOM segmentation, `labels/a.dcm`, or in a folder": segmentation,
    "on the grid of the image but for the header": partial(label_as, LABEL, np.eye(4), label_grid="image"),
    '`"ignore": 3` in `dataset.json` or the label map': ignored,
    '`"tumor": [1, 2]`, `"core": 2` with `regions_class_order`': regions,
}


@pytest.mark.parametrize("row", rows("Labels of volumes"))
def test_labels(row, tmp_path):
    LABEL_ROWS[row](tmp_path)
