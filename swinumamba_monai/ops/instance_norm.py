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
    residual_norm: tuple[Tensor | None, Tensor | None] | None = None,
) -> Tensor:
    """``leaky_relu(instance_norm(x) + residual)``, or ``leaky_relu(instance_norm(x) + instance_norm(residual))``.

    Args:
        x: map (b, c, ...) of more than one pixel.
        residual: map like x that is added to the normed one; None for none.
        weight: factor of each channel, (c,); None for 1.
        bias: what is added to each channel, (c,); None for 0.
        eps: number added to the variance.
        slope: slope of LeakyReLU below zero; None for no LeakyReLU.
        residual_norm: weight and bias of an instance norm, of the same eps, that the residual goes through first; None
            for none.

    Returns:
        map like x.

    >>> instance_norm(torch.tensor([[[1.0, 3.0]]]), slope=0.5)
    tensor([[[-0.5000,  1.0000]]])
    """
    y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    if residual_norm is not None:
        y += F.instance_norm(residual, weight=residual_norm[0], bias=residual_norm[1], eps=eps)
    elif residual is not None:
        y += residual
    return y if slope is None else F.leaky_relu(y, slope, inplace=True)
