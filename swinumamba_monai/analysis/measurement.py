# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How time and memory are measured here, once for the package and the benchmarks.

Rows that are compared run in turn in one process: every round takes one sample of each, so that a clock or a
temperature that drifts meets all of them. A sample is a number of calls back to back, enough of them to last
``sample_seconds``, between two CUDA events (on a CPU: two readings of the clock), divided by that number. Before the
first sample each row is called a few times: compilation, cuDNN's choice and the allocator's growth are outside.
"""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

MAX_CALLS = 200  # number of calls of a sample, however short they are
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def summarize_samples(samples: list[float]) -> dict:
    """Median and spread of ``samples``, which are kept too."""
    low, q1, median, q3, high = (float(q) for q in np.quantile(samples, [0, 0.25, 0.5, 0.75, 1]))
    rounded = [float(f"{sample:.6g}") for sample in samples]
    return {"median": median, "min": low, "q1": q1, "q3": q3, "max": high, "n": len(samples), "samples": rounded}


def reason(error: BaseException) -> str:
    """One line that says why a row is empty."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def measure(
    runs: dict[str, Callable[[], object]], device: torch.device, repeats: int, warmup: int, sample_seconds: float
) -> dict[str, dict]:
    """Time what ``runs`` call, in turn.

    Args:
        runs: functions to call, by the row's name.
        device: device that they run on.
        repeats: number of samples of each.
        warmup: number of calls of each before its first sample.
        sample_seconds: shortest duration of a sample in seconds, unless :data:`MAX_CALLS` are over before.

    Returns:
        for each name ``{"ms": summary, "calls": calls of a sample}``, or ``{"error": reason}`` for one that failed;
        the others are measured all the same.
    """
    results: dict[str, dict] = {name: {"calls": 1} for name in runs}
    samples: dict[str, list[float]] = {name: [] for name in runs}

    def elapsed_ms(name: str, calls: int) -> float | None:
        try:
            return _elapsed_ms(runs[name], calls, device)
        except Exception as error:
            results[name] = {"error": reason(error)}
            del samples[name]
            free(device)
            return None

    for name in runs:
        if elapsed_ms(name, warmup) is not None and (once := elapsed_ms(name, 1)) is not None:
            results[name]["calls"] = max(1, min(MAX_CALLS, math.ceil(1000 * sample_seconds / max(once, 1e-3))))
    for _ in range(repeats):
        for name in list(samples):
            calls = results[name]["calls"]
            if (elapsed := elapsed_ms(name, calls)) is not None:
                samples[name].append(elapsed / calls)
    for name, values in samples.items():
        results[name]["ms"] = summarize_samples(values)
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
    """The most that one call of ``run`` adds to the memory held before it.

    On a GPU that is the allocator's peak. On a CPU it is the peak of the process' resident memory, which Linux lets a
    process reset, after freed memory was given back to the system; None where either is not possible.
    """
    if device.type != "cuda":
        return _resident_peak_bytes(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _resident_peak_bytes(run: Callable[[], object]) -> int | None:
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else what an earlier call used is there already, and seems to cost nothing
        CLEAR_REFS.write_text("5")
        before = _status_bytes("VmRSS")
    except (AttributeError, OSError, TypeError):  # no glibc, no Linux
        run()
        return None
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def free(device: torch.device) -> None:
    """Drop what nobody holds any more, so that the next row finds the memory free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
