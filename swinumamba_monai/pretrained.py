# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from files: read without running what they contain, checked before anything is changed, and reported.

The networks keep the parameter names of the released Swin-UMamba code, so a name map is needed for VMamba only.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn as nn
from torch import Tensor
from torch.torch_version import TorchVersion

from .atomic import replacing
from .errors import InputError, quoted, shown
from .networks.encoders import name_encoder
from .networks.umamba import first_name
from .networks.vmamba import as_linear

__all__ = ["LoadReport", "find_checkpoint", "load_pretrained", "read_checkpoint", "read_weights", "save_half_precision"]

logger = logging.getLogger(__name__)

ENCODER = "vssm_encoder."
DECODER = "decoder.stages."  # of Swin-UMamba†
STEM = "stem."  # the convolution before the encoder of Swin-UMamba, pretrained with it
PRETRAINING_ONLY = ("head.", "mask_token")  # the rest of a masked image model
# of VMamba's first version, which the paper took, and of its final one
VMAMBA_KEYS = {"patch_embed.proj.weight", "layers.0.blocks.0.self_attention.A_logs", "layers.0.downsample.norm.weight"}
LATER_KEYS = {"patch_embed.0.weight", "layers.0.blocks.0.op.A_logs", "layers.0.downsample.1.weight"}
LATER_BLOCK = "layers.0.blocks.0.op."

SAFE_TORCH = "2.10"  # from which on no memory is known to be overwritten by what weights_only=True reads
MAX_DEPTH = 20  # of what lies in a checkpoint
MAX_NAMES = 16  # of a tensor; released U-Mamba checkpoints name most of them four times

# What other tools call the state dict in a checkpoint, what they put before its names (DDP, torch.compile, Lightning,
# averaged models), and what they count beside it (averaged models, thop).
WRAPPERS = ("network_weights", "model", "state_dict", "model_state_dict", "net", "network", "model_ema", "ema")
PREFIXES = re.compile(r"^((module|_orig_mod|model|net|network|ema_model|ema)\.)+")
COUNTERS = re.compile(r"(^|\.)(n_averaged|total_ops|total_params)$")
OTHER_VMAMBA = re.compile(r"^layers\.\d+\.blocks\.\d+\.(op|norm|mlp)\.|^classifier\.head\.")

