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
``Mamba``    one direction                                           23.09           28.69
``Conv``     SS2D with a depthwise convolution instead of the scan   27.86           35.22
===========  ======================================================  ==============  =========

All of them map (b, h, w, d_model) to the same shape and take the arguments of :class:`.vss.SS2D`.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

from .mamba import Mamba, MambaScan
from .norm import make_norm
from .vss import SS2D


class MambaMixer(nn.Module):
    """Mamba (:class:`.mamba.Mamba`) over the pixels of a map in row-major order.

    Args:
        d_model: number of channels of the map.
        d_state: number of states of each scanned channel.
        expand: ratio of scanned channels to ``d_model``.
        norm_name: no effect: Mamba has no norm before its gate.
        scan_backend: one of :data:`swinumamba_monai.ops.BACKENDS`.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, expand: int = 2, norm_name: str = "layer", scan_backend: str = "auto"
    ) -> None:
        super().__init__()
        self.mamba = Mamba(d_model, d_state, expand=expand, scan_backend=scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        return self.mamba(x.flatten(1, 2)).view(x.shape)


class VimMixer(MambaMixer):
    """Vision Mamba's mixer (Zhu et al., arXiv 2401.09417, algorithm 1): Mamba forwards and backwards, summed.

    Each direction has a convolution and a scan of its own; the projections and the gate are shared.

    Args:
        d_model: number of channels of the map.
        d_state: number of states of each scanned channel.
        expand: ratio of scanned channels to ``d_model``.
        options: ``norm_name``, without effect, and ``scan_backend``.
    """

    def __init__(self, d_model: int, d_state: int = 16, expand: int = 2, **options) -> None:
        super().__init__(d_model, d_state, expand, **options)
        scan_backend = self.mamba.backend.name
        self.backwards = MambaScan(expand * d_model, self.mamba.dt_rank, d_state, scan_backend=scan_backend)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        sequence, gate = self.mamba.in_proj(x.flatten(1, 2)).chunk(2, dim=-1)
        y = self.mamba.scan(sequence) + self.backwards.scan(sequence.flip(1)).flip(1)
        return self.mamba.out_proj(y * F.silu(gate)).view(x.shape)


class ConvMixer(nn.Module):
    """SS2D whose scan is a depthwise convolution: gate, 3×3 convolution, SiLU, norm and projections are the same.

    The kernel is 21×21, the size at which the network has as many parameters as with the scan (within 1.4 %; the next
    smaller odd one is 2.7 % off), so that what is compared is how pixels far apart are mixed and not how much is
    learned; its FLOPs are 22 % fewer. On Endoscopy's maps it spans an eighth of the width of the finest and reaches
    from any pixel of the coarsest, 12×20, over the whole height.

    Args:
        d_model: number of channels of the map.
        d_state: no effect: a convolution has no states.
        expand: ratio of mixed channels to ``d_model``.
        norm_name: norm after the convolution, a key of :data:`.norm.NORMS`.
        scan_backend: backend of the norm, one of :data:`swinumamba_monai.ops.BACKENDS`.
        kernel_size: odd side of the convolution's kernel in pixels.
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
        inner = expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.mixing_conv = nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner)
        self.out_norm = make_norm(norm_name, inner, scan_backend)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, h, w, d_model) to the same shape."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        if x.is_cuda:
            x = depthwise_conv_by_fft(x, self.mixing_conv.weight, self.mixing_conv.bias)
        else:
            x = self.mixing_conv(x)
        return self.out_proj(self.out_norm(x.permute(0, 2, 3, 1)) * F.silu(gate))


def depthwise_conv_by_fft(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=k // 2, groups=c)`` for large kernels on a GPU, where torch has only kernels
    whose time grows with the kernel's area.

    The product of spectra is a circular convolution; with k // 2 zeros behind the map nothing comes round.

    Args:
        x: (b, c, h, w); in half precision it is computed in float32 and cast back.
        weight: (c, 1, k, k), k odd.
        bias: (c,).
    """
    *_, height, width = x.shape
    side = weight.shape[-1]
    reach = side // 2
    rows, columns = (next_fast_len(max(length + reach, side), real=True) for length in (height, width))
    dtype = torch.promote_types(x.dtype, torch.float32)
    kernel = F.pad(weight[:, 0].to(dtype), (0, columns - side, 0, rows - side)).roll((-reach, -reach), (1, 2))
    spectrum = torch.fft.rfft2(x.to(dtype), s=(rows, columns)) * torch.fft.rfft2(kernel).conj()
    y = torch.fft.irfft2(spectrum, s=(rows, columns))[..., :height, :width]
    return (y + bias.to(dtype)[:, None, None]).to(x.dtype)


MIXERS = {"VSS": SS2D, "Vim": VimMixer, "Mamba": MambaMixer, "Conv": ConvMixer}
