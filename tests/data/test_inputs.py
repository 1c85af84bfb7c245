# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is taken, what is not and why is said; bad files are all named, or left out and named at the end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import tifffile
from dicom_files import write_slice
from picture_datasets import fill, save
from PIL import Image

from swinumamba_monai.cli import main
from swinumamba_monai.data.files.images import ImageFileReader
from swinumamba_monai.data.files.video import FrameReader
from swinumamba_monai.data.files.volumes import VolumeReader, read_volume
from swinumamba_monai.data.listing import load_frames, load_images, load_volumes
from swinumamba_monai.data.prepare.split import divide
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.blocks import BlockInference
from swinumamba_monai.inference.folders import result_names
from swinumamba_monai.inference.memory import MemoryNeed


def picture(path: Path, value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(path)


def dicom(path: Path) -> None:
    """Enough of a DICOM file to be known as one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM")


def names(items) -> list[str]:
    return [Path(item["image"]).name for item in items]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images, and everything that lies beside images."""
    for name in ("b.png", "a.png", "old/c.png"):
        picture(tmp_path / name)
    for name in ("x.czi", "y.czi", "scan.mha", "clip.mp4x", "notes", ".DS_Store"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("load", [load_images, load_frames])
def test_what_is_not_taken_is_counted_by_reason(folder, load, caplog):
    items = load(folder)
    assert names(items) == ["a.png", "b.png"]
    assert items.not_taken == {
        "hidden": [".DS_Store"],
        ".mp4x files": ["clip.mp4x"],
        "files without a suffix": ["notes"],
        "subfolders": ["old"],
        ".mha files": ["scan.mha"],
        ".czi files": ["x.czi", "y.czi"],
    }
    assert f"2 taken from {folder}; not taken: 1 hidden (.DS_Store)" in caplog.text
    assert "2 .czi files (x.czi, y.czi)" in caplog.text
    caplog.clear()
    items.finish()
    assert f"2 taken from {folder}" in caplog.text and "1 subfolders (old)" in caplog.text


def test_files_that_are_no_volumes_are_named_where_there_is_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.dcm.gz").write_bytes(b"1")
    with pytest.raises(InputError, match=r"has no volume that can be read here, but 1 \.gz files \(1\.dcm\.gz\); use"):
        load_volumes(tmp_path)


def test_a_slice_is_not_taken_for_its_series_without_a_word(tmp_path, caplog):
    for number in range(3):
        write_slice(tmp_path / f"{number}.dcm", np.zeros((4, 5)), (0, 2.4 * number, 3.2 * number), number)
    assert len(load_volumes(tmp_path / "1.dcm")) == 1
    assert "not taken: 2 DICOM files beside it, so give the folder if they are" in caplog.text
    assert "(0.dcm, 2.dcm)" in caplog.text
    caplog.clear()
    load_volumes(tmp_path)
    assert "beside it" not in caplog.text


def test_what_is_wrong_with_all_that_there_is_is_all_that_is_said(tmp_path):
    for number in (0, 1):
        write_slice(tmp_path / f"{number}.dcm", np.zeros((4, 5)), (0, 0, number), 1, series=f"1.{number}")
    with pytest.raises(InputError, match=r"\A\S+ has slices of 2 series: [^\n]*\Z"):
        load_volumes(tmp_path, skip_bad=True)


def test_nothing_passed_over_is_no_warning(tmp_path, caplog):
    picture(tmp_path / "a.png")
    with caplog.at_level(logging.INFO):
        load_images(tmp_path).finish()
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert f"1 taken from {tmp_path}; not taken: none" in caplog.text


def test_a_stray_dicom_file_does_not_hide_the_volumes(tmp_path, caplog):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii"):
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), folder / name)
    pixels = np.arange(20).reshape(4, 5)
    write_slice(folder / "stray.dcm", pixels, (1, 2, 3), 1)
    (folder / "notes.txt").write_text("none")
    items = load_volumes(folder)
    assert names(items) == ["a.nii.gz", "b.nii", "data.dicom"]
    assert result_names([item["image"] for item in items])[0] == str(folder)  # results are side by side
    np.testing.assert_array_equal(read_volume(items[2]["image"])[0][..., 0], pixels.T)
    assert items.not_taken == {".txt files": ["notes.txt"]}
    assert "1 .txt files (notes.txt)" in caplog.text


