# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Elementary functions for the loops that Numba compiles. Importing this module imports Numba.

LLVM makes vector instructions of a loop only if all in it are: these functions are written out in additions,
multiplications and integer shifts for float32; float64, which serves checks, takes the library's.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from .kept_loops import LoopCache

# Multiply-adds may be fused, and a division by zero is not an exception but an infinity. Only where lanes are added up
# may sums be reordered: it would undo the rounding trick of the exponential, which keeps its own rules when inlined.
_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy"}
inner = njit(no_cpython_wrapper=True, **_OPTIONS)
inner_summing = njit(no_cpython_wrapper=True, **_OPTIONS | {"fastmath": {"contract", "reassoc", "nsz"}})


def entry(function):
    """Compile what Python calls: without the interpreter lock, and kept on disk for the next process."""
    dispatcher = njit(function, nogil=True, **_OPTIONS)
    dispatcher._cache = LoopCache(function)  # as njit(cache=True) sets Numba's own
    return dispatcher


@intrinsic
def apart(typing_context):
    """Said at the head of a loop's function: its arrays do not overlap, and vectors are as wide as the processor's.

    LLVM would otherwise look for overlaps before every loop, or make no vectors of one with many arrays, and would take
    half of AVX-512's vectors for fear of a lower clock, which loops that do nothing but arithmetic outweigh.
    """

    def generate(context, builder, signature, arguments):
        function = builder.function
        set.add(function.attributes, '"prefer-vector-width"="512"')  # which llvmlite does not know
        for argument in context.call_conv.get_arguments(function):
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def multiply_add(typing_context, a, b, c):
    """a * b + c, rounded once where the processor can: LLVM does not fuse a product that is needed twice."""

    def generate(context, builder, signature, arguments):
        number = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.fmuladd", [number], ir.FunctionType(number, [number] * 3))
        return builder.call(function, arguments)

    return a(a, b, c), generate


# 2^x = 2^k 2^r, where k is the integer nearest to x. Adding 1.5 * 2^23 rounds a number to an integer and leaves that in
# the lowest bits of the sum, from where it is moved into the exponent of 2^k; 127, the bias of an exponent, is part of
# what is added. For 2^r, |r| <= 1/2, serves a polynomial within 1.1e-7 of it. It is 1 at r = 0, and misses 1 - 2^r by
# 1e-6 of that at the most, or a state that fades slowly would gather its error over thousands of positions.
LOG2E, LN2 = 1 / math.log(2), math.log(2)
_ROUNDER = np.float32(1.5 * 2**23 + 127)
_MANTISSA_BITS = np.int32(23)
_LOWEST, _HIGHEST = np.float32(-127), np.float32(128)  # where the bits of 2^k are those of 0 and of infinity
MODERATE = 125  # where no |x| is larger, k is added to the exponent of 2^r itself, which needs no bounds
_ROUNDER_WITHOUT_BIAS = np.float32(1.5 * 2**23)


def _fit(x, truth, at_zero, degree):
    """Factors of x, x^2, ... of a polynomial that is ``at_zero`` at 0 and whose relative error is small everywhere."""
    terms = x[:, None] ** np.arange(1, degree + 1) / truth[:, None]
    return np.linalg.lstsq(terms, 1 - at_zero / truth, rcond=None)[0].astype(np.float32)


_NODES = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)  # denser at the ends, which makes the largest error small
_P1, _P2, _P3, _P4, _P5 = _fit(_NODES / 2, np.exp2(_NODES / 2), 1, 5)
# e^x likewise with r = x - k ln 2, for which ln 2 is given in two parts
_LOG2E_32 = np.float32(LOG2E)
_LN2_HIGH = np.float32(0.693359375)  # nine bits, so that k times it is exact
_LN2_LOW = np.float32(LN2 - 0.693359375)
_LARGE = np.float32(88)  # e^-88 is 0
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@inner
def _exp2_of_fraction(r):
    return ((((_P5 * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r + _ONE


@inner
def _compose(rounded, r):
    power = np.int32(np.float32(rounded).view(np.int32) << _MANTISSA_BITS).view(np.float32)
    return power * _exp2_of_fraction(r)


@inner
def _exp2_below_127(x):
    x = _LOWEST if x < _LOWEST else x  # this way round, NaN stays NaN
    rounded = x + _ROUNDER
    return _compose(rounded, x - (rounded - _ROUNDER))


@inner
def _exp2_falling_float32(a, b):
    return _exp2_below_127(a * b)


@inner
def _exp2_float32(a, b):
    x = a * b
    return _exp2_below_127(_HIGHEST if x > _HIGHEST else x)


@inner
def _exp2_moderate_float32(a, b):
    rounded = multiply_add(a, b, _ROUNDER_WITHOUT_BIAS)
    fraction = _exp2_of_fraction(multiply_add(a, b, _ROUNDER_WITHOUT_BIAS - rounded))
    k = np.int32(np.float32(rounded).view(np.int32) << _MANTISSA_BITS)
    return np.int32(np.float32(fraction).view(np.int32) + k).view(np.float32)


@inner
def _exp_of_minus_float32(x):
    x = _LARGE if x > _LARGE else x
    rounded = _ROUNDER - x * _LOG2E_32
    k = rounded - _ROUNDER
    return _compose(rounded, (-x - k * _LN2_HIGH - k * _LN2_LOW) * _LOG2E_32)


# log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3: s times a polynomial in s^2, within 6e-9 of the series, 2 at s = 0
_S = np.sqrt((_NODES + 1) / 18)
_L1, _L2, _L3, _L4 = _fit((_NODES + 1) / 18, 2 * np.arctanh(_S) / _S, 2, 4)


@inner
def _softplus_float32(x):
    e = _exp_of_minus_float32(abs(x))
    s = e / (_TWO + e)
    q = s * s
    log1p = s * ((((_L4 * q + _L3) * q + _L2) * q + _L1) * q + _TWO)
    return (x if x > _ZERO else _ZERO) + log1p


@inner
def _sigmoid_float32(x):
    e = _exp_of_minus_float32(abs(x))
    return (_ONE if x > _ZERO else e) / (_ONE + e)


@inner
def _exp2_float64(a, b):
    return math.exp(a * b * LN2)


@inner
def _softplus_float64(x):
    return (x if x > 0.0 else 0.0) + math.log1p(math.exp(-abs(x)))


@inner
def _sigmoid_float64(x):
    e = math.exp(-abs(x))
    return (1.0 if x > 0.0 else e) / (1.0 + e)


def _by_precision(float32, float64):
    """A function of numbers that compiles to one of two, by the precision of the first."""

    def function(*numbers):
        raise NotImplementedError("only compiled loops call this")

    @overload(function, jit_options=_OPTIONS)
    def choose(*numbers):
        if numbers[0] == types.float32:
            return lambda *numbers: float32(*numbers)
        return lambda *numbers: float64(*numbers)

    return function


# 2^(a b); in float32 to 1e-7, 0 where a b is below -126.5, infinity above 127.5
exp2 = _by_precision(_exp2_float32, _exp2_float64)
exp2_falling = _by_precision(_exp2_falling_float32, _exp2_float64)  # that for a b below 127, which saves a comparison
exp2_moderate = _by_precision(_exp2_moderate_float32, _exp2_float64)  # and for |a b| <= MODERATE
softplus = _by_precision(_softplus_float32, _softplus_float64)  # log(1 + e^x)
sigmoid = _by_precision(_sigmoid_float32, _sigmoid_float64)  # 1 / (1 + e^-x), the derivative of softplus
