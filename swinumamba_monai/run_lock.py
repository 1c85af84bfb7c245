# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A folder for one run at a time."""

from __future__ import annotations

import atexit
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import ClassVar

from swinumamba_monai.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks: runs are not kept apart
    fcntl = None


class RunLock:
    """A folder's lock for one run, kept until :meth:`release` or the end of the process, however it ends.

    It is a lock of the process: the workers that it forks, which may outlive it for seconds, do not share it, and a
    later run of the same process takes it over.

    Args:
        path: the lock's file; it says who holds it, and is gone when the run has ended in good order.
        others: pattern of locks in the same folder whose runs go on side by side, but not beside this one's; each
            side takes its own lock first and then looks at the other's, so that never both go on.

    Attributes:
        was_left: whether the file was there when the lock was taken: the run before this one was killed.
    """

    was_left = False
    # Locks that are held, by process, for forks take a copy of it along.
    _held: ClassVar[dict[tuple[int, Path], RunLock]] = {}

    def __init__(self, path: str | PathLike, others: str = "") -> None:
        self.path = Path(path).absolute()
        self._others = others
        self._descriptor: int | None = None
        self._made: list[Path] = []

    def acquire(self) -> str | None:
        """Take the lock; None, or who holds it already: "process 12 on HOST, since 2026-11-28 10:00:00"."""
        if fcntl is None or self._descriptor is not None:
            return None
        if other := self._held.pop((os.getpid(), self.path), None):
            other.release()
        self._made = [folder for folder in self.path.parents if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # it is emptied below
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else its holder has just removed it
                    break
            except (BlockingIOError, PermissionError):
                holder = os.read(descriptor, 1000)
                os.close(descriptor)
                return _describe_holder(holder)
            except OSError:  # a file system without locks: runs are not kept apart
                break
            os.close(descriptor)
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.was_left = os.fstat(descriptor).st_size > 0
        self._descriptor = descriptor
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(holder).encode())
        except OSError as error:  # the disk is full; the system names no file
            error.filename = str(self.path.parent)
            self.release()
            raise
        self._held[os.getpid(), self.path] = self
        atexit.register(self.release)
        for path in self.path.parent.glob(self._others) if self._others else ():
            if holder := self._holder_of(path):
                self.release()
                return holder
        return None

    @classmethod
    def _holder_of(cls, path: Path) -> str | None:
        """Who else holds the lock of this file, as :meth:`acquire` says it; None if nobody does."""
        if (os.getpid(), path) in cls._held:  # which closing the file would let go
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # its holder has just removed it
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return _describe_holder(os.read(descriptor, 1000))
        except OSError:  # a file system without locks
            return None
        finally:
            os.close(descriptor)
        return None

    def take(self, what: str, option: str) -> None:
        """Take the lock, for ``what``, such as "a training", of which ``option`` names the folder.

        Raises:
            InputError: another process holds it; the sentence says which, and what to do.
        """
        if holder := self.acquire():
            raise InputError(
                f"{what} is running in {self.path.parent} ({holder}); wait for its end, or choose another {option}."
            )

    def release(self) -> None:
        """Let the next run in."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
            self._held.pop((os.getpid(), self.path), None)
            with suppress(OSError):  # the run has written something
                for folder in self._made:
                    folder.rmdir()
            atexit.unregister(self.release)


def prediction_lock(folder: str | PathLike, suffix: str = "") -> RunLock:
    """The lock of an output folder of predictions, the command's and those of a bundle's ``inference``.

    A share of the images, which ``suffix`` names, has a lock of its own. A run of all images, which gathers and removes
    what the shares have written, and runs of shares keep each other out.
    """
    others = lock_file(folder, "predict" if suffix else "predict_*of*").name
    return RunLock(lock_file(folder, f"predict{suffix}"), others)


def lock_file(folder: str | PathLike, command: str) -> Path:
    """Where a run of a command holds its output folder."""
    return Path(folder) / f".{command}.lock"


@contextmanager
def one_run(folder: str | PathLike, command: str) -> Iterator[None]:
    """Let one run of a command at a time write into a folder, for as long as the block takes.

    Args:
        folder: its output folder, which is made, and gone again if nothing was written into it.
        command: name of the command, for the lock and the sentence.

    Raises:
        InputError: another process runs it there.
    """
    lock = RunLock(lock_file(folder, command))
    lock.take(command, "--output_dir")
    try:
        yield
    finally:
        lock.release()


def _describe_holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {int(holder['process'])} on {str(holder['host'])[:100]}, since {str(holder['since'])[:40]}"
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