def spoil(folder: Path) -> None:
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "text.tif").write_text("no image")


def test_bad_files_are_all_named_before_there_is_work_to_lose(folder):
    spoil(folder)
    assert len(load_images(folder)) == 4  # nothing is opened without a reader
    with pytest.raises(InputError) as error:
        load_images(folder, reader=ImageFileReader)
    lines = str(error.value).splitlines()
    assert "2 problem(s)" in lines[0] and "skip_bad" in lines[0]
    assert "half.png cannot be decoded" in lines[1] and "text.tif cannot be decoded" in lines[2] and len(lines) == 3


def test_bad_files_are_left_out_and_named_at_the_end(folder, caplog):
    pytest.importorskip("av")
    spoil(folder)
    (folder / "junk.mp4").write_bytes(b"junk" * 50)
    items = load_frames(folder, reader=FrameReader(), skip_bad=True)
    assert names(items) == ["a.png", "b.png"] and len(items.bad) == 3
    assert "3 bad" in caplog.text
    with pytest.raises(InputError) as error:
        items.finish()
    first, *lines = str(error.value).splitlines()
    assert "all but 3 are done" in first and len(lines) == 3
    assert all(any(name in line for line in lines) for name in ("half.png", "text.tif", "junk.mp4"))


def test_an_image_without_the_channel_that_is_looked_at_is_named_before_there_is_work_to_lose(tmp_path):
    pixels = np.zeros((1200, 1000, 3), np.uint8)
    for name, image in (("gray.png", pixels[..., 0]), ("rgb.png", pixels), ("large_gray.tif", pixels[..., 0])):
        Image.fromarray(image).save(tmp_path / name)
    inference = SimpleNamespace(inferer=SimpleNamespace(diameter=None), savers=[None])
    blocks = BlockInference(inference, MemoryNeed(4, in_blocks=True), block_size=768)
    options = {"reader": ImageFileReader, "blocks": blocks}
    every = load_images(tmp_path, channel=0, **options)
    assert len(every.all) == 3 and names(every.large) == ["large_gray.tif"]
    with pytest.raises(InputError, match=r"2 problem.*\n.*gray.png has 1 channel.*\n.*large_gray.tif has 1 channel"):
        load_images(tmp_path, channel=2, **options)
    assert names(load_images(tmp_path, channel=2, skip_bad=True, **options)) == ["rgb.png"]


def test_a_name_steers_no_terminal(folder, caplog):
    """Sentences on bad files name them, and whoever named them may be a stranger."""
    (folder / "x\x1b[31m.png").write_bytes(b"no image")
    images = load_images(folder, reader=ImageFileReader, skip_bad=True)
    (sentence,) = [sentence for sentence in images.bad if "[31m" in sentence]
    assert sentence.isprintable() and "\x1b" not in caplog.text


