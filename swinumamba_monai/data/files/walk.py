# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The walk through a folder: all files of people, without what systems put beside them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

# Thumbnails and bins of macOS's archives, of Synology's and other network disks, of Windows and of Linux.
_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of this name is none of a dataset (macOS puts ``._a.png`` next to ``a.png``)."""
    return name.startswith(".") or name in _FOLDERS


def find_files(folder: Path, skipped: Collection[Path] = (), pipes: bool = False) -> Iterator[Path]:
    """All files below a folder but hidden ones, by name; links to folders are followed, once.

    Args:
        folder: the folder to be searched.
        skipped: folders below it that are not searched.
        pipes: whether pipes, sockets and devices are named, too; who opens one may wait for ever.
    """
    seen = {os.path.realpath(path) for path in skipped} - {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
        if real not in seen:
            paths = (Path(place, name) for name in sorted(files) if not is_hidden(name))
            yield from (path for path in paths if pipes or path.is_file() or not path.exists())
        seen.add(real)
