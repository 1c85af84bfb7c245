# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""LayerNorm that stays in half precision under autocast, with float32 statistics.

``F.layer_norm`` under autocast reads and writes float32, several times the bytes that it needs to. The operator
``swinumamba::layer_norm`` does it in the dtype that autocast gives to matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swinumamba_monai.ops.autocast import to_autocast_dtype
from swinumamba_monai.ops.autograd import direct_function, register_backward

from . import fused
from .nvrtc import on_its_device


def layer_norm_cuda(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis; x (..., d), weight and bias (d,)."""
    x = to_autocast_dtype(x)
    arguments = (x.reshape(-1, x.shape[-1]).contiguous(), weight, bias, eps)
    y = _forward_op(*arguments)[0] if torch.compiler.is_compiling() else _direct(*arguments)
    return y.view(x.shape)


@on_its_device
def _forward(x, weight, bias, eps):
    return fused.layer_norm(x, None, weight.float(), bias.float(), eps)


@on_its_device
def _backward(dy, statistics, x, weight):
    scale = weight.float()
    gradients = fused.layer_norm_backward(dy.contiguous(), statistics, x, None, scale, scale)
    return gradients.x, gradients.parameters.to(weight.dtype)


_forward_op = torch.library.custom_op(
    "swinumamba::layer_norm",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "swinumamba::layer_norm_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor dy, Tensor statistics, Tensor x, Tensor weight) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _(x, weight, bias, eps):
    return torch.empty_like(x), x.new_empty(x.shape[0], 2, dtype=torch.float32)  # len() would fix the size


@_backward_op.register_fake
def _(dy, statistics, x, weight):
    return torch.empty_like(x), weight.new_empty(2, len(weight))


def _differentiate(backward):
    def gradients(dy, statistics, x, weight, bias, eps):
        dx, dparameters = backward(dy, statistics, x, weight)
        return dx, *dparameters

    return gradients


register_backward(_forward_op, _differentiate(_backward_op), num_options=1)
_direct = direct_function(_forward, _differentiate(_backward), num_options=1)
