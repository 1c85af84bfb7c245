# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The backends of the scan, and the one place where one of them is chosen.

==============  =====================================================  =============================
backend         what it is                                             runs on
==============  =====================================================  =============================
``cuda``        kernels compiled at the first use (:mod:`.cuda`)       NVIDIA GPUs from Ampere on, not float64
``numba``       loops compiled at the first use (:mod:`.cpu`)          CPUs, where Numba is installed
``portable``    torch operations by chunks (:mod:`.portable`)          every device and dtype
``mamba_ssm``   the CUDA kernel of that package (:mod:`.mamba_ssm`)    NVIDIA GPUs, not float64
``reference``   one position after another (:mod:`.reference`)         everywhere, slowly: for checks
==============  =====================================================  =============================

``auto`` takes the fastest that runs on the tensors at hand; while a network is exported, :mod:`.export` has what it
takes. The name that a module or a call was given decides; where that is ``auto``, the environment variable
``SWINUMAMBA_BACKEND`` does. A new kernel is a module beside these and a record in :data:`REGISTRY`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.checks import require_one_of
from swinumamba_monai.errors import log_once

from .cpu.norm_gate import norm_gate_jit
from .cpu.scan import cross_scan_2d_jit, projected_scan_2d_jit, selective_scan_jit, why_jit_is_unavailable
from .cuda.class_sums import class_sums_cuda
from .cuda.convolution import conv2d_cuda
from .cuda.instance_norm import instance_norm_cuda
from .cuda.joining import join_channels
from .cuda.layer_norm import layer_norm_cuda
from .cuda.scan import cross_scan_2d_cuda, selective_scan_cuda, why_cuda_is_unavailable
from .cuda.ss2d import ss2d_cuda
from .export.program import selective_scan_exported
from .export.torchscript import selective_scan_torchscript
from .instance_norm import instance_norm
from .mamba_ssm import selective_scan_mamba, why_mamba_is_unavailable
from .portable import selective_scan_portable
from .reference import cross_scan_2d_ref, selective_scan_ref

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "SWINUMAMBA_BACKEND"
_FASTEST = {"cpu": "numba", "cuda": "cuda"}  # the fastest backend of a device type; "portable" on all others


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _join(x: Tensor, y: Tensor, dim: int) -> Tensor:
    return torch.cat((x, y), dim)


