# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""SS2D (:mod:`swinumamba_monai.ops.ss2d`) as one operator, ``swinumamba::ss2d``, made of the kernels.

It keeps for its backward nothing but its input, the merged scan and some of the scan's states: everything else is
cheaper to compute again than to store. So is a layer norm before it, whose input is then what is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swinumamba_monai.ops.autocast import to_autocast_dtype, without_autocast
from swinumamba_monai.ops.autograd import direct_function, register_backward

from .device import ALIGNED
from .fused import conv_silu, conv_silu_backward, layer_norm, layer_norm_backward
from .layer_norm import layer_norm_cuda
from .nvrtc import on_its_device
from .packing import pack, unpack
from .scan import ScanInputs, count_chunks, merge, samples_that_fill, scan_backward, scan_forward

DIRECTIONS = 4
SCAN_BYTES = 1 << 29  # that a scan may take for itself, unless fewer samples would leave the GPU idle
PARTS = {256: 64, 512: 16}  # of the rows of a product, by the most channels that it may have; found on an H200
SCAN_MAPS = 13  # what it takes at the most, in maps: Δ and u's gradient of four directions, B and C and their gradients


class _Parameters(NamedTuple):
    """The parameters in the operator's order; shapes as in :func:`swinumamba_monai.ops.ss2d.ss2d`."""

    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt: Tensor
    dt_bias: Tensor
    A_logs: Tensor
    Ds: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    out_proj: Tensor


def ss2d_cuda(x: Tensor, *parameters: Tensor | float) -> Tensor:
    """:func:`swinumamba_monai.ops.ss2d.ss2d` with a layer norm; the same arguments, without the backend."""
    *tensors, eps, pre_norm = parameters
    pre_tensors = () if pre_norm is None else pre_norm[:2]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *pre_tensors, *tensors))
    recorded = torch.compiler.is_compiling()
    x = to_autocast_dtype(x).contiguous()
    if pre_norm is not None and keep and not recorded:
        return _direct_normed(x, *pre_tensors, *tensors, eps, keep, pre_norm[2])
    if pre_norm is not None:
        x = layer_norm_cuda(x, *pre_norm)
    arguments = (x, *tensors, eps, keep)
    if recorded:
        return _forward_op(*arguments)[0]
    return _direct(*arguments) if keep else _forward(*arguments)[0]


