# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs of every system at the paper's sizes (Tables I–IV), by the paper's own counter and rule.

fvcore's default handles, batch 1, heads of deep supervision on, and for each selective scan 9·B·L·D·N + B·L·D: B
images, L positions, D channels of all directions, N states. One multiplication with its addition is one FLOP; element-
wise operations, softmax and activations are none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from swinumamba_monai.networks import SYSTEMS, build_network
from swinumamba_monai.overlays import overlay_path
from swinumamba_monai.reports.paper_tables import PublishedRow, published_rows
from swinumamba_monai.tasks import TASKS, Task

COMPLEXITY_COLUMNS = {
    "table": "Table",
    "task": "task",
    "row": "network",
    "parameters_M": "parameters, M",
    "paper_parameters": "the paper's",
    "gflops": "GFLOPs",
    "paper_flops": "the paper's",
    "remark": "",
}
COMPLEXITY_NOTES = (
    "Counted by fvcore with its default handles at batch 1, heads of deep supervision on, and 9·B·L·D·N + B·L·D for "
    "each selective scan. The columns of the paper hold what it prints.",
    "nnU-Net is counted as MONAI's DynUNet, whose convolutions have no biases; its own code has them (conv_bias=True: "
    "33.4899 M at the first size), and the FLOPs are the same.",
)
REMARKS = {
    "UMambaEnc": "The paper's number comes out if the x_proj and out_proj of its Mamba blocks are left out.",
    "NNFormer": "The paper's numbers come from a 2D port that is not published; this is the released network in 2D.",
}
INNER_PROJECTIONS = ("x_proj", "out_proj")
STRUCTURES = ("symmetric_decoder", "symmetric_encoder")  # overlays of Table IV


@dataclass(frozen=True)
class Complexity:
    """What :func:`count` found.

    Args:
        parameters: number of trainable numbers, each counted once.
        flops: number of FLOPs by the rule of this module.
        inner_flops: part of ``flops`` in the projections named x_proj and out_proj, inside of Mamba's blocks.
    """

    parameters: int
    flops: float
    inner_flops: float


def paper_network(task: Task, system: str, options: Mapping[str, object]) -> nn.Module:
    """A system for the paper's channels, classes and crops of a task, with all heads and further options of its own."""
    sizes = {"in_channels": task.in_channels, "out_channels": task.num_classes, "roi_size": task.roi_size}
    return build_network(system, **sizes, deep_supervision=True, **options)


def count(network: nn.Module, in_channels: int, height: int, width: int) -> Complexity:
    """Parameters and FLOPs for one image; the network itself is left as it is.

    Args:
        network: network that takes (1, in_channels, height, width); its heads count if ``deep_supervision`` is set.
        in_channels: number of channels of the image.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    network = copy.deepcopy(network).cpu().train()  # training mode: all heads
    for module in network.modules():
        if hasattr(module, "backend"):
            module.backend.name = "portable"  # one node of the graph, whatever computes it elsewhere
    analysis = FlopCountAnalysis(network, torch.zeros(1, in_channels, height, width))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.set_op_handle("swinumamba::selective_scan", scan_flops)
    with torch.no_grad():
        by_module = analysis.by_module()
    inner = sum(flops for name, flops in by_module.items() if name.split(".")[-1] in INNER_PROJECTIONS)
    return Complexity(sum(p.numel() for p in network.parameters()), by_module[""], inner)


def scan_flops(inputs: list, outputs: list) -> int:
    """fvcore's handle for ``swinumamba::selective_scan``, the scan of the backend ``portable``: 9·B·L·D·N + B·L·D.

    Args:
        inputs: the traced inputs of the operator, u (b, l, g, d) first and A (g, d, n) third.
        outputs: its traced outputs.
    """
    batch, length, groups, channels = get_shape(inputs[0])
    states = get_shape(inputs[2])[-1]
    return batch * length * groups * channels * (9 * states + 1)


def complexity_rows(
    tasks: Sequence[str] = tuple(TASKS), systems: Sequence[str] | None = None, encoders: Sequence[str] = ()
) -> list[dict]:
    """Every network of Tables I–III, and of Table IV the structures, each counted and beside what the paper prints.

    Args:
        tasks: keys of :data:`~swinumamba_monai.tasks.TASKS`.
        systems: keys of :data:`~swinumamba_monai.networks.SYSTEMS`; None for all.
        encoders: keys of :data:`~swinumamba_monai.networks.ENCODERS`, with which the systems that have one of VMamba's
            get rows that are not the paper's.

    Returns:
        rows with ``table`` (None for those with ``encoders``), ``task``, ``system``, ``row``, ``parameters``,
        ``flops``, both again in millions and billions, ``paper_parameters`` and ``paper_flops`` as printed, and a
        ``remark`` where the paper differs.
    """
    rows, seen = [], set()
    for published in published_rows():
        structure = published.setting if published.setting in STRUCTURES else ""
        key = published.task, published.system, structure
        known = published.system in SYSTEMS and published.system in (systems or SYSTEMS)
        if key in seen or not known or published.task not in tasks or published.table == "V":
            continue
        seen.add(key)
        title = SYSTEMS[published.system].title
        if structure:
            overlay = json.loads(overlay_path(structure).read_text(encoding="utf-8"))
            options = {name.removeprefix("network_def#"): value for name, value in overlay.items()}
            rows.append(_row(published, published.row, options))
            continue
        rows.append(_row(published, title, {}))
        for encoder in encoders if SYSTEMS[published.system].vmamba else ():
            row = _row(published, f"{title}, {encoder}", {"encoder": encoder})
            rows.append(row | {"table": None, "paper_parameters": None, "paper_flops": None})
    return rows


def _row(published: PublishedRow, name: str, options: Mapping[str, object]) -> dict:
    """A system with options of its network, counted, and beside what the paper prints."""
    task = TASKS[published.task]
    counted = count(paper_network(task, published.system, options), task.in_channels, *task.roi_size)
    row = {
        "table": published.table,
        "task": published.task,
        "system": published.system,
        "row": name,
        "parameters": counted.parameters,
        "flops": counted.flops,
        "parameters_M": f"{counted.parameters / 1e6:.4f}",
        "gflops": f"{counted.flops / 1e9:.4f}",
        "paper_parameters": published.parameters,
        "paper_flops": published.flops,
        "remark": REMARKS.get(published.system, ""),
    }
    if published.system == "UMambaEnc":
        row["gflops_as_published"] = f"{(counted.flops - counted.inner_flops) / 1e9:.4f}"
        row["remark"] += f" Then it is {row['gflops_as_published']}."
    return row
