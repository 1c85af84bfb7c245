# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan inside a program of ``torch.export``: an operator whose only output has the shape of ``u``.

The operator of :mod:`swinumamba_monai.ops.portable` also returns states, as many as there are chunks, and that number
would tie an exported program to some sizes. A file with this one loads where ``swinumamba_monai.ops`` is imported;
:mod:`.onnx` has its translation.
"""

from __future__ import annotations

import torch

from swinumamba_monai.ops.portable import selective_scan_portable


@torch.library.custom_op(
    "swinumamba::selective_scan_inference",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, bool delta_softplus)"
    " -> Tensor",
)
def selective_scan_exported(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """:func:`swinumamba_monai.ops.portable.selective_scan_portable` without a backward; the same arguments."""
    return selective_scan_portable(u, delta, A, B, C, D, delta_bias, delta_softplus)


@selective_scan_exported.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus):
    return torch.empty_like(u, memory_format=torch.contiguous_format)
