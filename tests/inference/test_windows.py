# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from swinumamba_monai.inference import FittingWindowInferer


@pytest.mark.parametrize("shape", [(40, 30), (64, 64), (100, 50), (130, 90)])
def test_windows_shrink_to_the_image_and_no_further(shape: tuple[int, int]):
    seen = []

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(window.shape[2:]))
        return window * 2

    image = torch.rand(1, 3, *shape)
    result = FittingWindowInferer(roi_size=64, sw_batch_size=1, overlap=0.5, mode="gaussian")(image, network)
    torch.testing.assert_close(result, image * 2)
    assert set(seen) == {tuple(min(64, side) for side in shape)}


def test_without_fitting_it_is_monais():
    image, seen = torch.rand(1, 1, 40, 70), []

    def network(window: torch.Tensor) -> torch.Tensor:
        seen.append(window.clone())
        return window

    FittingWindowInferer(roi_size=(64, 64), fit=False)(image, network)
    count = len(seen)
    SlidingWindowInferer(roi_size=(64, 64))(image, network)
    assert len(seen) == 2 * count and all(map(torch.equal, seen[:count], seen[count:]))
