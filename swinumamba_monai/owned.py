# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept for the next process is loaded if this user wrote it, nobody else may change it, and it is whole.

Compiled code runs as it is, and a home folder may be shared with other users, other machines and full disks. So a file
begins with a hash of its name and content, and it and its folder must belong to this user and be closed to others'
writing. What is refused gets a line in the log and is removed, and its maker makes it again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from swinumamba_monai.atomic import replacing

logger = logging.getLogger(__name__)

CACHE = Path("~/.cache/swinumamba_monai")  # folder of compiled code

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_not_own(path: Path) -> str | None:
    """The reason why somebody else may have written a file or folder that exists, or None.

    Others lose the right to write what is this user's, so the same question has another answer the next time: what was
    refused must be removed. Where a system or file system knows no owners or rights, nothing can be told.
    """
    if not hasattr(os, "geteuid"):
        return None
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return "is no file"  # but a pipe, perhaps, whose end would be waited for
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & _OTHERS_WRITE:
        with suppress(OSError):
            path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
        if not path.lstat().st_mode & _OTHERS_WRITE:
            return "could be written by others"
    return None


def refuse(path: Path, reason: str) -> None:
    """Say in the log that what was kept is not used, with the reason behind its path, and remove it if possible."""
    logger.warning("%s %s: it is not used, and made again", path, reason)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def load_kept(path: Path) -> bytes | None:
    """The content of a file of :func:`keep`; None where there is none, or none that may be used."""
    try:
        if _why_not_own_folder(path.parent):
            return None  # which keep will say
        if reason := why_not_own(path):
            return refuse(path, reason)
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return refuse(path, f"cannot be read ({error.strerror})")
    digest, content = content[:32], content[32:]
    if digest != _digest(path.name, content):
        return refuse(path, "is damaged")
    return content


def keep(path: Path, content: bytes) -> None:
    """Write a file for :func:`load_kept`, and its folder when needed; nobody else may read or write it.

    Args:
        path: path of the file.
        content: bytes of the file.

    Raises:
        OSError: the folder cannot be written or is not this user's.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if reason := _why_not_own_folder(path.parent):
        raise PermissionError(None, f"it {reason}", str(path.parent))
    with replacing(path) as temporary:
        temporary.chmod(0o600)
        temporary.write_bytes(_digest(path.name, content) + content)


def _why_not_own_folder(folder: Path) -> str | None:
    """Why a folder of kept files cannot be used; one that others could write into can, but its files are refused."""
    folder = folder.resolve()  # a link may lead to another disk
    reason = why_not_own(folder)
    if reason and (remaining := why_not_own(folder)):
        return remaining
    for path in folder.iterdir() if reason else ():
        if not path.is_dir():
            refuse(path, f"lies in a folder that {reason}")
    return None


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()
