# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every system of the paper's Tables I–III by one name: the switch behind ``--network_name``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from swinumamba_monai.errors import InputError

from .baselines import UNETR, NNUNet, SegResNet, SwinUNETR
from .nnformer import NNFormer
from .swin_umamba import SwinUMamba, SwinUMambaD
from .umamba import UMambaBot, UMambaEnc

__all__ = ["SYSTEMS", "System", "build_network"]


class System(NamedTuple):
    """One row of the tables.

    Args:
        title: what the paper calls it.
        make: its class, or a builder; called with ``in_channels``, ``out_channels`` and options.
        heads: whether it has heads at several scales; then ``make`` takes ``deep_supervision``.
        planned: whether it is made for one size of crops; then ``make`` takes ``roi_size``.
    """

    title: str
    make: Callable[..., nn.Module]
    heads: bool = False
    planned: bool = False


SYSTEMS = {
    "nnUNet": System("nnU-Net", NNUNet, heads=True, planned=True),
    "SegResNet": System("SegResNet", SegResNet),
    "UNETR": System("UNETR", UNETR, planned=True),
    "SwinUNETR": System("SwinUNETR", SwinUNETR),
    "NNFormer": System("nnFormer", partial(NNFormer, spatial_dims=2), heads=True, planned=True),
    "UMambaBot": System("U-Mamba_Bot", UMambaBot, heads=True, planned=True),
    "UMambaEnc": System("U-Mamba_Enc", UMambaEnc, heads=True, planned=True),
    "SwinUMamba": System("Swin-UMamba", SwinUMamba, heads=True),
    "SwinUMambaD": System("Swin-UMamba†", SwinUMambaD, heads=True),
}


def build_network(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    roi_size: Sequence[int],
    deep_supervision: bool = False,
    **options,
) -> nn.Module:
    """A network in the paper's configuration, which maps (b, in_channels, h, w) to logits (b, out_channels, h, w).

    Args:
        name: a key of :data:`SYSTEMS`.
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        roi_size: size (h, w) of the crops it will see; the structure of nnU-Net, U-Mamba and UNETR depends on it.
        deep_supervision: in training mode return a list of logits, finest first. The systems whose ``heads`` is False
            have one head: they return that, with or without.
        options: of the network's own class, in place of the paper's.

    Raises:
        InputError: no such name, an option that the network does not have, or ``deep_supervision`` is no bool.
        ValueError: an argument that the network does not allow.
    """
    if name not in SYSTEMS:
        raise InputError(f"network_name must be one of {', '.join(SYSTEMS)}, got {name!r}.")
    if len(roi_size) != 2 or any(isinstance(side, bool) or side != int(side) or side < 1 for side in roi_size):
        raise ValueError(f"roi_size must be two positive integers (h, w), got {roi_size!r}.")
    if not isinstance(deep_supervision, bool):  # 'false' on the command line is text, and text counts as true
        raise InputError(f"deep_supervision must be True or False, with a capital, got {deep_supervision!r}.")
    system = SYSTEMS[name]
    if system.planned:
        options["roi_size"] = roi_size
    if system.heads:
        options["deep_supervision"] = deep_supervision
    try:
        return system.make(in_channels, out_channels, **options)
    except TypeError as error:  # an option that is not the network's, or not of its kind
        raise InputError(f"the network {name} cannot be built: {error}.") from error
