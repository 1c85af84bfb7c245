# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The selective scan in standard ONNX operators: what ``swinumamba::selective_scan_inference`` becomes in an ONNX file.

Two nested Scan operators: one over chunks, whose decays and inputs are one operation each, and inside it one over the
positions of a chunk, which is a multiplication and an addition. The number of nodes does not depend on the length, and
nothing is exponentiated but Δ A. What fills the last chunk has Δ = 0, which leaves the state as it is.

Equations in :mod:`swinumamba_monai.ops.reference`, shapes in :mod:`swinumamba_monai.ops.portable`. Importing this
module needs ``onnxscript``.
"""

# Without the future import of annotations: onnxscript reads them, and needs the number of axes.

import onnxscript
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

MAP, STATE, SKIP = (FLOAT[(None,) * rank] for rank in (4, 3, 2))


@script(onnxscript.values.Opset("swinumamba_monai", 1), default_opset=op)
def SelectiveScan(u: MAP, delta: MAP, A: STATE, B: MAP, C: MAP, D: SKIP, delta_bias: SKIP) -> MAP:
    step = op.Softplus(op.Add(delta, delta_bias))
    length = op.Shape(u, start=1, end=2)
    chunk = op.Constant(value_ints=[64])
    missing = op.Mod(op.Neg(length), chunk)
    none = op.Constant(value_ints=[0])
    pads = op.Concat(none, none, none, none, none, missing, none, none, axis=0)
    split = op.Concat(none, op.Constant(value_ints=[-1]), chunk, axis=0)  # 0 keeps the batch
    to_d = op.Concat(split, op.Shape(u, start=2), axis=0)
    to_n = op.Concat(split, op.Shape(B, start=2), axis=0)
    # (b, l, g, ...) to (chunks, positions, b, g, ...)
    steps = op.Transpose(op.Reshape(op.Pad(step, pads), to_d), perm=[1, 2, 0, 3, 4])
    inputs = op.Transpose(op.Reshape(op.Pad(op.Mul(step, u), pads), to_d), perm=[1, 2, 0, 3, 4])
    Bs = op.Transpose(op.Reshape(op.Pad(B, pads), to_n), perm=[1, 2, 0, 3, 4])
    Cs = op.Transpose(op.Reshape(op.Pad(C, pads), to_n), perm=[1, 2, 0, 3, 4])
    h0 = op.Expand(op.Constant(value_float=0.0), op.Concat(op.Shape(u, start=0, end=1), op.Shape(A), axis=0))

    @graph()
    def scan_chunk(h, delta_c, input_c, B_c, C_c):
        last_axis = op.Constant(value_ints=[-1])
        decay = op.Exp(op.Mul(op.Unsqueeze(delta_c, last_axis), A))
        added = op.Mul(op.Unsqueeze(input_c, last_axis), op.Unsqueeze(B_c, op.Constant(value_ints=[-2])))

        @graph()
        def scan_position(h_before, decay_t, added_t):
            h_t = op.Add(op.Mul(decay_t, h_before), added_t)
            kept = op.Identity(h_t)
            return h_t, kept

        h_after, states = op.Scan(h, decay, added, body=scan_position, num_scan_inputs=2)
        y_c = op.Squeeze(op.MatMul(states, op.Unsqueeze(C_c, last_axis)), last_axis)
        return h_after, y_c

    _last, ys = op.Scan(h0, steps, inputs, Bs, Cs, body=scan_chunk, num_scan_inputs=4)
    to_map = op.Concat(none, op.Constant(value_ints=[-1]), op.Shape(u, start=2), axis=0)
    joined = op.Reshape(op.Transpose(ys, perm=[2, 0, 1, 3, 4]), to_map)
    y = op.Slice(joined, none, length, op.Constant(value_ints=[1]))
    return op.Add(y, op.Mul(D, u))


def selective_scan_onnx(u, delta, A, B, C, D, delta_bias, delta_softplus: bool):
    """The translation that ``torch.onnx.export`` calls; all tensors float32, Δ passes through softplus."""
    return SelectiveScan(u, delta, A, B, C, D, delta_bias)
