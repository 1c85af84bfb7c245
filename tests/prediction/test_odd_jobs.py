# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""``predict``: images of many channels, images that changed since, and processes with nothing but bad files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import tifffile
from forked import run_forked
from PIL import Image
from result_tables import read_rows
from skimage.measure import regionprops

from swinumamba_monai.cli import main
from swinumamba_monai.data import read_image


@pytest.fixture(scope="module")
def small(small_bundle):
    return small_bundle("microscopy")


def test_a_sagittal_stack_is_warned_of_in_the_summary_too(small_bundle, tmp_path, caplog):
    voxels = np.random.default_rng(0).random((4, 60, 50), np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([6.0, 1, 1, 1])), tmp_path / "a.nii.gz")
    small = replace(small_bundle("abdomen_mri"), folder=tmp_path / "a.nii.gz")
    assert main(small.words(tmp_path / "out")) == 0
    (row,) = read_rows(tmp_path / "out" / "summary.csv")
    assert "with voxels of 1 x 6 x 1 mm: slices across them" in row["warnings"]
    assert caplog.text.count("slices across them") == 1


@pytest.mark.parametrize(("channels", "channel"), [(6, 0), (6, 5), (4, 3)])
def test_one_channel_of_a_multiplex_image(small, tmp_path, channels, channel):
    """All channels are measured, and the picture shows the one that was looked at."""
    pixels = np.random.default_rng(0).integers(0, 20, (channels, 64, 72), np.uint8)
    pixels[channel, 10:30, 10:40] += 200
    options = {"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, **options)
    Image.fromarray(pixels[channel]).save(tmp_path / "alone.png")
    for name in ("a.ome.tif", "alone.png"):
        one = replace(small, folder=tmp_path / name)
        assert main(one.words(tmp_path / "out", "--channel", channel if name == "a.ome.tif" else 0, "--overwrite")) == 0
    files = [
        (tmp_path / "out" / f"{name}_{end}") for name in ("a.ome", "alone") for end in ("instances.png", "outlines.png")
    ]
    labels, picture, labels_alone, picture_alone = map(read_image, files)
    np.testing.assert_array_equal(labels, labels_alone)
    np.testing.assert_array_equal(picture, picture_alone)
    table = read_rows(tmp_path / "out" / "a.ome_objects.csv")
    for number, region in enumerate(regionprops(labels, np.moveaxis(pixels, 0, -1).astype(np.float32))):
        for place, mean in enumerate(region.intensity_mean):
            assert float(table[number][f"intensity_mean-{place}"]) == pytest.approx(mean, abs=1e-4)


def test_an_image_that_has_changed_since_is_named(small, tmp_path, caplog):
    images = shutil.copytree(small.folder, tmp_path / "images")
    mine = replace(small, folder=images)
    assert main(mine.words(tmp_path / "out")) == 0
    assert main(mine.words(tmp_path / "out")) == 0
    assert "changed after" not in caplog.text
    changed, _ = sorted(images.iterdir())
    later = (tmp_path / "out" / f"{changed.stem}_outlines.png").stat().st_mtime + 1
    os.utime(changed, (later, later))
    assert main(mine.words(tmp_path / "out")) == 0
    assert f"{changed.name} changed after the results were written" in caplog.text


def test_images_that_are_gone_renamed_or_mended(small, tmp_path, caplog):
    """A failure goes with its file, also when that comes again as another kind; what was found is named and stays."""
    images = shutil.copytree(small.folder, tmp_path / "images")
    first, second = sorted(images.iterdir())
    for name in ("c.png", "d.png"):
        (images / name).write_bytes(b"no image")
    mine = replace(small, folder=images)
    assert main(mine.words(tmp_path / "out")) == 1
    first.rename(images / "b.png")
    (images / "c.png").unlink()
    (images / "d.png").unlink()
    Image.open(second).save(images / "d.tif")
    assert main(mine.words(tmp_path / "out")) == 0
    names = [row["name"] for row in read_rows(tmp_path / "out" / "summary.csv")]
    assert names == sorted([first.stem, second.stem, "b", "d"])
    assert f"{first}: not there any more" in caplog.text and "changed after" not in caplog.text
    for old, new in (("b.png", "a.png"), (second.name, "b.png"), ("a.png", second.name)):
        (images / old).rename(images / new)
    assert main(mine.words(tmp_path / "out")) == 0
    assert f"b.png, {second.name} changed after the results were written" in caplog.text


def test_the_same_image_by_another_name_is_not_counted_twice(small, tmp_path, capsys):
    """Results are called by the way from the folder that holds all images."""
    images, more = shutil.copytree(small.folder, tmp_path / "a"), shutil.copytree(small.folder, tmp_path / "b")
    words = replace(small, folder=images).words(tmp_path / "out")
    assert main(words) == 0
    words.insert(words.index(str(images)), str(more))
    assert main(words) == 1
    assert f"as {small.images[0].stem}, and with the images given now it would be a/" in capsys.readouterr().err
    assert main([*words[:4], "--overwrite", *words[4:]]) == 0
    assert len(read_rows(tmp_path / "out" / "summary.csv")) == 4


@pytest.mark.parametrize(
    "old, new, encoding", [(",", ";", "utf-8-sig"), ("name", "näme", "latin-1"), ("e", "\0", "utf-8")]
)
def test_a_summary_that_another_program_has_written_is_refused(small, tmp_path, capsys, old, new, encoding):
    """All images would be predicted again, and what was written there be lost."""
    summary = tmp_path / "out" / "summary.csv"
    assert main(small.words(tmp_path / "out")) == 0
    written = summary.read_text()
    summary.write_text(written, encoding="utf-8-sig")
    assert main(small.words(tmp_path / "out")) == 0
    assert "(2 finished before)" in capsys.readouterr().out
    summary.write_text(written.replace(old, new), encoding=encoding)
    assert main(small.words(tmp_path / "out")) == 1
    assert f"{summary} cannot be read as this command has written it" in capsys.readouterr().err


def test_a_bad_share_does_not_stop_the_others_of_torchrun(small, tmp_path):
    """torchrun ends all processes when one exits with 1, and here the second has bad files alone."""
    (tmp_path / "images").mkdir()
    image = read_image(small.images[0])
    for name, repeats in (("a", 4), ("c", 1), ("e", 1)):  # one takes seconds, in which the other process has ended
        Image.fromarray(np.tile(image, (repeats, repeats))).save(tmp_path / "images" / f"{name}.png")
    for name in "bdf":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"no image")
    words = replace(small, folder=tmp_path / "images").words(tmp_path / "out")
    ended = run_forked([sys.executable, "-m", "swinumamba_monai", *words], processes=2)
    assert ended.returncode == 1 and "3 of the images could not be predicted" in ended.stderr
    assert [row["name"] for row in read_rows(tmp_path / "out" / "summary_1of2.csv")] == ["a", "c", "e"]
    assert ": 3 images, " in ended.stdout


