# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Weights into networks: checked before anything is changed, and reported.

The networks keep the parameter names of the released Swin-UMamba code, so a name map is needed for VMamba only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

import torch.nn as nn
from torch import Tensor

from .errors import InputError, listed
from .networks.encoders import name_encoder
from .networks.umamba import first_name
from .networks.vmamba import as_linear
from .weight_files import find_weights, read_checkpoint

logger = logging.getLogger(__name__)

ENCODER = "vssm_encoder."
DECODER = "decoder.stages."  # the decoder of Swin-UMamba†
STEM = "stem."  # the convolution before the encoder of Swin-UMamba, pretrained with it
PRETRAINING_ONLY = ("head.", "mask_token")  # the rest of a masked image model
# of VMamba's first version, which the paper took, and of its final one
VMAMBA_KEYS = {"patch_embed.proj.weight", "layers.0.blocks.0.self_attention.A_logs", "layers.0.downsample.norm.weight"}
LATER_KEYS = {"patch_embed.0.weight", "layers.0.blocks.0.op.A_logs", "layers.0.downsample.1.weight"}
_EMBEDDINGS = "patch_embed.proj.weight", "patch_embed.0.weight"  # names in VMamba's first version, and in the final one
LANDMARKS = (*(ENCODER + name for name in _EMBEDDINGS), *_EMBEDDINGS)
LATER_BLOCK = "layers.0.blocks.0.op."

