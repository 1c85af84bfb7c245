# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Files of weights: found, read without running what they contain, and written in half precision."""

from __future__ import annotations

import json
import logging
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn as nn
from torch import Tensor
from torch.torch_version import TorchVersion

from .atomic import write_file
from .errors import InputError, explained, listed, log_once
from .weight_pickles import check_pickles, is_archive

logger = logging.getLogger(__name__)

RECORD_NAME = "run.json"  # what a training says of itself, beside its weights
SAFE_TORCH = "2.10"  # first version in which no memory is known to be overwritten by what weights_only=True reads
MAX_DEPTH = 20  # number of levels of lists and dictionaries in a checkpoint
MAX_HEADER = 1 << 21  # bytes of a safetensors file; 20,000 tensors have as many
MAX_NAMES = 16  # number of names of a tensor; released U-Mamba checkpoints name most of them four times
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16}
DTYPES |= {torch.int8, torch.uint8, torch.bool}  # of tensors that torch can compute with everywhere

# The end of a zip archive: its mark, size and place of the directory, length of a comment; of a large one the mark,
# size and place before it, and where these begin.
_END, _END64, _LOCATOR = struct.Struct("<4s8xLLH"), struct.Struct("<4s36xQQ"), struct.Struct("<8xQ4x")

# What other tools call the state dict in a checkpoint, what they put before its names (DDP, torch.compile, Lightning,
# averaged models), and what they count beside it (averaged models, thop).
WRAPPERS = ("network_weights", "model", "state_dict", "model_state_dict", "net", "network", "model_ema", "ema")
PREFIXES = re.compile(r"^((module|_orig_mod|model|net|network|ema_model|ema)\.)+")
SHARD = re.compile(r"-\d+-of-\d+\.")  # number in the names of the files of a checkpoint that has several
COUNTERS = re.compile(r"(^|\.)(n_averaged|total_ops|total_params)$")

# How files begin that are no weights, though they were downloaded or saved as such, with what to do.
_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch that with git lfs pull",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"\x89hdf": "an HDF5 file, as Keras writes; a torch or safetensors file is needed",
    b"\x1f\x8b": "compressed; unpack it first",
}

