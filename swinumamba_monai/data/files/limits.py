# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a file must be before a reader opens it, and what it may claim to hold before memory is taken for it."""

from __future__ import annotations

from pathlib import Path

from swinumamba_monai.errors import InputError

# Larger files are taken for decompression bombs: a few kilobytes can claim terabytes of pixels.
MAX_PIXELS = 1 << 29
MAX_VOXELS = 1 << 31  # number of voxels of a volume
MAX_CHANNELS = 4
MOST_CHANNELS = 64  # number of channels of a multiplex image, where one of them is named that is looked at
# How much deflate, the method of PNG and gzip, can shrink: no file holds more, whatever its header claims. The methods
# of JPEG and BMP do not reach that.
MAX_DEFLATE = 1032
# What a picture may unfold to in memory: bytes that every file may, and how many times its own size a larger one.
# Labels of a few cells shrink a thousand times, but not to more than this; photographs do not shrink fifty times.
MAX_UNFOLDED_BYTES, MAX_UNFOLDING = 1 << 30, 50


def check_file(path: Path) -> None:
    """Refuse, by an InputError, a path of nothing, of a folder, or of a pipe, socket or device; links are followed."""
    if path.is_file():
        return
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    what = "a folder" if path.is_dir() else "a pipe, socket or device"  # whoever opens it may wait for ever
    raise InputError(f"{path} is no file but {what}; check the path.")


def most_channels(channel: int | None) -> int:
    """Largest number of channels of an image of which this one is looked at, or all with None."""
    return MAX_CHANNELS if channel is None else MOST_CHANNELS


def check_size(
    path: Path,
    height: int,
    width: int,
    channels: int,
    max_pixels: int | None = None,
    max_channels: int = MAX_CHANNELS,
) -> None:
    """Refuse what the header claims before any memory is reserved for it.

    Args:
        path: path of the file, for the sentence.
        height: rows of pixels that the header claims.
        width: pixels of a row that it claims.
        channels: numbers of a pixel that it claims.
        max_pixels: largest number of pixels that is read; None for ``MAX_PIXELS``.
        max_channels: largest number of channels that is read.
    """
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if height * width > limit:
        raise InputError(f"{path} claims {height} x {width} pixels, but {limit} is the limit; cut it into parts.")
    if channels > max_channels:
        how = "" if channels > MOST_CHANNELS else ", or look for cells in one of them by --channel"
        raise InputError(
            f"{path} has {channels} channels, but {max_channels} is the limit; keep those that matter{how}."
        )


def check_unfolding(path: Path, claimed_bytes: int) -> None:
    """Refuse a file that claims more than a picture of its size unfolds to, before the memory is taken.

    Args:
        path: path of the file, whose size in bytes is asked for.
        claimed_bytes: number of bytes that its pixels take in memory, as its header says.

    Raises:
        InputError: it claims more.
    """
    if claimed_bytes > max(MAX_UNFOLDED_BYTES, MAX_UNFOLDING * path.stat().st_size):
        raise InputError(f"{path} claims {claimed_bytes} bytes of pixels, which no file of its size holds; replace it.")
