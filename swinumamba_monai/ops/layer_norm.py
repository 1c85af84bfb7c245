# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""LayerNorm that stays in half precision under autocast, with float32 statistics.

``F.layer_norm`` under autocast reads and writes float32, several times the bytes that it needs to. Where the backend is
``cuda``, the operator ``swinumamba::layer_norm`` does it in the dtype that autocast gives to matrix products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cuda_fused
from .dispatch import choose_backend
from .nvrtc import on_its_device
from .portable import to_autocast_dtype

__all__ = ["layer_norm"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last axis.

    Args:
        x: (..., d).
        weight: (d,).
        bias: (d,).
        eps: added to the variance.

    Returns:
        (..., d).
    """
    if choose_backend("auto", x.device.type, x.dtype) != "cuda":
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    x = to_autocast_dtype(x)
    arguments = (x.reshape(-1, x.shape[-1]).contiguous(), weight, bias, eps)
    y = _forward_op(*arguments)[0] if torch.compiler.is_compiling() else _LayerNorm.apply(*arguments)
    return y.view(x.shape)


@on_its_device
def _forward(x, weight, bias, eps):
    return cuda_fused.layer_norm(x, None, weight.float(), bias.float(), eps)


@on_its_device
def _backward(dy, statistics, x, weight):
    scale = weight.float()
    dx, _, _, dparameters = cuda_fused.layer_norm_backward(dy.contiguous(), statistics, x, None, scale, scale)
    return dx, dparameters.to(weight.dtype)


class _LayerNorm(torch.autograd.Function):
    """The operator without its registration, which takes as long as several launches."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, statistics = _forward(x, weight, bias, eps)
        ctx.save_for_backward(statistics, x, weight)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        dx, dparameters = _backward(dy, *ctx.saved_tensors)
        return dx, *dparameters, None


# The same as operators, for torch.compile and the exporters.

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


def _save_for_backward(ctx, inputs, output):
    x, weight, _, _ = inputs
    ctx.save_for_backward(output[1], x, weight)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, dy, _):
    dx, dparameters = _backward_op(dy, *ctx.saved_tensors)
    return dx, *dparameters, None


_forward_op.register_autograd(_autograd, setup_context=_save_for_backward)
