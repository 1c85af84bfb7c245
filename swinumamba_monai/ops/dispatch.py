# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The two scans that the networks call, and the one place where their backend is chosen.

==============  =====================================================  =============================
backend         what it is                                             runs on
==============  =====================================================  =============================
``cuda``        kernels compiled on first use (:mod:`.cuda_scan`)      NVIDIA GPUs from Ampere on, not float64
``numba``       loops compiled on first use (:mod:`.jit_cpu`)          CPUs, where Numba is installed
``portable``    torch operations by chunks (:mod:`.portable`)          every device and dtype
``mamba_ssm``   the CUDA kernel of that package (:mod:`.mamba`)        NVIDIA GPUs, not float64
``reference``   one position after another (:mod:`.reference`)         everywhere, slowly: for checks
==============  =====================================================  =============================

``auto`` takes the fastest that runs on the tensors at hand; while a network is exported, :func:`_export_backend` says
which. A call's ``backend`` argument decides; where that is
``auto``, the environment variable ``SWINUMAMBA_BACKEND`` does. A new kernel is a module beside these and a line in
each of the tables below.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .cuda_scan import cross_scan_2d_cuda, selective_scan_cuda, why_cuda_is_unavailable
from .jit_cpu import cross_scan_2d_jit, projected_scan_2d_jit, selective_scan_jit, why_jit_is_unavailable
from .jit_cpu_fused import norm_gate_jit
from .mamba import selective_scan_mamba, why_mamba_is_unavailable
from .portable import selective_scan_exported, selective_scan_portable
from .reference import cross_scan_2d_ref, scan_orders, selective_scan_ref
from .torchscript import selective_scan_torchscript

__all__ = [
    "BACKENDS",
    "check_backend_name",
    "choose_backend",
    "is_exporting",
    "cross_scan_2d",
    "fastest_backend",
    "norm_gate",
    "projected_scan_2d",
    "selective_scan",
    "why_unavailable",
]

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "cuda", "numba", "mamba_ssm", "portable", "reference")
ENVIRONMENT_VARIABLE = "SWINUMAMBA_BACKEND"

_GROUPED_SCANS = {
    "portable": selective_scan_portable,
    "numba": selective_scan_jit,
    "cuda": selective_scan_cuda,
    "mamba_ssm": selective_scan_mamba,
    "torchscript": selective_scan_torchscript,  # this and the next only by _export_backend
    "exported": selective_scan_exported,
}
_MAP_SCANS = {"reference": cross_scan_2d_ref, "numba": cross_scan_2d_jit, "cuda": cross_scan_2d_cuda}
_OBSTACLES = {
    "cuda": why_cuda_is_unavailable,
    "numba": why_jit_is_unavailable,
    "mamba_ssm": why_mamba_is_unavailable,
}
_FASTEST = {"cpu": "numba", "cuda": "cuda"}  # by device type; "portable" on all others


def check_backend_name(name: str, source: str = "backend") -> str:
    """Return ``name``; raises ``ValueError`` that lists the allowed ones when it is not one of :data:`BACKENDS`."""
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}.")
    return name


@cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)


def fastest_backend(device_type: str) -> str:
    """The backend that ``auto`` takes on a device where nothing is in its way."""
    return _FASTEST.get(device_type, "portable")


def why_unavailable(backend: str, device_type: str, dtype: torch.dtype, d_state: int = 1) -> str | None:
    """The reason why a backend cannot run on such tensors, or None if it can; see :func:`choose_backend`."""
    why = _OBSTACLES.get(backend)
    return why(device_type, dtype, d_state) if why else None


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether ``torch.export`` is at work; torch 2.6 does not tell, and there it is False."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def _export_backend(device_type: str) -> str | None:
    """What ``auto`` means while a network leaves Python; None where it does not.

    A trace for TorchScript takes a scripted loop, which needs no package to load. ``torch.export`` takes an operator
    with a body in plain torch, for a file must not depend on Numba; on a GPU it takes the kernels.
    """
    if torch.jit.is_tracing():
        return "torchscript"
    return "exported" if is_exporting() and device_type != "cuda" else None


