# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The MLP of a block, which keeps nothing but its input for its backward.

What lies between its layers is four times as large as the block's map, and there before and after GELU. To compute it
again takes one matrix product and one pass over memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import to_autocast_dtype, without_autocast
from .autograd import direct_function


@without_autocast
def _forward(x, weight1, bias1, weight2, bias2):
    weight1, bias1, weight2, bias2 = (t.to(x.dtype) for t in (weight1, bias1, weight2, bias2))
    return (F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2),)


@without_autocast
def _backward(dy, x, *parameters):
    weight1, bias1, weight2, _ = (t.to(x.dtype) for t in parameters)
    rows, dy = x.flatten(0, -2), dy.flatten(0, -2)
    hidden = F.linear(rows, weight1, bias1)
    dweight2 = dy.t() @ F.gelu(hidden)
    dhidden = torch.ops.aten.gelu_backward(dy @ weight2, hidden)
    gradients = (dhidden.t() @ rows, dhidden.sum(0), dweight2, dy.sum(0))
    return (dhidden @ weight1).view(x.shape), *(grad.to(t.dtype) for grad, t in zip(gradients, parameters))


_lean = direct_function(_forward, _backward, num_options=0)


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """``linear(gelu(linear(x)))``. Differentiable once; under autocast in its dtype.

    Args:
        x: (..., c).
        weight1: (m, c).
        bias1: (m,).
        weight2: (d, m).
        bias2: (d,).

    Returns:
        (..., d).
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # they see to the memory themselves
    if recorded or not torch.is_grad_enabled():
        return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    return _lean(to_autocast_dtype(x), weight1, bias1, weight2, bias2)
