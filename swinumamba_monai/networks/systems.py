# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every system of the paper's Tables I–III by one name: the switch behind ``--network_name``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from swinumamba_monai.errors import InputError, shown
from swinumamba_monai.switches import is_on

from .baselines import UNETR, NNUNet, SegResNet, SwinUNETR
from .encoders import ENCODERS
from .nnformer import NNFormer
from .swin_umamba import SwinUMamba, SwinUMambaD
from .umamba import UMambaBot, UMambaEnc


class System(NamedTuple):
    """One row of the tables.

    Args:
        title: name in the paper.
        make: class of the network, or a builder; called with ``in_channels``, ``out_channels`` and options.
        deep_supervision: whether it has outputs at several scales, so that ``make`` takes ``deep_supervision``.
        fixed_roi_size: whether its structure is that for one size of crops, so that ``make`` takes ``roi_size``.
        vmamba: whether its encoder is one of VMamba's, so that ``make`` takes ``encoder``.
    """

    title: str
    make: Callable[..., nn.Module]
    deep_supervision: bool = False
    fixed_roi_size: bool = False
    vmamba: bool = False


SYSTEMS = {
    "nnUNet": System("nnU-Net", NNUNet, deep_supervision=True, fixed_roi_size=True),
    "SegResNet": System("SegResNet", SegResNet),
    "UNETR": System("UNETR", UNETR, fixed_roi_size=True),
    "SwinUNETR": System("SwinUNETR", SwinUNETR),
    "NNFormer": System("nnFormer", partial(NNFormer, spatial_dims=2), deep_supervision=True, fixed_roi_size=True),
    "UMambaBot": System("U-Mamba_Bot", UMambaBot, deep_supervision=True, fixed_roi_size=True),
    "UMambaEnc": System("U-Mamba_Enc", UMambaEnc, deep_supervision=True, fixed_roi_size=True),
    "SwinUMamba": System("Swin-UMamba", SwinUMamba, deep_supervision=True, vmamba=True),
    "SwinUMambaD": System("Swin-UMamba†", SwinUMambaD, deep_supervision=True, vmamba=True),
}


def build_network(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    roi_size: Sequence[int] | int,
    deep_supervision: bool | str = False,
    encoder: str | None = None,
    **options,
) -> nn.Module:
    """A network in the paper's configuration, which maps (b, in_channels, h, w) to logits (b, out_channels, h, w).

    Args:
        name: a key of :data:`SYSTEMS`.
        in_channels: number of channels of the image.
        out_channels: number of classes, background included.
        roi_size: size (h, w) of the crops it will see, or the side of square ones; the structure of nnU-Net, U-Mamba
            and UNETR depends on it.
        deep_supervision: switch, as :func:`swinumamba_monai.switches.is_on` reads it, whether a list of logits is
            returned in training mode, finest first. The systems without :attr:`System.deep_supervision` return one.
        encoder: a key of :data:`.encoders.ENCODERS`, for the systems with :attr:`System.vmamba`; None for the paper's.
        options: keyword arguments of the network's own class, in place of the paper's.

    The network keeps ``options`` as ``further_options``, for a resumed training to compare.

    Raises:
        InputError: no such name, no such encoder, an option that the network does not have, or ``deep_supervision`` is
            no switch.
        ValueError: an argument that the network does not allow.

    >>> small = {"feature_size": 8, "depths": (1, 1, 1, 1)}
    >>> network = build_network("SwinUMamba", in_channels=1, out_channels=2, roi_size=(64, 64), **small)
    >>> network(torch.zeros(1, 1, 64, 64)).shape
    torch.Size([1, 2, 64, 64])
    """
    if name not in SYSTEMS:
        raise InputError(f"network_name must be one of {', '.join(SYSTEMS)}, got {name!r}.")
    if isinstance(roi_size, int):
        roi_size = (roi_size, roi_size)
    if len(roi_size) != 2 or any(isinstance(side, bool) or side != int(side) or side < 1 for side in roi_size):
        raise ValueError(f"roi_size must be two positive integers (h, w), got {roi_size!r}.")
    system, supervised, further = SYSTEMS[name], is_on(deep_supervision), dict(options)
    if system.fixed_roi_size:
        options["roi_size"] = roi_size
    if system.deep_supervision:
        options["deep_supervision"] = supervised
    if encoder is not None:
        if not system.vmamba:
            others = " and ".join(key for key, other in SYSTEMS.items() if other.vmamba)
            raise InputError(f"the network {name} has no VMamba encoder: --encoder goes with {others}.")
        if encoder not in ENCODERS:
            raise InputError(f"encoder must be one of {', '.join(ENCODERS)}, got {shown(repr(encoder))}.")
        options["encoder"] = encoder
    try:
        network = system.make(in_channels, out_channels, **options)
    except TypeError as error:  # an option that is not the network's, or not of its kind
        raise InputError(f"the network {name} cannot be built: {error}.") from error
    network.further_options = further
    return network
