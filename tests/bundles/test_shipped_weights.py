# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The network that ships with the microscopy bundle does what its model card says, as a stranger would use it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_runs import ROOT, run
from forked import run_forked
from PIL import Image
from result_tables import read_rows
from scipy import ndimage
from skimage.draw import ellipse
from skimage.transform import resize

from swinumamba_monai import Predictor
from swinumamba_monai.metrics import cell_counts
from swinumamba_monai.weight_files import find_checkpoint, read_weights

BUNDLE = ROOT / "microscopy"
EXAMPLES = ROOT.parent / "docs" / "images" / "examples"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "microscopy"


def nuclei(seed: int, side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A picture as of stained nuclei under fluorescence, (h, w) uint8, and their ids; none touch."""
    random = np.random.default_rng(seed)
    ids = np.zeros((side, side), np.int32)
    centres = [(y, x) for y in range(16, side, 32) for x in range(16, side, 32)]
    for number, (y, x) in enumerate(centres, start=1):
        y, x = y + random.integers(-3, 4), x + random.integers(-3, 4)
        inside = ellipse(y, x, random.uniform(7, 11), random.uniform(6, 9), ids.shape, random.uniform(0, np.pi))
        ids[inside] = number
    brightness = np.append(0, random.uniform(60, 120, len(centres)))[ids] * random.normal(1, 0.06, ids.shape)
    image = ndimage.gaussian_filter(brightness, 1.0) + random.normal(8, 1.5, ids.shape)
    return image.clip(0, 255).astype(np.uint8), ids


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> dict[str, float]:
    """F1 of what the inference of the bundle as it lies there makes of each picture; only the window is small."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "images").mkdir()
    truths = {}
    for seed, mode in enumerate(("L", "RGBA")):
        picture, truths[mode] = nuclei(seed)
        Image.fromarray(picture).convert(mode).save(folder / "images" / f"{mode}.png")
    for name in held_out():
        (folder / "images" / f"{name}.png").symlink_to(SHARED / "images" / f"{name}.png")
        truths[name] = np.asarray(Image.open(SHARED / "labels" / f"{name}.png")).astype(np.int32)
    scores = {}
    for target in ("flows", "classes"):
        command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
        command += ["--config_file", str(BUNDLE / "configs" / "inference.json"), "--bundle_root", str(BUNDLE)]
        command += ["--dataset_dir", "images", "--output_dir", target, "--roi_size", "[256,256]", "--num_workers", "0"]
        done = run_forked([*command, "--target", target], folder)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        found = {name: np.asarray(Image.open(folder / target / f"{name}_instances.png")) for name in truths}
        scores[target] = {name: cell_counts(truth, found[name].astype(np.int32)).f1 for name, truth in truths.items()}
    return scores


def held_out() -> list[str]:
    """Six small fluorescence images of the test split, if the data are here."""
    if not SHARED.is_dir():
        return []
    rows = [row for row in read_rows(SHARED / "manifest.csv") if (row["split"], row["group"]) == ("test", "gray_dark")]
    return [row["name"] for row in rows if row["width"] == "256"][:6]


@pytest.mark.parametrize("name", ["model", "classes"])
def test_the_file(name):
    weights = BUNDLE / "models" / f"{name}.safetensors"
    content = weights.read_bytes()
    assert len(content) <= 60e6
    card = (BUNDLE / "docs" / "README.md").read_text()
    assert hashlib.sha256(content).hexdigest() in card
    assert {weight.dtype for weight in read_weights(weights).values()} == {torch.float16}
    assert find_checkpoint(BUNDLE / "models", shipped=name) == str(weights)


def test_the_card_and_the_metadata_agree():
    metrics = json.loads((BUNDLE / "configs" / "metadata.json").read_text())["eval_metrics"]
    row = r"\| all \| 133 \| \*\*(\S+)\*\* \| (\S+) \| "
    delivered = re.search(row, (BUNDLE / "docs" / "README.md").read_text()).groups()
    assert [float(value) for value in delivered] == [metrics["f1_iou50_test"], metrics["f1_iou75_test"]]


@pytest.mark.parametrize("target", ["flows", "classes"])
def test_nuclei_of_a_stranger(scores, target):
    """Gray and with an alpha channel; F1 well above what a network that never saw nuclei reaches."""
    assert scores[target]["L"] > 0.8 and scores[target]["RGBA"] > 0.8, scores[target]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"DSB-2018 is not here: no {SHARED}")
