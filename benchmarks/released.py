# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The arrangement of the scans in the code that VMamba (January 2024) and Swin-UMamba (March 2024) released.

Channels first; the map and its transpose, and both reversed, stacked into four sequences; each projected; everything
cast to float32 and handed to mamba-ssm's ``selective_scan_fn`` as one sequence of four times the channels; four outputs
turned back and added. It computes what :class:`swinumamba_monai.networks.vss.SS2D` computes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.networks.vss import SS2D
from swinumamba_monai.ops import selective_scan
from swinumamba_monai.ops.mamba_ssm import why_mamba_is_unavailable

__all__ = ["ReleasedSS2D", "released_kernel", "why_released_is_unavailable"]


def why_released_is_unavailable(device: torch.device) -> str | None:
    """The reason why :func:`released_kernel` cannot run there, or None if it can."""
    return why_mamba_is_unavailable("cuda", torch.float32, 16) if device.type == "cuda" else None


def released_kernel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """mamba-ssm's scan of float32 (b, d, l), softplus inside; on a CPU, to try things there, this package's."""
    if u.device.type == "cpu":
        return selective_scan(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, delta, A, B, C, D, z=None, delta_bias=delta_bias, delta_softplus=True)


class ReleasedSS2D(SS2D):
    """SS2D with the released arrangement; the parameters are those of its parent."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2).contiguous()))
        y = self.out_norm(self.scan_channels_first(x).permute(0, 2, 3, 1).contiguous()).to(x.dtype)
        return self.out_proj(y * F.silu(gate))

    def scan_channels_first(self, x: Tensor) -> Tensor:
        """Scan (b, d, h, w) in four directions; float32."""
        height, width = x.shape[2:]
        forward = torch.stack([x.flatten(2), x.transpose(2, 3).contiguous().flatten(2)], dim=1)
        sequences = torch.cat([forward, forward.flip(-1)], dim=1)  # (b, 4, d, l)
        projected = torch.einsum("bkdl,kcd->bkcl", sequences, self.x_proj_weight)
        low_rank, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = torch.einsum("bkrl,kdr->bkdl", low_rank, self.dt_projs_weight)
        y = released_kernel(
            sequences.float().flatten(1, 2),
            delta.contiguous().float().flatten(1, 2),
            -self.A_logs.float().exp(),
            B.float(),
            C.float(),
            self.Ds.float(),
            self.dt_projs_bias.float().flatten(),
        ).unflatten(1, (4, -1))
        y_rows, y_columns = y[:, :2].unbind(1)
        y_rows_back, y_columns_back = y[:, 2:].flip(-1).unbind(1)

        def as_map(t: Tensor) -> Tensor:  # of a sequence that went along the columns
            return t.unflatten(2, (width, height)).transpose(2, 3).contiguous().flatten(2)

        merged = y_rows + y_rows_back + as_map(y_columns) + as_map(y_columns_back)
        return merged.unflatten(2, (height, width))