def test_ctrl_c_ends_with_a_sentence_and_the_command_goes_on(small, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    image = read_image(small.images[0])
    for name, repeats in (("a", 1), ("b", 3), ("c", 3)):  # after the first there is a second to stop it in
        Image.fromarray(np.tile(image, (repeats, repeats))).save(tmp_path / "images" / f"{name}.png")
    words, summary = (
        replace(small, folder=tmp_path / "images").words(tmp_path / "out"),
        tmp_path / "out" / "summary.csv",
    )
    command = [sys.executable, "-m", "swinumamba_monai", *words]
    # A shell's background processes, and what they start, ignore Ctrl-C unless they are told otherwise.
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **heeding) as running:
        while running.poll() is None and not (summary.is_file() and len(read_rows(summary)) > 0):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=300)
    assert running.returncode == 130
    expected = f"{tmp_path / 'out'}: what is finished stays; the same command goes on with the rest\nstopped.\n"
    assert said.endswith(expected) and "Traceback" not in said
    finished = len(read_rows(summary))
    assert main(words) == 0
    assert f"3 images ({finished} finished before)" in capsys.readouterr().out


def test_the_last_line_names_no_file_that_is_not_there(small, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert main(replace(small, folder=tmp_path / "a.png").words(tmp_path / "out")) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 0 images, 0 objects: summary.csv\n"
    assert main(replace(small, folder=small.images[0]).words(tmp_path / "out")) == 0
    assert ": 1 image, " in capsys.readouterr().out


def test_places_without_images_are_refused_before_a_network_is_built(small, tmp_path, capsys, monkeypatch):
    assert main(small.words(tmp_path / "out")) == 0

    def build(*_, **__):
        raise AssertionError("a network is built")

    monkeypatch.setattr("swinumamba_monai.prediction.folder.Predictor", build)
    for place, words in [("out", "out holds the results of a prediction"), ("nowhere", "nowhere does not exist")]:
        assert main(replace(small, folder=tmp_path / place).words(tmp_path / "second")) == 1
        assert words in capsys.readouterr().err
        assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("empty", ["images", "output_dir"])
def test_an_empty_path_is_not_the_current_folder(small, tmp_path, monkeypatch, capsys, empty):
    """As a variable of a shell is that nobody has set."""
    images = shutil.copytree(small.folder, tmp_path / "images")
    monkeypatch.chdir(images)
    words = small.words(tmp_path / "out")
    words[words.index(str(small.folder if empty == "images" else tmp_path / "out"))] = ""
    assert main(words) == 1
    assert " is empty; give " in capsys.readouterr().err
    assert sorted(path.name for path in images.iterdir()) == [image.name for image in small.images]
    assert not (tmp_path / "out").exists()


def test_an_option_given_twice_is_refused_or_adds_up(small, tmp_path, capsys):
    assert main(small.words(tmp_path / "out", "--set", "diameter=20", "--diameter", "40")) == 1
    assert "--diameter and --set diameter are both given; leave one out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(small.words(tmp_path / "out", "--format", "geojson", "--format", "coco")) == 0
    assert {"NAME.geojson", "coco.json"} <= set(capsys.readouterr().out.split(": ")[-1].strip().split(", "))
    assert main(small.words(tmp_path / "two", "--checkpoint", small.checkpoint)) == 0
    assert len(json.loads((tmp_path / "two" / "predict.json").read_text())["weights"]) == 2


def test_names_that_no_result_can_have_do_not_stop_the_rest(small, tmp_path, capsys):
    """Of letters that are no UTF-8, as of archives from Windows, or so long that nothing can be added."""
    folder = tmp_path / "images"
    folder.mkdir()
    good, _ = small.images
    names = [b"a\xe4.png", b"b" * 240 + b".png", os.fsencode(good.name)]
    try:
        for name in names:
            shutil.copy(good, os.path.join(os.fsencode(folder), name))
    except OSError:
        pytest.skip("this file system has no such names")
    assert main(replace(small, folder=folder).words(tmp_path / "out")) == 1
    said = capsys.readouterr()
    assert ": 1 image, " in said.out
    assert "is not in UTF-8; rename it" in said.err and "name too long for those of its results" in said.err
    assert [row["name"] for row in read_rows(tmp_path / "out" / "summary.csv") if not row["error"]] == [good.stem]


def test_a_finished_image_is_known_by_another_way_to_it(small, tmp_path, capsys):
    image = small.images[0]
    other = image.parent / ".." / image.parent.name / image.name
    assert main(replace(small, folder=other).words(tmp_path / "out")) == 0
    assert main(replace(small, folder=image).words(tmp_path / "out")) == 0
    assert "1 image (1 finished before)" in capsys.readouterr().out


def test_a_folder_called_like_an_image_is_named_as_one(small, tmp_path, capsys):
    images = shutil.copytree(small.folder, tmp_path / "images")
    (images / "folder.png").mkdir()
    assert main(replace(small, folder=images).words(tmp_path / "out")) == 1
    assert "folder.png is no file" in capsys.readouterr().err


def test_a_job_of_which_all_failed_may_be_given_again_with_other_options(small, tmp_path, capsys):
    assert main(small.words(tmp_path / "out", "--channel", "7")) == 1
    assert main(small.words(tmp_path / "out")) == 0
    assert all(not row["error"] for row in read_rows(tmp_path / "out" / "summary.csv"))
    assert main(small.words(tmp_path / "out", "--channel", "0")) == 1
    assert "other options" in capsys.readouterr().err
