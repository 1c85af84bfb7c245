# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Spread the loops of :mod:`.scan` and :mod:`.norm_gate` over threads, with torch's own ones where possible.

torch on Linux runs its operators on the threads of an OpenMP library, which stay awake for milliseconds after each
operator in case another follows. Threads beside them would have to share the cores with this waiting, which makes a
network of short operators a fifth slower. So the loops run on the same threads, by the call that a compiler makes of
``#pragma omp parallel``, part of the binary interface of GNU's, LLVM's and Intel's library.

Where there is no such call (Windows, macOS), and in forked processes, whose parent's threads are gone, Python's threads
serve. Loops run without the interpreter lock, and several threads of a program may run some at once.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from .waiting import TEAM_FUNCTION, Waiting


@cache
def _start_team() -> Callable | None:
    """The function that runs another on a team of OpenMP threads, from the library that torch has loaded."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no such function, or a platform where None names no library
        return None
    start.argtypes = TEAM_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    start.restype = None
    return start


@cache
def _waiting() -> Waiting:
    return Waiting(_start_team())


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="swinumamba")


_forked = False


def _leave_threads_behind() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_threads_behind)


def _run_by_team(start_team: Callable, work: Callable, threads: int) -> None:
    errors = []

    def guarded(_) -> None:
        try:
            work()
        except BaseException as error:  # ctypes would print it and go on
            errors.append(error)

    start_team(TEAM_FUNCTION(guarded), None, threads, 0)
    if errors:
        raise errors[0]


def run_tasks(kernel: Callable, tasks: int, *arguments) -> None:
    """Run the tasks of a kernel on as many threads as torch uses.

    Args:
        kernel: function of the first task, the task to stop before, and the arguments.
        tasks: number of tasks.
        arguments: further arguments of the kernel, which gets tensors as NumPy arrays.
    """
    arguments = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(0, tasks, *arguments)
        return
    calls = min(tasks, 4 * threads)  # several for each thread, so that a core busy elsewhere delays the others little
    bounds = [tasks * i // calls for i in range(calls + 1)]
    remaining = deque(pairwise(bounds))

    def work() -> None:
        while True:
            try:
                start, stop = remaining.popleft()
            except IndexError:
                return
            kernel(start, stop, *arguments)

    start_team = None if _forked else _start_team()
    if start_team:
        _waiting().look()
        _run_by_team(start_team, work, threads)
    else:
        for future in [_pool(threads).submit(work) for _ in range(threads)]:
            future.result()
