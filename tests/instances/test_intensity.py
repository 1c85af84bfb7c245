# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from swinumamba_monai.data.sampling.intensity import Look, NormalizeLook, NormalizeLookd, has_one_hue, look_of
from swinumamba_monai.errors import InputError


@pytest.fixture(scope="module")
def gray(nuclei: np.ndarray) -> torch.Tensor:
    """A fluorescence image (1, H, W), 8 bits: dark ground, nuclei of different brightness, noise."""
    random = np.random.default_rng(0)
    bright = np.r_[0, random.uniform(60, 180, nuclei.max())][nuclei]
    return torch.from_numpy((15 + bright + random.normal(0, 3, nuclei.shape)).clip(0, 255).round()[None])


@pytest.fixture(scope="module")
def stain(nuclei: np.ndarray) -> torch.Tensor:
    """Purple nuclei on pink (3, H, W)."""
    random = np.random.default_rng(0)
    pink, purple = (np.array(colour)[:, None, None] for colour in ((235, 190, 215), (110, 70, 150)))
    return torch.from_numpy(np.where(nuclei > 0, purple, pink) + random.normal(0, 4, (3, *nuclei.shape)))


def only(gray: torch.Tensor, *channels: int) -> torch.Tensor:
    image = torch.zeros(3, *gray.shape[1:], dtype=gray.dtype)
    image[list(channels)] = gray
    return image


def test_gray_becomes_three_channels_of_one_scale(gray: torch.Tensor) -> None:
    result = NormalizeLook()(gray)
    assert result.shape == (3, *gray.shape[1:])
    assert result.dtype == torch.float32
    assert (result == result[:1]).all()
    assert np.percentile(result, 0.5) == pytest.approx(-1, abs=0.01)
    assert np.percentile(result, 99.8) == pytest.approx(1, abs=0.01)
    assert result.abs().max() <= 3


@pytest.mark.parametrize(
    "form",
    [
        lambda gray: torch.cat([gray] * 3),
        lambda gray: only(gray, 0),
        lambda gray: only(gray, 2),
        lambda gray: only(gray, 0, 2),
        lambda gray: only(gray, 1)[:2],
        lambda gray: (gray * 16).to(torch.int32),
        lambda gray: gray * 0.2,
        lambda gray: gray / 255,
        lambda gray: gray + 1000,
        lambda gray: gray - 4000,
    ],
    ids=["rgb", "red", "blue", "magenta", "two channels", "12 bits", "dim", "0 to 1", "raised", "negative"],
)
def test_another_form_of_a_gray_image_looks_the_same(form, gray: torch.Tensor) -> None:
    torch.testing.assert_close(NormalizeLook()(form(gray)), NormalizeLook()(gray), atol=2e-3, rtol=0)


def test_hot_pixels_and_a_speck_change_little(gray: torch.Tensor) -> None:
    plain = NormalizeLook()(gray)
    spoilt = gray.clone() * 16
    spoilt[0, 40:48, 50:58] = 65535
    places = np.random.default_rng(1).integers(0, gray.shape[1], (12, 2))
    spoilt[0, places[:, 0], places[:, 1]] = 65535
    result = NormalizeLook()(spoilt)
    changed = (result - plain).abs() > 0.1
    assert changed.float().mean() < 0.002
    assert result.max() == 3


@pytest.mark.parametrize("margin", [150, 300])
def test_a_black_margin_larger_than_the_tissue_leaves_it_a_stain(margin: int, stain: torch.Tensor) -> None:
    framed = torch.nn.functional.pad(stain, (margin,) * 4)
    assert framed[0].numel() > 2 * stain[0].numel() and look_of(framed) is Look.BRIGHT


@pytest.mark.parametrize("offset", [0, 5, 40, 90])
@pytest.mark.parametrize("ground", [0, 15])
def test_colours_on_black_or_on_an_offset_are_no_stain(offset: int, ground: int, gray: torch.Tensor) -> None:
    """A program may have made the ground black, and a camera may have added a number."""
    clear = (gray - 30).clamp_min(0) + ground
    colours = torch.cat([clear, clear.flip(1) / 2, torch.zeros_like(clear)]) + offset
    assert look_of(colours) is Look.DARK


