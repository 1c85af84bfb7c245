# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Whether there is a file at a path, before a reader opens it: one question and one sentence for all of them."""

from __future__ import annotations

from pathlib import Path

from swinumamba_monai.errors import InputError


def check_file(path: Path) -> None:
    """Refuse a path at which there is nothing, or something else than a file.

    Args:
        path: path that a reader is about to open; a link to a file is one.

    Raises:
        InputError: there is nothing, a folder, or a pipe, socket or device.
    """
    if path.is_file():
        return
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    what = "a folder" if path.is_dir() else "a pipe, socket or device"  # whoever opens it may wait for ever
    raise InputError(f"{path} is no file but {what}; check the path.")