def test_nothing_good_is_no_run(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(InputError, match=r"nothing that can be used:\n.*a\.png cannot be decoded"):
        load_images(tmp_path, reader=ImageFileReader, skip_bad=True)


def test_bad_volumes(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "b.nii").write_text("no volume")
    dicom(tmp_path / "series" / "1.dcm")
    items = load_volumes(tmp_path, reader=VolumeReader, skip_bad=True)
    assert names(items) == ["a.nii"] and len(items.bad) == 2


def test_prepare_ends_with_the_list_and_exit_code_1(tmp_path, capsys):
    source = fill(tmp_path / "source")
    (source / "images" / "x.czi").write_bytes(b"")
    (source / "images" / "2.png").write_text("no image")
    (source / "notes.txt").write_text("")
    arguments = ["prepare", "microscopy", "--source_dir", str(source), "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "2.png cannot be decoded" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*arguments, "--skip_bad"]) == 1
    shown = capsys.readouterr()
    assert "ready: --dataset_dir" in shown.out and (tmp_path / "out" / "datalist.json").is_file()
    assert "error: all but 1 are done" in shown.err and "2.png cannot be decoded" in shown.err.splitlines()[-1]
    save(source / "images" / "2.png")
    assert main([*arguments[:-1], str(tmp_path / "other")]) == 0


def test_prepare_says_what_it_does_not_take(tmp_path, caplog):
    source = fill(tmp_path / "source")
    for name in ("images/x.czi", "old/1.png", "notes.txt", "dataset.json"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    arguments = ["prepare", "microscopy", "--source_dir", str(source), "--output_dir", str(source / "out")]
    for _ in range(2):  # what was made the first time is not counted the second
        caplog.clear()
        assert main(arguments) == 0
        lines = [text for text in caplog.text.splitlines() if "taken from" in text]
        assert len(lines) == 2  # first and last
        for line in lines:
            assert "5 taken" in line
            assert "1 .czi files (x.czi)" in line and "1 .png files (1.png)" in line and "1 .txt files" in line
            assert "json" not in line


def test_results_of_an_earlier_run_are_not_taken(folder):
    for name in ("a_instances.png", "a_entropy.tif", "zz_instances.png"):
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    items = load_images(folder)
    assert items.not_taken["results of earlier runs"] == ["a_entropy.tif", "a_instances.png"]
    assert "zz_instances.png" in names(items) and "a_instances.png" not in names(items)


@pytest.mark.parametrize("load", [load_images, load_frames])
def test_labels_beside_their_images_are_not_taken(load, tmp_path):
    for name in ("a.png", "a_masks.png", "B_img.png", "B_Mask.png", "c_mask.png", "d.png", "d_instances.png",
                 "image07.png", "mask07.png", "mask08.png"):  # fmt: skip
        picture(tmp_path / name)
    items = load(tmp_path)
    assert names(items) == ["B_img.png", "a.png", "c_mask.png", "d.png", "image07.png", "mask08.png"]
    assert items.not_taken == {
        "results of earlier runs": ["d_instances.png"],
        "labels of others": ["B_Mask.png", "a_masks.png", "mask07.png"],
    }
    assert names(load(tmp_path / "a_masks.png")) == ["a_masks.png"], "it is asked for"


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("images/a.nii.gz", "Masks/a.nii.gz"),
        ("a.nii.gz", "labels/a.nii.gz"),
        ("a.nii.gz", "a_seg.nii.gz"),
        ("a_0000.nii.gz", "derivatives/a_dseg.nii.gz"),
        ("a/T2.nii.gz", "a/Segmentation-label.nii.gz"),
        ("s1/mri.nii.gz", "s1/segmentations/liver.nii.gz"),
    ],
)
def test_labels_of_volumes_are_not_taken(image, label, tmp_path, caplog):
    for name in (image, label):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / name)
    assert names(load_volumes(tmp_path)) == [Path(image).name]
    assert f"1 labels of others are not taken: {Path(label).name}" in caplog.text
    (tmp_path / image).unlink()
    assert names(load_volumes(tmp_path)) == [Path(label).name], "it is beside nothing"


def test_results_of_frames_and_planes_are_not_taken(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((2, 6, 8), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    results = [
        f"z#00000{plane}_{kind}" for plane in (0, 1) for kind in ("instances.png", "outlines.png", "entropy.tif")
    ]
    for name in (*results, "y#000000_overlay.png"):
        picture(tmp_path / name)
    for load in (load_images, load_frames):
        items = load(tmp_path)
        assert names(items) == ["y#000000_overlay.png", "z#000000.tif", "z#000001.tif"]
        assert items.not_taken == {"results of earlier runs": sorted(results)}


def test_many_files_take_as_long_as_they_are_many(tmp_path):
    """Paths are compared with sets: with lists this took minutes."""
    names_of_all = [f"x{number}{end}" for number in range(2000) for end in (".png", "_instances.png")]
    for name in names_of_all:
        (tmp_path / name).touch()
    start = time.process_time()
    assert len(load_images(tmp_path)) == 2000
    shapes = {f"x{number}": (5, 5) for number in range(20_000)}
    assert len(divide(shapes, {}, 0.1, 0.2, 0)["training"]) == 14_400
    assert time.process_time() - start < 4


def test_a_folder_of_several_series_does_not_stop_the_others(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_files import write_slice

    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "two").mkdir()
    for number in range(4):
        uid = f"1.{number // 2}"
        write_slice(tmp_path / "two" / f"{number}.dcm", np.zeros((4, 5)), (0, 2.4 * number, 3.2 * number), 1, uid)
    with pytest.raises(InputError, match=r"two has slices of 2 series.*--series"):
        load_volumes(tmp_path)
    items = load_volumes(tmp_path, skip_bad=True)
    assert names(items) == ["a.nii.gz"] and len(items.bad) == 1
    assert len(load_volumes(tmp_path / "two", "1.1")) == 1
