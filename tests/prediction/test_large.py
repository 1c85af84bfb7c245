# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Images that go by blocks have the files of all others, and stand beside them in one run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from result_tables import read_rows
from small_weights import run_inference
from torch import nn

from swinumamba_monai.cli import main
from swinumamba_monai.data import read_image
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import BlockInference, memory
from swinumamba_monai.painting import outlined
from swinumamba_monai.prediction import Predictor, predict_images


class Squares(nn.Module):
    """Finds what is bright; every 4-connected piece, as three classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-20 * x[:, :1], 20 * x[:, :1], -20 - 0 * x[:, :1]], 1)


class Holes(nn.Module):
    """Finds what is one to five standard deviations above the mean; every 4-connected piece, as three classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hole = 20 * (2 - (x[:, :1] - 3).abs())
        return torch.cat([-hole, hole, -20 - 0 * hole], 1)


OPTIONS = {
    "network": f"$__import__('{__name__}').Squares()",
    "checkpointloader": None,
    "target": "classes",
    "roi_size": [256, 256],
    "block_size": 768,
    "grow": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A large image of squares, some of them on the seams of its blocks, and a small one."""
    folder = tmp_path_factory.mktemp("slides")
    image = np.random.default_rng(0).integers(20, 25, (1200, 1100)).astype(np.uint8)
    for top in range(5, 1190, 48):
        for left in range(3, 1090, 36):
            image[top : top + 9, left : left + 14] = 180 + left % 50
    tifffile.imwrite(folder / "slide.tif", image, tile=(256, 256), compression="zlib")
    Image.fromarray(image[:100, :120]).save(folder / "small.png")
    return folder


@pytest.fixture(scope="module")
def predicted(folder, tmp_path_factory):
    """The folder with the masks, tables and outlines of both."""
    out = tmp_path_factory.mktemp("predicted")
    report = predict_images("microscopy", [folder], out, device="cpu", options=OPTIONS)
    assert report.predicted == 2 and not report.failed
    return out


def test_the_files_are_those_of_the_whole_image(folder, tmp_path, caplog):
    report = predict_images("microscopy", [folder], tmp_path, ["masks", "geojson"], device="cpu", options=OPTIONS)
    assert report.predicted == 2 and not report.failed
    assert report.files[:2] == ["NAME_instances.png", "NAME_instances.tif"]
    whole = Predictor(device="cpu", **{**OPTIONS, "block_size": 0})(folder / "slide.tif")
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(("slide", "small"))) == [
        "slide.geojson",
        "slide_instances.tif",
        "slide_objects.csv",
        "slide_outlines.png",
        "small.geojson",
        "small_instances.png",
        "small_objects.csv",
        "small_outlines.png",
    ]
    said = f" and {25 * 31 - 3} more have one value and sharp edges"  # as the squares of all blocks have
    assert said in whole.doubts[-1] and said in read_rows(tmp_path / "summary.csv")[0]["warnings"]
    logged = [record.message for record in caplog.records if record.name.endswith("prediction.folder")]
    assert any("slide.tif" in line and said in line for line in logged)
    labels = read_image(tmp_path / "slide_instances.tif")
    assert len(np.unique(np.stack([labels.ravel(), whole.labels.ravel()]), axis=1).T) == 25 * 31 + 1, "one to one"
    rows = read_rows(tmp_path / "slide_objects.csv")
    assert [int(row["label"]) for row in rows] == list(range(1, 25 * 31 + 1))
    others = {whole.labels[labels == int(row["label"])][0]: row for row in rows}
    for place, label in enumerate(whole.table["label"].tolist()):
        for name in set(whole.table) - {"label"}:
            assert float(others[label][name]) == pytest.approx(whole.table[name][place], abs=6e-5), name
    picture = np.asarray(Image.open(tmp_path / "slide_outlines.png"))
    np.testing.assert_array_equal(picture, outlined(whole.image, whole.labels, one_colour=True))
    features = json.loads((tmp_path / "slide.geojson").read_text())["features"]
    for row, feature in zip(rows, features, strict=True):
        corners = np.array(feature["geometry"]["coordinates"][0])
        box = [int(row[f"bbox-{n}"]) for n in (1, 0, 3, 2)]
        assert [*corners.min(0), *corners.max(0)] == box and feature["properties"]["name"] == f"cell {row['label']}"
    again = predict_images("microscopy", [folder], tmp_path, ["masks", "geojson"], device="cpu", options=OPTIONS)
    assert again.finished == 2 and again.objects == report.objects == 25 * 31 + 8


def test_cells_that_are_darker_than_around_are_counted_in_all_blocks(tmp_path):
    image = np.full((1200, 1100), 20, np.uint8)
    for top in range(5, 1190, 48):
        image[top : top + 22, 40:62] = 180
        image[top + 4 : top + 18, 44:58] = 60
    tifffile.imwrite(tmp_path / "rings.tif", image, tile=(256, 256))
    options = {**OPTIONS, "network": f"$__import__('{__name__}').Holes()"}
    (doubt,) = Predictor(device="cpu", **{**options, "block_size": 0})(tmp_path / "rings.tif").doubts
    assert doubt.startswith("100% of the cells are darker than what is around them")
    predict_images("microscopy", [tmp_path / "rings.tif"], tmp_path / "out", device="cpu", options=options)
    (row,) = read_rows(tmp_path / "out" / "summary.csv")
    assert (row["objects"], row["warnings"]) == ("25", doubt)


@pytest.mark.parametrize(("channels", "channel"), [(6, 5), (4, 3)])
def test_one_channel_of_a_large_multiplex_image(folder, predicted, tmp_path, channels, channel):
    """It is as that channel alone, and the table measures all of them."""
    alone = read_image(folder / "slide.tif")
    image = np.random.default_rng(1).integers(0, 20, (channels, *alone.shape), np.uint8)
    image[channel] = alone
    metadata = {"axes": "CYX"}
    tifffile.imwrite(tmp_path / "many.ome.tif", image, tile=(256, 256), photometric="minisblack", metadata=metadata)
    options = {**OPTIONS, "channel": channel}
    report = predict_images("microscopy", [tmp_path / "many.ome.tif"], tmp_path, device="cpu", options=options)
    assert report.predicted == 1 and not report.failed
    many, one = tmp_path / "many.ome", predicted / "slide"
    for end in ("_instances.tif", "_outlines.png"):
        np.testing.assert_array_equal(read_image(Path(f"{many}{end}")), read_image(Path(f"{one}{end}")))
    warnings = [read_rows(file.parent / "summary.csv")[0]["warnings"] for file in (many, one)]  # the slide comes first
    assert warnings[0] == warnings[1] != ""
    for row, expected in zip(
        *(read_rows(file.with_name(f"{file.name}_objects.csv")) for file in (many, one)), strict=True
    ):
        assert row[f"intensity_mean-{channel}"] == expected["intensity_mean"] and row["area"] == expected["area"]
        assert sum(name.startswith("intensity_mean") for name in row) == channels


def test_the_bundles_inference_writes_the_same(folder, predicted, tmp_path):
    run_inference("microscopy", dataset_dir=str(folder), output_dir=str(tmp_path / "out"), **OPTIONS)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["slide_instances.tif", "small_instances.png"]
    for file in (tmp_path / "out").iterdir():
        np.testing.assert_array_equal(read_image(file), read_image(predicted / file.name))


def test_what_is_not_made_by_blocks_is_said_before_the_work(folder, tmp_path, capsys):
    words = ["predict", "microscopy", str(folder), "--output_dir", str(tmp_path), "--format", "masks", "coco", "roi"]
    given = ["network=$torch.nn.Identity()", "checkpointloader=None", "block_size=768"]
    assert main([*words, "--set", *given]) == 1
    errors = capsys.readouterr().err
    assert (
        "slide.tif is so large that it is predicted in blocks, which give masks and geojson, not coco and roi" in errors
    )


def test_a_call_says_that_the_command_goes_by_blocks(folder, monkeypatch):
    predictor = Predictor(device="cpu", **OPTIONS)
    monkeypatch.setattr(memory, "free_memory", lambda: 80_000_000)
    with pytest.raises(InputError, match=r"slide\.tif \(1200 x 1100\) .* the command predict and predict_images go by"):
        predictor(folder / "slide.tif")


def test_no_result_is_left_of_an_image_whose_network_fails(folder, tmp_path):
    options = {**OPTIONS, "network": "$torch.nn.MaxPool2d(2)"}
    report = predict_images("microscopy", [folder / "slide.tif"], tmp_path, device="cpu", options=options)
    assert len(report.failed) == 1 and "slide.tif" in report.failed[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".blocks", "predict.json", "summary.csv"]


class TestStopped:
    """In the sixth of nine blocks, as by Ctrl-C."""

    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        find = BlockInference._find

        def run(folder: Path, stop: int | None = None, **options: object) -> int:
            """How many blocks the network is asked for; with ``stop`` it comes no further than that many."""
            asked = []

            def counted(*given, **more):
                asked.append(given)
                if len(asked) == stop:
                    raise KeyboardInterrupt
                return find(*given, **more)

            monkeypatch.setattr(BlockInference, "_find", counted)
            given = {"overwrite": bool(options), "options": OPTIONS | options, "device": "cpu"}
            with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
                report = predict_images("microscopy", [folder / "slide.tif"], tmp_path / "out", **given)
                assert report.predicted == 1 and not report.failed
            return len(asked)

        return run

    def test_goes_on_from_the_blocks_that_are_finished(self, run, folder, predicted, tmp_path):
        assert run(folder, stop=6) == 6
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".blocks", "predict.json", "summary.csv"]
        assert run(folder) == 9 - 5
        files = {file.name for file in (tmp_path / "out").iterdir()}
        assert files == {
            "predict.json",
            "summary.csv",
            "slide_instances.tif",
            "slide_objects.csv",
            "slide_outlines.png",
        }
        for name in ("slide_instances.tif", "slide_objects.csv", "slide_outlines.png"):
            assert (tmp_path / "out" / name).read_bytes() == (predicted / name).read_bytes(), name

    def test_takes_no_block_of_other_options_or_another_image(self, run, tmp_path):
        image = np.full((1200, 1100), 20, np.uint8)
        image[:, 100:1000:300] += (np.arange(1200) // 6).astype(np.uint8)[:, None]  # so that no two blocks are alike

        tifffile.imwrite(tmp_path / "slide.tif", image, tile=(256, 256))
        assert run(tmp_path, stop=6) == 6
        assert run(tmp_path, grow=1) == 9
        assert run(tmp_path, stop=6, grow=0) == 6
        image[-2, -2] += 200  # of the last block alone, but of the look of all
        tifffile.imwrite(tmp_path / "slide.tif", image, tile=(256, 256))
        assert run(tmp_path, grow=0) == 9
        assert not (tmp_path / "out" / ".blocks").exists()

    def test_takes_no_block_of_another_version(self, run, folder, predicted, tmp_path, monkeypatch):
        assert run(folder, stop=6) == 6
        monkeypatch.setattr("swinumamba_monai.prediction.folder.__version__", "0.0.1")
        assert run(folder) == 9
