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
BLOCKS = {False: 4, True: 2}  # number of blocks that a multiprocessor has room for, by whether there are two norms
TEAM_PIXELS = 4  # number of pixels of a team, at the least, unless the image has fewer

_Params = params_type(
    "InstanceParams",
    "x residual y dy weight bias residual_weight residual_bias sums parts statistics residual_statistics out dresidual",
    "batch pixels channels chunk chunks lanes",
    ("eps", ctypes.c_double),
    ("slope", ctypes.c_double),
)


def instance_norm_cuda(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float | None,
    residual_norm: tuple[Tensor | None, Tensor | None] | None = None,
) -> Tensor:
    """:func:`swinumamba_monai.ops.instance_norm.instance_norm`; what it returns has its channels last in memory."""
    is_like = residual is None or residual.shape == x.shape  # of another the kernels would read beyond
    if torch.compiler.is_compiling() or x[0, 0].numel() == 1 or not is_like:  # which is refused there
        return instance_norm(x, residual, weight, bias, eps, slope, residual_norm)
    maps = [None if t is None else t.to(x.dtype).movedim(1, -1).contiguous() for t in (x, residual)]
    affine = (weight, bias, *(residual_norm or (None, None)))
    y = _InstanceNorm.apply(*maps, *affine, residual_norm is not None, eps, 1.0 if slope is None else slope)
    return y.movedim(-1, 1)


def make_macros(two: bool) -> dict[str, int]:
    """Macros of the kernels that depend on whether the residual has a norm of its own."""
    return {"NORMED_RESIDUAL": int(two), "BLOCKS": BLOCKS[two]}


class _Launcher:
    """How the work of the kernels is laid out for maps (b, ..., c), and their launches.

    Args:
        x: input of the norm, contiguous.
        affine: weight and bias of its norm and of the residual's, (c,) or None.
        options: whether the residual has a norm, eps and slope.
        maps: other maps that are read or written, or None.
    """

    def __init__(self, x: Tensor, affine, options: tuple[bool, float, float], *maps: Tensor | None) -> None:
        two, eps, slope = options
        self.batch, self.channels = x.shape[0], x.shape[-1]
        pixels = x[0].numel() // self.channels
        vector = alignment(self.channels, x, *(t for t in maps if t is not None))
        lanes, self.columns, teams = divide_channels(self.channels // vector, THREADS)
        most = max(1, BLOCKS[two] * count_multiprocessors(x.device) // (self.batch * self.columns))
        chunk = max(-(-pixels // most), min(pixels, TEAM_PIXELS * teams))
        self.chunks, self.threads, self.norms = -(-pixels // chunk), lanes * teams, 1 + two
        self.number_bytes = 4 * self.threads * vector  # that a number of each channel of each thread takes
        defines = {"ELEMENT": ELEMENTS[x.dtype], "VECTOR": vector, **make_macros(two)}
        self.kernels = load_kernels("instance_norm.cu", defines)
        self.kept = [None if t is None else t.float().contiguous() for t in affine]
        self.params = _Params(
            batch=self.batch, pixels=pixels, channels=self.channels, chunk=chunk, chunks=self.chunks, lanes=lanes,
            eps=eps, slope=slope,
        )  # fmt: skip
        self.give(**dict(zip(("weight", "bias", "residual_weight", "residual_bias"), self.kept, strict=True)))

    def give(self, **tensors: Tensor | None) -> None:
        for name, t in tensors.items():
            setattr(self.params, name, None if t is None else t.data_ptr())

    def give_maps(self, x: Tensor, residual: Tensor | None, statistics: Tensor) -> None:
        self.give(x=x, residual=residual, statistics=statistics[0], residual_statistics=statistics[-1])

    def launch(self, name: str, numbers: int = 0) -> None:
        """Launch a kernel whose threads exchange so many numbers of each channel."""
        grid = (self.chunks, self.columns, self.batch)
        self.kernels.launch(name, grid, self.threads, numbers * self.number_bytes, self.params)

    def find_statistics(self, x: Tensor, statistics: Tensor) -> None:
        """Statistics of the images, from those of their chunks."""
        parts = self.new(x, self.chunks, self.batch, 2)
        self.give(x=x, parts=parts, statistics=statistics)
        self.launch("instance_statistics", numbers=2)
        warps = min(MOST_WARPS, self.chunks)
        blocks = -(-self.batch * self.channels // 32)
        self.kernels.launch("instance_finish", (blocks, 1, 1), 32 * warps, 3 * 4 * 32 * warps, self.params)

    def new(self, x: Tensor, *first: int) -> Tensor:
        return x.new_empty(*first, self.channels, dtype=torch.float32)


@on_its_device
def _forward(x, residual, affine, options):
    y = torch.empty_like(x)
    launcher = _Launcher(x, affine, options, residual, y)
    statistics = launcher.new(x, launcher.norms, launcher.batch, 2)
    for normed, found in zip((x, residual), statistics):
        launcher.find_statistics(normed, found)
    launcher.give_maps(x, residual, statistics)
    launcher.give(out=y)
    launcher.launch("instance_norm")
    return y, statistics


@on_its_device
def _backward(dy, x, residual, y, statistics, affine, options, residual_wanted: bool):
    """Gradients of x, of the residual, and of weight and bias of both norms; the residual is None without a norm."""
    two, _, slope = options
    dx, dresidual = torch.empty_like(x), torch.empty_like(x) if two or (residual_wanted and slope != 1) else None
    launcher = _Launcher(x, affine, options, residual, y, dy, dx, dresidual)
    numbers = 1 + launcher.norms
    parts = launcher.new(x, launcher.chunks, launcher.batch, numbers)
    launcher.give_maps(x, residual, statistics)
    launcher.give(dy=dy, y=y, parts=parts, dresidual=dresidual)
    launcher.launch("instance_sums", numbers)
    sums = sum_rows(parts)
    if dresidual is not None and not two:  # it has passed LeakyReLU
        launcher.give(dy=dresidual, y=None)
        launcher.params.slope = 1.0
    launcher.give(sums=sums, out=dx)
    launcher.launch("instance_backward")
    totals = sums.sum(0) if any(t is not None for t in affine) else [None] * numbers
    dbias, dweight, dresidual_weight = (*totals, None)[:3]
    daffine = (dweight, dbias, dresidual_weight, dbias)
    return (
        dx,
        dy if residual_wanted and dresidual is None else dresidual,
        *(None if t is None else gradient.to(t.dtype) for t, gradient in zip(affine, daffine, strict=True)),
    )


class _InstanceNorm(torch.autograd.Function):
    """Keeps the maps that are normed and, for LeakyReLU of a sum, its result, which the next convolution keeps too."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, residual_weight, residual_bias, *options):
        affine = (weight, bias, residual_weight, residual_bias)
        y, statistics = _forward(x, residual, affine, options)
        two, _, slope = options
        kept_residual, kept_y = residual if two else None, None if residual is None or slope == 1 else y
        ctx.save_for_backward(x, kept_residual, kept_y, statistics, *affine)
        ctx.options = options
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        *tensors, statistics = ctx.saved_tensors[:4]
        affine = ctx.saved_tensors[4:]
        gradients = _backward(dy.contiguous(), *tensors, statistics, affine, ctx.options, ctx.needs_input_grad[1])
        return *gradients, None, None, None
