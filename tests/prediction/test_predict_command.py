# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""``predict``: what it writes, what it skips, and what it does about files that cannot be used."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from result_tables import read_rows
from skimage.measure import regionprops

from swinumamba_monai.cli import main
from swinumamba_monai.data import read_image
from swinumamba_monai.distribution.network_of_config import build_bundle_network
from swinumamba_monai.inference import InstanceWriter
from swinumamba_monai.prediction import Predictor, find_bundle
from swinumamba_monai.tasks import TASKS


def times(folder) -> dict[str, int]:
    """When each file of an image was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*") if not file.name.startswith("summary")}


@pytest.fixture(scope="module")
def small(small_bundle, tmp_path_factory):
    small = small_bundle("microscopy")
    folder = tmp_path_factory.mktemp("images") / "plate#3"  # MONAI's configs write # as ::
    return replace(small, folder=shutil.copytree(small.folder, folder))


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """The output folder of a run with every format; nothing is to be changed in it."""
    out = tmp_path_factory.mktemp("done") / "out#1"
    assert main(small.words(out, "--format", "masks", "geojson", "coco", "roi")) == 0
    return out


@pytest.fixture
def copy(done, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copytree(done, tmp_path / "out")


@pytest.mark.parametrize(
    ("held", "share"), [("predict", ()), ("predict_2of3", ()), ("predict", ("--share", "1/2"))], ids=str
)
def test_a_second_prediction_in_the_folder_is_refused(small, tmp_path, capsys, held, share):
    """One of all images gathers what shares have written, and removes it."""
    take = "import sys; from swinumamba_monai.run_lock import RunLock; RunLock(sys.argv[1]).acquire()"
    command = [sys.executable, "-c", f"{take}; print(flush=True); input()", str(tmp_path / f".{held}.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        assert main(small.words(tmp_path, *share)) == 1
        assert f"a prediction is running in {tmp_path} (process {first.pid} on " in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == [f".{held}.lock"]
        first.communicate(b"\n", timeout=300)


class TestWrites:
    def test_a_row_for_every_image_and_every_object(self, small, done):
        rows = read_rows(done / "summary.csv")
        assert [row["image"] for row in rows] == list(map(str, small.images))
        for row in rows:
            labels = read_image(done / f"{row['name']}_instances.png")
            table = read_rows(done / f"{row['name']}_objects.csv")
            regions = regionprops(labels)
            assert len(regions) == len(table) == int(row["objects"]) > 0
            for name, digits in (("area", 1e-4), ("score", 1e-3)):
                values = [float(entry[name]) for entry in table]
                assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(values), abs=digits)
            assert [float(entry["area"]) for entry in table] == [region.area for region in regions]
            assert not row["error"]

    def test_pictures_with_outlines(self, small, done):
        for image in small.images:
            picture = np.asarray(Image.open(done / f"{image.stem}_outlines.png")).astype(int)
            assert picture.shape == (*read_image(image).shape[:2], 3)
            assert (np.ptp(picture, axis=-1) > 100).any(), "coloured lines on a gray image"

    def test_polygons_of_all_cells(self, small, done):
        for row in read_rows(done / "summary.csv"):
            features = json.loads((done / f"{row['name']}.geojson").read_text())["features"]
            assert len(features) == int(row["objects"])

    def test_one_coco_file(self, small, done):
        content = json.loads((done / "coco.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [image.name for image in small.images]
        counts = [int(row["objects"]) for row in read_rows(done / "summary.csv")]
        assert np.bincount([entry["image_id"] for entry in content["annotations"]])[1:].tolist() == counts

    @pytest.mark.parametrize("channel", [0, 2])
    def test_one_channel(self, small, tmp_path, channel):
        """Also the first, whose number is no "none given"."""
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[10:30, 10:30, 0], picture[35:60, 30:50, 1], picture[40:60, 5:25, 2] = 200, 220, 180
        Image.fromarray(picture).save(tmp_path / "colours.png")
        one = replace(small, folder=tmp_path / "colours.png")
        assert main(one.words(tmp_path, "--channel", channel)) == 0
        predictor = Predictor(small.task, small.checkpoint, device="cpu", **small.options)
        expected = predictor(picture[..., channel]).labels
        np.testing.assert_array_equal(read_image(tmp_path / "colours_instances.png"), expected)
        assert expected.any() and not np.array_equal(expected, predictor(picture).labels)

    def test_one_line_at_the_end(self, small, tmp_path, capsys):
        assert main(small.words(tmp_path)) == 0
        printed = capsys.readouterr()
        (line,) = printed.out.splitlines()
        assert line.startswith(f"{tmp_path}: 2 images, ") and "NAME_instances.png" in line and "summary.csv" in line
        assert "2/2" in printed.err, "how far it was"

    @pytest.mark.parametrize("task", TASKS)
    def test_the_same_for_every_task(self, small_bundle, task, tmp_path):
        small = small_bundle(task)
        assert main(small.words(tmp_path)) == 0
        for image, row in zip(small.images, read_rows(tmp_path / "summary.csv"), strict=True):
            name = image.name.split(".")[0]
            assert row["name"] == name and int(row["objects"]) > 0
            table = read_rows(tmp_path / f"{name}_objects.csv")
            assert {"label", "area", "centroid-0", "bbox-0", "score"} <= set(table[0])
            if task == "abdomen_mri":
                found = np.asarray(nib.load(tmp_path / f"{name}_classes.nii.gz").dataobj)
                assert "bbox-5" in table[0] and {int(entry["label"]) for entry in table} == set(np.unique(found)) - {0}
            assert Image.open(tmp_path / f"{name}_outlines.png").mode == "RGB"

    def test_channels_in_files_of_their_own(self, small_bundle, tmp_path):
        small = small_bundle("abdomen_mri")
        (tmp_path / "images").mkdir()
        for channel in range(2):
            shutil.copy(small.images[0], tmp_path / "images" / f"case_{channel:04d}.nii.gz")
        options = {**small.options, "in_channels": 2}
        network = build_bundle_network(find_bundle(small.task) / "configs" / "inference.json", options)
        torch.save(network.state_dict(), tmp_path / "model.pt")
        two = replace(small, folder=tmp_path / "images", checkpoint=tmp_path / "model.pt", options=options)
        assert main(two.words(tmp_path / "out")) == 0
        assert [row["name"] for row in read_rows(tmp_path / "out" / "summary.csv")] == ["case"]
        assert "intensity_mean-1" in read_rows(tmp_path / "out" / "case_objects.csv")[0]
        assert Image.open(tmp_path / "out" / "case_outlines.png").mode == "RGB"


class TestAgain:
    def test_a_name_like_a_formula_is_none_in_the_table_and_known_again(self, small, tmp_path, capsys):
        (tmp_path / "images").mkdir()
        for name in ("=1+1", "@b", "'c"):
            shutil.copy(small.images[0], tmp_path / "images" / f"{name}{small.images[0].suffix}")
        mine = replace(small, folder=tmp_path / "images")
        for before in (0, 3):
            assert main(mine.words(tmp_path / "out")) == 0
            assert ("(3 finished before)" in capsys.readouterr().out) == bool(before)
            assert {row["name"] for row in read_rows(tmp_path / "out" / "summary.csv")} == {"'=1+1", "'@b", "'c"}
        assert (tmp_path / "out" / "=1+1_objects.csv").is_file()

    def test_finished_images_are_skipped(self, small, copy, capsys):
        before, rows = times(copy), read_rows(copy / "summary.csv")
        assert main(small.words(copy, "--format", "masks", "geojson", "roi")) == 0
        after = times(copy)
        assert {name for name in before if after[name] != before[name]} == {"predict.json"}
        printed = capsys.readouterr()
        assert "(2 finished before)" in printed.out and "image/s" not in printed.err
        assert read_rows(copy / "summary.csv") == rows

    def test_overwrite_predicts_them_again(self, small, copy, caplog):
        before = times(copy)
        assert main(small.words(copy, "--overwrite", "--format", "masks", "geojson")) == 0
        after = times(copy)
        others = {"coco.json", *(f"{image.stem}_rois.zip" for image in small.images)}
        assert {name for name in before if after[name] == before[name]} == others, "they may have been edited"
        assert all(name in caplog.text for name in others) and "left as they are" in caplog.text
        assert main([*small.words(copy, "--overwrite", "--format", "geojson", "coco", "roi"), "output_ext=.tif"]) == 0
        *_, left = caplog.records
        assert all(f"{image.stem}_instances.png" in left.message for image in small.images)
        assert ".tif" not in left.message and ".json" not in left.message

    @pytest.mark.parametrize("lost", ["{}_instances.png", "{}_objects.csv", "{}_rois.zip"])
    def test_an_image_with_a_file_lost_is_predicted_again(self, small, copy, lost, capsys):
        file = copy / lost.format(small.images[0].stem)
        content = file.read_bytes()
        file.unlink()
        assert main(small.words(copy, "--format", "roi")) == 0
        assert file.read_bytes() == content and "(1 finished before)" in capsys.readouterr().out

    @pytest.mark.parametrize("kept", [0, 1.5])
    def test_an_image_whose_row_is_lost_or_half_written_is_predicted_again(self, small, copy, kept, capsys):
        summary = copy / "summary.csv"
        lines = summary.read_text().splitlines(keepends=True)
        text = "".join(lines[: 1 + int(kept)])
        summary.write_text(text + (lines[2][:40] if kept % 1 else ""))
        assert main(small.words(copy)) == 0
        assert summary.read_text() == "".join(lines)
        assert ("(1 finished before)" in capsys.readouterr().out) == (kept > 0)

    def test_other_options_do_not_mix(self, small, copy, capsys):
        assert main([*small.words(copy), "min_size=5"]) == 1
        assert "other options" in capsys.readouterr().err
        one = [word if word != str(small.folder) else str(small.images[0]) for word in small.words(copy, "--overwrite")]
        assert main(one) == 0
        assert len(read_rows(copy / "summary.csv")) == 2, "the other image is as it was"
        assert main([*one, "min_size=5"]) == 0
        assert len(read_rows(copy / "summary.csv")) == 1, "the other image has results of other options"

    def test_another_config_does_not_mix(self, small, copy, tmp_path, capsys):
        config = tmp_path / "microscopy" / "configs" / "inference.json"
        shutil.copytree(find_bundle("microscopy") / "configs", config.parent)
        words = small.words(copy, "--bundle_dir", tmp_path)
        assert main(words) == 0
        assert "(2 finished before)" in capsys.readouterr().out
        config.write_text(config.read_text().replace('"grow": 1', '"grow": 2'))
        assert main(words) == 1
        assert "holds results of another bundle or config" in capsys.readouterr().err

    def test_images_of_the_same_names_do_not_mix(self, small, copy, tmp_path, capsys):
        shutil.copytree(small.folder, tmp_path / "other")
        words = [word if word != str(small.folder) else str(tmp_path / "other") for word in small.words(copy)]
        assert main(words) == 1
        assert "would have the same names" in capsys.readouterr().err

    def test_shares_add_up(self, small, done, tmp_path, monkeypatch, capsys):
        assert main(small.words(tmp_path, "--share", "1/2", "--format", "coco")) == 0
        assert {file.name for file in tmp_path.glob("summary*")} == {"summary_1of2.csv"}
        assert (tmp_path / "coco_1of2.json").is_file()
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(small.words(tmp_path)) == 0
        monkeypatch.undo()
        assert "2 images" not in capsys.readouterr().out
        assert main(small.words(tmp_path, "--format", "coco")) == 0
        assert "(2 finished before)" in capsys.readouterr().out
        assert {file.name for file in [*tmp_path.glob("summary*"), *tmp_path.glob("coco*")]} == {
            "summary.csv",
            "coco.json",
        }
        for file in ("summary.csv", "coco.json"):
            assert (tmp_path / file).read_text() == (done / file).read_text()


class TestBadInput:
    def test_a_bad_file_is_named_and_the_others_are_predicted(self, small, tmp_path, capsys):
        images = shutil.copytree(small.folder, tmp_path / "images")
        (images / "a.png").write_bytes(b"no image")
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(images / "b.tif")
        words = [word if word != str(small.folder) else str(images) for word in small.words(tmp_path / "out")]
        assert main(words) == 1
        printed = capsys.readouterr()
        *_, problem, error = printed.err.splitlines()
        assert problem.startswith("problem: ") and "a.png cannot be decoded" in problem
        assert error == "error: 1 of the images could not be predicted; they are named above."
        assert "3 images" in printed.out
        rows = {row["name"]: row for row in read_rows(tmp_path / "out" / "summary.csv")}
        assert len(rows) == 4 and "cannot be decoded" in rows["a"]["error"] and not rows["b"]["error"]
        shutil.copy(small.images[0], images / "a.png")  # mended
        assert main(words) == 0
        assert "4 images (3 finished before)" in capsys.readouterr().out

    def test_an_error_of_any_kind_does_not_stop_the_rest(self, small, tmp_path, monkeypatch, capsys):
        predict = Predictor.__call__

        def sometimes(self, image):
            if image.endswith(small.images[0].name):
                raise RuntimeError("the lamp is broken")
            return predict(self, image)

        monkeypatch.setattr(Predictor, "__call__", sometimes)
        assert main(small.words(tmp_path)) == 1
        assert f"problem: {small.images[0]}: RuntimeError: the lamp is broken" in capsys.readouterr().err
        assert len(list(tmp_path.glob("*_instances.png"))) == 1

    def test_a_path_that_leads_to_nothing_does_not_stop_the_rest(self, small, tmp_path, capsys):
        (tmp_path / "notes.txt").write_text("notes")
        wrong = [str(tmp_path / "nowhere"), str(tmp_path / "notes.txt")]
        assert main([*small.words(tmp_path / "out")[:3], *wrong, *small.words(tmp_path / "out")[3:]]) == 1
        printed = capsys.readouterr()
        assert "2 images" in printed.out and "nowhere does not exist" in printed.err
        assert "notes.txt has no image that can be read" in printed.err

    def test_a_video_that_cannot_be_opened_does_not_stop_the_rest(self, small_bundle, tmp_path, capsys):
        small = small_bundle("endoscopy")
        frames = shutil.copytree(small.folder, tmp_path / "frames")
        (frames / "broken.mp4").write_bytes(b"no video")
        (frames / "notes.txt").write_text("notes")
        words = [word if word != str(small.folder) else str(frames) for word in small.words(tmp_path / "out")]
        assert main(words) == 1
        printed = capsys.readouterr()
        assert "2 images" in printed.out and "broken.mp4 cannot be opened as a video" in printed.err
        assert "notes.txt" not in printed.err

    def test_a_doubt_is_in_the_summary_and_in_the_last_line(self, small, tmp_path, capsys):
        assert main([*small.words(tmp_path), "min_size=1000000"]) == 0
        assert all("nothing was found" in row["warnings"] for row in read_rows(tmp_path / "summary.csv"))
        assert "2 to look at" in capsys.readouterr().out

    def test_too_many_cells_for_a_png(self, small, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("swinumamba_monai.prediction.folder.MAX_16_BIT", 3)
        assert main(small.words(tmp_path / "png")) == 1
        assert "give the option output_ext=.tif" in capsys.readouterr().err
        assert main([*small.words(tmp_path / "tif"), "output_ext=.tif"]) == 0
        assert len(list((tmp_path / "tif").glob("*_instances.tif"))) == 2

    def test_a_full_disk_ends_the_run_with_a_sentence(self, small, tmp_path, monkeypatch, capsys):
        def full(self, path):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(InstanceWriter, "save", full)
        assert main(small.words(tmp_path)) == 1
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and "No space left on device" in error
        assert read_rows(tmp_path / "summary.csv") == []

    def test_results_do_not_go_where_the_images_are(self, small, capsys):
        before = set(small.folder.iterdir())
        assert main(small.words(small.folder)) == 1
        assert "holds the images; give another output folder" in capsys.readouterr().err
        assert set(small.folder.iterdir()) == before

    @pytest.mark.parametrize(
        ("further", "words"),
        [
            (["--format", "pdf"], "there is no format 'pdf'; choose from masks"),
            (["--share", "9/8"], "share 9/8 is none"),
            (["--share", "all"], "--share is like 3/8"),
            (["--device", "warp"], "device 'warp' cannot be used"),
            (["--set", "min_size"], "--set takes NAME=VALUE"),
            (["--set", "min_sise=3"], "did you mean --min_size"),
            (["--set", "device=cpu"], "device is no option to be set: it follows from the arguments"),
            (["--set", "dataset_dir=/data"], "dataset_dir is no option to be set"),
            (["--checkpoint", "nowhere.pt"], "there are no weights nowhere.pt"),
            (["--bundle_dir", "nowhere"], "there is no bundle nowhere or nowhere/microscopy"),
        ],
    )
    def test_options_that_cannot_be_are_one_sentence_before_anything_is_written(
        self, small, tmp_path, capsys, further, words
    ):
        out = tmp_path / "out"
        assert main(["predict", "microscopy", str(small.folder), "--output_dir", str(out), *further]) == 1
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and words in error
        assert not out.exists()

    @pytest.mark.parametrize("name", ["geojson", "coco", "roi"])
    def test_volumes_have_no_outlines(self, small_bundle, tmp_path, capsys, name):
        assert main(small_bundle("abdomen_mri").words(tmp_path, "--format", name)) == 1
        assert "abdomen_mri writes volumes" in capsys.readouterr().err
