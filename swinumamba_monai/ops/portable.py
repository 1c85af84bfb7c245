# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan in plain torch operations, for every device and dtype, with a memory-lean backward.

The sequence is cut into chunks. Within a chunk everything that does not depend on the previous state (exponentials,
products, sums over states) is one vectorised operation, and the recurrence is one fused multiply-add per position, or
for many positions where channels have one state. Only the state at the start of each chunk is kept; the backward
recomputes the others chunk by chunk, from the last to the first. So the (l, b, d, n) states of the whole sequence never
exist, and nothing is ever divided by a product of decays.

The pair of functions is registered as the operator ``swinumamba::selective_scan``, so that ``torch.compile`` and the
exporters see one node, not a loop over positions.

Symbols as in :mod:`.reference`, with positions before channels: u, delta (b, l, g, d); A (g, d, n); B, C (b, l, g, n);
D, delta_bias (g, d), where d counts the channels of one group.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import without_autocast
from .autograd import register_backward
from .reference import state_dtype

CHUNK_ELEMENTS = 1 << 18  # states held at a time: 1 MiB in float32, about a core's cache
MIN_CHUNK = 16  # positions; bounds the stored chunk states to 1/16 of all states however large the batch


def _chunk_length(length: int, state_elements: int) -> int:
    return min(length, max(MIN_CHUNK, CHUNK_ELEMENTS // max(state_elements, 1)))


def _chunk(t: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Positions ``start`` to ``stop`` of (b, l, ...), as (positions, b, ...) in the precision of the states."""
    return t[:, start:stop].transpose(0, 1).to(dtype=dtype, memory_format=torch.contiguous_format, copy=True)


def _states(h: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decays exp(Δ_t A) and states h_t of one chunk, both (positions, b, g, d, n), from the state ``h`` before it."""
    decay = torch.exp(delta.unsqueeze(-1) * A)
    states = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    if A.shape[-1] == 1:
        return decay, _recur(decay, states, h)
    for now, a in zip(states.unbind(0), decay.unbind(0)):
        h = now.addcmul_(a, h)
    return decay, states


def _sum_over_states(states: Tensor, weights: Tensor) -> Tensor:
    """(..., d, n) and (..., n) to (..., d)."""
    if states.shape[-1] == 1:
        return states.squeeze(-1) * weights
    return torch.matmul(states, weights.unsqueeze(-1)).squeeze(-1)


def _recur(decay: Tensor, values: Tensor, before: Tensor) -> Tensor:
    """Add to each position of ``values`` its decay times the one before, in place, in about 2 √positions steps.

    One state of each channel is too little for a step of its own. So √positions blocks of as many positions go ahead at
    the same time, and then each gets what those before it hand on.
    """
    width = math.isqrt(len(values))
    whole = len(values) // width * width
    blocks, decays = (t[:whole].unflatten(0, (-1, width)) for t in (values, decay))
    for t in range(1, width):
        blocks[:, t].addcmul_(decays[:, t], blocks[:, t - 1])
    products = decays.cumprod(1)
    handed_on = torch.empty_like(blocks[:, 0])
    for k in range(len(blocks)):
        handed_on[k] = before
        before = torch.addcmul(blocks[k, -1], products[k, -1], before)
    blocks.addcmul_(products, handed_on.unsqueeze(1))
    for t in range(whole, len(values)):
        before = values[t].addcmul_(decay[t], before)
    return values


@torch.library.custom_op(
    "swinumamba::selective_scan",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, bool delta_softplus)"
    " -> (Tensor, Tensor)",
)
@without_autocast
def _forward(u, delta, A, B, C, D, delta_bias, delta_softplus):
    dtype = state_dtype(u, delta, A)
    batch, length = u.shape[:2]
    A, D, delta_bias = (t.to(dtype) for t in (A, D, delta_bias))
    h = torch.zeros(batch, *A.shape, dtype=dtype, device=u.device)
    size = _chunk_length(length, h.numel())
    starts = range(0, length, size)
    chunk_states = h.new_empty(len(starts), *h.shape)
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    for i, start in enumerate(starts):
        stop = min(start + size, length)
        chunk_states[i] = h
        u_c, delta_c, B_c, C_c = (_chunk(t, start, stop, dtype) for t in (u, delta, B, C))
        delta_c += delta_bias
        if delta_softplus:
            delta_c = F.softplus(delta_c)
        _, states = _states(h, u_c, delta_c, A, B_c)
        y_c = _sum_over_states(states, C_c).addcmul_(D, u_c)
        y[:, start:stop] = y_c.transpose(0, 1)
        h = states[-1]
    return y, chunk_states


@_forward.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus):
    batch, length = u.shape[:2]
    num_chunks = -(-length // _chunk_length(length, batch * A.numel()))
    chunk_states = A.new_empty(num_chunks, batch, *A.shape, dtype=state_dtype(u, delta, A))
    return torch.empty_like(u, memory_format=torch.contiguous_format), chunk_states


@torch.library.custom_op(
    "swinumamba::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor chunk_states, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D,"
    " Tensor delta_bias, bool delta_softplus) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@without_autocast
def _backward(dy, chunk_states, u, delta, A, B, C, D, delta_bias, delta_softplus):
    dtype = chunk_states.dtype
    length = u.shape[1]
    inputs = (u, delta, A, B, C, D, delta_bias)
    A, D, delta_bias = (t.to(dtype) for t in (A, D, delta_bias))
    du, ddelta, dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (u, delta, B, C))
    dA, dD, dbias = (torch.zeros_like(t) for t in (A, D, delta_bias))
    size = _chunk_length(length, chunk_states[0].numel())
    from_right = torch.zeros_like(chunk_states[0])  # decay_{t+1} * dL/dh_{t+1}, what position t inherits
    for i in reversed(range(len(chunk_states))):
        start, stop = i * size, min((i + 1) * size, length)
        u_c, raw, B_c, C_c, dy_c = (_chunk(t, start, stop, dtype) for t in (u, delta, B, C, dy))
        raw += delta_bias
        delta_c = F.softplus(raw) if delta_softplus else raw
        decay, states = _states(chunk_states[i], u_c, delta_c, A, B_c)

        dh = dy_c.unsqueeze(-1) * C_c.unsqueeze(-2)
        if A.shape[-1] == 1:
            later = torch.cat([torch.ones_like(decay[:1]), decay.flip(0)[:-1]])  # what a position passes to the left
            dh = _recur(later, dh.flip(0), from_right).flip(0)
            from_right = decay[0] * dh[0]
        else:
            for now, a in zip(reversed(dh.unbind(0)), reversed(decay.unbind(0))):
                now += from_right
                from_right = a * now

        dC[:, start:stop] = torch.matmul(dy_c.unsqueeze(-2), states).squeeze(-2).transpose(0, 1)
        dB[:, start:stop] = torch.matmul((delta_c * u_c).unsqueeze(-2), dh).squeeze(-2).transpose(0, 1)
        dh_B = _sum_over_states(dh, B_c)
        # dL/d(Δ_t A) = dL/dh_t * decay_t * h_{t-1}, in place of dh
        dh[1:] *= states[:-1]
        dh[0] *= chunk_states[i]
        dh *= decay
        ddelta_c = u_c * dh_B + (dh * A).sum(-1)
        dA += (dh * delta_c.unsqueeze(-1)).sum((0, 1))
        if delta_softplus:
            ddelta_c *= torch.sigmoid(raw)
        dD += (dy_c * u_c).sum((0, 1))
        dbias += ddelta_c.sum((0, 1))
        du[:, start:stop] = (delta_c * dh_B).addcmul_(D, dy_c).transpose(0, 1)
        ddelta[:, start:stop] = ddelta_c.transpose(0, 1)
    grads = (du, ddelta, dA, dB, dC, dD, dbias)
    return tuple(grad.to(t.dtype) for grad, t in zip(grads, inputs))


@_backward.register_fake
def _(dy, chunk_states, u, delta, A, B, C, D, delta_bias, delta_softplus):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, A, B, C, D, delta_bias))


register_backward(_forward, _backward, num_options=1)


def selective_scan_portable(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    """Selective scan by chunks; see the module's text for the shapes. Returns (b, l, g, d) in the dtype of ``u``."""
    return _forward(u, delta, A, B, C, D, delta_bias, delta_softplus)[0]
