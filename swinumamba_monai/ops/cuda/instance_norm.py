# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Instance norm with what follows it in a residual block, on an NVIDIA GPU: kernels/instance_norm.cu.

torch's own normalises maps whose channels come first alone, so that a convolution, whose kernels want them last, turns
every map around before and after; and it adds and activates in passes of their own. Sums are float32 and have a fixed
order, so repeated runs agree bit for bit.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from swinumamba_monai.ops.instance_norm import instance_norm

from .device import ELEMENTS, alignment, count_multiprocessors, divide_channels
from .nvrtc import load_kernels, on_its_device, params_type
from .row_sums import MOST_WARPS, sum_rows

THREADS = 256  # number of threads of a block, at the most
BLOCKS = 4  # number of blocks that a multiprocessor has room for
TEAM_PIXELS = 4  # number of pixels of a team, at the least, unless the image has fewer

_Params = params_type(
    "InstanceParams",
    "x residual y dy weight bias sums parts statistics out dresidual",
    "batch pixels channels chunk chunks lanes",
    ("eps", ctypes.c_double),
    ("slope", ctypes.c_double),
)


def instance_norm_cuda(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float | None
) -> Tensor:
    """:func:`swinumamba_monai.ops.instance_norm.instance_norm`; what it returns has its channels last in memory."""
    if torch.compiler.is_compiling() or x[0, 0].numel() == 1:  # which is refused there
        return instance_norm(x, residual, weight, bias, eps, slope)
    maps = [None if t is None else t.to(x.dtype).movedim(1, -1).contiguous() for t in (x, residual)]
    y = _InstanceNorm.apply(*maps, weight, bias, eps, 1.0 if slope is None else slope)
    return y.movedim(-1, 1)


class _Launcher:
    """How the work of the kernels is laid out for maps (b, ..., c), and their launches.

    Args:
        x: input of the norm, contiguous.
        options: eps and slope.
        weight: as the norm has it.
        bias: the same.
        maps: other maps that are read or written, or None.
    """

    def __init__(self, x: Tensor, options: tuple[float, float], weight, bias, *maps: Tensor | None) -> None:
        self.batch, self.channels = x.shape[0], x.shape[-1]
        pixels = x[0].numel() // self.channels
        vector = alignment(self.channels, x, *(t for t in maps if t is not None))
        lanes, self.columns, teams = divide_channels(self.channels // vector, THREADS)
        most = max(1, BLOCKS * count_multiprocessors(x.device) // (self.batch * self.columns))
        chunk = max(-(-pixels // most), min(pixels, TEAM_PIXELS * teams))
        self.chunks, self.threads = -(-pixels // chunk), lanes * teams
        self.shared_bytes = 2 * 4 * self.threads * vector
        self.kernels = load_kernels("instance_norm.cu", {"ELEMENT": ELEMENTS[x.dtype], "VECTOR": vector})
        self.kept = [None if t is None else t.float().contiguous() for t in (weight, bias)]
        self.params = _Params(
            x=x.data_ptr(), batch=self.batch, pixels=pixels, channels=self.channels, chunk=chunk, chunks=self.chunks,
            lanes=lanes, eps=options[0], slope=options[1],
        )  # fmt: skip
        self.give(weight=self.kept[0], bias=self.kept[1])

    def give(self, **tensors: Tensor | None) -> None:
        for name, t in tensors.items():
            setattr(self.params, name, None if t is None else t.data_ptr())

    def launch(self, name: str, shared: bool = False) -> None:
        grid = (self.chunks, self.columns, self.batch)
        self.kernels.launch(name, grid, self.threads, self.shared_bytes if shared else 0, self.params)

    def finish(self) -> None:
        """Statistics of the images from those of their chunks."""
        warps = min(MOST_WARPS, self.chunks)
        blocks = -(-self.batch * self.channels // 32)
        self.kernels.launch("instance_finish", (blocks, 1, 1), 32 * warps, 3 * 4 * 32 * warps, self.params)

    def new(self, x: Tensor, *first: int) -> Tensor:
        return x.new_empty(*first, self.batch, 2, self.channels, dtype=torch.float32)


@on_its_device
def _forward(x, residual, weight, bias, *options):
    y = torch.empty_like(x)
    launcher = _Launcher(x, options, weight, bias, residual, y)
    parts, statistics = launcher.new(x, launcher.chunks), launcher.new(x)
    launcher.give(residual=residual, parts=parts, statistics=statistics, out=y)
    launcher.launch("instance_statistics", shared=True)
    launcher.finish()
    launcher.launch("instance_norm")
    return y, statistics


@on_its_device
def _backward(dy, x, y, statistics, weight, bias, options, residual_wanted: bool):
    """Gradients of x, the residual, the weights and the biases."""
    dx, dresidual = torch.empty_like(x), torch.empty_like(x) if residual_wanted and y is not None else None
    launcher = _Launcher(x, options, weight, bias, y, dy, dx, dresidual)
    parts = launcher.new(x, launcher.chunks)
    launcher.give(dy=dy, y=y, parts=parts, statistics=statistics, dresidual=dresidual)
    launcher.launch("instance_sums", shared=True)
    sums = sum_rows(parts)
    gradient, y = (dy, y) if dresidual is None else (dresidual, None)  # which has passed LeakyReLU already
    launcher.give(dy=gradient, y=y, sums=sums, out=dx)
    launcher.launch("instance_backward")
    dbias, dweight = sums.sum(0) if weight is not None or bias is not None else (None, None)
    return (
        dx,
        (dy if dresidual is None else dresidual) if residual_wanted else None,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
    )


class _InstanceNorm(torch.autograd.Function):
    """Keeps x and, for LeakyReLU, its result, which the next convolution keeps too."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, *options):
        y, statistics = _forward(x, residual, weight, bias, *options)
        ctx.save_for_backward(x, None if options[1] == 1 else y, statistics, weight, bias)
        ctx.options = options
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, y, statistics, weight, bias = ctx.saved_tensors
        dx, dresidual, dweight, dbias = _backward(
            dy.contiguous(), x, y, statistics, weight, bias, ctx.options, ctx.needs_input_grad[1]
        )
        return dx, dresidual, dweight, dbias, None, None
