# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What can stand in a VSS block in the place of SS2D: the blocks of the paper's Fig. 6, and a control without a scan.

Fig. 6 puts Vim's and Mamba's block in the place of the VSS block in Swin-UMamba† and publishes neither code nor counts.
The composition here, checked by its counts on Endoscopy (3×384×640, 8 classes), is: everything around SS2D stays, the
norm before it and the residual too; SS2D itself is replaced by the mixer of the other block, whole, over the map's
pixels in row-major order. ``Conv`` is not in the paper: it asks what the scan adds to everything around it.

===========  ======================================================  ==============  =========
block_type   mixer                                                   parameters, M   GFLOPs
===========  ======================================================  ==============  =========
``VSS``      SS2D, four directions (:class:`.vss.SS2D`)              27.50           45.28
``Vim``      two directions, each with a convolution of its own      24.59           34.24
``Mamba``    one direction (:class:`.mamba.MambaMixer`)              23.09           28.69
``Conv``     SS2D with a depthwise convolution instead of the scan   27.86           35.22
===========  ======================================================  ==============  =========

All of them map (b, h, w, d_model) to the same shape and take the same arguments.
"""

from __future__ import annotations

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from swinumamba_monai.ops.dispatch import check_backend_name

from .vss import SS2D, make_norm

__all__ = ["MIXERS", "Conv2DMixer"]


class Conv2DMixer(nn.Module):
    """SS2D whose scan is a depthwise convolution: gate, 3×3 convolution, SiLU, norm and projections are the same.

    The kernel is 21×21, the size at which the network has as many parameters as with the scan (within 1.4 %; the next
    smaller odd one is 2.7 % off), so that what is compared is how pixels far apart are mixed and not how much is
    learned. From the second stage on it reaches over a quarter of the map, at the last over all of it. It takes 22 %
    fewer FLOPs.

    Args:
        d_model: channels of the map.
        d_state: ignored, a convolution has no states.
        expand: convolved channels as a multiple of ``d_model``.
        norm_name: key of :data:`.vss.NORMS`, applied to the convolution's output.
        scan_backend: ignored, there is no scan; one of :data:`swinumamba_monai.ops.BACKENDS`.
        kernel_size: of the convolution, odd.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        expand: int = 2,
        norm_name: str = "layer",
        scan_backend: str = "auto",
        kernel_size: int = 21,
    ) -> None:
        super().__init__()
        check_backend_name(scan_backend, "scan_backend")
        inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.mixing_conv = nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner)
        self.out_norm = make_norm(norm_name, inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = self.mixing_conv(F.silu(self.conv2d(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        return self.out_proj(self.out_norm(x) * F.silu(gate))


MIXERS = {"VSS": SS2D, "Conv": Conv2DMixer}
