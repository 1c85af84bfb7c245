# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What systems put beside the files of people: hidden files, thumbnails, bins."""

from __future__ import annotations

# Of macOS's archives, of Synology's and other network disks, of Windows and of Linux.
_FOLDERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or a folder of this name is none of a dataset (macOS puts ``._a.png`` next to ``a.png``)."""
    return name.startswith(".") or name in _FOLDERS
