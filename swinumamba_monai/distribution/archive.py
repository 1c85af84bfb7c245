# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Zip archives of bundles: the same bytes every time they are written, and looked through before they are opened."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePosixPath

from swinumamba_monai.atomic import replacing, writing_folder
from swinumamba_monai.errors import InputError, find_input_error, quoted, shown

MAX_BYTES = 1 << 31  # size of all files together; a bundle with weights of every fold has a few hundred megabytes
MAX_FILES = 10_000

_MODE = stat.S_IFREG | 0o644
_OLDEST = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier date
_UNIX = 3


def write_archive(path: str | PathLike, files: Mapping[str, bytes]) -> Path:
    """Write a zip whose bytes depend on the names and contents alone, whole or not at all; its path is returned.

    The files are sorted, dated 1980 and readable by all. They are stored as they are: what a compressor makes depends
    on its version, and weights do not compress.
    """
    path = Path(path)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _OLDEST)
            entry.create_system = _UNIX
            entry.external_attr = _MODE << 16
            archive.writestr(entry, content)
    return path


def read_archive(path: Path) -> dict[str, bytes] | None:
    """The files of an archive by their names, if :func:`write_archive` wrote it; else None."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.date_time != _OLDEST or entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return None
        return {entry.filename: archive.read(entry) for entry in entries}


def unpack_archive(path: str | PathLike, folder: str | PathLike) -> Path:
    """A bundle's folder, out of its archive, if all in it stays below one new folder and is of bearable size.

    Everything is looked at before anything is written.

    Args:
        path: zip to unpack.
        folder: existing folder, in which the bundle's folder is made.

    Raises:
        InputError: no zip; a path that is absolute or leads out; a symbolic link or device; files beside the folder;
            more than ``MAX_FILES`` files or ``MAX_BYTES`` bytes; the folder is there already; a damaged file.
    """
    path, folder = Path(path), Path(folder)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            bundle = folder / _check_entries(path, archive.infolist())
            if bundle.exists():
                raise InputError(f"{bundle} is there already; move it away first.")
            if damaged := archive.testzip():  # before the first file is written
                raise InputError(f"{path} is damaged at {damaged}; fetch it again.")
            with writing_folder(bundle) as temporary:
                for entry in entries:
                    target = temporary.joinpath(*_place(entry).parts[1:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as content, target.open("wb") as file:
                        shutil.copyfileobj(content, file)
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and struct each have their own for what is damaged
        not_written = find_input_error(error)
        raise not_written or InputError(f"{path} cannot be read as a zip archive ({quoted(error)}).") from error
    return bundle


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """The name of the one folder that holds everything."""
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise InputError(f"{path} holds more than {MAX_FILES} files or {MAX_BYTES} bytes; that is no bundle.")
    tops = set()
    for entry in entries:
        name = _place(entry)
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise InputError(f"{path} names {shown(entry.filename)}, which leads out of its folder; it is not opened.")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{path} holds {shown(entry.filename)}, which is a link or device; it is not opened.")
        if len(name.parts) < (1 if entry.is_dir() else 2):
            raise InputError(f"{path} holds {shown(entry.filename)} beside the folder of the bundle.")
        tops.add(name.parts[0])
    if len(tops) != 1:
        raise InputError(f"{path} holds {len(tops)} folders, but the archive of a bundle has one.")
    return tops.pop()


def _place(entry: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(entry.filename.replace("\\", "/"))
