# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Instance norm with what follows it in a residual block, in torch's operators."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def instance_norm(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    slope: float | None = None,
) -> Tensor:
    """``leaky_relu(instance_norm(x) + residual)``.

    Args:
        x: map (b, c, ...) of more than one pixel.
        residual: map like x that is added to the normed one; None for none.
        weight: factor of each channel, (c,); None for 1.
        bias: what is added to each channel, (c,); None for 0.
        eps: number added to the variance.
        slope: slope of LeakyReLU below zero; None for no LeakyReLU.

    Returns:
        map like x.

    >>> instance_norm(torch.tensor([[[1.0, 3.0]]]), slope=0.5)
    tensor([[[-0.5000,  1.0000]]])
    """
    y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    if residual is not None:
        y += residual
    return y if slope is None else F.leaky_relu(y, slope, inplace=True)