# nnU-Net stores its log beside the weights: numpy numbers, which torch's safe unpickler takes when told that it may.
# Files from NumPy 1 and NumPy 2 name the same function differently, and either may be installed here.
_make_scalar = np.float64().__reduce__()[0]
_NUMPY_SCALARS = [
    np.dtype,
    (_make_scalar, "numpy.core.multiarray.scalar"),
    (_make_scalar, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


def read_checkpoint(path: str | PathLike) -> dict:
    """Read a ``.safetensors`` file, or a torch file with ``weights_only=True``: no code in it is ever run.

    Raises:
        InputError: there is no such file, it cannot be opened, is truncated or no checkpoint, or it holds anything but
            plain data: numbers, text, and tensors whose elements all lie in the file.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file of weights in it.")
    if not path.is_file():
        raise InputError(f"there is no checkpoint file {path}.")
    try:
        if misnamed := _what_it_is(path):
            raise InputError(f"{path} is {misnamed}.")
        content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch_file(path)
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
    with explained(f"{path} holds what no checkpoint has", "it is not used", TypeError, ValueError, RuntimeError):
        size = _count_bytes(content)
    if size > MAX_NAMES * path.stat().st_size:
        raise InputError(f"{path} claims {size} bytes of numbers, which no file of its size holds; it is not used.")
    return content


def _load_safetensors(path: Path) -> dict:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < length <= path.stat().st_size:
        raise InputError(f"{path} names its tensors in {length} bytes, more than any network needs; it is not opened.")
    return safetensors.torch.load_file(path)


def _load_torch_file(path: Path) -> object:
    _warn_of_old_torch()
    _check_records(path)
    check_pickles(path)
    with torch.serialization.safe_globals(_NUMPY_SCALARS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _what_it_is(path: Path) -> str | None:
    """What a file is that holds no weights, or has a wrong name, with what to do; None for one that may be right."""
    if path.suffix == ".json":
        return "no file of weights but a list, perhaps of the parts that they lie in; join those into one file"
    if SHARD.search(path.name):
        return "a part of a checkpoint in several files; join those into one file"
    if path.suffix == ".onnx":
        return "an ONNX file, which does not keep the network's names; give the checkpoint that it was made of"
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        return "corrupt: it is empty; copy or download it again"
    for beginning, kind in _BEGINNINGS.items():
        if start.lstrip().lower().startswith(beginning):
            return kind
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size
    if is_safetensors and path.suffix != ".safetensors":
        return "a safetensors file; rename it to end in .safetensors"
    if path.suffix == ".safetensors" and zipfile.is_zipfile(path):
        return "a torch file; rename it to end in .pt"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "corrupt: it ends too early; copy or download it again"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names:
            return "TorchScript; save the state_dict() of what torch.jit.load gives"
        if "data.pkl" not in names:
            return "an archive of other files; unpack it first"
    return None


def _warn_of_old_torch() -> None:
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        attack = f"torch {torch.__version__} can be attacked by a crafted .pt file, even so (CVE-2026-24747)"
        advice = f"use files of those you trust, safetensors, or torch {SAFE_TORCH}"
        log_once(logger, logging.WARNING, f"{attack}: {advice}")


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
    if content.dtype not in DTYPES:
        raise ValueError(f"a tensor of {content.dtype}")
    size = content.numel() * content.element_size()
    if size > content.untyped_storage().nbytes() or _overlaps(content):
        raise ValueError("a tensor that names its elements more than once")
    return size


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may lie at one place; kernels that go along the memory would leave such a tensor's."""
    reach = 1
    for stride, length in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride < reach:
            return tensor.numel() > 0
        reach += stride * (length - 1)
    return False


def _check_records(path: Path) -> None:
    """Refuse what only claims to be large: torch.save never compresses, so a record is as long as it is in the file."""
    if is_archive(path):
        if not _ends_as_torch_ends_it(path):
            raise InputError(f"{path} does not end as an archive of torch.save does; it is not opened.")
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                raise InputError(f"{path} holds compressed records, which torch.save does not write; it is not opened.")


def _ends_as_torch_ends_it(path: Path) -> bool:
    """Whether a zip archive's directory lies where its end says, and that end is at the end of the file.

    Torch looks where the end says, zipfile right before the end: of another archive each may find records of its own.
    """
    end = path.stat().st_size - _END.size
    with path.open("rb") as file:
        file.seek(max(end - _LOCATOR.size - _END64.size, 0))
        end64, locator, last = (file.read(part.size) for part in (_END64, _LOCATOR, _END))
    mark, size, place, comment = _END.unpack(last)
    if locator.startswith(b"PK\x06\x07"):  # as in large ones, and in all of torch's
        end -= _LOCATOR.size + _END64.size
        mark64, size, place = _END64.unpack(end64)
        if mark64 != b"PK\x06\x06" or _LOCATOR.unpack(locator)[0] != end:
            return False
    return mark == b"PK\x05\x06" and not comment and place + size == end


def read_weights(path: str | PathLike) -> dict[str, Tensor]:
    """The weights in a file that :func:`read_checkpoint` reads, by their names without what DDP and others prepend."""
    return find_weights(read_checkpoint(path), str(path))


def find_checkpoint(folder: str | PathLike, name: str = "model", shipped: str | None = None) -> str:
    """The trained network of a folder: ``model.pt``, which training writes, else ``model.safetensors``, which ships.

    Args:
        folder: folder to look into.
        name: name of the files, without suffix.
        shipped: name of the file that ships, where it is another; it comes before ``model.safetensors``.

    Where none exists it is the path of ``model.pt``, so that a sentence on the missing file names that.

    Raises:
        InputError: one of them is a link to nothing, in whose place another would be taken, or none.
    """
    trained = Path(folder) / f"{name}.pt"
    files = (trained, *(Path(folder) / f"{other}.safetensors" for other in (shipped or name, name)))
    for file in files:
        if file.is_symlink() and not file.exists():
            raise InputError(f"{file} is a link to a file that is not there; mend or remove it.")
    return str(next((file for file in files if file.is_file()), trained))


def read_record(path: str | PathLike) -> dict | None:
    """What the training says of a file of weights, in the ``run.json`` beside it; None where there is none.

    Raises:
        InputError: that file is damaged.
    """
    record = Path(path).with_name(RECORD_NAME)
    if not record.is_file():
        return None
    with explained(f"{record} cannot be read", "remove it, for it only says what the training was"):
        return dict(json.loads(record.read_text(encoding="utf-8")))


def save_half_precision(source: str | PathLike, target: str | PathLike) -> int:
    """Write weights as safetensors of half the size, whose bytes are counted; networks compute in float32 all the same.

    Args:
        source: file that :func:`read_checkpoint` reads.
        target: ``.safetensors`` file to write, whole or not at all; its folder must exist.

    Raises:
        InputError: ``source`` cannot be read, or holds a number that float16 cannot; ``target`` has another suffix.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors.")
    weights = read_weights(source)
    half = {name: (w.half() if w.is_floating_point() else w).contiguous().clone() for name, w in weights.items()}
    if spoilt := [name for name, weight in half.items() if not weight.isfinite().all()]:
        raise InputError(f"{source} cannot be halved: {listed(spoilt)} would not be finite in float16.")
    write_file(target, safetensors.torch.save(half))  # its save_file makes files that their owner alone can read
    return target.stat().st_size


def find_weights(content: Mapping, source: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, without what other tools put around it, before its names and beside its weights.

    Of a network with its average beside it the network is taken, with a warning.

    Args:
        content: content of the file.
        source: name of the file, for the sentence.

    Raises:
        InputError: there are no weights, those of several networks, something else lies among them, or two names
            become one.
    """
    known = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    others = [key for key, value in content.items() if _has_tensors(value)]
    if not known and len(others) > 1:
        raise InputError(f"{source} holds several networks ({listed(others)}); save the one that is wanted alone.")
    for key in (known or others)[:1]:
        if beside := [other for other in others if other != key]:
            logger.warning("%s holds several networks (%s): %s is taken", source, listed([key, *beside]), key)
        content = content[key]
    found = {str(name): value for name, value in content.items() if not COUNTERS.search(str(name))}
    weights = {PREFIXES.sub("", name): value for name, value in found.items()}
    if len(weights) < len(found):
        raise InputError(f"{source} holds several networks under one name; save the one that is wanted alone.")
    strangers = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if not weights or strangers:
        found = f" (found {listed(strangers)})" if strangers else ""
        raise InputError(f"{source} holds no weights of a network{found}.")
    return weights


def _has_tensors(content: object) -> bool:
    """Whether something is a mapping of names to tensors, as a state dict is; what an optimizer keeps has numbers."""
    return isinstance(content, Mapping) and any(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
