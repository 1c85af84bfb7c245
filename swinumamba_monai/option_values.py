# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the values of a bundle's options may be: of which kind, and within which bounds a run does what it says."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.switches import is_on


class _Number(NamedTuple):
    """A number from ``least`` to ``most``, or above and below them where ``open`` says so.

    Args:
        least: the smallest, in the option's own unit.
        most: the largest.
        open: bounds that are excluded, of "least" and "most".
        whole: whether it is a whole one.
        others: what the option may be instead.
    """

    least: float = 0
    most: float = math.inf
    open: tuple[str, ...] = ()
    whole: bool = False
    others: tuple[str | None, ...] = ()

    def holds(self, value: object) -> bool:
        """Whether a value is such a number, or one of the others."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return any(value is other or value == other for other in self.others)
        least = self.least < value if "least" in self.open else self.least <= value
        most = value < self.most if "most" in self.open else value <= self.most
        return least and most and math.isfinite(value)

    def __str__(self) -> str:
        to_most = math.isfinite(self.most) and "most" not in self.open
        bounds = []
        if math.isfinite(self.least):
            least = f"from {self.least}" if to_most else f"from {self.least} on"
            bounds.append(f"above {self.least}" if "least" in self.open else least)
        if math.isfinite(self.most):
            bounds.append(f"to {self.most}" if to_most else f"and below {self.most}")
        words = ["a whole number" if self.whole else "a number", *bounds, *(f"or {other}" for other in self.others)]
        return " ".join(words)


_COUNT = _Number(1, whole=True)
_SHARE = _Number(0, 1)
_COUNTS = "max_epochs iterations_per_epoch batch_size sw_batch_size val_interval log_interval".split()
_COUNTS += "picture_interval mask_patch_size in_channels num_classes".split()
_NUMBERS = {
    **dict.fromkeys(_COUNTS, _COUNT),
    **dict.fromkeys(("cache_rate", "foreground_fraction", "min_score"), _SHARE),
    "early_stop_patience": _Number(1, whole=True, others=(None,)),
    "min_size": _Number(whole=True, others=("auto",)),
    "channel": _Number(whole=True, others=(None,)),
    "overlap": _Number(0, 1, open=("most",)),
    "mask_ratio": _Number(0, 1, open=("least", "most")),
    "learning_rate": _Number(open=("least",)),  # with 0 nothing is learnt
    "gradient_clip": _Number(open=("least",)),  # 0 would cut every gradient to nothing
    "diameter": _Number(1, 100_000, others=("auto", None)),  # no cell is smaller than a pixel, or larger than images
    "nan": _Number(-math.inf, others=(None,)),
}
_WORDS = ("encoder", "amp")  # the others have a text in the config
_MADE = ("amp_dtype", "network", "checkpointloader", "run", "data")
_SIZES = ("roi_size", "spatial_size")
_LEAST_SIDE = 16  # pixels: what nnU-Net and UNETR need; with windows of a few an image takes hours, and shows no cell


def check_value(name: str, value: object, default: object, shown_name: str = "") -> None:
    """Refuse a value that is not of the kind of the config's own, or beyond what the option can be.

    Args:
        name: name of the option at the top of the config.
        value: what it is to be; no expression of MONAI.
        default: what it is in the config.
        shown_name: name by which the option was given; by default the same.

    Raises:
        InputError: what it must be.
    """
    option = f"--{shown_name or name}"
    number = _NUMBERS.get(name)
    if number is None and not isinstance(default, bool) and isinstance(default, (int, float)):
        number = _Number(whole=isinstance(default, int) and name != "nsd_tolerances")
    # What the config makes of other options; only a component or an expression can take its place.
    is_made = name in _MADE or (name == "num_classes" and isinstance(default, str))
    if name == "device":
        _check_device(option, value)
    elif is_made and value is not None and not (isinstance(value, dict) and "_target_" in value):
        raise InputError(
            f"{option} is made by the config, {shown(default)}; give what this is made of, or an expression "
            f"that begins with $; got {shown(repr(value))}."
        )
    elif isinstance(default, bool):
        try:
            is_on(value)
        except InputError as error:
            raise InputError(f"{option} must be True or False, got {shown(repr(value))}.") from error
    elif number is not None:
        if not number.holds(value):
            example = f", such as {default}" if isinstance(default, (int, float)) else ""
            raise InputError(f"{option} must be {number}{example}; got {shown(repr(value))}.")
    elif name in _WORDS or (isinstance(default, str) and not default.startswith("$")):
        if not isinstance(value, str) and not (value is None and default is None):
            example = f", such as {default}" if default and not default.startswith("$") else ""
            raise InputError(f"{option} must be a word{example}; got {shown(repr(value))}.")
    elif name in _SIZES and isinstance(default, list):
        sides = value if isinstance(value, (list, tuple)) else [value] * len(default)
        if len(sides) != len(default) or not all(type(side) is int and side >= _LEAST_SIDE for side in sides):
            raise InputError(
                f"{option} must be [height,width] in pixels, or one number, from {_LEAST_SIDE} on; got "
                f"{shown(repr(value))}."
            )
    elif isinstance(default, list) and isinstance(value, (str, dict)):
        raise InputError(f"{option} must be a list, such as {shown(default)}; got {shown(repr(value))}.")


def _check_device(option: str, value: object) -> None:
    """Refuse a device that is none, or that this machine does not have."""
    try:
        torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{option} must be one like cpu, cuda or cuda:1, got {shown(value)}.") from error
    find_device(value)
