# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

__all__ = ["remove_unfinished", "replacing"]


@contextmanager
def replacing(path: str | PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and, when the block has written it, put it in the place of ``path``.

    A reader sees the old file or the new one, never a part of it, even after a power loss, and a block that fails
    leaves nothing behind.

    Args:
        path: the file to write; its folder must exist.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone. The suffix stays last: writers choose the format by it.
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(*paths: str | PathLike) -> None:
    """Remove the temporary files that processes killed while they wrote ``paths`` have left beside them.

    Args:
        paths: files that nobody is writing now.
    """
    for path in map(Path, paths):
        unfinished = re.compile(rf"\.\d+-{re.escape(path.name)}")
        for file in path.parent.glob(".*"):
            if unfinished.fullmatch(file.name):
                file.unlink()
