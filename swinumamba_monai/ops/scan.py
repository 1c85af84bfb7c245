# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The scans that the networks call: of a sequence, of a map in four directions, and of a map with its projection.

Each is handed to the backend that it is given, by name or as a record of :mod:`.backends`. What is said here of shapes
holds for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import Backend, find_backend, log_backend_once
from .reference import scan_orders


def _find(backend: str | Backend, x: Tensor, d_state: int) -> Backend:
    """As :func:`.backends.find_backend`, but what was asked for by name is named in the log."""
    found = find_backend(backend, x, d_state)
    if isinstance(backend, str):
        log_backend_once(backend, x.device.type, x.dtype, d_state)
    return found


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str | Backend = "auto",
) -> Tensor:
    """Selective scan of a sequence, the S6 operator of Mamba; equations in :mod:`.reference`.

    The state is float64 when ``u``, ``delta`` or ``A`` is, else float32; the result has the dtype of ``u``.
    Differentiable once.

    Args:
        u: input sequence, (b, d, l).
        delta: step sizes, (b, d, l).
        A: state matrix, (d, n).
        B: input matrix, (b, g, n, l) or (b, n, l).
        C: output matrix, shaped like ``B``.
        D: skip weight, (d,).
        delta_bias: offset of ``delta``, (d,).
        delta_softplus: whether ``delta`` passes through softplus.
        backend: record, or one of :data:`.backends.BACKENDS`.

    Returns:
        output sequence, (b, d, l).

    Raises:
        ValueError: shapes that do not fit each other, or an unknown backend.
        RuntimeError: a backend that cannot run on these tensors.

    >>> x = torch.zeros(2, 6, 9)  # two sequences of nine positions with six channels, and three states a channel
    >>> selective_scan(x, x, -torch.ones(6, 3), torch.ones(2, 3, 9), torch.ones(2, 3, 9)).shape
    torch.Size([2, 6, 9])
    """
    B, C = (t.unsqueeze(1) if t.ndim == 3 else t for t in (B, C))
    _check_sequence_shapes(u, delta, A, B, C, D, delta_bias)
    groups = B.shape[1]
    zeros = A.new_zeros(A.shape[0])
    y = _find(backend, u, A.shape[1]).scan(
        *(t.unflatten(1, (groups, -1)).permute(0, 3, 1, 2) for t in (u, delta)),
        A.unflatten(0, (groups, -1)),
        *(t.permute(0, 3, 1, 2) for t in (B, C)),
        *((zeros if t is None else t).unflatten(0, (groups, -1)) for t in (D, delta_bias)),
        delta_softplus,
    )
    return y.flatten(2).transpose(1, 2)


def cross_scan_2d(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    *,
    backend: str | Backend = "auto",
) -> Tensor:
    """Scan a map along rows, columns and both reversed, and sum the four outputs (SS2D, eqs. (5)-(7) of the paper).

    Everything is given in pixel order: where a direction goes next is the backend's business. The dtype rules are
    those of :func:`selective_scan`.

    Args:
        x: feature map, (b, h, w, d), channels last.
        delta: step sizes Δ before bias and softplus of each direction, (b, h, w, 4, d).
        A: state matrices, (4, d, n).
        B: input matrices, (b, h, w, 4, n).
        C: output matrices, (b, h, w, 4, n).
        D: skip weights, (4, d).
        delta_bias: offsets of ``delta``, (4, d).
        backend: record, or one of :data:`.backends.BACKENDS`.

    Returns:
        merged map, (b, h, w, d).

    Raises:
        RuntimeError: a backend that cannot run on these tensors.
    """
    found = _find(backend, x, A.shape[2])
    if found.map_scan is not None:
        return found.map_scan(x, delta, A, B, C, D, delta_bias)
    height, width = x.shape[1:3]
    visits = _interleave(scan_orders(height, width, x.device))
    returns = _interleave(scan_orders(width, height, x.device))  # visiting the transposed map undoes the visit

    def along_directions(t: Tensor) -> Tensor:  # (b, h, w, 4, ...) -> (b, l, 4, ...)
        return t.flatten(1, 3).index_select(1, visits).unflatten(1, (-1, 4))

    u = x.unsqueeze(3).expand(-1, -1, -1, 4, -1)
    y = found.scan(*map(along_directions, (u, delta)), A, *map(along_directions, (B, C)), D, delta_bias, True)
    return y.flatten(1, 2).index_select(1, returns).unflatten(1, (height, width, 4)).sum(3)


def projected_scan_2d(
    x: Tensor,
    projected: Tensor,
    delta_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    *,
    backend: str | Backend = "auto",
) -> Tensor:
    """:func:`cross_scan_2d` of what one projection of the map makes: Δ as a low rank, B and C of each direction.

    Args:
        projected: r numbers for Δ, then B, then C, (b, h, w, 4, r + 2n).
        delta_weight: weight that makes Δ before bias and softplus from the r numbers, (4, d, r).
        x, A, D, delta_bias, backend: see :func:`cross_scan_2d`.
    """
    found = _find(backend, x, A.shape[2])
    if found.projected_scan is not None:
        return found.projected_scan(x, projected, delta_weight, A, D, delta_bias)
    low_rank, B, C = projected.split([delta_weight.shape[-1], A.shape[-1], A.shape[-1]], dim=-1)
    delta = torch.einsum("bhwkr,kdr->bhwkd", low_rank, delta_weight)
    return cross_scan_2d(x, delta, A, B, C, D, delta_bias, backend=found)


def _interleave(orders: Tensor) -> Tensor:
    """The four directions' orders, (4, l), as one gather over (l * 4): step p of direction k is entry 4p + k."""
    return (4 * orders + torch.arange(4, device=orders.device)[:, None]).t().flatten()


def _check_sequence_shapes(u, delta, A, B, C, D, delta_bias) -> None:
    if u.ndim != 3 or delta.shape != u.shape or u.shape[-1] == 0:
        raise ValueError(f"u and delta must both be (b, d, l), l > 0, got {tuple(u.shape)} and {tuple(delta.shape)}.")
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f"A must be ({channels}, n), got {tuple(A.shape)}.")
    if B.ndim != 4 or C.shape != B.shape or (B.shape[0], *B.shape[2:]) != (batch, A.shape[1], length):
        expected = f"({batch}, g, {A.shape[1]}, {length})"
        raise ValueError(f"B and C must both be {expected}, got {tuple(B.shape)} and {tuple(C.shape)}.")
    if channels % B.shape[1]:
        raise ValueError(f"the {channels} channels of u must be a multiple of the {B.shape[1]} groups of B and C.")
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        if t is not None and t.shape != (channels,):
            raise ValueError(f"{name} must be ({channels},), got {tuple(t.shape)}.")