OTHER_VMAMBA = re.compile(r"^layers\.\d+\.blocks\.\d+\.(op|norm|mlp)\.|^classifier\.head\.")


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_pretrained` did.

    Args:
        kind: kind of file that it was recognised as.
        loaded: names of the network's parameters that took their values from it.
        skipped: names in the file that were left out, each with the reason.
        missing: names of the network's parameters that the file does not hold; they keep their values.
    """

    kind: str
    loaded: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = sorted(set(self.skipped.values()))
        skipped = f"{len(self.skipped)} skipped" + (f" ({'; '.join(reasons)})" if reasons else "")
        return f"{self.kind}: {len(self.loaded)} tensors loaded, {skipped}, {len(self.missing)} left as they were"


def load_pretrained(
    net: nn.Module, path_or_state_dict: str | PathLike | Mapping | None, *, strict: bool = False, decoder: bool = False
) -> LoadReport:
    """Load weights into a network, or refuse and leave it as it was.

    Accepted are this package's own checkpoints (whole networks, or the encoder alone as pretraining writes it), the
    released Swin-UMamba checkpoints of nnU-Net (``network_weights``), bare state dicts with those names, and VMamba's
    ImageNet checkpoints (``{"model": ...}``) of the network's own encoder, of which the patch embedding and the
    classification head are left out (paper, section III-C). A network without VMamba's encoder takes its own state
    dicts alone; those of U-Mamba are the released checkpoints too, which name most tensors several times. Heads for
    another number of classes, and layers that take images of another number of channels, are left as they were, unless
    ``strict``.

    Args:
        net: network, one of :data:`~swinumamba_monai.networks.SYSTEMS` or a
            :class:`~swinumamba_monai.training.MaskedImageModel` of one with VMamba's encoder.
        path_or_state_dict: file, or its content.
        strict: whether a file that holds the encoder alone, or a network for other classes or channels, is refused, as
            evaluation and inference must.
        decoder: whether the decoder of Swin-UMamba† gets blocks of the encoder too (paper, section IV-H, "w/ pretrained
            decoder"): each of its stages takes the first blocks of the encoder's stage with as many channels.

    Raises:
        InputError: the file is none of these, is corrupt, or does not fit the network.
    """
    if path_or_state_dict is None:
        raise InputError("a pretrained decoder needs a file to take its weights from; give one to pretrained.")
    is_path = isinstance(path_or_state_dict, (str, PathLike))
    source = str(path_or_state_dict) if is_path else "the state dict"
    weights = find_weights(read_checkpoint(path_or_state_dict) if is_path else path_or_state_dict, source)
    own = net.state_dict()
    weights, strangers = _of_network(weights, own, source)
    kind, whole, weights, skipped = _recognise(source, weights, own)
    skipped |= dict.fromkeys(strangers, "not of the network")
    if decoder:
        weights = {**weights, **_decoder_weights(weights, own, source, kind, whole)}
        kind += ", for the decoder too"
    if strict and not whole:
        raise InputError(f"{source} is a {kind}; a trained segmentation network is needed here.")
    if not strict:
        others = _of_other_classes_or_channels(weights, own)
        skipped |= others
        weights = {name: weight for name, weight in weights.items() if name not in others}
    required = [
        name
        for name in own
        if name not in skipped
        and (whole or (name.startswith(ENCODER) and not name.startswith(ENCODER + "patch_embed.")))
    ]
    _check_fit(source, kind, weights, own, required)
    net.load_state_dict(weights, strict=False)
    report = LoadReport(kind, tuple(weights), skipped, tuple(name for name in own if name not in weights))
    logger.info("%s: %s", source, report)
    return report


def _of_network(weights: dict[str, Tensor], own: Mapping, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network in a larger model, by the network's own names, and the names of all others.

    A larger model is one whose part the network is, under any name, or one that has all of the network and more beside
    it, such as the weights of a loss.
    """
    for landmark in LANDMARKS if any(name.startswith(ENCODER) for name in own) else [next(iter(own))]:
        found = (name.removesuffix(landmark) for name in weights if f".{name}".endswith(f".{landmark}"))
        places = {place for place in found if landmark in LANDMARKS or all(place + name in weights for name in own)}
        if "" in places:
            break
        if len(places) > 1 and landmark in LANDMARKS:
            raise InputError(f"{source} holds several networks ({listed(places)}); save the one that is wanted alone.")
        for place in places if len(places) == 1 else ():
            inside = {name.removeprefix(place): w for name, w in weights.items() if name.startswith(place)}
            return inside, [name for name in weights if not name.startswith(place)]
    tops = {name.partition(".")[0] for name in own}
    strangers = [name for name in weights if name.partition(".")[0] not in tops]
    if not own.keys() <= weights.keys():
        strangers = []
    return {name: weight for name, weight in weights.items() if name not in strangers}, strangers


def _recognise(
    source: str, weights: dict[str, Tensor], own: Mapping
) -> tuple[str, bool, dict[str, Tensor], dict[str, str]]:
    """What kind of file weights are of, whether they are a whole network, those that are used, and why others not."""
    if not any(name.startswith(ENCODER) for name in own):
        return "whole network", True, *_drop_second_names(weights, own)
    if VMAMBA_KEYS <= weights.keys() or LATER_KEYS <= weights.keys():
        _check_encoder(source, "VMamba checkpoint", weights, own)
        return "VMamba checkpoint", False, *_translate_vmamba(weights, own)
    if any(name.startswith(ENCODER) for name in weights):
        of_pretraining = all(name.startswith((ENCODER, STEM, *PRETRAINING_ONLY)) for name in weights)
        whole = weights.keys() == own.keys() or not of_pretraining
        kind = "Swin-UMamba checkpoint" if whole else "pretrained encoder"
        _check_encoder(source, kind, _of_encoder(weights), own)
        heads = [] if whole else [name for name in weights if name.startswith(PRETRAINING_ONLY)]
        used = {name: weight for name, weight in weights.items() if name not in heads}
        return kind, whole, used, dict.fromkeys(heads, "of the pretraining alone")
    if any(OTHER_VMAMBA.match(name) for name in weights):
        raise InputError(
            f"{source} is a VMamba checkpoint of another version than the released ones of docs/ablations.md, or "
            "not all of one; take one of those, whole."
        )
    found = f"its names start with {listed(weights)}"
    raise InputError(f"{source} is neither a Swin-UMamba nor a VMamba checkpoint ({found}).")


def _translate_vmamba(weights: dict[str, Tensor], own: Mapping) -> tuple[dict[str, Tensor], dict[str, str]]:
    """VMamba's names to the encoder's: ``layers.N.downsample`` is the merging after stage N, ``downsamples.N`` here."""
    translated, skipped = {}, {}
    for name, weight in weights.items():
        target = ENCODER + re.sub(r"^layers\.(\d+)\.downsample\.", r"downsamples.\1.", name)
        if name.startswith("patch_embed."):
            skipped[name] = "the patch embedding depends on the image's channels"
        elif name.startswith(("head.", "norm.", "classifier.")):
            skipped[name] = "classification head"
        elif target not in own:
            skipped[name] = "the network has no such block"
        else:
            translated[target] = as_linear(weight, own[target])
    return translated, skipped


def _of_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a network, by the encoder's own names."""
    return {name.removeprefix(ENCODER): weight for name, weight in weights.items() if name.startswith(ENCODER)}


def _check_encoder(source: str, kind: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse the weights of another of VMamba's encoders than the network's, and name both."""
    found, wanted = (
        (name_encoder(encoder), any(name.startswith(LATER_BLOCK) for name in encoder))
        for encoder in (weights, _of_encoder(own))
    )
    if found[1] != wanted[1] or (None not in (found[0], wanted[0]) and found != wanted):
        versions = [name or f"of {'a later' if later else 'the first'} version" for name, later in (found, wanted)]
        raise InputError(
            f"{source} is a {kind} of another version: its encoder is {versions[0]}, this network's is {versions[1]}; "
            "choose the encoder of the network (--encoder) or the file."
        )


def _of_other_classes_or_channels(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The tensors of a network for other classes, or for images of other channels, that this one cannot take.

    They differ from the network's own in one number alone, the same in all of them: the first of a head's weights, or
    the second of a convolution's over the image. Anything else that differs is another network.
    """
    reasons, numbers = {}, {}
    for name, weight in weights.items():
        if name not in own or weight.shape == own[name].shape or weight.ndim != own[name].ndim:
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(weight.shape, own[name].shape)) if a != b]
        axis = axes[0] if len(axes) == 1 else None
        if axis == 0 and (weight.ndim in (1, 4, 5)):
            kind, reason = "classes", "a head for another number of classes"
        elif axis == 1 and weight.ndim in (4, 5):
            kind, reason = "channels", "takes images of another number of channels"
        else:
            return {}
        pair = weight.shape[axis], own[name].shape[axis]
        if numbers.setdefault(kind, pair) != pair:
            return {}
        reasons[name] = reason
    return reasons


def _drop_second_names(weights: dict[str, Tensor], own: Mapping) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor of a released U-Mamba once, under its first name; every other network's as they are."""
    firsts, skipped = {}, {}
    for name, weight in weights.items():
        first = name if name in own else first_name(name)
        if first != name and first in weights:
            skipped[name] = "a second name of a tensor"
        else:
            firsts[first] = weight
    return firsts, skipped


def _decoder_weights(
    weights: Mapping[str, Tensor], own: Mapping, source: str, kind: str, whole: bool
) -> dict[str, Tensor]:
    """The blocks of the encoder's stages under the names of the decoder's, whose first stage has the most channels."""
    stages = 1 + max((int(name.split(".")[2]) for name in own if name.startswith(DECODER)), default=-1)
    if whole or not stages:
        reason = f"{source} is a {kind}, which has a decoder of its own" if whole else "the network has no such decoder"
        raise InputError(f"the decoder cannot be pretrained: {reason}.")
    copies = {}
    for name, weight in weights.items():
        stage, _, rest = name.removeprefix(f"{ENCODER}layers.").partition(".")
        target = f"{DECODER}{stages - 1 - int(stage)}.{rest}" if stage.isdecimal() else None
        if target in own:
            copies[target] = weight
    return copies


def _check_fit(source: str, kind: str, weights: Mapping, own: Mapping, required: list[str]) -> None:
    unknown = [name for name in weights if name not in own]
    absent = [name for name in required if name not in weights]
    if unknown or absent:
        detail = f"the network has no {listed(unknown)}" if unknown else f"the {kind} lacks {listed(absent)}"
        raise InputError(f"{source} is not of this network: {detail}; check its class and depths.")
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            raise InputError(
                f"{source} does not fit the network: {name} is {tuple(weight.shape)} in the {kind} and "
                f"{tuple(own[name].shape)} in the network; check in_channels, out_channels (a bundle's num_classes), "
                "feature_size and d_state."
            )
        if weight.is_floating_point() != own[name].is_floating_point():
            dtypes = f"{weight.dtype} in the {kind} and {own[name].dtype} in the network"
            raise InputError(f"{source} does not fit the network: {name} is {dtypes}.")
        if not weight.isfinite().all():
            raise InputError(f"{source} cannot be used: {name} holds NaN or infinity, its training had diverged.")