@torch.compiler.assume_constant_result
def choose_backend(backend: str, device_type: str, dtype: torch.dtype, d_state: int = 1) -> str:
    """The backend that will scan tensors of this device and dtype; named once in the log.

    Args:
        backend: one of :data:`BACKENDS`.
        device_type: ``tensor.device.type``.
        dtype: of the sequence.
        d_state: states of a channel.

    Returns:
        one of :data:`BACKENDS`, not ``"auto"``; while a network is exported also what
        :func:`_export_backend` says.

    Raises:
        ValueError: an unknown name, in the argument or in the environment variable.
        RuntimeError: the backend asked for cannot run on such tensors.
    """
    wanted = check_backend_name(backend)
    if wanted == "auto":
        wanted = check_backend_name(os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE)
    if wanted == "auto" and (exported := _export_backend(device_type)):
        return exported
    chosen = fastest_backend(device_type) if wanted == "auto" else wanted
    obstacle = why_unavailable(chosen, device_type, dtype, d_state)
    if obstacle and wanted != "auto":
        raise RuntimeError(f"the scan backend '{wanted}' cannot be used: {obstacle}; 'auto' takes one that can.")
    chosen = "portable" if obstacle else chosen
    slower = obstacle and dtype != torch.float64  # float64 is for checks
    advice = f"; {obstacle}, so the scan is several times slower than it could be" if slower else ""
    _log_once(logging.WARNING if slower else logging.INFO, f"selective scan on {device_type}: {chosen}{advice}")
    return chosen


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
    backend: str = "auto",
) -> Tensor:
    """Selective scan of a sequence, the S6 operator of Mamba; equations in :mod:`.reference`.

    The state is float64 when ``u``, ``delta`` or ``A`` is, else float32; the result has the dtype of ``u``.
    Differentiable once.

    Args:
        u: input sequence, (b, d, l).
        delta: step sizes Δ, (b, d, l).
        A: state matrix, (d, n); negative for a stable system.
        B: input matrix, (b, g, n, l) or (b, n, l), shared by the ``d / g`` channels of a group.
        C: output matrix, shaped like ``B``.
        D: skip weight, (d,).
        delta_bias: added to ``delta``, (d,).
        delta_softplus: whether ``delta`` passes through softplus.
        backend: one of :data:`BACKENDS`.

    Returns:
        output sequence, (b, d, l).

    Raises:
        ValueError: shapes that do not fit each other, or an unknown backend.
        RuntimeError: a backend that cannot run on these tensors.
    """
    B, C = (t.unsqueeze(1) if t.ndim == 3 else t for t in (B, C))
    _check_sequence_shapes(u, delta, A, B, C, D, delta_bias)
    chosen = choose_backend(backend, u.device.type, u.dtype, A.shape[1])
    if chosen == "reference":
        return selective_scan_ref(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=delta_softplus)
    groups = B.shape[1]
    zeros = A.new_zeros(A.shape[0])
    y = _GROUPED_SCANS[chosen](
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
    backend: str = "auto",
) -> Tensor:
    """Scan a map along rows, columns and both reversed, and sum the four outputs (SS2D, eqs. (5)-(7) of the paper).

    Everything is given in pixel order: where a direction goes next is the backend's business. The dtype rules are
    those of :func:`selective_scan`.

    Args:
        x: feature map, (b, h, w, d), channels last.
        delta: step sizes Δ before bias and softplus for each direction, (b, h, w, 4, d).
        A: state matrices, (4, d, n).
        B: input matrices, (b, h, w, 4, n).
        C: output matrices, (b, h, w, 4, n).
        D: skip weights, (4, d).
        delta_bias: added to ``delta``, (4, d).
        backend: one of :data:`BACKENDS`.

    Returns:
        merged map, (b, h, w, d).

    Raises:
        RuntimeError: a backend that cannot run on these tensors.
    """
    chosen = choose_backend(backend, x.device.type, x.dtype, A.shape[2])
    if chosen in _MAP_SCANS:
        return _MAP_SCANS[chosen](x, delta, A, B, C, D, delta_bias)
    height, width = x.shape[1:3]
    visits = _interleave(scan_orders(height, width, x.device))
    returns = _interleave(scan_orders(width, height, x.device))  # visiting the transposed map undoes the visit

    def along_directions(t: Tensor) -> Tensor:  # (b, h, w, 4, ...) -> (b, l, 4, ...)
        return t.flatten(1, 3).index_select(1, visits).unflatten(1, (-1, 4))

    u = x.unsqueeze(3).expand(-1, -1, -1, 4, -1)
    y = _GROUPED_SCANS[chosen](
        *map(along_directions, (u, delta)), A, *map(along_directions, (B, C)), D, delta_bias, True
    )
    return y.flatten(1, 2).index_select(1, returns).unflatten(1, (height, width, 4)).sum(3)


def projected_scan_2d(
    x: Tensor,
    projected: Tensor,
    delta_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """:func:`cross_scan_2d` of what one projection of the map makes: Δ as a low rank, B and C of each direction.

    Args:
        x: feature map, (b, h, w, d), channels last.
        projected: r numbers that Δ is made from, B and C, one after another, (b, h, w, 4, r + 2n).
        delta_weight: makes Δ before bias and softplus from the r numbers, (4, d, r).
        A: state matrices, (4, d, n).
        D: skip weights, (4, d).
        delta_bias: added to Δ before softplus, (4, d).
        backend: one of :data:`BACKENDS`.

    Returns:
        merged map, (b, h, w, d).

    Raises:
        RuntimeError: a backend that cannot run on these tensors.
    """
    if choose_backend(backend, x.device.type, x.dtype, A.shape[2]) == "numba":
        return projected_scan_2d_jit(x, projected, delta_weight, A, D, delta_bias)
    low_rank, B, C = projected.split([delta_weight.shape[-1], A.shape[-1], A.shape[-1]], dim=-1)
    delta = torch.einsum("bhwkr,kdr->bhwkd", low_rank, delta_weight)
    return cross_scan_2d(x, delta, A, B, C, D, delta_bias, backend=backend)


def norm_gate(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str = "auto") -> Tensor:
    """LayerNorm over the channels of ``y``, times SiLU of ``gate``; both (b, h, w, c), weight and bias (c,)."""
    float32 = all(t.dtype == torch.float32 for t in (y, gate, weight, bias))
    if float32 and choose_backend(backend, y.device.type, y.dtype) == "numba":
        return norm_gate_jit(y, gate, weight, bias, eps)
    return F.layer_norm(y, weight.shape, weight, bias, eps) * F.silu(gate)


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
