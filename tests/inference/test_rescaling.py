# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Images whose cells have a size that the network does not know are resized before it, and its output after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import AtImageSized, RescalingInferer, rescaling
from swinumamba_monai.inference.rescaling import diameter_of
from swinumamba_monai.instances import FlowsToInstancesd, find_cells, flow_targets
from swinumamba_monai.instances.whole_cells import resize_cells


def discs(diameter: float, side: int, apart: int) -> np.ndarray:
    """Instance map (side, side) with discs in rows and columns."""
    ids = np.zeros((side, side), np.int32)
    rows, columns = np.mgrid[:side, :side]
    places = range(apart // 2, side - apart // 4, apart)
    for number, (y, x) in enumerate(((y, x) for y in places for x in places), start=1):
        ids[(rows - y) ** 2 + (columns - x) ** 2 <= (diameter / 2) ** 2] = number
    return ids


class Picky:
    """A perfect network that finds nothing unless the cells are 9 to 64 pixels wide; it remembers what it saw."""

    def __init__(self, ids: np.ndarray, diameter: float) -> None:
        self.ids, self.diameter, self.sizes = ids, diameter, []

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(image.shape[2:]))
        if not 9 <= self.diameter * image.shape[2] / self.ids.shape[0] <= 64:
            return torch.tensor([5.0, -5, 0, 0])[None, :, None, None].expand(1, 4, *image.shape[2:])
        ids = F.interpolate(torch.from_numpy(self.ids)[None, None].float(), image.shape[2:], mode="nearest-exact")
        target = torch.from_numpy(flow_targets(ids[0, 0].numpy().astype(np.int32)))
        return torch.cat([10 - target[:1] * 20, torch.zeros_like(target[:1]), target[1:]])[None]


@pytest.mark.parametrize("diameter, side, apart", [(120, 600, 150), (6, 120, 12), (20, 200, 40)])
@pytest.mark.parametrize("given", ["auto", "pixels"])
def test_cells_of_any_size_are_found(diameter: float, side: int, apart: int, given: str):
    ids = discs(diameter, side, apart)
    network = Picky(ids, diameter)
    infer = RescalingInferer(SimpleInferer(), "auto" if given == "auto" else diameter)
    found, _ = find_cells(infer(torch.rand(1, 3, side, side), network)[0])
    assert found.shape == ids.shape
    # Small cells may lose half a pixel all around on the way; the others are there with their size.
    assert found.max() == ids.max()
    assert diameter_of(np.bincount(found.ravel())[1:]) == pytest.approx(diameter, rel=0.2)


def test_without_a_diameter_nothing_is_resized():
    network = Picky(discs(6, 120, 12), 6)
    RescalingInferer(SimpleInferer())(torch.zeros(1, 3, 120, 120), network)
    assert network.sizes == [(120, 120)]


def test_small_cells_are_found_where_they_are_larger():
    """The output stays as large as the network saw the image; cells and maps are brought back after."""
    ids = discs(6, 120, 9)
    infer = RescalingInferer(SimpleInferer(), "auto", keep_larger=True)
    image = torch.rand(3, 120, 120)
    output = infer(image[None], Picky(ids, 6))[0]
    assert output.shape[1] > 240
    maps = AtImageSized(["pred", "entropy"], allow_missing_keys=True)({"pred": output, "image": image})
    assert maps["pred"].shape == (4, 120, 120)
    found = FlowsToInstancesd("pred", scores_key="scores", image_key="image")({"pred": output, "image": image})
    labels = found["pred"][0].numpy()
    assert labels.shape == ids.shape and labels.max() == ids.max() == len(found["scores"])
    assert ((labels > 0) == (ids > 0)).mean() > 0.95


@pytest.mark.parametrize("fitting, side", [(300, 300), (100, 120)])
def test_memory_limits_how_large_an_image_is_made(monkeypatch, caplog, fitting: int, side: int):
    """An image with room for so many pixels on a side, and one with less room than it has."""
    monkeypatch.setattr(rescaling, "free_memory", lambda: rescaling.A_PIXEL * fitting**2)
    network = Picky(discs(6, 120, 9), 6)
    RescalingInferer(SimpleInferer(), "auto", keep_larger=True)(torch.rand(1, 3, 120, 120), network)
    # as it is, in a third, a part of it in three times, and, if there is room, in the size of the cells
    assert network.sizes == [(120, 120), (40, 40), (360, 360)] + [(side, side)] * (side > 120)
    assert "memory is too short" in caplog.text


def test_another_size_counts_only_if_more_is_found():
    """Discs of five pixels that the network knows, and that are not found in a larger image."""

    class Small(Picky):
        def __call__(self, image):
            if image.shape[2] > 120:
                self.diameter = 1000
            return super().__call__(image)

    ids = discs(5, 120, 12)
    network = Small(ids, 20)
    infer = RescalingInferer(SimpleInferer(), "auto", keep_larger=True)
    assert infer(torch.rand(1, 3, 120, 120), network).shape[2:] == (120, 120)
    assert len(network.sizes) == 2


def test_resize_cells():
    """The second cell lies between pixels; of the third two pieces are left, and the larger stays."""
    ids = np.zeros((9, 12), np.int32)
    ids[:6, :3] = 1
    ids[0, 5] = 2
    ids[6:, :6], ids[6:, 9:] = 3, 3
    resized, scores = resize_cells(ids, np.array([0.5, 0.6, 0.7], np.float32), (3, 4))
    assert resized.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [2, 2, 0, 0]]
    assert scores.tolist() == np.array([0.5, 0.7], np.float32).tolist()


@pytest.mark.parametrize("diameter", [0, -3, float("nan"), "large", True])
def test_no_diameter(diameter: object):
    with pytest.raises(InputError, match="auto"):
        RescalingInferer(SimpleInferer(), diameter)