def test_a_stain_keeps_its_colours(stain: torch.Tensor, nuclei: np.ndarray) -> None:
    assert look_of(stain) is Look.BRIGHT
    result = NormalizeLook()(stain)
    assert (result[:, nuclei > 0].mean(1) < 0).all()
    assert (result[:, nuclei == 0].mean(1) > 0.5).all()
    assert not torch.allclose(result[0], result[1], atol=0.01)


def test_a_lamp_of_another_colour_changes_little(stain: torch.Tensor) -> None:
    lamp = torch.tensor([1.0, 0.85, 0.7])[:, None, None]
    torch.testing.assert_close(NormalizeLook()(stain * lamp), NormalizeLook()(stain), atol=0.01, rtol=0)


def test_two_stains_on_dark_are_the_brightest_of_both(gray: torch.Tensor) -> None:
    image = only(gray, 2)
    image[0] = gray[0].flip(0)
    assert look_of(image) is Look.DARK
    result = NormalizeLook()(image)
    expected = torch.maximum(NormalizeLook()(gray), NormalizeLook()(gray.flip(1)))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("hue", [(0, 1, 1), (1, 0.6, 0), (0.25, 0.5, 1), (0, 0.17, 1), (1, 1, 1)])
@pytest.mark.parametrize("quality", [None, 60])
def test_false_colours_are_one_hue(gray: torch.Tensor, hue: tuple[float, ...], quality: int | None) -> None:
    picture = (gray[0, ..., None] * torch.tensor(hue)).numpy().astype(np.uint8)
    if quality is not None:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        picture = np.asarray(Image.open(file))
    assert has_one_hue(torch.from_numpy(np.moveaxis(picture, -1, 0).astype(np.float32)))


@pytest.mark.parametrize("weaker", [1, 0.25])
def test_other_cells_in_another_channel_are_not_one_hue(gray: torch.Tensor, weaker: float) -> None:
    image = only(gray, 2)
    image[0] = weaker * gray[0].flip(0)
    assert not has_one_hue(image) and has_one_hue(gray)


def test_noise_of_an_empty_channel_stays_small(gray: torch.Tensor) -> None:
    image = only(gray, 1)
    image[0] = torch.from_numpy(np.random.default_rng(0).normal(5, 1, gray.shape[1:]))
    difference = NormalizeLook()(image) - NormalizeLook()(gray)
    assert difference.abs().mean() < 0.05


@pytest.mark.parametrize("value", [0, 7, float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 5, 4), (2, 5, 4), (3, 5, 4)])
def test_an_image_of_one_value(value: float, shape: tuple[int, int, int]) -> None:
    result = NormalizeLook()(torch.full(shape, value))
    assert result.shape == (3, *shape[1:])
    assert (result == -1).all()


def test_few_bright_pixels_are_all_there_is() -> None:
    image = torch.zeros(1, 100, 100)
    image[0, 50, 50:53] = 200
    assert (NormalizeLook()(image)[:, 50, 50:53] == 1).all()


def test_values_that_are_not_finite(gray: torch.Tensor) -> None:
    spoilt = gray.clone()
    spoilt[0, 3, 4:6] = torch.tensor([float("nan"), float("inf")])
    result = NormalizeLook()(spoilt)
    assert result.isfinite().all()
    torch.testing.assert_close(result[:, 10:], NormalizeLook()(gray)[:, 10:], atol=0.01, rtol=0)


@pytest.mark.parametrize("arguments", [{"lower": -1}, {"lower": 50, "upper": 50}, {"upper": 101}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(InputError):
        NormalizeLook(**arguments)


@pytest.mark.parametrize("image", [torch.zeros(4, 8, 8), torch.zeros(8, 8), torch.zeros(0, 8, 8)])
def test_bad_images(image: torch.Tensor) -> None:
    with pytest.raises(InputError):
        NormalizeLook()(image)


def test_dictionary_and_metadata(gray: torch.Tensor) -> None:
    image = MetaTensor(gray, meta={"filename_or_obj": "a.png"})
    result = Compose([NormalizeLookd("image")])({"image": image, "label": 1})
    assert result["label"] == 1
    assert result["image"].meta["filename_or_obj"] == "a.png"
    torch.testing.assert_close(result["image"].as_tensor(), NormalizeLook()(gray).as_tensor())
