# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan by the CUDA kernel of the ``mamba-ssm`` package, where that is installed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MAX_STATES = 256  # number of states of a channel


@cache
def _import_error() -> str | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: F401
    except ImportError as error:  # not installed, or its CUDA extension does not fit this torch
        return f"mamba_ssm cannot be imported ({error})"
    return None


def why_mamba_is_unavailable(device_type: str, dtype: torch.dtype, d_state: int) -> str | None:
    """The reason why the kernel cannot run on such tensors, or None if it can.

    Args:
        device_type: type of the tensors' device, such as "cuda".
        dtype: dtype of the tensors.
        d_state: number of states of each channel.
    """
    if device_type != "cuda":
        return f"mamba_ssm needs a CUDA device, not '{device_type}'"
    if dtype == torch.float64:
        return "mamba_ssm has no float64 kernel"
    if d_state > MAX_STATES:
        return f"mamba_ssm has kernels for at most {MAX_STATES} states of a channel, not {d_state}"
    return _import_error()


def selective_scan_mamba(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    """Selective scan in the layout of :mod:`.portable`: (b, l, g, d) in and out; the kernel's own is (b, g·d, l)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    batch, length, groups, channels = u.shape

    def channels_first(t: Tensor) -> Tensor:
        return t.to(u.dtype).permute(0, 2, 3, 1).contiguous()

    y = selective_scan_fn(
        channels_first(u).flatten(1, 2),
        channels_first(delta).flatten(1, 2),
        A.float().flatten(0, 1),
        channels_first(B),
        channels_first(C),
        D.float().flatten(),
        delta_bias=delta_bias.float().flatten(),
        delta_softplus=delta_softplus,
    )
    return y.view(batch, groups, channels, length).permute(0, 3, 1, 2)
