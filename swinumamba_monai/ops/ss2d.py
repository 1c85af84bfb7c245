# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""2D selective scan with everything around it (SS2D), as one operator.

    x, gate = halves of in_proj(x)
    x       = silu(depthwise_conv(x))
    Δ, B, C = linear functions of x, for each of the four directions
    y       = cross_scan_2d(x, Δ, A, B, C, D)               eqs. (5)-(7) of the paper
    out     = out_proj(layer_norm(y) * silu(gate))

:func:`ss2d_ref` is that, line for line. The operator ``swinumamba::ss2d`` computes it with the kernels of
:mod:`.cuda_scan` and :mod:`.cuda_fused`, and keeps for its backward nothing but its input, the merged scan and some of
the scan's states: everything else is cheaper to compute again than to store.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cuda_fused import conv_silu, conv_silu_backward, layer_norm, layer_norm_backward, pack
from .cuda_scan import CHUNK, LOG2_E, merge, samples_that_fill, scan_backward, scan_forward, split_parameters
from .dispatch import choose_backend, norm_gate, projected_scan_2d
from .nvrtc import on_its_device
from .portable import to_autocast_dtype, without_autocast

__all__ = ["ss2d", "ss2d_ref"]

DIRECTIONS = 4
SCAN_BYTES = 1 << 29  # that a scan may take for itself, unless fewer samples would leave the GPU idle
SCAN_MAPS = 13  # what it takes at the most, in maps: Δ and u's gradient of four directions, B and C and their gradients


def ss2d(
    x: Tensor,
    in_proj_weight: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    out_proj_weight: Tensor,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
) -> Tensor:
    """SS2D, by the operator where the backend is ``cuda`` and by :func:`ss2d_ref` elsewhere.

    Args:
        x: feature map, (b, h, w, m).
        in_proj_weight: (2d, m).
        conv_weight: (d, 1, 3, 3).
        conv_bias: (d,).
        x_proj_weight: to the low rank of Δ, B and C of each direction, (4, r + 2n, d).
        dt_weight: from the low rank to Δ, (4, d, r).
        dt_bias: (4, d).
        A_logs: log(-A), (4 * d, n).
        Ds: skip weights, (4 * d,).
        norm_weight: (d,).
        norm_bias: (d,); None for an RMS norm in place of the layer norm.
        out_proj_weight: (m, d).
        eps: of the norm.
        backend: one of :data:`.dispatch.BACKENDS`.

    Returns:
        (b, h, w, m); under autocast in its dtype.

    Raises:
        RuntimeError: a backend that cannot run on these tensors.
    """
    tensors = (
        x, in_proj_weight, conv_weight, conv_bias, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, norm_weight,
        norm_bias, out_proj_weight,
    )  # fmt: skip
    if choose_backend(backend, x.device.type, x.dtype, A_logs.shape[1]) == "cuda" and norm_bias is not None:
        keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        arguments = (to_autocast_dtype(x).contiguous(), *tensors[1:], eps, keep)
        if torch.compiler.is_compiling():
            return _forward_op(*arguments)[0]
        return _SS2D.apply(*arguments) if keep else _forward(*arguments)[0]
    return ss2d_ref(*tensors, eps, backend=backend)


def ss2d_ref(
    x, in_proj_weight, conv_weight, conv_bias, x_proj_weight, dt_weight, dt_bias, A_logs, Ds, norm_weight, norm_bias,
    out_proj_weight, eps=1e-5, *, backend="auto",
) -> Tensor:  # fmt: skip
    """:func:`ss2d` in torch operations, around the scan and the norm that the backend has; the same arguments."""
    x, gate = F.linear(x, in_proj_weight).chunk(2, dim=-1)
    channels = x.shape[-1]
    x = F.silu(F.conv2d(x.permute(0, 3, 1, 2), conv_weight, conv_bias, padding=1, groups=channels)).permute(0, 2, 3, 1)
    projected = F.linear(x, x_proj_weight.flatten(0, 1)).unflatten(-1, (DIRECTIONS, -1))
    A_logs = A_logs.to(torch.promote_types(A_logs.dtype, torch.float32))
    A, D = -A_logs.exp().unflatten(0, (DIRECTIONS, -1)), Ds.unflatten(0, (DIRECTIONS, -1))
    y = projected_scan_2d(x, projected, dt_weight, A, D, dt_bias, backend=backend)
    if norm_bias is None:
        gated = F.rms_norm(y, (channels,), norm_weight, eps) * F.silu(gate)
    else:
        gated = norm_gate(y, gate, norm_weight, norm_bias, eps, backend=backend)
    return F.linear(gated, out_proj_weight)


