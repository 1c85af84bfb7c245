# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Writing a file or folder whole or not at all.

What is written lies beside its place under a name that begins with a dot and 32 random digits, so processes never meet
there, be they of one machine, of several, or of containers that all call themselves process 1. Its writer holds a lock
on it, which the system takes back when the process ends, however it ends: what nobody holds is left over, and the next
process that writes into the folder removes it. Where the system has no such locks, what is a day old is left over.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.util import Finalize
from os import PathLike
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}-.+")
_MAX_SOCKET_FOLDER = 88  # characters, of the 107 that the path of a socket may have
_OLD = 24 * 3600  # seconds, of what cannot be asked whether somebody holds it

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota

_swept: set[tuple[int, Path]] = set()  # this process and the folders that it has cleared


@contextmanager
def replacing(path: str | PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and, when the block has written it, put it in the place of ``path``.

    A reader sees the old file or the new one, never a part of it, even after a power loss, and a block that fails
    leaves nothing behind. The folder must exist.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone. The suffix stays last: writers choose the format by it.
    with _owned(path, lambda temporary: temporary.touch(exist_ok=False)) as temporary:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_file(path: str | PathLike, content: str | bytes) -> None:
    """Write a file whole or not at all, as a block of :func:`replacing` does.

    Args:
        path: path of the file, in a folder that exists.
        content: text, which is written in UTF-8, or bytes.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing_folder(path: str | PathLike) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` and, when the block has filled it, rename it to ``path``.

    That must not exist or be empty, else there is an OSError, perhaps because another process was faster; its parent is
    made when needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _owned(path, Path.mkdir) as temporary:
        yield temporary
        temporary.rename(path)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder of this process among the system's temporary files, whose name ends in ``name``; gone after the block.

    Those of processes that were killed are removed by the next one of this user that asks for one.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    parent = Path(tempfile.gettempdir()) / f"swinumamba_monai-{user}"
    with suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    if parent.is_symlink() or parent.stat().st_uid != user:  # somebody else's idea
        parent = Path(tempfile.mkdtemp())
    with _owned(parent / name, Path.mkdir) as temporary:
        yield temporary


def gather_worker_files() -> None:
    """Give Python's ``multiprocessing`` a :func:`temporary_folder` for what a loader's workers and their parent share.

    By itself it makes folders ``pymp-…`` of its own, and a killed process leaves them for ever: nothing tells whose
    they were. Workers use the folder of the process that forks them.
    """
    config = multiprocessing.current_process()._config  # where multiprocessing.util.get_temp_dir looks
    if "tempdir" in config:
        return
    stack = ExitStack()
    folder = stack.enter_context(temporary_folder("workers"))
    if len(str(folder)) > _MAX_SOCKET_FOLDER:
        return stack.close()
    config["tempdir"] = str(folder)
    Finalize(None, stack.close, exitpriority=-100)  # as late as multiprocessing's own; not in forked processes


def check_output_folder(folder: str | PathLike) -> None:
    """Make a folder, and a file in it that goes again, before the work whose result will go there; else an OSError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _place_named(folder / "trial", folder), _owned(folder / "trial", Path.touch):
        pass


def remove_unfinished(folder: str | PathLike) -> None:
    """Remove what killed processes have left half written in a folder, which need not exist; no other file."""
    with suppress(OSError):
        for path in Path(folder).iterdir():
            if _UNFINISHED.fullmatch(path.name):
                _remove_if_left(path)


@contextmanager
def _owned(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new temporary file or folder for ``path`` that this process holds, gone when the block is left."""
    if (place := (os.getpid(), path.parent)) not in _swept:
        _swept.add(place)
        remove_unfinished(path.parent)
    lock, owner = None, os.getpid()
    while lock is None:  # until no sweep of another process comes between making and locking
        temporary = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
        with _place_named(temporary, path):
            make(temporary)
        lock = _lock(temporary)
    try:
        with _place_named(temporary, path):
            yield temporary
    finally:
        if os.getpid() == owner:  # not a process that was forked meanwhile
            _remove(temporary)
        os.close(lock)


@contextmanager
def _place_named(temporary: Path, path: Path) -> Iterator[None]:
    """Let an error say ``path``, which a person knows; of a full disk and its like the system names no file at all."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            error.filename = str(path)
        for name in ("filename", "filename2"):  # the second of a copy
            if isinstance(named := getattr(error, name), (str, bytes)):
                setattr(error, name, os.fsdecode(named).replace(str(temporary), str(path)))
        raise


def _lock(path: Path, must: bool = False) -> int | None:
    """A file descriptor that holds the lock on a path, or None if somebody else holds it or has removed it.

    Where no such locks are, the descriptor holds nothing; it is None if it ``must``.
    """
    if fcntl is None:
        return None if must else os.open(os.devnull, os.O_RDONLY)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name would have nobody to wait for
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks, or without those of folders and files opened to be read, as NFS
        if not must:
            return descriptor
    os.close(descriptor)
    return None


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):
        new = time.time() - path.stat().st_mtime < _OLD
        if (lock := _lock(path, must=new)) is not None:
            _remove(path)
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
