# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan as the papers write it: one position after another, in any precision. The truth for every backend.

Symbols (Mamba, arXiv 2312.00752, section 3; equations (2)-(4) of the Swin-UMamba paper)::

    b       batch                        u      input                        (b, d, l)
    d       channels                     delta  step size, Δ                 (b, d, l)
    l       sequence length              A      state matrix, negative       (d, n)
    n       states of a channel          B, C   input and output matrices    (b, g, n, l) or (b, n, l)
    g       groups of d/g channels       D      skip weight, the paper's λ   (d,)
            that share B and C           h      state, h = 0 before the first position

    Δ_t = softplus(delta_t + delta_bias)                 where delta_softplus is asked for
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t               eq. (2), B discretised by eq. (4)
    y_t = C_t · h_t + D u_t
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def state_dtype(u: Tensor, delta: Tensor, A: Tensor) -> torch.dtype:
    """The precision every backend computes and keeps the state in: float64 when one of these is, else float32.

    Args:
        u: inputs of the scan.
        delta: step sizes of the scan.
        A: state matrices of the scan.
    """
    return torch.float64 if torch.float64 in (u.dtype, delta.dtype, A.dtype) else torch.float32


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Selective scan, a literal transcription of the equations above.

    Computes in :func:`state_dtype`, and returns the dtype of ``u``.

    Args:
        u: input sequence, (b, d, l).
        delta: step sizes, (b, d, l).
        A: state matrix, (d, n).
        B: input matrix, (b, g, n, l) or (b, n, l).
        C: output matrix, shaped like ``B``.
        D: skip weight, (d,).
        delta_bias: added to ``delta``, (d,).
        delta_softplus: whether ``delta`` passes through softplus.

    Returns:
        output sequence, (b, d, l).
    """
    out_dtype = u.dtype
    dtype = state_dtype(u, delta, A)
    u, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    if B.ndim == 3:
        B, C = B[:, None], C[:, None]
    batch, channels, length = u.shape
    channels_per_group = channels // B.shape[1]
    B, C = (t.repeat_interleave(channels_per_group, dim=1) for t in (B, C))  # (b, d, n, l)

    h = u.new_zeros(batch, channels, A.shape[1])
    ys = []
    for t in range(length):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        ys.append((C[..., t] * h).sum(-1))
    y = torch.stack(ys, dim=-1)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    return y.to(out_dtype)


def scan_orders(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """The pixels in the order in which each of the four directions visits them.

    Args:
        height: rows of the map.
        width: columns of the map.
        device: device of the table.

    Returns:
        int64, (4, height * width), indices into the row-major map: along the rows, the columns, and both reversed.
    """
    rows = torch.arange(height * width, device=device)
    columns = rows.view(height, width).t().reshape(-1)
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


def cross_scan_2d_ref(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """Four-direction scan of a 2D map (SS2D, eqs. (5)-(7)); the shapes are those of :func:`.scan.cross_scan_2d`.

    Args:
        x: feature map, (b, h, w, d), channels last.
        delta: step sizes Δ before bias and softplus of each direction, (b, h, w, 4, d).
        A: state matrices, (4, d, n).
        B: input matrices, (b, h, w, 4, n).
        C: output matrices, (b, h, w, 4, n).
        D: skip weights, (4, d).
        delta_bias: offsets of ``delta``, (4, d).
    """
    batch, height, width, channels = x.shape
    merged = torch.zeros_like(x).flatten(1, 2)
    for k, order in enumerate(scan_orders(height, width, x.device)):
        sequence = [
            t.flatten(1, 2)[:, order].transpose(1, 2) for t in (x, delta[..., k, :], B[..., k, :], C[..., k, :])
        ]
        u, step, b, c = sequence
        y = selective_scan_ref(u, step, A[k], b, c, D[k], delta_bias=delta_bias[k], delta_softplus=True)
        merged = merged.index_add(1, order, y.transpose(1, 2))
    return merged.view(batch, height, width, channels)