def test_held_out_images(scores):
    """Of these the card of the classes says 0.87 ± 0.12: the mean of a few is above two standard errors less."""
    of_test = {target: np.mean([scores[target][name] for name in held_out()]) for target in scores}
    assert of_test["classes"] > 0.873 - 2 * 0.122 / len(held_out()) ** 0.5, scores
    assert of_test["flows"] > of_test["classes"] - 0.02, scores


def test_evaluation_scores_what_inference_writes(tmp_path):
    """Also of cells that are found in another size of the image: without that the tiny ones have a lower F1."""
    datalist, truths = {"task": "microscopy", "training": [], "validation": [], "test": []}, {}
    for name, factor in (("plain", 1), ("tiny", 0.3)):
        image, ids = nuclei(0)
        truths[name] = resize(ids, zoomed(image, factor).shape, order=0, anti_aliasing=False, preserve_range=True)
        item = {"image": f"{name}.png", "label": f"{name}_label.png"}
        Image.fromarray(zoomed(image, factor)).save(tmp_path / item["image"])
        Image.fromarray(truths[name].astype(np.uint16)).save(tmp_path / item["label"])
        datalist["test"].append(item)
    (tmp_path / "datalist.json").write_text(json.dumps(datalist))
    given = {"dataset_dir": str(tmp_path), "roi_size": [128, 128], "device": "$torch.device('cpu')", "num_workers": 0}
    given["ckpt_path"] = str(BUNDLE / "models" / "model.safetensors")
    scores = {}
    for more in ({}, {"diameter": None}):
        run("microscopy", "evaluate", tmp_path, output_dir=str(tmp_path / "scores"), num_figures=0, **more, **given)
        scores[str(more)] = {row["name"]: float(row["f1"]) for row in read_rows(tmp_path / "scores" / "metrics.csv")}
    run("microscopy", "inference", tmp_path, output_dir=str(tmp_path / "written"), **given)
    for name, truth in truths.items():
        written = np.asarray(Image.open(tmp_path / "written" / f"{name}_instances.png")).astype(np.int32)
        expected = cell_counts(truth.astype(np.int32), written).f1
        assert scores["{}"][f"{name}.png"] == pytest.approx(expected, abs=1e-6), name
    as_it_is = scores["{'diameter': None}"]
    assert as_it_is["plain.png"] == scores["{}"]["plain.png"] and as_it_is["tiny.png"] < scores["{}"]["tiny.png"]


def forms_of_light(image: np.ndarray) -> dict[str, np.ndarray]:
    """A gray picture (h, w) uint8 as other microscopes and programs give it."""
    values, black = image.astype(np.float32), np.zeros_like(image)
    rows, columns = np.indices(image.shape) / (len(image) / 2) - 1
    light = np.exp(-((rows - 0.3) ** 2 + (columns + 0.2) ** 2) / 1.2)
    spoilt = image.astype(np.uint16) * 16
    places = np.random.default_rng(0).integers(0, min(image.shape), (12, 2))
    spoilt[places[:, 0], places[:, 1]] = 65535
    return {
        "blue alone": np.stack([black, black, image], -1),
        "red alone": np.stack([image, black, black], -1),
        "two channels": np.stack([black, image], -1),
        "inverted": 255 - image,
        "12 bits in 16": image.astype(np.uint16) * 16,
        "dim": (values * 0.2).astype(np.uint8),
        "uneven light": (values * light + 25 * (columns + 1) / 2).clip(0, 255).astype(np.uint8),
        "out of focus": ndimage.gaussian_filter(values, 1.5).astype(np.uint8),
        "hot pixels": spoilt,
        "twice the size": zoomed(image, 2),
        "three times the size": zoomed(image, 3),
        "half the size": zoomed(image, 0.5),
        "a third of the size": zoomed(image, 1 / 3),
        "floats": values / 255,
    }


