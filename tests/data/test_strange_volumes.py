# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes of strangers: DICOM without preamble, with copies and echoes; pairs of files, flat ones, other words."""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice
from scipy.spatial.transform import Rotation
from volume_datasets import save

from swinumamba_monai.data.datalist import load_class_names, load_datalist
from swinumamba_monai.data.files.volume_listing import list_volumes
from swinumamba_monai.data.files.volumes import VolumeReader, read_volume, read_volume_label
from swinumamba_monai.data.listing import load_volumes
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.abdomen_mri import prepare_abdomen_mri

RANDOM = np.random.default_rng(0)
PLANES = RANDOM.integers(0, 4000, (5, 12, 10)).astype(np.uint16)
VOXELS = PLANES.transpose(2, 1, 0)  # columns, rows, slices
NORMAL = np.array([0, 0.6, 0.8])  # of the slices that write_slice makes
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1]])


def series(folder: Path, planes=PLANES, first: int = 0, **attributes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, plane in enumerate(planes):
        write_slice(folder / f"{first + number}.dcm", plane, NORMAL * 4 * number, first + number + 1, **attributes)
    return folder


def check(folder: Path, expected=VOXELS, **options) -> None:
    (item,) = load_volumes(folder, reader=VolumeReader(), **options)
    voxels, affine = read_volume(item["image"])
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_allclose(affine[:3, 2], 4 * NORMAL * (-1, -1, 1), atol=1e-6)


def without_preamble(file: Path) -> bytes:
    return file.read_bytes()[132:]


def without_meta(file: Path) -> bytes:
    """As the oldest files are: the elements alone, implicit and little endian."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(file)
    del dataset.file_meta
    dataset.preamble = None
    dataset.is_implicit_VR, dataset.is_little_endian = True, True
    dataset.save_as(file, write_like_original=True)
    return file.read_bytes()


@pytest.mark.parametrize("change", [without_preamble, without_meta])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_dicom_without_its_mark(change, suffix, tmp_path):
    for file in sorted(series(tmp_path / "a").iterdir()):
        content = change(file)
        assert b"DICM" not in content[:200]
        file.unlink()
        file.with_suffix(suffix).write_bytes(content)
    check(tmp_path / "a")


def test_text_called_dicom_is_still_refused(tmp_path):
    series(tmp_path / "a")
    (tmp_path / "a" / "2.dcm").write_text("no slice at all, but a text that is long enough to be one" * 9)
    with pytest.raises(InputError, match=r"2\.dcm is a slice that cannot be decoded"):
        load_volumes(tmp_path / "a", reader=VolumeReader())


def test_a_large_deflated_file_without_its_mark_is_refused_unread(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    (folder := tmp_path / "a").mkdir()
    dataset = write_slice(folder / "0.dcm", PLANES[0], NORMAL, 1)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(folder / "0.dcm")
    (folder / "0.dcm").write_bytes(without_preamble(folder / "0.dcm") + bytes(1 << 21))
    with pytest.raises(InputError, match="deflated file of over"):
        load_volumes(folder, reader=VolumeReader())


def test_a_small_deflated_file_that_unfolds_to_gigabytes_is_refused(tmp_path):
    """They would be held twice to find that the file is no slice."""
    syntax = b"\x02\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99"
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    parts = [deflate.compress(b"\xe0\x7f\x10\0OW\0\0" + (300 << 20).to_bytes(4, "little"))]
    parts += [deflate.compress(bytes(1 << 20)) for _ in range(300)]
    (tmp_path / "0.dcm").write_bytes(b"".join([bytes(128), b"DICM", syntax, *parts, deflate.flush()]))
    assert (tmp_path / "0.dcm").stat().st_size < 1 << 20
    with pytest.raises(InputError, match="is deflated, and unfolds to over 268435456 bytes"):
        load_volumes(tmp_path / "0.dcm", reader=VolumeReader())


def test_copies_of_slices_are_set_aside_and_named(tmp_path, caplog):
    """Reported for dcm2niix (#837): the same slices again, as ``2(1).dcm``."""
    folder = series(tmp_path / "a")
    shutil.copy(folder / "2.dcm", folder / "2(1).dcm")
    shutil.copy(folder / "4.dcm", folder / "copy of 4.dcm")
    check(folder)
    assert "2.dcm (a copy of 2(1).dcm)" in caplog.text and "copy of 4.dcm (a copy of 4.dcm)" in caplog.text
    other = write_slice(folder / "5.dcm", PLANES[0] + 1, NORMAL * 0, 6)  # no copy: other pixels at the same place
    assert other.SOPInstanceUID
    with pytest.raises(InputError, match="lie at one position"):
        load_volumes(folder, reader=VolumeReader())


@pytest.mark.parametrize(
    ("tag", "values", "called"),
    [
        ("EchoTime", (2.3, 4.6), "4.6"),
        ("AcquisitionNumber", (1, 2), "AcquisitionNumber 2"),
        ("TemporalPositionIdentifier", (1, 2), "Identifier 2"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "PRIMARY P"),
    ],
)
def test_the_volumes_of_one_series_are_told_apart(tag, values, called, tmp_path):
    """In and out of phase, contrast phases, magnitude and phase: slices of one series at the same places."""
    for number, value in enumerate(values):
        series(tmp_path / "a", PLANES + number, first=5 * number, **{tag: value})
    with pytest.raises(InputError, match=f"slices of 2 series: .*{tag}.*choose with --series"):
        load_volumes(tmp_path / "a", reader=VolumeReader())
    check(tmp_path / "a", VOXELS + 1, series=called)
    (chosen,) = list_volumes(tmp_path, called)  # as prepare takes it
    np.testing.assert_array_equal(read_volume(chosen)[0], VOXELS + 1)
    assert len(load_volumes(tmp_path / "a", series="all", reader=VolumeReader())) == 2
    with pytest.raises(InputError, match="choose with --series"):
        list_volumes(tmp_path, tag)


def test_a_nifti_pair_is_one_volume(tmp_path):
    for kind, folder in ((nib.Nifti1Pair, "one"), (nib.Nifti2Pair, "two")):
        (tmp_path / folder).mkdir()
        nib.save(kind(VOXELS.astype(np.int16), AFFINE), tmp_path / folder / "a.hdr")
        voxels, affine = read_volume(tmp_path / folder / "a.hdr")
        np.testing.assert_array_equal(voxels, VOXELS)
        np.testing.assert_allclose(affine, AFFINE)
        found = load_volumes(tmp_path / folder, reader=VolumeReader())
        assert [Path(item["image"]).name for item in found] == ["a.hdr"] and not found.not_taken
    (tmp_path / "one" / "a.img").replace(tmp_path / "a.img")
    with pytest.raises(InputError, match=r"voxels in a\.img, which is not beside it"):
        read_volume(tmp_path / "one" / "a.hdr")
    (tmp_path / "one" / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    np.testing.assert_array_equal(read_volume(tmp_path / "one" / "a.hdr")[0], VOXELS)
    (tmp_path / "one" / "a.img.gz").write_bytes(gzip.compress(b"few"))
    with pytest.raises(InputError, match="cannot be decoded"):
        read_volume(tmp_path / "one" / "a.hdr")
    nib.save(nib.AnalyzeImage(VOXELS.astype(np.int16), AFFINE), tmp_path / "b.img")
    with pytest.raises(InputError, match="Analyze header, which does not say where left is"):
        read_volume(tmp_path / "b.hdr")


def test_a_file_of_two_dimensions_is_one_slice(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS[..., 0], AFFINE), tmp_path / "a.nii.gz")
    voxels, affine = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(voxels, VOXELS[..., :1])
    np.testing.assert_allclose(affine[:2, :2], AFFINE[:2, :2])


def test_a_detached_nrrd_header_may_say_here(tmp_path):
    pytest.importorskip("SimpleITK")
    header = "NRRD0005\ntype: uint16\ndimension: 3\nsizes: 10 12 5\nendian: little\nencoding: raw\n"
    place = "space: left-posterior-superior\nspace directions: (2,0,0) (0,1.5,0) (0,0,3)\nspace origin: (1,2,3)\n"
    (tmp_path / "a.raw").write_bytes(VOXELS.astype("<u2").tobytes(order="F"))
    (tmp_path / "a.nhdr").write_text(header + place + "data file: ./a.raw\n")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nhdr")[0], VOXELS)
    (tmp_path / "a.nhdr").write_text(header + place + "data file: ./../a.raw\n")
    with pytest.raises(InputError, match="not in one file beside it"):
        read_volume(tmp_path / "a.nhdr")


def test_almost_whole_numbers_of_many_classes(tmp_path):
    label = (np.arange(120).reshape(4, 5, 6) * 0.9999).astype(np.float32)
    nib.save(nib.Nifti1Image(label, AFFINE), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume_label(tmp_path / "a.nii.gz")[0], np.arange(120).reshape(4, 5, 6))
    label[0, 0, 1] = 0.9
    nib.save(nib.Nifti1Image(label, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="not whole numbers"):
        read_volume_label(tmp_path / "a.nii.gz")


def dataset(source: Path, images: str, labels: str, image: str, label: str) -> np.ndarray:
    ids = np.zeros((9, 8, 4), np.uint8)
    ids[2:5, 2:5], ids[6:8, 3:6] = 1, 2
    for number in range(4):
        for folder, name, voxels in (
            (images, image, RANDOM.integers(0, 99, ids.shape).astype(np.int16)),
            (labels, label, ids),
        ):
            save(source / folder / name.format(number), voxels, AFFINE)
    return ids


@pytest.mark.parametrize(
    ("images", "labels", "image", "label"),
    [
        ("Images", "Labels", "c{}.nii.gz", "c{}.nii.gz"),
        ("imgs", "masks", "c{}.nii.gz", "c{}_seg.nii.gz"),
        ("volumes", "segmentations", "c{}_0000.nii.gz", "c{}.nii.gz"),
        ("scans", "Ground Truth", "c{}.nii", "c{}_mask.nii.gz"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_folders_by_other_words_and_json_as_windows_saves_it(images, labels, image, label, encoding, tmp_path):
    source = tmp_path / "source"
    dataset(source, images, labels, image, label)
    classes = {"background": 0, "Nieren über alles": 1, "spleen": 2}
    (source / "dataset.json").write_text(json.dumps({"labels": classes}, ensure_ascii=False), encoding=encoding)
    split = {"train": ["c0", "c1"], "val": ["c2"], "test": ["c3"]}
    (source / "split.json").write_text(json.dumps(split), encoding=encoding)
    prepared = prepare_abdomen_mri(source, tmp_path / "out")
    assert not prepared.inputs.bad
    assert len(load_datalist(tmp_path / "out", "training")) == 2
    assert tuple(classes) == tuple(load_class_names(tmp_path / "out"))


def test_a_folder_too_high_is_told(tmp_path):
    dataset(tmp_path / "source" / "Dataset001_X", "imagesTr", "labelsTr", "c{}_0000.nii.gz", "c{}.nii.gz")
    with pytest.raises(InputError, match=r"no known layout.*Dataset001_X has them: give that folder"):
        prepare_abdomen_mri(tmp_path / "source", tmp_path / "out")


def test_what_systems_add_is_no_data(tmp_path):
    source = tmp_path / "source"
    dataset(source, "imagesTr", "labelsTr", "c{}_0000.nii.gz", "c{}.nii.gz")
    (source / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}))
    for name in ("__MACOSX/imagesTr/c0_0000.nii.gz", "@eaDir/c0.nii.gz", "imagesTr/._c0_0000.nii.gz"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"thumbnail")
    assert not prepare_abdomen_mri(source, tmp_path / "out", options=PrepareOptions()).inputs.bad
    assert len(load_volumes(source / "imagesTr")) == 4 and len(load_volumes(source)) == 4, "the rest are labels"


def test_axes_that_lead_nobody_knows_where_are_said_once(tmp_path, caplog):
    """nibabel, ITK and SPM read such a file in three ways."""
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_zooms((2, 1.5, 3))
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "b.nii.gz")
    read_volume(tmp_path / "b.nii.gz")
    assert not caplog.text
    for name in ("a.nii.gz", "a.nii.gz", "c.nii.gz"):
        nib.save(image, tmp_path / name)
        np.testing.assert_allclose(read_volume(tmp_path / name)[1][:3, :3], np.diag([-2, 1.5, 3]))
    assert caplog.text.count(f"{tmp_path} has volumes that do not say where their axes lead") == 1


def change_header(path: Path, **fields) -> Path:
    """Change fields of the header of a NIfTI file as they are, which nibabel corrects where it saves."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def test_forms_that_lead_into_different_directions_are_said_once(tmp_path, caplog):
    """The forms may say different places, of a scan and of an atlas; but left is left in both."""
    for name, row, fields in (
        ("moved", AFFINE[0] + [0, 0, 0, 30], {}),
        ("mirrored", -AFFINE[0], {}),
        ("single", AFFINE[0], {"quatern_b": 2}),  # whose qform is none
    ):
        nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / f"{name}.nii")
        path = change_header(tmp_path / f"{name}.nii", srow_x=row, qform_code=1, **fields)
        for _ in range(2):
            np.testing.assert_allclose(read_volume(path)[1][0], row)
    assert caplog.text.count("mirrored.nii lead to RAS by its sform and to LAS by its qform") == 1
    assert "moved.nii" not in caplog.text and "single.nii" not in caplog.text
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 135, degrees=True).as_matrix()  # so that rounding says where axes lead
    image = nib.Nifti1Image(VOXELS, turned)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "turned.nii")
    read_volume(tmp_path / "turned.nii")
    assert "turned.nii" not in caplog.text


def test_voxels_do_not_begin_in_their_header(tmp_path):
    """nibabel takes the header for voxels."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        content = bytearray(kind(VOXELS, AFFINE).to_bytes())
        place = kind.header_class.template_dtype.fields["vox_offset"][1]
        content[place : place + 4] = bytes(4)  # 0, as whole number and as float
        (tmp_path / "a.nii").write_bytes(content)
        with pytest.raises(InputError, match="says that its voxels begin at byte 0, within its header"):
            read_volume(tmp_path / "a.nii")


def test_a_freesurfer_file_without_directions_is_said(tmp_path, caplog):
    content = bytearray(nib.MGHImage(VOXELS.astype(np.int32), AFFINE).to_bytes())
    content[28:30] = bytes(2)  # whether what follows is good
    (tmp_path / "a.mgz").write_bytes(gzip.compress(content))
    read_volume(tmp_path / "a.mgz")
    assert "a.mgz does not say where its axes lead" in caplog.text


def nrrd(path: Path, fields: str, content: bytes = VOXELS.astype("<u2").tobytes("F")) -> Path:
    axes = "type: ushort\ndimension: 3\nsizes: 10 12 5\nendian: little\nencoding: raw\n"
    path.write_bytes(f"NRRD0004\n{axes}{fields}\n\n".encode() + content)
    return path


PLACED = "space directions: (2,0,0) (0,1.5,0) (0,0,3)\nspace origin: (0,0,0)"


def test_headers_of_nrrd(tmp_path, caplog):
    """The anatomical space, a unit, and a header of 104 segments, as TotalSegmentator gives 3D Slicer."""
    pytest.importorskip("SimpleITK")
    segments = "\n".join(f"Segment{n}_{field}:={'x' * 200}" for n in range(104) for field in ("Tags", "Name", "ID"))
    for name, fields, diagonal in (
        ("lps", f"space: left-posterior-superior\n{PLACED}\n{segments}", (-2, -1.5, 3)),
        ("ras", f"space: RAS\n{PLACED}", (2, 1.5, 3)),
        ("um", f'space: RAS\n{PLACED}\nspace units: "um" "um" "um"', (0.002, 0.0015, 0.003)),
        ("cm", 'units: "cm" "cm" "cm"\nspacings: 2 1.5 3', (-20, -15, 30)),
        ("cm2", 'units: "cm" "cm" "cm"\nspacings: 2 1.5 3', (-20, -15, 30)),
    ):
        voxels, affine = read_volume(nrrd(tmp_path / f"{name}.nrrd", fields))
        np.testing.assert_array_equal(voxels, VOXELS)
        np.testing.assert_allclose(affine[:3, :3], np.diag(diagonal), atol=1e-9)
    assert caplog.text.count(f"{tmp_path} has volumes that do not say where their axes lead") == 1
    with pytest.raises(InputError, match="several units"):
        read_volume(nrrd(tmp_path / "units.nrrd", f'space: RAS\n{PLACED}\nspace units: "mm" "mm" "um"'))
    packed = nrrd(tmp_path / "packed.nrrd", f"space: RAS\n{PLACED}")
    packed.write_bytes(packed.read_bytes().replace(b"encoding: raw", b"encoding: bzip2"))
    with pytest.raises(InputError, match="packed with bzip2"):
        read_volume(packed)