class _Weights:
    """The parameters as the kernels take them, and the projection with them.

    The projection's columns for B and C come first. What Δ is made of begins after them; or where so few of them would
    put it at an address that the matrix units cannot load from, it begins with them, and their weights for Δ are zero.

    Args:
        dtype: dtype of the maps.
        parameters: parameters of the block.
    """

    def __init__(self, dtype: torch.dtype, parameters: _Parameters) -> None:
        p = _Parameters(*(None if t is None else t.float().contiguous() for t in parameters))
        self.norm = (p.norm_weight, p.norm_bias)
        self.channels, self.rank = p.dt.shape[1:]
        self.num_BC = p.x_proj.shape[1] - self.rank
        self.low_start = self.num_BC if self.num_BC % ALIGNED == 0 else 0
        self.zeros = self.num_BC - self.low_start
        width = -(-(self.zeros + self.rank) // ALIGNED) * ALIGNED
        in_proj, self.out_proj, self.x_proj, self.dt, self.A, self.taps = pack(
            p.in_proj, p.out_proj, p.x_proj, p.dt, p.A_logs, p.conv_weight, p.conv_bias, width, dtype, self.zeros
        )
        self.to_map, self.to_gate = in_proj.chunk(2) if len(in_proj) > self.channels else (in_proj, None)
        self.dt_bias, self.A_logs, self.D = p.dt_bias, p.A_logs, p.Ds.unflatten(0, (DIRECTIONS, -1))

    def project(self, x: Tensor, out: Tensor) -> tuple[Tensor, ScanInputs]:
        """What Δ is made of, (4, b * l, r with zeros), and the inputs of the scan, from x (b, l, d).

        Both lie in ``out``, (b * l, rows of x_proj).
        """
        torch.mm(x.flatten(0, 1), self.x_proj.t(), out=out)
        projected = out.unflatten(1, (DIRECTIONS, -1)).transpose(0, 1)
        low = projected[..., self.low_start :]
        delta = torch.bmm(low, self.dt.transpose(1, 2))
        BC = projected[..., : self.num_BC].unflatten(1, x.shape[:2]).chunk(2, dim=-1)
        return low, ScanInputs(x[None], delta.unflatten(1, x.shape[:2]), self.A, *BC, self.dt_bias)


def _slices(x: Tensor, d_state: int) -> list[slice]:
    """Samples that are scanned at a time: what a scan needs for itself is several times as large as its map."""
    scans = -(-SCAN_MAPS * x.numel() * x.element_size() // SCAN_BYTES)
    scans = min(scans, max(1, len(x) // samples_that_fill(DIRECTIONS, x.shape[-1], d_state, x.device)))
    samples = -(-len(x) // scans)
    return [slice(start, start + samples) for start in range(0, len(x), samples)]


@on_its_device
@without_autocast
def _forward(x, *arguments):
    *parameters, eps, keep = arguments
    weights = _Weights(x.dtype, _Parameters(*parameters))
    scanned = conv_silu(x @ weights.to_map.t(), weights.taps).flatten(1, 2)
    merged, states = torch.empty_like(scanned), []
    for samples in _slices(scanned, weights.A.shape[-1]):
        here = scanned[samples]
        _, inputs = weights.project(here, x.new_empty(here.shape[:2].numel(), len(weights.x_proj)))
        y, kept = scan_forward(inputs, x.shape[1:3], True, keep)
        merge(y, here, weights.D, merged[samples])
        states.append(kept)
        del inputs, y
    merged = merged.flatten(0, 1)
    gate = None if weights.to_gate is None else x.flatten(0, 2) @ weights.to_gate.t()
    gated, statistics = layer_norm(merged, gate, *weights.norm, eps)
    out = (gated @ weights.out_proj.t()).view(x.shape)
    return out, merged, states[0] if len(states) == 1 else torch.cat(states), statistics


@on_its_device
@without_autocast
def _backward(dout, merged, states, statistics, x, *parameters):
    weights = _Weights(x.dtype, _Parameters(*parameters))
    rows, dout = x.flatten(0, 2), dout.contiguous().flatten(0, 2)

    # out_proj, norm and gate; then the gate's half of in_proj
    gate = None if weights.to_gate is None else rows @ weights.to_gate.t()
    dgated = dout @ weights.out_proj
    normed = layer_norm_backward(dgated, statistics, merged, gate, *weights.norm, output=True)
    dmerged, dnorm = normed.x, normed.parameters
    dout_proj = dout.t() @ normed.output
    dgate = normed.gate
    dgate_proj = None if dgate is None else dgate.t() @ rows
    dx = None if dgate is None else dgate @ weights.to_gate
    del gate, dgate, dgated, normed

    # the scan and its projections
    dmerged = dmerged.view(x.shape[0], -1, weights.channels)
    dx_projs, ddts, dscans = [], [], []  # of the samples that are scanned at a time
    for samples in _slices(dmerged, weights.A.shape[-1]):
        scanned = conv_silu(x[samples] @ weights.to_map.t(), weights.taps).flatten(1, 2)
        dprojected = x.new_empty(*scanned.shape[:2], len(weights.x_proj))  # first the projection, then its gradient
        low, inputs = weights.project(scanned, dprojected.flatten(0, 1))
        delta = inputs.delta  # is overwritten by its gradient
        here = dprojected.unflatten(-1, (DIRECTIONS, -1))
        dBC = here[..., : weights.num_BC].unflatten(-1, (2, -1))
        du, dscan = scan_backward(
            dmerged[samples][None], states[samples], inputs, x.shape[1:3], True, ddelta=delta, dBC=dBC
        )
        merge(du, dmerged[samples], weights.D, dmerged[samples])  # now the gradient of what is scanned
        del du
        ddelta = delta.flatten(1, 2)
        ddts.append(_products_of_parts(ddelta, low))
        dlow = torch.bmm(ddelta, weights.dt).movedim(0, 1).view(*dBC.shape[:3], -1)
        here[..., weights.num_BC :] = dlow[..., weights.zeros :]
        dscans.append(dscan)
        del low, inputs, delta, ddelta, dlow, here, dBC
        dprojected = dprojected.flatten(0, 1)
        dmerged[samples].flatten(0, 1).addmm_(dprojected, weights.x_proj)
        dx_projs.append(dprojected.t() @ scanned.flatten(0, 1))
        del scanned, dprojected
    ddt, dx_proj, dscan = ddts[0], dx_projs[0], dscans[0]
    if len(ddts) > 1:
        ddt, dx_proj, dscan = torch.cat(ddts, 1), torch.stack(dx_projs).sum(0), sum(dscans)

    # the convolution and its half of in_proj
    map_in = x @ weights.to_map.t()  # again, instead of keeping it through the scan
    dmap, dconv = conv_silu_backward(dmerged.view(map_in.shape), map_in, weights.taps)
    dmap = dmap.flatten(0, 2)
    dx = dmap @ weights.to_map if dx is None else dx.addmm_(dmap, weights.to_map)
    dparameters = unpack(
        dmap.t() @ rows, dgate_proj, dx_proj, ddt, dout_proj, dconv, dscan, weights.A_logs, dnorm, weights.rank,
        weights.zeros,
    )  # fmt: skip
    return dx.view(x.shape), dparameters


def _products_of_parts(ddelta: Tensor, low: Tensor) -> Tensor:
    """The gradient of dt (4, parts, d, r) by parts of the rows of ddelta (4, rows, d) and low (4, rows, r).

    A product of so few channels is too small to keep a GPU busy, however many rows it goes over.
    """
    parts = next((most for channels, most in PARTS.items() if ddelta.shape[2] <= channels), 1)
    sizes = (math.gcd(ddelta.shape[1], parts), -1)
    return ddelta.unflatten(1, sizes).transpose(2, 3) @ low.unflatten(1, sizes)


_TENSORS = ", ".join(f"Tensor{'?' if name == 'conv_bias' else ''} {name}" for name in _Parameters._fields)
_forward_op = torch.library.custom_op(
    "swinumamba::ss2d",
    _forward,
    mutates_args=(),
    schema=f"(Tensor x, {_TENSORS}, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "swinumamba::ss2d_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor dout, Tensor merged, Tensor states, Tensor statistics, Tensor x, {_TENSORS}) -> (Tensor, Tensor)",
)


@_forward_op.register_fake
def _(x, *arguments):
    *parameters, _, keep = arguments
    batch, height, width, _ = x.shape
    parameters = _Parameters(*parameters)
    channels, d_state = parameters.dt.shape[1], parameters.A_logs.shape[1]
    chunks = count_chunks(height * width, d_state, x.device) if keep else 0
    return (
        torch.empty_like(x),
        x.new_empty(batch * height * width, channels),
        x.new_empty(batch, DIRECTIONS, chunks, channels, d_state),
        x.new_empty(batch * height * width, 2, dtype=torch.float32),
    )


@_backward_op.register_fake
def _(dout, merged, states, statistics, x, *parameters):
    return torch.empty_like(x), x.new_empty(sum(_sizes(_Parameters(*parameters))), dtype=torch.float32)


def _sizes(p: _Parameters) -> list[int]:
    """Elements of each parameter in what :func:`.packing.unpack` gives; a bias that is not there has some too."""
    return [p.dt.shape[1] if t is None else t.numel() for t in p]


def _differentiate(backward):
    """A backward whose results are the gradients of x and each parameter, in their dtypes."""

    def gradients(dout, merged, states, statistics, x, *inputs):
        *parameters, _eps, _keep = inputs
        p = _Parameters(*parameters)
        dx, dparameters = backward(dout, merged, states, statistics, x, *parameters)
        parts = zip(dparameters.split(_sizes(p)), p)
        return dx, *(None if t is None else part.view(t.shape).to(t.dtype) for part, t in parts)

    return gradients


register_backward(_forward_op, _differentiate(_backward_op), num_options=2)
_gradients = _differentiate(_backward)
_direct = direct_function(_forward, _gradients, num_options=2)


@on_its_device
def _forward_normed(x, weight, bias, *arguments):
    """:func:`_forward` of the layer norm of x, whose eps is the last argument; autograd keeps x."""
    *arguments, eps = arguments
    normed, _ = layer_norm(x.flatten(0, 2), None, weight.float(), bias.float(), eps)
    return _forward(normed.view(x.shape), *arguments)


@on_its_device
def _backward_normed(dout, merged, states, statistics, x, weight, bias, *inputs):
    *inputs, eps = inputs
    rows, scale = x.flatten(0, 2), weight.float()
    normed, row_statistics = layer_norm(rows, None, scale, bias.float(), eps)
    dnormed, *dparameters = _gradients(dout, merged, states, statistics, normed.view(x.shape), *inputs)
    del normed
    gradients = layer_norm_backward(dnormed.flatten(0, 2), row_statistics, rows, None, scale, scale)
    return gradients.x.view(x.shape), *gradients.parameters.to(weight.dtype), *dparameters


_direct_normed = direct_function(_forward_normed, _backward_normed, num_options=3)
