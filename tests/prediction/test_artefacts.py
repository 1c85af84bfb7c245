# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What was drawn into an image, and specks, are told from cells."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.draw import disk

from swinumamba_monai.prediction.artefacts import artefact_cells, dark_cells
from swinumamba_monai.prediction.objects import find_doubts, object_table

SHARED = Path(__file__).parents[3] / "shared" / "data" / "microscopy"


def nuclei(peak: float) -> tuple[np.ndarray, np.ndarray]:
    """Sixteen nuclei, a little out of focus, (128, 128) uint8, and their numbers; above 255 light is cut off."""
    labels = np.zeros((128, 128), np.int32)
    for number in range(16):
        labels[disk((16 + 32 * (number // 4), 16 + 32 * (number % 4)), 8)] = number + 1
    light = ndimage.gaussian_filter(peak * (labels > 0), 1.2) + np.random.default_rng(0).normal(12, 3, labels.shape)
    return light.clip(0, 255).astype(np.uint8), labels


def draw(image: np.ndarray, what: str, fill: int | tuple) -> np.ndarray:
    """The image with something drawn between its nuclei."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    if what == "letter":
        pen.text((26, 24), "D", fill=fill, font=ImageFont.load_default(18))
    else:
        height, width = {"speck": (8, 8), "bar": (4, 40)}[what]
        pen.rectangle((30, 30, 29 + width, 29 + height), fill=fill)
    return np.asarray(picture)


@pytest.mark.parametrize("what", ["speck", "bar", "letter"])
@pytest.mark.parametrize("look", ["gray", "JPEG", "16 bits", "dark on bright", "colours", "alpha"])
def test_what_was_drawn_is_named_and_no_nucleus(what, look):
    image, labels = nuclei(120)
    drawn = draw(image, what, 255)
    outlined = ndimage.binary_dilation(drawn != image)  # as a network does it
    labels[outlined] = 17
    if look == "JPEG":
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, "JPEG", quality=90)
        drawn = np.asarray(Image.open(file))
    elif look == "16 bits":
        drawn = drawn.astype(np.uint16) * 16
    elif look == "dark on bright":
        drawn = 255 - drawn
    elif look in ("colours", "alpha"):
        drawn = draw(np.stack([image // 8, image // 4, image], -1), what, (255, 255, 0))
        drawn = drawn if look == "colours" else np.concatenate([drawn, np.full_like(drawn[..., :1], 255)], -1)
    assert artefact_cells(labels, drawn).tolist() == [17]


@pytest.mark.parametrize("peak", [30, 120, 400, 2000])
def test_nuclei_are_not_drawn_however_bright(peak):
    image, labels = nuclei(peak)
    assert not len(artefact_cells(labels, image)) and not len(artefact_cells(labels, 255 - image))


@pytest.mark.parametrize("photons", [None, 10])
@pytest.mark.parametrize("peak", [30, 120, 2000])
def test_nuclei_are_brighter_than_what_is_around_them(peak, photons):
    image, labels = nuclei(peak)
    if photons is not None:
        image = np.random.default_rng(1).poisson(image * (photons / image.max()))
    assert not len(dark_cells(labels, image)) and not len(dark_cells(labels, np.dstack([0 * image, image])))
    assert dark_cells(labels, image.max() - image).tolist() == list(range(1, 17))


def membranes() -> tuple[np.ndarray, np.ndarray]:
    """Bright membranes on a dark ground, (128, 128) uint8, and what lies between them, by numbers."""
    _, labels = nuclei(120)
    light = 150.0 * (ndimage.grey_dilation(labels, 5) * (labels == 0) > 0)
    light = ndimage.gaussian_filter(light, 1) + np.random.default_rng(0).normal(15, 3, labels.shape)
    return light.clip(0, 255).astype(np.uint8), labels


@pytest.mark.parametrize(("of_membranes", "said"), [(16, True), (8, False)])
def test_the_doubt_about_membranes(of_membranes, said):
    (image, labels), (shining, _) = membranes(), nuclei(120)
    if of_membranes < 16:
        image = np.concatenate([image[:64], shining[64:]])
    table, dark = object_table(labels, image, np.ones(16)), dark_cells(labels, image)
    assert dark.tolist() == list(range(1, of_membranes + 1))
    words = "100% of the cells are darker than what is around them, on a dark ground, as what lies between membranes is"
    assert find_doubts(image, table, of_cells=True, dark=dark) == [f"{words}; look at the outlines"] * said
    assert words not in " ".join(find_doubts(255 - shining, table, of_cells=True, dark=dark)), "on a bright ground"


def test_flat_images_and_no_cells():
    image, labels = nuclei(120)
    assert not len(dark_cells(labels, np.full_like(image, 255))) and not len(dark_cells(0 * labels, image))
    assert not len(artefact_cells(labels, np.full_like(image, 255))) and not len(artefact_cells(0 * labels, image))


def test_the_doubt_says_where():
    image, labels = nuclei(120)
    labels[30:38, 30:38] = 17
    drawn = draw(image, "speck", 255)
    table = object_table(labels, drawn, np.ones(17))
    (doubt,) = find_doubts(drawn, table, of_cells=True, artefacts=artefact_cells(labels, drawn))
    assert doubt.startswith("cells at row and column (34, 34) have one value and sharp edges")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"DSB-2018 is not here: no {SHARED}")
def test_no_true_nucleus_of_small_training_images_was_drawn_and_few_are_dark():
    with (SHARED / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train" and int(row["width"]) <= 320]
    for row in rows[:60]:
        image, labels = (np.asarray(Image.open(SHARED / kind / f"{row['name']}.png")) for kind in ("images", "labels"))
        assert not len(artefact_cells(labels.astype(np.int32), image)), row["name"]
        if row["group"] == "gray_dark":
            assert len(dark_cells(labels.astype(np.int32), image)) <= 0.06 * labels.max(), row["name"]
