# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How torch's OpenMP threads wait for each other where other processes want the cores too.

A thread that has done its share of an operator stays awake for up to 15 ms, in case the next follows soon. That is
right on a machine of one's own. Beside another process it is the core time of those that it waits for, and a step of
many short operators takes ten times as long. GNU's library has no call for it, but its manual says (GOMP_SPINCOUNT):
where there are more OpenMP threads than cores, a thread falls asleep after 100 looks, some microseconds. So where a
thread is kept waiting for a core, a team of threads that do nothing is added, and taken away when that is over.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable

import torch

TEAM_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
INTERVAL = 0.25  # seconds between two looks
CROWDED, ALONE = 0.1, 0.02  # share of the time without a core, above and below which the kind of waiting changes


def seconds_without_core() -> float | None:
    """For how long the calling thread could have run but had no core; None where the system does not count it."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return None


class Waiting:
    """Looks now and then whether cores are scarce, and lets threads fall asleep sooner as long as they are.

    Args:
        start_team: the OpenMP library's function that runs another on a team of threads.
    """

    def __init__(self, start_team: Callable) -> None:
        self._start_team = start_team
        self._lock = threading.Lock()
        self._last: tuple[int, float, float | None] | None = None  # thread, time, and its seconds without a core
        self._alone: threading.Event | None = None  # ends the idle team

    @property
    def short(self) -> bool:
        """Whether threads fall asleep at once."""
        return self._alone is not None

    def look(self) -> None:
        """Compare the calling thread's time without a core with that at the last look, at most four times a second."""
        now, last = time.perf_counter(), self._last
        if (last is not None and now - last[1] < INTERVAL) or not self._lock.acquire(blocking=False):
            return
        try:
            self._last = (threading.get_ident(), now, seconds_without_core())
            if last is None or last[0] != self._last[0] or self._last[2] is None:
                return
            share = (self._last[2] - last[2]) / (now - last[1])
            if share > CROWDED and not self.short:
                self._add_team()
            elif share < ALONE and self.short:
                self._alone.set()
                self._alone = None
        finally:
            self._lock.release()

    def _add_team(self) -> None:
        """Have more OpenMP threads than cores: one more than are missing besides torch's."""
        idle, started, alone = TEAM_FUNCTION(lambda _: None), threading.Event(), threading.Event()
        size = max(2, len(os.sched_getaffinity(0)) - torch.get_num_threads() + 2)

        def hold() -> None:
            self._start_team(idle, None, size, 0)
            started.set()
            alone.wait()  # the team is this thread's, and ends with it

        threading.Thread(target=hold, name="swinumamba-waiting", daemon=True).start()
        started.wait()
        self._alone = alone
