# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Sliding windows that are no larger than the image."""

from __future__ import annotations

import copy
from collections.abc import Callable

from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep
from torch import Tensor


class FittingWindowInferer(SlidingWindowInferer):
    """MONAI's ``SlidingWindowInferer``, which pads an image to the size of a window, without that padding.

    The networks here take images of any size: a small one is seen as it is, in less time, and with nothing around it.

    Args:
        fit: whether windows shrink to the image; False is MONAI's own inferer.
        options: arguments of MONAI's inferer.
    """

    def __init__(self, *args: object, fit: bool = True, **options: object) -> None:
        super().__init__(*args, **options)
        self.fit = fit

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """As MONAI's, for images (b, c, h, w) and a network that maps windows to outputs of their size."""
        if not self.fit:
            return super().__call__(inputs, network, *args, **kwargs)
        fitting = copy.copy(self)
        fitting.fit = False
        sides = inputs.shape[2:]
        fitting.roi_size = tuple(map(min, ensure_tuple_rep(self.roi_size, len(sides)), sides))
        return fitting(inputs, network, *args, **kwargs)
