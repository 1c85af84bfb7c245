# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m MODULE ...`` without the imports: in forks of a process that has MONAI and this package loaded.

These imports take six seconds of a core or more, and most command lines of the tests less than one after them. The
process that forks has done nothing but import, so nothing of a test gets into another. Where it matters what is
imported when, or how much memory that takes, a test starts an interpreter.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch

TIMEOUT = 300  # seconds
START_METHOD = "forkserver" if hasattr(os, "fork") else "spawn"  # of multiprocessing; Windows imports each time
_CONTEXT = multiprocessing.get_context(START_METHOD)
if hasattr(os, "fork"):
    rooms = ("cli", "training.run_log", "prediction.folder", "networks.systems", "pretrained")
    rooms += ("ops.cpu.scan_backward_kernels", "ops.cpu.norm_gate_kernels")  # which import Numba
    _CONTEXT.set_forkserver_preload(["monai.bundle", *(f"swinumamba_monai.{name}" for name in rooms)])


def become(line: Sequence[str], folder: Path, output: Path, errors: Path) -> NoReturn:
    """End this process as an interpreter would that was started with a command line.

    Args:
        line: interpreter, ``-m``, module and its arguments.
        folder: where it runs.
        output: file of what it prints.
        errors: file of what it says of errors; may be the same.
    """
    code: object = 1
    gc.freeze()  # what was imported before the fork stays; the garbage collector need not look at it each time
    try:
        os.chdir(folder)
        for descriptor, path in ((0, os.devnull), (1, output), (2, errors)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | (os.O_APPEND if descriptor else 0)), descriptor)
        os.ftruncate(1, 0)
        sys.argv = list(line[2:])
        runpy.run_module(line[2], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _become_one(environment: dict[str, str], *arguments: object) -> None:
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", **environment})
    become(*arguments)


def call_in_group(function: Callable[[int, Path], None], folder: Path, processes: int = 2) -> None:
    """Call a function of a test's module, with rank and folder, in processes of their own.

    They have none of the threads of this one, so none waits for what a thread held when it was forked.

    Args:
        function: what each calls.
        folder: where they find each other and leave what they have.
        processes: how many.
    """
    group = torch.multiprocessing.start_processes(function, (folder,), processes, False, start_method=START_METHOD)
    end = time.monotonic() + TIMEOUT
    try:
        while not group.join(max(0, end - time.monotonic())):
            assert time.monotonic() < end, f"no end after {TIMEOUT} s: {function.__name__}"
    finally:
        for process in group.processes:
            process.kill()


def _group(processes: int) -> dict[str, str]:
    """What ``torchrun`` would put into the environment of all of them; nothing for one."""
    if processes == 1:
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    return {**count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked"}


def run_forked(line: Sequence[str], folder: Path = Path(), processes: int = 1) -> subprocess.CompletedProcess:
    """What :func:`subprocess.run` gives, of a line that begins with an interpreter and ``-m``.

    Args:
        line: the command line.
        folder: where it runs.
        processes: as many that find each other as ``torchrun`` would start; the code is that of the first to fail, and
            all their words follow each other.
    """
    with TemporaryDirectory(prefix="forked_") as place:
        logs = [(Path(place, f"{rank}.out"), Path(place, f"{rank}.err")) for rank in range(processes)]
        group, running = _group(processes), {}
        for rank, files in enumerate(logs):
            environment = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {}
            process = _CONTEXT.Process(target=_become_one, args=(environment, line, folder.resolve(), *files))
            process.start()
            running[process.sentinel] = process
        code = 0
        while running and not code:
            done = wait(list(running), TIMEOUT)
            if not done:
                break
            for sentinel in done:
                process = running.pop(sentinel)
                process.join()
                code = code or process.exitcode
        for process in running.values():  # it waits for the one that failed, or for ever
            process.kill()
            process.join()
        assert code or not running, f"no end after {TIMEOUT} s: {line}"
        output, errors = ("".join(file.read_text() for file in files if file.exists()) for files in zip(*logs))
        return subprocess.CompletedProcess(line, code, output, errors)
