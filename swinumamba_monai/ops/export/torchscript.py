# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan inside a ``torch.jit.trace``: a scripted function, whose loops a trace keeps as loops.

A custom operator would be one node too, but a TorchScript file with it loads only where this package is imported.
This one is plain TorchScript: it loads in any libtorch, and takes sequences of every length. Equations in
:mod:`swinumamba_monai.ops.reference`, shapes in :mod:`swinumamba_monai.ops.portable`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.ops.reference import state_dtype


# The annotations are comments, because the compiler cannot resolve those that this file's future import makes strings.
def _scan(u, delta, A, B, C):
    # type: (Tensor, Tensor, Tensor, Tensor, Tensor) -> Tensor
    """y (b, l, g, d) without the skip; Δ as it is used."""
    h = torch.zeros_like(A).expand(u.size(0), -1, -1, -1)
    size = 64  # positions whose decays exist at a time
    ys: list[Tensor] = []
    for start in range(0, u.size(1), size):
        delta_c = delta[:, start : start + size].unsqueeze(-1)
        u_c = u[:, start : start + size].unsqueeze(-1)
        decay = torch.exp(delta_c * A)
        added = delta_c * u_c * B[:, start : start + size].unsqueeze(-2)
        states: list[Tensor] = []
        for position in range(added.size(1)):
            h = decay[:, position] * h + added[:, position]
            states.append(h)
        ys.append(torch.matmul(torch.stack(states, dim=1), C[:, start : start + size].unsqueeze(-1)).squeeze(-1))
    return torch.cat(ys, dim=1)


@cache
def _scripted() -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which is what was asked for
        return torch.jit.script(_scan)


def selective_scan_torchscript(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    """Selective scan; shapes as in :mod:`swinumamba_monai.ops.portable`. Returns (b, l, g, d) in the dtype of ``u``."""
    dtype = state_dtype(u, delta, A)
    inputs = [t.to(dtype) for t in (u, delta, A, B, C)]
    inputs[1] = inputs[1] + delta_bias.to(dtype)
    if delta_softplus:
        inputs[1] = F.softplus(inputs[1])
    return (_scripted()(*inputs) + D.to(dtype) * inputs[0]).to(u.dtype)
