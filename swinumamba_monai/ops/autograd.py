# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How an operator is given its backward: for torch.compile and the exporters, and on a shorter way for a GPU.

An operator returns what is asked for, and after that what its backward needs. Its inputs are tensors, and after those
some that are no tensors, its options.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def register_backward(operator: torch.library.CustomOpDef, backward: Callable, num_options: int) -> None:
    """Let autograd differentiate a registered operator, once, by its first output.

    Args:
        operator: operator, as :func:`torch.library.custom_op` makes it.
        backward: function of the gradient of the first output, the other outputs, and the inputs; it returns a
            gradient for each tensor of the inputs.
        num_options: number of inputs at the end that are no tensors.
    """

    def keep(ctx, inputs, output) -> None:
        others = output[1:] if isinstance(output, tuple) else ()
        _keep(ctx, inputs, others, num_options)
        ctx.mark_non_differentiable(*others)

    def differentiate(ctx, dout, *_):
        return _differentiate(ctx, dout, backward)

    operator.register_autograd(differentiate, setup_context=keep)


def direct_function(forward: Callable, backward: Callable, num_options: int) -> Callable:
    """The same without the registration of an operator, which takes as long as several launches of a GPU's kernels.

    Args:
        forward: function of the inputs; it returns what an operator returns.
        backward: function as :func:`register_backward` takes it.
        num_options: number of inputs at the end that are no tensors.

    Returns:
        function of the inputs, which returns the first output alone.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            out, *others = forward(*inputs)
            _keep(ctx, inputs, others, num_options)
            return out

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dout):
            return _differentiate(ctx, dout, backward)

    return Direct.apply


def _keep(ctx, inputs, others, num_options: int) -> None:
    count = len(inputs) - num_options
    ctx.options = inputs[count:]
    ctx.save_for_backward(*others, *inputs[:count])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dout, backward: Callable) -> tuple:
    if dout is None:  # the first output was not used
        return (None,) * len(ctx.needs_input_grad)
    return *backward(dout, *ctx.saved_tensors, *ctx.options), *[None] * len(ctx.options)
