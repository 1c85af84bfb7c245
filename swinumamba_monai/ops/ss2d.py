# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""2D selective scan with everything around it (SS2D), as one operator.

    x, gate = halves of in_proj(x)
    x       = silu(depthwise_conv(x))
    Δ, B, C = linear functions of x, for each of the four directions
    y       = cross_scan_2d(x, Δ, A, B, C, D)               eqs. (5)-(7) of the paper
    out     = out_proj(layer_norm(y) * silu(gate))

VMamba's final version has no gate: all of in_proj(x) is the map. :func:`ss2d_ref` is that, line for line. A backend may
have all of it as one operator of its own (:mod:`.cuda.ss2d`), and the layer norm that a block has before it inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import Backend, find_backend
from .scan import projected_scan_2d

DIRECTIONS = 4


def ss2d(
    x: Tensor,
    in_proj_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    out_proj_weight: Tensor,
    eps: float = 1e-5,
    *,
    gated: bool = True,
    pre_norm: tuple[Tensor, Tensor, float] | None = None,
    backend: str | Backend = "auto",
) -> Tensor:
    """SS2D, by the operator of the backend where it has one, and by :func:`ss2d_ref` elsewhere.

    Args:
        x: feature map, (b, h, w, m).
        in_proj_weight: projection to map and gate, (2d, m), or to the map alone, (d, m).
        conv_weight: kernels of the depthwise convolution, (d, 1, 3, 3).
        conv_bias: biases of the convolution, (d,), or None.
        x_proj_weight: projection to the low rank of Δ, B and C of each direction, (4, r + 2n, d).
        dt_weight: projection from the low rank to Δ, (4, d, r).
        dt_bias: offsets of Δ before softplus, (4, d).
        A_logs: logarithms of -A, (4 * d, n).
        Ds: skip weights, (4 * d,).
        norm_weight: gains of the norm, (d,).
        norm_bias: offsets of the norm, (d,); None for an RMS norm in place of the layer norm.
        out_proj_weight: projection back, (m, d).
        eps: number added to the norm's variance.
        gated: whether there is a gate.
        pre_norm: weight (m,), bias (m,) and eps of a layer norm that x goes through first; None for no such norm.
        backend: record, or one of :data:`.backends.BACKENDS`.

    Returns:
        map of the same shape; under autocast in its dtype.

    Raises:
        RuntimeError: a backend that cannot run on these tensors.
    """
    parameters = (
        in_proj_weight, conv_weight, conv_bias, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, norm_weight, norm_bias,
        out_proj_weight, eps,
    )  # fmt: skip
    found = find_backend(backend, x, A_logs.shape[1])
    if found.ss2d is not None and norm_bias is not None:
        return found.ss2d(x, *parameters, pre_norm)
    if pre_norm is not None:
        x = found.norm(x, *pre_norm)
    return ss2d_ref(x, *parameters, gated=gated, backend=found)


def ss2d_ref(
    x, in_proj_weight, conv_weight, conv_bias, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, norm_weight, norm_bias,
    out_proj_weight, eps=1e-5, *, gated=True, backend="auto",
) -> Tensor:  # fmt: skip
    """:func:`ss2d` without a norm before it, in torch operations around the scan and the norm that the backend has."""
    found = find_backend(backend, x, A_logs.shape[1])
    x, *gate = F.linear(x, in_proj_weight).chunk(2 if gated else 1, dim=-1)
    channels = x.shape[-1]
    x = F.silu(F.conv2d(x.permute(0, 3, 1, 2), conv_weight, conv_bias, padding=1, groups=channels)).permute(0, 2, 3, 1)
    projected = F.linear(x, x_proj_weight.flatten(0, 1)).unflatten(-1, (DIRECTIONS, -1))
    # VMamba's final version, which has no gate, takes A from float32 even where all else is float64
    A_logs = A_logs.to(torch.promote_types(A_logs.dtype, torch.float32) if gated else torch.float32)
    A, D = -A_logs.exp().unflatten(0, (DIRECTIONS, -1)), Ds.unflatten(0, (DIRECTIONS, -1))
    y = projected_scan_2d(x, projected, dt_weight, A, D, dt_bias, backend=found)
    if gate and norm_bias is not None:
        return F.linear(found.norm_gate(y, *gate, norm_weight, norm_bias, eps), out_proj_weight)
    if norm_bias is None:
        y = F.rms_norm(y, (channels,), norm_weight, eps)
    else:
        y = found.norm(y, norm_weight, norm_bias, eps)
    return F.linear(y * F.silu(*gate) if gate else y, out_proj_weight)