# nnU-Net stores its log beside the weights: numpy numbers, which torch's safe unpickler takes when told that it may.
# Files from NumPy 1 and NumPy 2 name the same function differently, and either may be installed here.
_make_scalar = np.float64().__reduce__()[0]
_NUMPY_SCALARS = [
    np.dtype,
    (_make_scalar, "numpy.core.multiarray.scalar"),
    (_make_scalar, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


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


def read_checkpoint(path: str | PathLike) -> dict:
    """Read a ``.safetensors`` file, or a torch file with ``weights_only=True``: no code in it is ever run.

    Args:
        path: file to read.

    Returns:
        its content, on the CPU.

    Raises:
        InputError: there is no such file, it cannot be opened, is truncated or no checkpoint, or it holds anything but
            plain data: numbers, text, and tensors whose elements all lie in the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint file {path}.")
    try:
        if misnamed := _what_it_is(path):
            raise InputError(f"{path} is {misnamed}.")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _warn_of_old_torch()
        _check_records(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is corrupt, or holds Python objects besides weights; such files are not opened, because "
            "unpickling them would run their code: save its state dict alone."
        ) from error
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or type(error).__name__}).") from error
    except Exception as error:  # a damaged file fails anywhere in the readers: struct.error, IndexError, ...
        raise InputError(f"{path} cannot be read as a checkpoint, it is corrupt or truncated.") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint with a state dict.")
    try:
        size = _count_bytes(content)
    except (TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise InputError(f"{path} holds what no checkpoint has ({quoted(error)}); it is not used.") from error
    if size > MAX_NAMES * path.stat().st_size:
        raise InputError(f"{path} claims {size} bytes of numbers, which no file of its size holds; it is not used.")
    return content


def _what_it_is(path: Path) -> str | None:
    """What a file of weights under a wrong name is, with what to do; None where nothing is wrong with the name."""
    if path.suffix == ".json":
        return "no file of weights but a list, perhaps of the parts that they lie in; join those into one file"
    with path.open("rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    if is_safetensors and path.suffix != ".safetensors":
        return "a safetensors file; rename it to end in .safetensors"
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        return "a torch file; rename it to end in .pt"
    return None


@cache
def _warn_of_old_torch() -> None:
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        logger.warning(
            "torch %s can be attacked by a crafted .pt file, even so (CVE-2026-24747): use files of those you trust, "
            "safetensors, or torch %s",
            torch.__version__,
            SAFE_TORCH,
        )


def _count_bytes(content: object, depth: int = 0, seen: set[int] | None = None) -> int:
    """The bytes of all tensors in what was read; raises ValueError for one whose elements are not all there.

    A file may name tensors of any size without holding them: on no device, sparse, nested, quantized, or with elements
    that all lie at one place. What copies them, or runs over them, would take the memory and the hours that they claim.
    Containers count once, however often they lie in each other.
    """
    seen = set() if seen is None else seen
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    if isinstance(content, (Mapping, list, tuple)):
        if id(content) in seen:
            return 0
        seen.add(id(content))
        parts = content.values() if isinstance(content, Mapping) else content
        return sum(_count_bytes(part, depth + 1, seen) for part in parts)
    if not isinstance(content, Tensor):
        return 0
    plain = type(content) in (Tensor, nn.Parameter) and content.layout == torch.strided and not content.is_nested
    if not plain or content.is_quantized or content.device.type != "cpu":
        raise ValueError("a tensor that is sparse, nested, quantized or on no device")
    size = content.numel() * content.element_size()
    if size > content.untyped_storage().nbytes():
        raise ValueError("a tensor that names its elements more than once")
    return size


def _check_records(path: Path) -> None:
    """Refuse what only claims to be large: torch.save never compresses, so a record is as long as it is in the file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise InputError(f"{path} holds compressed records, which torch.save does not write; it is not opened.")


def read_weights(path: str | PathLike) -> dict[str, Tensor]:
    """The weights in a checkpoint, by their names without what DDP and torch.compile put before them.

    Args:
        path: file that :func:`read_checkpoint` reads.

    Returns:
        the state dict, on the CPU, in the precision of the file.

    Raises:
        InputError: as :func:`read_checkpoint`, and for a file without weights.
    """
    return _find_weights(read_checkpoint(path), str(path))


def find_checkpoint(folder: str | PathLike, name: str = "model", shipped: str | None = None) -> str:
    """The trained network of a folder: ``model.pt``, which training writes, else ``model.safetensors``, which ships.

    Args:
        folder: folder to look into.
        name: name of the files, without suffix.
        shipped: name of the file that ships, where it is another; it comes before ``model.safetensors``.

    Returns:
        the path of one that exists, or of ``model.pt``, so that a sentence on the missing file names that.
    """
    trained = Path(folder) / f"{name}.pt"
    files = (trained, *(Path(folder) / f"{other}.safetensors" for other in (shipped or name, name)))
    return str(next((file for file in files if file.is_file()), trained))


def save_half_precision(source: str | PathLike, target: str | PathLike) -> int:
    """Write the weights of a checkpoint as safetensors of half the size; networks compute in float32 all the same.

    Args:
        source: file that :func:`read_checkpoint` reads.
        target: ``.safetensors`` file to write, whole or not at all; its folder must exist.

    Returns:
        the size of the file in bytes.

    Raises:
        InputError: ``source`` cannot be read, or holds a number that float16 cannot; ``target`` has another suffix.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors.")
    weights = read_weights(source)
    half = {name: (w.half() if w.is_floating_point() else w).contiguous().clone() for name, w in weights.items()}
    if spoilt := [name for name, weight in half.items() if not weight.isfinite().all()]:
        raise InputError(f"{source} cannot be halved: {_some(spoilt)} would not be finite in float16.")
    with replacing(target) as temporary:
        temporary.write_bytes(safetensors.torch.save(half))  # save_file has errors of its own for a full disk
    return target.stat().st_size


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

    Returns:
        which tensors were loaded, skipped and why, and which of the network's were not in the file.

    Raises:
        InputError: the file is none of these, is corrupt, or does not fit the network.
    """
    if path_or_state_dict is None:
        raise InputError("a pretrained decoder needs a file to take its weights from; give one to pretrained.")
    is_path = isinstance(path_or_state_dict, (str, PathLike))
    source = str(path_or_state_dict) if is_path else "the state dict"
    weights = _find_weights(read_checkpoint(path_or_state_dict) if is_path else path_or_state_dict, source)
    own = net.state_dict()

    if not any(name.startswith(ENCODER) for name in own):
        kind, whole = "whole network", True
        weights, skipped = _drop_second_names(weights, own)
    elif VMAMBA_KEYS <= weights.keys() or LATER_KEYS <= weights.keys():
        kind = "VMamba checkpoint"
        _check_encoder(source, kind, weights, own)
        weights, skipped = _translate_vmamba(weights, own)
        whole = False
    elif any(name.startswith(ENCODER) for name in weights):
        whole = weights.keys() == own.keys() or not all(
            name.startswith((ENCODER, STEM, *PRETRAINING_ONLY)) for name in weights
        )
        kind = "Swin-UMamba checkpoint" if whole else "pretrained encoder"
        _check_encoder(source, kind, _of_encoder(weights), own)
        skipped = {
            name: "of the pretraining alone" for name in weights if not whole and name.startswith(PRETRAINING_ONLY)
        }
        weights = {name: weight for name, weight in weights.items() if name not in skipped}
    elif any(OTHER_VMAMBA.match(name) for name in weights):
        raise InputError(
            f"{source} is a VMamba checkpoint of another version than the released ones of docs/ablations.md, or "
            "not all of one; take one of those, whole."
        )
    else:
        found = f"its names start with {_some(weights)}"
        raise InputError(f"{source} is neither a Swin-UMamba nor a VMamba checkpoint ({found}).")

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


def _find_weights(content: Mapping, source: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without what other tools put around it, before its names and beside its weights.

    Raises:
        InputError: there are no weights, something else lies among them, or two names become one.
    """
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    found = {str(name): value for name, value in content.items() if not COUNTERS.search(str(name))}
    weights = {PREFIXES.sub("", name): value for name, value in found.items()}
    if len(weights) < len(found):
        raise InputError(f"{source} holds several networks under one name; save the one that is wanted alone.")
    strangers = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if not weights or strangers:
        found = f" (found {_some(strangers)})" if strangers else ""
        raise InputError(f"{source} holds no weights of a network{found}.")
    return weights


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
    found, wanted = ((name_encoder(names), _is_later(names)) for names in (weights, _of_encoder(own)))
    if found[1] != wanted[1] or (None not in (found[0], wanted[0]) and found != wanted):
        versions = [name or f"of {'a later' if later else 'the first'} version" for name, later in (found, wanted)]
        raise InputError(
            f"{source} is a {kind} of another version: its encoder is {versions[0]}, this network's is {versions[1]}; "
            "choose the encoder of the network (--encoder) or the file."
        )


def _is_later(weights: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(LATER_BLOCK) for name in weights)


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
        if numbers.setdefault(kind, (weight.shape[axis], own[name].shape[axis])) != (
            weight.shape[axis],
            own[name].shape[axis],
        ):
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
        detail = f"the network has no {_some(unknown)}" if unknown else f"the {kind} lacks {_some(absent)}"
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


def _some(names) -> str:
    names = list(names)
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