class _Weights:
    """The parameters as the kernels take them, and the projection with them.

    Args:
        dtype: of the maps.
        parameters: of :func:`ss2d`, in its order.
    """

    def __init__(self, dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        parameters = [t.float().contiguous() for t in parameters]
        (
            in_proj, conv_weight, conv_bias, x_proj, dt, self.dt_bias, A_logs, Ds, norm_weight, norm_bias, out_proj,
        ) = parameters  # fmt: skip
        self.conv, self.norm = (conv_weight, conv_bias), (norm_weight, norm_bias)
        self.channels, self.rank = dt.shape[1:]
        self.num_BC = x_proj.shape[1] - self.rank
        in_proj, self.out_proj, self.x_proj, self.dt, self.A = pack(
            in_proj, out_proj, x_proj, dt, A_logs, -(-self.rank // 8) * 8, dtype
        )
        self.to_map, self.to_gate = in_proj.chunk(2)
        self.D = Ds.unflatten(0, (DIRECTIONS, -1))

    def project(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Δ's low rank, (4, b * l, r), and the inputs of the scan, from x (b, l, d)."""
        projected = (x.flatten(0, 1) @ self.x_proj.t()).unflatten(1, (DIRECTIONS, -1)).transpose(0, 1)
        low = projected[..., self.num_BC :]
        delta = torch.bmm(low, self.dt.transpose(1, 2))
        BC = projected[..., : self.num_BC].unflatten(1, x.shape[:2]).chunk(2, dim=-1)
        return low, (x[None], delta.unflatten(1, x.shape[:2]), self.A, *BC, self.dt_bias)


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
    weights = _Weights(x.dtype, parameters)
    scanned = conv_silu(x @ weights.to_map.t(), *weights.conv).flatten(1, 2)
    merged, states = torch.empty_like(scanned), []
    for samples in _slices(scanned, weights.A.shape[-1]):
        _, inputs = weights.project(scanned[samples])
        y, kept = scan_forward(inputs, x.shape[1:3], True, keep)
        merge(y, scanned[samples], weights.D, merged[samples])
        states.append(kept)
        del inputs, y
    merged = merged.flatten(0, 1)
    gated, statistics = layer_norm(merged, x.flatten(0, 2) @ weights.to_gate.t(), *weights.norm, eps)
    out = (gated @ weights.out_proj.t()).view(x.shape)
    return out, merged, states[0] if len(states) == 1 else torch.cat(states), statistics


@on_its_device
@without_autocast
def _backward(dout, merged, states, statistics, x, *parameters):
    weights = _Weights(x.dtype, parameters)
    rows, dout = x.flatten(0, 2), dout.contiguous().flatten(0, 2)

    # out_proj, norm and gate; then the gate's half of in_proj
    gate, dgated = rows @ weights.to_gate.t(), dout @ weights.out_proj
    dmerged, dgate, gated, dnorm = layer_norm_backward(dgated, statistics, merged, gate, *weights.norm)
    dout_proj = dout.t() @ gated
    dx, dto_gate = dgate @ weights.to_gate, dgate.t() @ rows
    del gate, dgated, gated, dgate

    # the scan and its projections
    scanned = conv_silu(x @ weights.to_map.t(), *weights.conv).flatten(1, 2)
    dmerged = dmerged.view(scanned.shape)
    dprojected = x.new_empty(*scanned.shape[:2], DIRECTIONS, len(weights.x_proj) // DIRECTIONS)
    sums = []
    for samples in _slices(scanned, weights.A.shape[-1]):
        low, inputs = weights.project(scanned[samples])
        delta = inputs[1]  # is overwritten by its gradient
        du, dBC, dscan = scan_backward(
            dmerged[samples][None], states[samples], inputs, x.shape[1:3], True, ddelta=delta
        )
        ddelta = delta.flatten(1, 2)
        dprojected[samples, ..., : weights.num_BC] = dBC.flatten(3)
        dprojected[samples, ..., weights.num_BC :] = (
            torch.bmm(ddelta, weights.dt).movedim(0, 1).view(*dBC.shape[:3], -1)
        )
        ddt = torch.bmm(ddelta.transpose(1, 2), low)[..., : weights.rank]
        merge(du, dmerged[samples], weights.D, dmerged[samples])  # now the gradient of what is scanned
        sums.append((ddt, dscan))
        del low, inputs, delta, ddelta, du, dBC
    ddt, dscan = sums[0] if len(sums) == 1 else (torch.stack(parts).sum(0) for parts in zip(*sums))
    dprojected = dprojected.flatten(0, 1).flatten(1)
    dscanned = dmerged.flatten(0, 1).addmm_(dprojected, weights.x_proj)
    dx_proj = (dprojected.t() @ scanned.flatten(0, 1)).unflatten(0, (DIRECTIONS, -1))
    dx_proj = dx_proj[:, : weights.num_BC + weights.rank].roll(weights.rank, dims=1)  # the low rank's rows come first
    del scanned, dprojected

    # the convolution and its half of in_proj
    map_in = x @ weights.to_map.t()  # again, instead of keeping it through the scan
    dmap, dconv = conv_silu_backward(dscanned.view(map_in.shape), map_in, *weights.conv)
    dmap = dmap.flatten(0, 2)
    dx.addmm_(dmap, weights.to_map)
    din_proj = torch.cat([dmap.t() @ rows, dto_gate])
    return dx.view(x.shape), din_proj, dconv, dx_proj, ddt.contiguous(), dscan, dnorm, dout_proj


def _parameter_gradients(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What :func:`_backward` returned, as the gradients of x and each parameter."""
    dx, din_proj, dconv, dx_proj, ddt, dscan, dnorm, dout_proj = gradients
    A_logs = parameters[6]
    dA, ddt_bias, dD = split_parameters(dscan, A_logs.shape[1])
    grads = (
        din_proj, dconv[:9].t().reshape(parameters[1].shape), dconv[9], dx_proj, ddt, ddt_bias,
        dA.flatten(0, 1) * (-LOG2_E * A_logs.exp()), dD.flatten(), *dnorm, dout_proj,
    )  # fmt: skip
    return dx, *(grad.to(t.dtype) for grad, t in zip(grads, parameters))


class _SS2D(torch.autograd.Function):
    """The operator without its registration, which takes as long as several launches."""

    @staticmethod
    def forward(ctx, *arguments):
        *tensors, _, _ = arguments
        out, *kept = _forward(*arguments)
        ctx.save_for_backward(*kept, *tensors)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout):
        saved = ctx.saved_tensors
        return *_parameter_gradients(_backward(dout, *saved), saved[4:]), None, None


# The same as operators, for torch.compile and the exporters.

_forward_op = torch.library.custom_op(
    "swinumamba::ss2d",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor in_proj_weight, Tensor conv_weight, Tensor conv_bias, Tensor x_proj_weight,"
    " Tensor dt_weight, Tensor dt_bias, Tensor A_logs, Tensor Ds, Tensor norm_weight, Tensor norm_bias,"
    " Tensor out_proj_weight, float eps, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "swinumamba::ss2d_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor dout, Tensor merged, Tensor states, Tensor statistics, Tensor x, Tensor in_proj_weight,"
    " Tensor conv_weight, Tensor conv_bias, Tensor x_proj_weight, Tensor dt_weight, Tensor dt_bias, Tensor A_logs,"
    " Tensor Ds, Tensor norm_weight, Tensor norm_bias, Tensor out_proj_weight)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@_forward_op.register_fake
def _(x, *arguments):
    *parameters, _, keep = arguments
    batch, height, width, _ = x.shape
    channels, d_state = parameters[4].shape[1], parameters[6].shape[1]
    chunks = -(-height * width // CHUNK) if keep else 0
    return (
        torch.empty_like(x),
        x.new_empty(batch * height * width, channels),
        x.new_empty(batch, DIRECTIONS, chunks, channels, d_state),
        x.new_empty(batch * height * width, 2, dtype=torch.float32),
    )


@_backward_op.register_fake
def _(dout, merged, states, statistics, x, in_proj, conv_weight, conv_bias, x_proj, dt, dt_bias, A_logs, Ds, *rest):
    channels, d_state = len(conv_bias), A_logs.shape[1]
    parameters = [torch.empty_like(t, dtype=x.dtype) for t in (x, in_proj, x_proj, dt, rest[-1])]
    sums = [
        conv_bias.new_empty(rows, columns, dtype=torch.float32)
        for rows, columns in ((10, channels), (DIRECTIONS, (d_state + 2) * channels), (2, channels))
    ]
    return parameters[0], parameters[1], sums[0], parameters[2], parameters[3], sums[1], sums[2], parameters[4]


def _save_for_backward(ctx, inputs, output):
    *tensors, _, _ = inputs
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _autograd(ctx, dout, *_):
    saved = ctx.saved_tensors
    return *_parameter_gradients(_backward_op(dout, *saved), saved[4:]), None, None


_forward_op.register_autograd(_autograd, setup_context=_save_for_backward)
