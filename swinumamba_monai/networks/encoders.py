# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""VMamba's released encoders by name: what ``encoder`` means in both Swin-UMamba networks.

=====================  =======================  ====================  ==============================================
name                   depths, channels         top-1 on ImageNet, %  released weights
=====================  =======================  ====================  ==============================================
``vmamba_tiny_v0``     2, 2, 9, 2 from 96       82.2                  ``vssmtiny_dp01_ckpt_epoch_292.pth``: the paper's
``vmamba_tiny_s1l8``   2, 2, 8, 2 from 96       82.6                  ``vssm1_tiny_0230s_ckpt_epoch_264.pth``
``vmamba_tiny_s2l5``   2, 2, 5, 2 from 96       82.5                  ``vssm_tiny_0230_ckpt_epoch_262.pth``
``vmamba_small_s2l15`` 2, 2, 15, 2 from 96      83.6                  ``vssm_small_0229_ckpt_epoch_222.pth``
``vmamba_base_s2l15``  2, 2, 15, 2 from 128     83.9                  ``vssm_base_0229_ckpt_epoch_237.pth``
=====================  =======================  ====================  ==============================================

All but the first are of VMamba's final version (:mod:`.vss_later`); "s" is the ratio of scanned channels, "l" the depth
of the third stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from swinumamba_monai.checks import require_one_of

from .vmamba import FIRST, LATER, LaterVMambaClassifier, Layers, VMambaClassifier

RELEASED = "released"  # what stands for an argument of which an encoder has its own


class ReleasedEncoder(NamedTuple):
    """One of VMamba's released encoders: the arguments of :class:`.vmamba.VMambaEncoder` that make it.

    Args:
        layers: the version's layers.
        depths: number of blocks of each stage.
        feature_size: number of channels of the first stage.
        d_state: number of states of each scanned channel.
        expand: ratio of scanned channels to those of the map.
        drop_path_rate: drop path rate of the last block in the training on ImageNet.
    """

    layers: Layers
    depths: tuple[int, ...]
    feature_size: int
    d_state: int
    expand: int
    drop_path_rate: float


ENCODERS = {
    "vmamba_tiny_v0": ReleasedEncoder(FIRST, (2, 2, 9, 2), 96, 16, 2, 0.2),
    "vmamba_tiny_s1l8": ReleasedEncoder(LATER, (2, 2, 8, 2), 96, 1, 1, 0.2),
    "vmamba_tiny_s2l5": ReleasedEncoder(LATER, (2, 2, 5, 2), 96, 1, 2, 0.2),
    "vmamba_small_s2l15": ReleasedEncoder(LATER, (2, 2, 15, 2), 96, 1, 2, 0.3),
    "vmamba_base_s2l15": ReleasedEncoder(LATER, (2, 2, 15, 2), 128, 1, 2, 0.6),
}


def encoder_options(name: str, **changes: object) -> dict:
    """The arguments of :class:`.vmamba.VMambaEncoder` that make a released encoder, a key of :data:`ENCODERS`.

    Those of ``changes`` take the place of the released ones, unless they are :data:`RELEASED`. Other names are a
    ValueError.
    """
    require_one_of("encoder", name, ENCODERS)
    kept = {key: value for key, value in changes.items() if not (isinstance(value, str) and value == RELEASED)}
    return {**ENCODERS[name]._asdict(), **kept}


def build_vmamba(name: str, in_channels: int = 3, num_classes: int = 1000, **options) -> VMambaClassifier:
    """A released VMamba with its classification head; ``load_state_dict`` takes the released names strictly.

    Args:
        name: a key of :data:`ENCODERS`.
        in_channels: number of channels of the image.
        num_classes: number of classes.
        options: further keyword arguments of :class:`.vmamba.VMambaEncoder`, in place of the released ones.

    Returns:
        the network, which maps an image to logits (b, num_classes); its ``features`` are the stages' maps.

    Raises:
        ValueError: no such name, or ``in_channels`` or ``num_classes`` is not a positive integer.

    >>> import torch
    >>> small = build_vmamba("vmamba_tiny_s1l8", num_classes=5, depths=(1, 1), feature_size=8)
    >>> [tuple(features.shape) for features in small.features(torch.zeros(1, 3, 16, 8))]
    [(1, 4, 2, 8), (1, 2, 1, 16)]
    """
    options = encoder_options(name, **options)
    layers = options.pop("layers")
    return (VMambaClassifier if layers is FIRST else LaterVMambaClassifier)(in_channels, num_classes, **options)


_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")


def name_encoder(weights: Mapping[str, Tensor]) -> str | None:
    """The released encoder that :class:`.vmamba.VMambaEncoder` weights are of, by names and shapes; or None."""
    depths: dict[int, int] = {}
    for found in filter(None, map(_BLOCK.match, weights)):
        stage, block = map(int, found.groups())
        depths[stage] = max(depths.get(stage, 0), block + 1)
    layers, scan = (LATER, "op") if "layers.0.blocks.0.op.Ds" in weights else (FIRST, "self_attention")
    A_logs = weights.get(f"layers.0.blocks.0.{scan}.A_logs")
    out_proj = weights.get(f"layers.0.blocks.0.{scan}.out_proj.weight")
    if A_logs is None or out_proj is None or A_logs.ndim != 2 or out_proj.ndim not in (2, 4):
        return None
    channels, inner = out_proj.shape[:2]
    found = (layers, tuple(depths[stage] for stage in sorted(depths)), channels, A_logs.shape[1], inner / channels)
    return next((name for name, encoder in ENCODERS.items() if encoder[:5] == found), None)
