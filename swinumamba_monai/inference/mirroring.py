# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Test-time mirroring: every window is seen in all its mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple
from torch import Tensor

from swinumamba_monai.errors import InputError, listed


class MirrorInferer(Inferer):
    """Mean of the logits over the mirror images of what another inferer gives the network (nnU-Net's way).

    Args:
        inferer: inferer that cuts an image into windows (b, c, h, w) and puts their logits together.
        mirror_axes: axis or axes to mirror, 0 for top and bottom, 1 for left and right. Both make four passes,
            none makes one, and this is ``inferer`` itself.
        vector_channels: the two channels, if there are any, that are the parts of a direction along rows and along
            columns: their signs change where the image is mirrored along that axis.

    Raises:
        InputError: there are other axes.

    >>> from monai.inferers import SimpleInferer
    >>> MirrorInferer(SimpleInferer(), mirror_axes=[1])(torch.arange(4.0).reshape(1, 1, 1, 4), lambda x: x.cumsum(-1))
    tensor([[[[3.0000, 3.5000, 4.0000, 4.5000]]]])
    """

    def __init__(
        self, inferer: Inferer, mirror_axes: Sequence[int] | int = (), vector_channels: Sequence[int] = ()
    ) -> None:
        mirror_axes = ensure_tuple(mirror_axes)
        if not set(mirror_axes) <= {0, 1}:
            raise InputError(
                f"mirror_axes can hold 0 (top and bottom) and 1 (left and right), not {listed(mirror_axes)}."
            )
        self.inferer = inferer
        axes = [axis + 2 for axis in sorted(set(mirror_axes))]
        self.vector_channels = tuple(vector_channels)
        self.flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """Logits of images (b, c, ...), as ``inferer`` gives them; ``network`` maps windows to logits."""

        def mean(window: Tensor, *args: object, **kwargs: object) -> Tensor:
            total = network(window, *args, **kwargs)
            for flip in self.flips[1:]:
                seen = torch.flip(network(torch.flip(window, flip), *args, **kwargs), flip)
                for axis, channel in enumerate(self.vector_channels, start=2):
                    if axis in flip:
                        seen[:, channel] *= -1
                total = total + seen
            return total / len(self.flips)

        return self.inferer(inputs, mean, *args, **kwargs)
