# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The Mamba mixer: gate, causal convolution and one selective scan along a sequence.

Source: Gu and Dao, "Mamba: Linear-time sequence modeling with selective state spaces" (arXiv 2312.00752), section 3.4;
parameter names and initialisation are those of the package mamba_ssm.

    x, gate = halves of in_proj(sequence)
    x       = silu(causal depthwise convolution of x)
    Δ, B, C = linear functions of x
    y       = selective_scan(x, Δ, A, B, C, D)
    out     = out_proj(y * silu(gate))
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from swinumamba_monai.ops import selective_scan
from swinumamba_monai.ops.backends import BackendChoice

STEP_SIZES = 1e-3, 1e-1  # Δ at the beginning, from and to


@torch.no_grad()
def init_scan(A_log: Tensor, D: Tensor, dt_weight: Tensor, dt_bias: Tensor) -> None:
    """Mamba's initialisation: A = -(1..n), D = 1, and a bias that puts Δ log-uniformly between 0.001 and 0.1.

    Args:
        A_log: logarithm of -A, (..., d_state); filled, as are the next three.
        D: skip weights, (...).
        dt_weight: weight of the linear function that gives Δ, (..., dt_rank).
        dt_bias: bias of that function, (...).
    """
    A_log.copy_(torch.arange(1, A_log.shape[-1] + 1).log().expand_as(A_log))
    D.fill_(1.0)
    bound = dt_weight.shape[-1] ** -0.5
    nn.init.uniform_(dt_weight, -bound, bound)
    dt = torch.empty_like(dt_bias).uniform_(*map(math.log, STEP_SIZES)).exp()
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


class MambaScan(nn.Module):
    """What Mamba does between its projections: causal convolution, SiLU, and a scan with Δ, B, C made of its input.

    Args:
        channels: number of channels of the sequence.
        dt_rank: rank of the linear function that gives Δ.
        d_state: number of states of each channel.
        d_conv: number of positions that the causal convolution sees, the present one and those before it.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.

    Raises:
        ValueError: an unknown backend.
    """

    def __init__(self, channels: int, dt_rank: int, d_state: int = 16, d_conv: int = 4, scan_backend: str = "auto"):
        super().__init__()
        self.d_state = d_state
        self.dt_rank = dt_rank
        self.backend = BackendChoice(scan_backend, d_state)
        self.conv1d = nn.Conv1d(channels, channels, kernel_size=d_conv, padding=d_conv - 1, groups=channels)
        self.x_proj = nn.Linear(channels, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = NonDynamicallyQuantizableLinear(dt_rank, channels)
        self.A_log = nn.Parameter(torch.empty(channels, d_state))
        self.D = nn.Parameter(torch.empty(channels))
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """As Mamba begins: :func:`init_scan`."""
        init_scan(self.A_log, self.D, self.dt_proj.weight, self.dt_proj.bias)

    def scan(self, x: Tensor) -> Tensor:
        """Sequence (b, l, channels) to the same shape; RuntimeError if the backend asked for cannot scan it."""
        x = F.silu(self._convolve(x))
        low_rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        # the bias is added inside the scan, in the precision of the states
        delta = F.linear(low_rank, self.dt_proj.weight)
        A = -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()
        y = selective_scan(
            *(t.transpose(1, 2) for t in (x, delta)),
            A,
            *(t.transpose(1, 2) for t in (B, C)),
            self.D,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            backend=self.backend.find(x),
        )
        return y.transpose(1, 2)

    def _convolve(self, x: Tensor) -> Tensor:
        """``conv1d`` of (b, l, d), as a convolution of maps of one row: those may have their channels side by side, as
        the projections and the scan want them, and on a CPU they take a tenth of the time.
        """
        conv, length = self.conv1d, x.shape[1]
        row = x.transpose(1, 2).unsqueeze(2)
        row = F.conv2d(row, conv.weight.unsqueeze(2), conv.bias, padding=(0, *conv.padding), groups=conv.groups)
        # both ends were padded: what lies beyond the last position is the padding's
        return row[..., :length].squeeze(2).transpose(1, 2)


class Mamba(MambaScan):
    """Mamba's mixer in one direction. Under autocast its matrix products are in half precision, its states in float32.

    Args:
        d_model: number of channels of the sequence.
        d_state: number of states of each scanned channel.
        d_conv: number of positions that the causal convolution sees.
        expand: ratio of scanned channels to ``d_model``.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.

    Raises:
        ValueError: an unknown backend.

    >>> Mamba(8, d_state=4)(torch.zeros(2, 10, 8)).shape
    torch.Size([2, 10, 8])
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, scan_backend: str = "auto"
    ) -> None:
        inner = expand * d_model
        super().__init__(inner, math.ceil(d_model / 16), d_state, d_conv, scan_backend)
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, sequence: Tensor) -> Tensor:
        """Sequence (b, l, d_model) to the same shape, under autocast in its dtype; errors as of :meth:`scan`."""
        x, gate = self.in_proj(sequence).chunk(2, dim=-1)
        return self.out_proj(self.scan(x) * F.silu(gate))