def _norm_gate(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _layer_norm(y, weight, bias, eps) * F.silu(gate)


def _norm_gate_numba(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    float32 = all(t.dtype == torch.float32 for t in (y, gate, weight, bias))
    return (norm_gate_jit if float32 else _norm_gate)(y, gate, weight, bias, eps)


def _scan_reference(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    sequences = (t.permute(0, 2, 3, 1) for t in (u, delta, B, C))  # (b, g, d or n, l)
    u, delta, B, C = sequences
    groups = (u.flatten(1, 2), delta.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten())
    y = selective_scan_ref(*groups, delta_bias=delta_bias.flatten(), delta_softplus=delta_softplus)
    return y.view(u.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Backend:
    """One way to compute the scan and what surrounds it. Fields that are None have no way of their own.

    Args:
        name: key of :data:`REGISTRY`.
        scan: scan of grouped sequences, in the layout of :mod:`.portable`.
        why_unavailable: function of a device type, a dtype and a number of states that returns the reason why it cannot
            run on such tensors, or None.
        map_scan: scan as :func:`.scan.cross_scan_2d`.
        projected_scan: scan as :func:`.scan.projected_scan_2d`.
        norm: LayerNorm over the last axis, of x (..., d), weight (d,), bias (d,) and eps.
        instance_norm: instance norm as :func:`.instance_norm.instance_norm`.
        conv2d: convolution of a map, of the first five arguments of ``torch.nn.functional.conv2d``.
        join: ``torch.cat((x, y), dim)`` of two maps, dim being the axis of their channels.
        norm_gate: LayerNorm over the channels of a map times SiLU of a gate, of y and gate, both (b, h, w, d), weight
            (d,), bias (d,) and eps.
        ss2d: one operator for all of :func:`.ss2d.ss2d` with a layer norm; its ``pre_norm`` comes last.
        class_sums: what a loss needs of each image, as :func:`.cuda.class_sums.class_sums_cuda`.
    """

    name: str
    scan: Callable[..., Tensor]
    why_unavailable: Callable[[str, torch.dtype, int], str | None] = lambda device_type, dtype, d_state: None
    map_scan: Callable[..., Tensor] | None = None
    projected_scan: Callable[..., Tensor] | None = None
    norm: Callable[..., Tensor] = _layer_norm
    instance_norm: Callable[..., Tensor] = instance_norm
    conv2d: Callable[..., Tensor] = F.conv2d
    join: Callable[[Tensor, Tensor, int], Tensor] = _join
    norm_gate: Callable[..., Tensor] = _norm_gate
    ss2d: Callable[..., Tensor] | None = None
    class_sums: Callable[..., Tensor] | None = None


REGISTRY = {
    "cuda": Backend(
        "cuda",
        selective_scan_cuda,
        why_cuda_is_unavailable,
        map_scan=cross_scan_2d_cuda,
        norm=layer_norm_cuda,
        instance_norm=instance_norm_cuda,
        conv2d=conv2d_cuda,
        join=join_channels,
        ss2d=ss2d_cuda,
        class_sums=class_sums_cuda,
    ),
    "numba": Backend(
        "numba",
        selective_scan_jit,
        why_jit_is_unavailable,
        map_scan=cross_scan_2d_jit,
        projected_scan=projected_scan_2d_jit,
        norm_gate=_norm_gate_numba,
    ),
    "mamba_ssm": Backend("mamba_ssm", selective_scan_mamba, why_mamba_is_unavailable),
    "portable": Backend("portable", selective_scan_portable),
    "reference": Backend("reference", _scan_reference, map_scan=cross_scan_2d_ref),
}
BACKENDS = ("auto", *REGISTRY)
# what "auto" means while a network leaves Python; nobody asks for these by name
_EXPORT_REGISTRY = {
    "torchscript": Backend("torchscript", selective_scan_torchscript),
    "exported": Backend("exported", selective_scan_exported),
}


def check_backend_name(name: str, source: str = "backend") -> str:
    """Return ``name``; raises ``ValueError`` that lists the allowed ones when it is not one of :data:`BACKENDS`."""
    require_one_of(source, name, BACKENDS)
    return name


def _wanted(name: str) -> str:
    """What a name asks for once the environment variable was heard."""
    if check_backend_name(name) == "auto":
        return check_backend_name(os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE)
    return name


def fastest_backend(device_type: str) -> str:
    """The backend that ``auto`` takes on a device where nothing is in its way."""
    return _FASTEST.get(device_type, "portable")


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
def choose_backend(name: str, device_type: str, dtype: torch.dtype, d_state: int = 1) -> str:
    """The name of the backend that will scan tensors of this device and dtype. Nothing is logged.

    Args:
        name: one of :data:`BACKENDS`.
        device_type: ``tensor.device.type``.
        dtype: dtype of the sequence.
        d_state: number of states of a channel.

    Returns:
        one of :data:`BACKENDS`, not ``"auto"``; while a network is exported also what :func:`_export_backend` says.

    Raises:
        ValueError: an unknown name, in the argument or in the environment variable.
        RuntimeError: the backend asked for cannot run on such tensors.
    """
    wanted = _wanted(name)
    if wanted == "auto" and (exported := _export_backend(device_type)):
        return exported
    chosen = fastest_backend(device_type) if wanted == "auto" else wanted
    obstacle = REGISTRY[chosen].why_unavailable(device_type, dtype, d_state)
    if obstacle and wanted != "auto":
        raise RuntimeError(f"the scan backend '{wanted}' cannot be used: {obstacle}; 'auto' takes one that can.")
    return "portable" if obstacle else chosen


def find_backend(backend: str | Backend, x: Tensor, d_state: int = 1) -> Backend:
    """The record that a name stands for on a tensor; a record is returned as it is.

    Args:
        backend: a record, or one of :data:`BACKENDS`.
        x: tensor of the device and dtype of the sequence.
        d_state: number of states of a channel.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend asked for cannot run on such tensors.
    """
    if isinstance(backend, Backend):
        return backend
    name = choose_backend(backend, x.device.type, x.dtype, d_state)
    return REGISTRY[name] if name in REGISTRY else _EXPORT_REGISTRY[name]


@torch.compiler.assume_constant_result
def log_backend_once(name: str, device_type: str, dtype: torch.dtype, d_state: int = 1) -> None:
    """Name the choice of :func:`choose_backend` in the log, and what slows it; each text once.

    Args:
        name: name of the backend that was asked for.
        device_type: type of the tensors' device.
        dtype: dtype of the tensors.
        d_state: number of states of each channel.
    """
    chosen = choose_backend(name, device_type, dtype, d_state)
    if chosen in _EXPORT_REGISTRY:
        return
    fastest, obstacle = fastest_backend(device_type), None
    if chosen != fastest and _wanted(name) == "auto" and dtype != torch.float64:  # float64 is for checks
        obstacle = REGISTRY[fastest].why_unavailable(device_type, dtype, d_state)
    advice = f"; {obstacle}, so the scan is several times slower than it could be" if obstacle else ""
    level = logging.WARNING if obstacle else logging.INFO
    log_once(logger, level, f"selective scan on {device_type}: {chosen}{advice}")


class BackendChoice:
    """The backend of one module: found when the module first meets a device and dtype, and kept for the next time.

    Copies and pickles begin anew.

    Args:
        name: one of :data:`BACKENDS`; may be set later.
        d_state: number of states of each scanned channel; None for a module that scans nothing, whose choice is not
            worth a line in the log.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: str = "auto", d_state: int | None = None) -> None:
        self.name = check_backend_name(name, "scan_backend")
        self.d_state = d_state
        self._found: dict[tuple, Backend] = {}

    def __reduce__(self) -> tuple:
        return BackendChoice, (self.name, self.d_state)

    def find(self, x: Tensor) -> Backend:
        """The backend for a tensor of a device and dtype; the errors are those of :func:`choose_backend`."""
        if torch.compiler.is_compiling():  # which finds out once and writes the answer down
            return self._find(x)
        key = (self.name, os.environ.get(ENVIRONMENT_VARIABLE), x.device, x.dtype, torch.jit.is_tracing())
        if key not in self._found:
            self._found[key] = self._find(x)
        return self._found[key]

    def _find(self, x: Tensor) -> Backend:
        if self.d_state is None:
            return find_backend(self.name, x)
        log_backend_once(self.name, x.device.type, x.dtype, self.d_state)
        return find_backend(self.name, x, self.d_state)