def forms_of_stain(image: np.ndarray) -> dict[str, np.ndarray]:
    """The same of colours (h, w, 3) uint8 on a bright ground."""
    return {
        "yellow lamp": (image * np.array([1, 0.9, 0.75])).astype(np.uint8),
        "half the light": (image * 0.5).astype(np.uint8),
        "16 bits": image.astype(np.uint16) * 257,
        "out of focus": ndimage.gaussian_filter(image, (1, 1, 0)),
        "half the size": zoomed(image, 0.5),
    }


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    sides = [round(side * factor) for side in image.shape[:2]]
    return resize(image, sides, anti_aliasing=factor < 1, preserve_range=True).astype(np.uint8)


def membranes() -> np.ndarray:
    """Bright borders between two dozen cells on a dark ground, (128, 128) uint8."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:128, :128]
    centres = random.random((24, 2)) * 128
    nearest = np.sort(np.hypot(rows[..., None] - centres[:, 0], columns[..., None] - centres[:, 1]), -1)
    light = ndimage.gaussian_filter(np.exp(-(((nearest[..., 1] - nearest[..., 0]) / 3) ** 2)), 1)
    return (140 * light + random.normal(12, 4, light.shape)).clip(0, 255).astype(np.uint8)


class TestAnyImage:
    @pytest.fixture(scope="class")
    def predictor(self) -> Predictor:
        return Predictor("microscopy", roi_size=[128, 128])

    @pytest.mark.parametrize(
        ("name", "zoom", "count", "forms"),
        [("fluorescence", 0.5, 17, forms_of_light), ("stained", 1, 27, forms_of_stain)],
    )
    def test_forms_of_a_real_image_lose_at_most_a_twentieth(self, name, zoom, count, forms):
        """Of what is found in the image of DSB-2018 as it is; that of fluorescence is halved to be quicker."""
        predictor = Predictor("microscopy", roi_size=[544, 544])  # one window, also of three times the size
        image = zoomed(np.asarray(Image.open(EXAMPLES / f"{name}.png")), zoom)
        image = image[..., 0] if forms is forms_of_light else image
        found, lost = predictor(image).labels, {}
        assert found.max() == pytest.approx(count, abs=1)
        for form, pixels in forms(image).items():
            plain = resize(found, pixels.shape[:2], order=0, anti_aliasing=False, preserve_range=True)
            if (score := self.score(predictor(pixels), plain.astype(np.int32))) < 0.95:
                lost[form] = score
        assert not lost

    def test_large_and_tiny_nuclei(self):
        image, ids = nuclei(0, side=96)  # of nine nuclei, for six times as many pixels a side are looked at twice
        for factor, given in ((1 / 3, {}), (6, {}), (6, {"diameter": 96})):
            predictor = Predictor("microscopy", roi_size=[128, 128], **given)
            form = zoomed(image, factor)
            truth = resize(ids, form.shape, order=0, anti_aliasing=False, preserve_range=True).astype(np.int32)
            assert self.score(predictor(form), truth) > 0.85, (factor, given)

    def test_what_is_doubtful_is_said(self, predictor):
        image, _ = nuclei(0)
        colours = np.stack([image, np.zeros_like(image), image.T], -1)
        said = {name: " ".join(predictor(form).doubts) for name, form in (("bright", 255 - image), ("two", colours))}
        assert "--invert" in said["bright"] and "--channel" in said["two"]
        speck = image.copy()
        speck[60:68, 60:68] = 255
        assert "(64, 64)" in " ".join(predictor(speck).doubts)
        between = " ".join(predictor(membranes()).doubts)
        assert "darker than what is around them" in between
        assert not predictor(image).doubts and not predictor(zoomed(image, 1 / 3)).doubts
        assert not Predictor("microscopy", roi_size=[128, 128], invert=True)(255 - image).doubts

    @staticmethod
    def score(found, truth: np.ndarray) -> float:
        return cell_counts(truth, found.labels, 0.5, True, "corrected").f1
