# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How time and memory are measured here, once for all scripts.

Rows that are compared run in turn in one process: every round takes one sample of each, so that a clock or a
temperature that drifts meets all of them. A sample is a number of calls back to back, enough of them to last
``sample_seconds``, between two CUDA events (on a CPU: two readings of the clock), divided by that number. Before the
first sample each row is called a few times: compilation, cuDNN's choice and the allocator's growth are outside.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import numpy as np
import torch

__all__ = ["exponential_floor_ms", "graphed", "measure", "peak_bytes", "ratio", "reason", "reserved_bytes", "summarize"]

MAX_CALLS = 200  # a sample's calls, however short they are


def summarize(samples: list[float]) -> dict:
    """Median and spread of ``samples``, which are kept too."""
    low, q1, median, q3, high = (float(q) for q in np.quantile(samples, [0, 0.25, 0.5, 0.75, 1]))
    return {
        "median": median,
        "min": low,
        "q1": q1,
        "q3": q3,
        "max": high,
        "n": len(samples),
        "samples": [float(f"{sample:.6g}") for sample in samples],
    }


def ratio(summary: dict | None, baseline: dict | None) -> dict | None:
    """Of samples taken in the same rounds, round by round."""
    if summary is None or baseline is None:
        return None
    return summarize([a / b for a, b in zip(summary["samples"], baseline["samples"])])


def reason(error: BaseException) -> str:
    """One line that says why a row is empty."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def measure(
    runs: dict[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    warmup: int,
    sample_seconds: float,
) -> dict[str, dict]:
    """Time what ``runs`` call, in turn.

    Args:
        runs: what to call, by the row's name.
        device: where it runs.
        repeats: samples of each.
        warmup: calls of each before its first sample.
        sample_seconds: how long a sample lasts at least, unless :data:`MAX_CALLS` are over before.

    Returns:
        for each name ``{"ms": summary, "calls": calls of a sample}``, or ``{"error": reason}`` for one that failed;
        the others are measured all the same.
    """
    results: dict[str, dict] = {}
    samples: dict[str, list[float]] = {}
    for name, run in runs.items():
        try:
            for _ in range(warmup):
                run()
            once = _elapsed_ms(run, 1, device)
        except Exception as error:
            results[name] = {"error": reason(error)}
            free(device)
        else:
            calls = max(1, min(MAX_CALLS, math.ceil(1000 * sample_seconds / max(once, 1e-3))))
            results[name] = {"calls": calls}
            samples[name] = []
    for _ in range(repeats):
        for name in list(samples):
            calls = results[name]["calls"]
            try:
                samples[name].append(_elapsed_ms(runs[name], calls, device) / calls)
            except Exception as error:
                results[name] = {"error": reason(error)}
                del samples[name]
                free(device)
    for name, values in samples.items():
        results[name]["ms"] = summarize(values)
    return results


def _elapsed_ms(run: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        return 1000 * (time.perf_counter() - begin)
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most that one call of ``run`` adds to the memory allocated before it; None on a CPU."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def allocated_bytes(device: torch.device) -> int:
    """Memory of the tensors that are there; 0 on a CPU, where nobody counts."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reserved_bytes(device: torch.device) -> int:
    """Memory that torch holds of the device; 0 on a CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def free(device: torch.device) -> None:
    """Drop what nobody holds any more, so that the next row finds the memory free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
        updates: batch · positions · 4 directions · channels · states.
        hardware: of a record; None is returned where it has no GPU whose clock is known.
    """
    gpu = hardware.get("gpu", {})
    if "max_sm_clock_mhz" not in gpu:
        return None
    return updates / (16 * gpu["multiprocessors"] * gpu["max_sm_clock_mhz"] * 1e3)
