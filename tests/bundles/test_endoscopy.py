# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is particular to endoscopy: frames of files and videos, masks and overlays, scores of what a frame shows."""

from __future__ import annotations

import json
from functools import partial

import bundle_runs
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from bundle_runs import NETWORK, SHORT, before_the_metric
from PIL import Image
from result_tables import read_rows

from swinumamba_monai.data import LabelMap, prepare_endoscopy, read_image
from swinumamba_monai.inference.overlay import class_overlay

run, refusal = (partial(f, "endoscopy") for f in (bundle_runs.run, bundle_runs.refusal))


def bright(workflow) -> None:
    """Make the network one that sees a pixel whose red is brighter than the frame's mean as class 2 of 3."""
    network = workflow.parser.get_parsed_content("network_def")
    with torch.no_grad():
        network.weight.zero_()
        network.weight[2, 0], network.weight[1, 0] = 2.0, 1.0
        network.weight[0, 0] = 0.0
        network.bias.copy_(torch.tensor([0.0, -100.0, 0.0]))


THRESHOLD = bundle_runs.threshold(3, 3)


class TestFrames:
    @pytest.fixture
    def frames(self, tmp_path):
        """Frames of several kinds, and their red channel."""
        folder = tmp_path / "frames"
        folder.mkdir()
        rng = np.random.default_rng(0)
        red = {}
        for name, shape, dtype, top in (
            ("a.b.png", (40, 70, 3), np.uint8, 255),
            ("gray.jpg", (33, 50), np.uint8, 255),
            ("deep.png", (40, 41, 3), np.uint16, 65535),
            ("rgba.tif", (64, 30, 4), np.uint8, 255),
        ):
            coarse = rng.integers(0, top, (5, 5, *shape[2:]))
            pixels = np.kron(coarse, np.ones((14, 14, *[1] * len(shape[2:])), dtype=int))[: shape[0], : shape[1]]
            pixels = pixels.astype(dtype)
            if name.endswith(".tif"):
                tifffile.imwrite(folder / name, pixels, photometric="rgb", extrasamples=["unassalpha"])
            elif dtype == np.uint16:
                (folder / name).write_bytes(imagecodecs.png_encode(pixels))
            else:
                Image.fromarray(pixels).save(folder / name, quality=100)
            decoded = read_image(folder / name)
            red[name.rsplit(".", 1)[0]] = decoded[..., 0] if decoded.ndim == 3 else decoded
        return folder, red

    def test_become_masks_and_overlays(self, frames, tmp_path):
        folder, red = frames
        out = tmp_path / "out"
        run("inference", tmp_path, bright, dataset_dir=str(folder), output_dir=str(out), **THRESHOLD)
        assert {f.name for f in out.iterdir()} == {f"{n}_{w}.png" for n in red for w in ("classes", "overlay")}
        for name, channel in red.items():
            classes = Image.open(out / f"{name}_classes.png")
            assert classes.mode == "L"
            np.testing.assert_array_equal(np.asarray(classes), 2 * (channel.astype(float) > channel.mean()))
            overlay = np.asarray(Image.open(out / f"{name}_overlay.png"))
            assert overlay.shape == (*channel.shape, 3) and overlay.dtype == np.uint8
        frame = read_image(folder / "a.b.png")
        overlay, classes = (read_image(out / f"a.b_{what}.png") for what in ("overlay", "classes"))
        np.testing.assert_array_equal(overlay[classes == 0], frame[classes == 0])
        assert (overlay[classes == 2] != frame[classes == 2]).any(-1).mean() > 0.9
        deep = read_image(out / "deep_overlay.png")
        assert deep.min() < 20 and deep.max() > 235, "16 bits are shown from dark to bright"

    def test_with_probabilities_and_entropy_and_without_overlay(self, frames, tmp_path):
        folder, red = frames
        options = {**THRESHOLD, "save_overlay": False, "save_probabilities": True, "save_entropy": True}
        run("inference", tmp_path, bright, dataset_dir=str(folder), output_dir=str(tmp_path / "out"), **options)
        written = {f.name for f in (tmp_path / "out").iterdir()}
        suffixes = ("classes.png", "probabilities.tif", "entropy.tif")
        assert written == {f"{name}_{suffix}" for name in red for suffix in suffixes}
        probabilities = tifffile.imread(tmp_path / "out" / "gray_probabilities.tif")
        entropy = tifffile.imread(tmp_path / "out" / "gray_entropy.tif")
        assert probabilities.shape == (3, *red["gray"].shape) and entropy.shape == red["gray"].shape
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
        classes = read_image(tmp_path / "out" / "gray_classes.png")
        np.testing.assert_array_equal(probabilities.argmax(0), classes)

    def test_of_a_video_are_numbered(self, trained_in, tmp_path):
        av = pytest.importorskip("av")
        folder = tmp_path / "clips"
        folder.mkdir()
        with av.open(str(folder / "clip.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(3):
                pixels = np.full((48, 64, 3), 60 * number, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        options = {**NETWORK, "dataset_dir": str(folder), "output_dir": str(tmp_path / "out")}
        run("inference", trained_in("endoscopy"), **options)
        names = sorted(file.name for file in (tmp_path / "out").iterdir())
        assert names == [f"clip#00000{n}_{what}.png" for n in range(3) for what in ("classes", "overlay")]
        assert read_image(tmp_path / "out" / names[0]).shape == (48, 64)

    def test_of_the_same_name_in_several_surgeries(self, trained_in, tmp_path):
        rng = np.random.default_rng(0)
        for place in ("1", "2"):
            (tmp_path / "surgeries" / place).mkdir(parents=True)
            pixels = rng.integers(0, 255, (40, 40 + int(place), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "surgeries" / place / "frame000.png")
        items = [{"image": f"surgeries/{place}/frame000.png", "label": "no.png"} for place in ("1", "2")]
        (tmp_path / "datalist.json").write_text(json.dumps({"name": "endoscopy", "test": items}))
        options = {**NETWORK, "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "save_overlay": False}
        run("inference", trained_in("endoscopy"), **options)
        for place in ("1", "2"):
            mask = read_image(tmp_path / "out" / place / "frame000_classes.png")
            assert mask.shape == (40, 40 + int(place))

    def test_whose_results_would_be_one(self, trained_in, tmp_path):
        (tmp_path / "frames").mkdir()
        for name in ("a.png", "a.bmp"):
            Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(tmp_path / "frames" / name)
        options = {**NETWORK, "dataset_dir": str(tmp_path / "frames"), "output_dir": str(tmp_path / "out")}
        assert "would give one result" in refusal("inference", trained_in("endoscopy"), **options)
        assert not (tmp_path / "out").exists()

    def test_without_any(self, trained_in, tmp_path):
        (tmp_path / "empty").mkdir()
        options = {**NETWORK, "dataset_dir": str(tmp_path / "empty"), "output_dir": str(tmp_path / "out")}
        assert "has no frame" in refusal("inference", trained_in("endoscopy"), **options)


def test_a_class_has_its_colour_in_every_frame():
    frame = np.full((3, 20, 20), 100, dtype=np.float32)
    alone, beside = np.zeros((2, 20, 20), dtype=int)
    alone[5:15, 5:15] = beside[5:15, 5:15] = 2
    beside[0:3] = 1
    one, two = class_overlay(frame, alone), class_overlay(frame, beside)
    np.testing.assert_array_equal(one[:, 5:15, 5:15], two[:, 5:15, 5:15])
    assert len(np.unique(two.reshape(3, -1), axis=1).T) == 5  # frame; two classes and their rims
    assert not np.array_equal(two[:, 0, 0], two[:, 5, 5])


class TestScores:
    def test_are_of_the_instruments_that_a_frame_shows(self, trained_in, dataset_of, tmp_path):
        """The truth, given as the prediction, scores 1 for the classes of each frame, and nan for the others."""

        def truth(workflow):
            def replace(engine):
                for item in engine.state.output:
                    item["pred"] = item["label"]

            before_the_metric(workflow, replace)

        options = {"dataset_dir": str(dataset_of("endoscopy")), "output_dir": str(tmp_path), **NETWORK}
        run("evaluate", trained_in("endoscopy"), truth, num_figures=0, **options)
        rows = read_rows(tmp_path / "metrics.csv")
        names = [name.removeprefix("truth_pixels_") for name in rows[0] if name.startswith("truth_pixels_")]
        assert len(names) == 7
        for row in rows:
            assert float(row["dsc_published"]) == float(row["nsd_published"]) == 1
            for name in names:
                shown = int(row[f"truth_pixels_{name}"]) > 0
                assert row[f"dsc_published_{name}"] == ("1.000000" if shown else "nan")
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert set(summary["tolerances"].values()) == {2} and summary["tolerance_unit"] == "pixels"

    def test_of_a_dataset_with_other_classes(self, dataset_of, tmp_path):
        """As EndoVis 2015, which has the parts of instruments."""
        label_map = LabelMap(("background", "shaft", "manipulator"), ((0,), (1, 2, 3), (4, 5, 6, 7)))
        prepared = tmp_path / "prepared"
        prepare_endoscopy(dataset_of("endoscopy"), prepared, label_map=label_map)
        options = {**SHORT, "dataset_dir": str(prepared), "num_classes": 3}
        run("train", tmp_path, **options)
        run("evaluate", tmp_path, output_dir=str(tmp_path / "report"), num_figures=0, **options)
        summary = json.loads((tmp_path / "report" / "summary.json").read_text())
        assert list(summary["tolerances"]) == ["shaft", "manipulator"]
        images = {**NETWORK, "dataset_dir": str(prepared), "output_dir": str(tmp_path / "out")}
        assert "does not fit the network" in refusal("inference", tmp_path, **images)
        run("inference", tmp_path, num_classes=3, **images)
        assert max(read_image(file).max() for file in (tmp_path / "out").glob("*_classes.png")) <= 2
