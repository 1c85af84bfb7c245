# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A network as a file for other programs: an ONNX model, or a program of ``torch.export``; any height and width.

TorchScript needs nothing from here: ``python -m monai.bundle ckpt_export`` traces the networks as they are. Which scan
is exported is chosen in :mod:`swinumamba_monai.ops.backends`.
"""

from __future__ import annotations

import io
import logging
from os import PathLike
from pathlib import Path

import torch
import torch.nn as nn
from monai.utils import optional_import

from .atomic import check_output_folder, replacing, write_file
from .errors import InputError, explained

OPSET = 18
# Least level of what the packages behind ONNX may say: below it they name what they leave as it is, a line a node.
LEVELS = {
    "torch.onnx._internal.exporter._core": logging.ERROR,
    "torch.onnx._internal.exporter._registration": logging.ERROR,
    "onnxscript": logging.WARNING,
    "onnx_ir": logging.WARNING,
}


def make_program(network: nn.Module) -> torch.export.ExportedProgram:
    """What ``torch.export`` makes of a network, on the device of its parameters.

    Args:
        network: network in evaluation mode, with an attribute ``in_channels``.

    Returns:
        a program that takes one image, (1, in_channels, h, w), with h and w larger than one patch, which is a pixel of
        the coarsest map: 32 pixels in both Swin-UMambas.

    Raises:
        InputError: torch is older than 2.7, and does not tell a network that it is exported; or the network is one that
            torch cannot follow at sizes that it does not know.
        ValueError: the network is in training mode.
    """
    if not hasattr(torch.compiler, "is_exporting"):
        raise InputError(f"torch.export and ONNX need torch 2.7 or later, this is {torch.__version__}.")
    if network.training:
        raise ValueError("the network must be in evaluation mode; call eval() first.")
    # no map may have a side of 1, to which torch would hold the program: two and three patches, and a part of one
    size = [patches * step + step // 4 for patches, step in zip((2, 3), network.step)]
    device = next(network.parameters()).device
    example, other = (torch.zeros(1, network.in_channels, *sides, device=device) for sides in (size, size[::-1]))
    sides = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    problem = f"torch.export cannot follow {type(network).__name__} at any size"
    with torch.no_grad(), explained(problem, "TorchScript can, for images of the size that it is traced with"):
        program = torch.export.export(network, (example,), dynamic_shapes=(sides,), strict=False)
        program.module()(other)  # torch also gives a program that takes sizes like the example's alone
    return program


def export_program(network: nn.Module, filepath: str | PathLike) -> Path:
    """Write a network as a ``.pt2`` file, for ``torch.export.load`` where this package is imported; its path.

    Args:
        network: network as :func:`make_program` takes it.
        filepath: file to write, ending in ``.pt2``.

    Raises:
        InputError: the name or the folder cannot be; see also :func:`make_program`.
    """
    path = _check_filepath(filepath, ".pt2")
    content = io.BytesIO()  # on a full disk torch's own writer would end the process
    torch.export.save(make_program(network), content)
    write_file(path, content.getvalue())
    return path


def export_onnx(network: nn.Module, filepath: str | PathLike) -> Path:
    """Write a network as one ONNX file of standard operators, from ``image`` to ``logits``; its path is returned.

    Args:
        network: network as :func:`make_program` takes it, in float32 on the CPU.
        filepath: file to write, ending in ``.onnx``; it holds the weights too.

    Raises:
        InputError: the name or the folder cannot be, or packages are missing; see also :func:`make_program`.
    """
    path = _check_filepath(filepath, ".onnx")
    missing = [name for name in ("onnx", "onnxscript") if not optional_import(name)[1]]
    if missing:
        raise InputError(f"ONNX needs {' and '.join(missing)}; try pip install 'swinumamba-monai[export]'.")
    import onnx
    from onnx import inliner

    from .ops.export.onnx import selective_scan_onnx

    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    model = torch.onnx.export(
        make_program(network),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        custom_translation_table={torch.ops.swinumamba.selective_scan_inference.default: selective_scan_onnx},
    ).model_proto
    model = inliner.inline_local_functions(model)
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        onnx.save(model, temporary)
    return path


def _check_filepath(filepath: str | PathLike, suffix: str) -> Path:
    """Before any work: the name's ending, and a folder to write to."""
    path = Path(filepath)
    if path.suffix != suffix:
        raise InputError(f"the name of the file must end in {suffix}, got {path}.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} to.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file.")
    check_output_folder(path.parent)
    return path
