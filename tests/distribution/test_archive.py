# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Archives are the same every time, and nothing of a bad one is written."""

from __future__ import annotations

import errno
import os
import stat
import tracemalloc
import zipfile

import pytest

from swinumamba_monai.distribution import archive, unpack_archive, write_archive
from swinumamba_monai.errors import InputError

FILES = {"b/LICENSE": b"free", "b/configs/a.json": b"{}", "b/docs/README.md": b""}


def test_what_was_written_comes_out(tmp_path):
    path = write_archive(tmp_path / "b.zip", FILES)
    bundle = unpack_archive(path, tmp_path)
    assert bundle == tmp_path / "b"
    assert {f"b/{f.relative_to(bundle)}": f.read_bytes() for f in bundle.rglob("*") if f.is_file()} == FILES
    with pytest.raises(InputError, match="is there already"):
        unpack_archive(path, tmp_path)


def test_the_bytes_depend_on_the_content_alone(tmp_path, monkeypatch):
    first = write_archive(tmp_path / "one.zip", FILES).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    mask = os.umask(0o077)
    try:
        second = write_archive(tmp_path / "two.zip", dict(reversed(FILES.items()))).read_bytes()
    finally:
        os.umask(mask)
    assert first == second
    with zipfile.ZipFile(tmp_path / "one.zip") as written:
        assert written.namelist() == sorted(FILES)
        assert {entry.date_time for entry in written.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in written.infolist()} == {stat.S_IFREG | 0o644}


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("../evil", 0o100644, "leads out"),
        ("b/../../evil", 0o100644, "leads out"),
        ("b\\..\\..\\evil", 0o100644, "leads out"),
        ("/etc/evil", 0o100644, "leads out"),
        ("C:/evil", 0o100644, "leads out"),
        ("b/link", 0o120777, "link or device"),
        ("b/device", 0o020644, "link or device"),
        ("evil", 0o100644, "beside the folder"),
        ("c/evil", 0o100644, "2 folders"),
    ],
)
def test_nothing_of_a_bad_archive_is_written(tmp_path, name, mode, words):
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        bad.writestr(entry("b/LICENSE"), "free")
        bad.writestr(entry(name, mode), "evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words) as caught:
        unpack_archive(tmp_path / "bad.zip", folder)
    assert str(caught.value).count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_bombs_are_refused_by_what_they_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    monkeypatch.setattr(archive, "MAX_FILES", 5)
    for name, files in {"big": {"b/a": b"0" * 1001}, "many": {f"b/{i}": b"" for i in range(6)}}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
            for file, content in files.items():
                bomb.writestr(file, content)
        with pytest.raises(InputError, match="that is no bundle"):
            unpack_archive(tmp_path / f"{name}.zip", tmp_path)


def test_a_large_file_takes_no_memory(tmp_path):
    size = 50 << 20
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as large:
        large.writestr("b/a", bytes(size))
    assert (tmp_path / "b.zip").stat().st_size < size / 500
    tracemalloc.start()
    try:
        assert (unpack_archive(tmp_path / "b.zip", tmp_path) / "a").stat().st_size == size
        assert tracemalloc.get_traced_memory()[1] < size / 5
    finally:
        tracemalloc.stop()


def test_damage_is_refused(tmp_path):
    whole = write_archive(tmp_path / "b.zip", FILES).read_bytes()
    broken = bytearray(whole)
    broken[whole.index(b"free")] ^= 1
    for content in (b"", b"text", whole[:-30], bytes(broken)):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.zip"):
            unpack_archive(tmp_path / "bad.zip", tmp_path)
    assert not (tmp_path / "b").exists()


def test_a_full_disk_is_called_that(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "b.zip", FILES)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(InputError, match="cannot be written or opened: No space left on device"):
        unpack_archive(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_sentences_quote_little_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        bad.writestr(entry("b/../\x1b[31m" + "x" * 60_000), "evil")
    with pytest.raises(InputError, match="leads out") as caught:
        unpack_archive(tmp_path / "bad.zip", tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(tmp_path)) + 200
