# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks need besides :mod:`swinumamba_monai.analysis.measurement`: ratios, CUDA graphs, and a floor."""

from __future__ import annotations

from collections.abc import Callable

import torch

from swinumamba_monai.analysis.measurement import summarize_samples

__all__ = ["exponential_floor_ms", "graphed", "ratio"]


def ratio(summary: dict | None, baseline: dict | None) -> dict | None:
    """Of samples taken in the same rounds, round by round."""
    if summary is None or baseline is None:
        return None
    return summarize_samples([a / b for a, b in zip(summary["samples"], baseline["samples"])])


def graphed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` as the replay of a CUDA graph, without the launches' gaps; it must not wait for the device.

    Raises:
        RuntimeError: what runs cannot be captured.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = run()

    def replay():
        graph.replay()
        return held

    replay.run = run  # its closure holds the memory that the graph reads
    return replay


def exponential_floor_ms(updates: int, hardware: dict) -> float | None:
    """Time of one exponential for each state update, at 16 a clock on every multiprocessor at its highest clock.

    Args:
        updates: number of state updates, batch · positions · 4 directions · channels · states.
        hardware: hardware of a record; None is returned where it has no GPU whose clock is known.
    """
    gpu = hardware.get("gpu", {})
    if "max_sm_clock_mhz" not in gpu:
        return None
    return updates / (16 * gpu["multiprocessors"] * gpu["max_sm_clock_mhz"] * 1e3)
