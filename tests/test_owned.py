# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept for the next process is loaded if it is this user's own and whole, and made again otherwise."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from swinumamba_monai.owned import keep, load_kept

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and rights are those of POSIX")

DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "cut in the hash": lambda data: data[:20],
    "garbage": lambda data: b"\x80\x05garbage" * 50,
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


@pytest.fixture
def kept(tmp_path) -> Path:
    path = tmp_path / "cache" / "loop-1"
    keep(path, b"compiled")
    assert load_kept(path) == b"compiled"
    return path


def test_nobody_else_may_read_or_write_it(kept):
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(kept.parent) == [kept.name]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file(kept, damage, caplog):
    kept.write_bytes(damage(kept.read_bytes()))
    assert load_kept(kept) is None and not kept.exists()
    assert caplog.messages == [f"{kept} is damaged: it is not used, and made again"]
    keep(kept, b"again")
    assert load_kept(kept) == b"again" and len(caplog.messages) == 1


def test_a_file_at_another_ones_place(kept, caplog):
    other = kept.with_name("loop-2")
    kept.rename(other)
    assert load_kept(other) is None and "is damaged" in caplog.text


def test_a_file_that_others_could_write(kept, caplog):
    kept.chmod(0o622)
    assert load_kept(kept) is None and not kept.exists()
    assert caplog.messages == [f"{kept} could be written by others: it is not used, and made again"]


def test_a_link(kept, tmp_path, caplog):
    kept.rename(tmp_path / kept.name)
    kept.symlink_to(tmp_path / kept.name)
    assert load_kept(kept) is None and "is a link" in caplog.text and (tmp_path / kept.name).exists()


def test_a_folder_that_others_could_write(kept, caplog):
    kept.parent.chmod(0o770)
    assert load_kept(kept) is None
    (message,) = caplog.messages
    assert message.startswith(f"{kept} lies in a folder that could be written by others")
    keep(kept, b"again")
    assert load_kept(kept) == b"again" and kept.parent.stat().st_mode & 0o777 == 0o750


def test_files_and_folders_of_another_user(kept, monkeypatch, caplog):
    lstat = Path.lstat

    class Theirs:
        def __init__(self, status):
            self.st_mode, self.st_uid = status.st_mode, os.geteuid() + 1

    monkeypatch.setattr(Path, "lstat", lambda path: Theirs(lstat(path)) if path == kept else lstat(path))
    assert load_kept(kept) is None and "belongs to another user" in caplog.text
    monkeypatch.setattr(Path, "lstat", lambda path: Theirs(lstat(path)) if path == kept.parent else lstat(path))
    with pytest.raises(PermissionError, match="it belongs to another user"):
        keep(kept, b"compiled")
    assert load_kept(kept) is None


def test_a_file_system_without_rights(kept, monkeypatch, caplog):
    """Everything may be written by everybody there, whatever chmod says: no reason to compile every time."""
    kept.chmod(0o666)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    assert load_kept(kept) == b"compiled" and not caplog.messages


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_numba_compiles_again_what_is_damaged(tmp_path, monkeypatch, caplog, damage):
    pytest.importorskip("numba")
    from swinumamba_monai.ops.cpu import kept_loops
    from swinumamba_monai.ops.cpu.math import entry

    monkeypatch.setattr(kept_loops.numba.config, "CACHE_DIR", str(tmp_path / "loops"))

    def add(a, b):
        return a + b

    def hits() -> int:
        """How often a process that begins anew finds what it needs."""
        loop = entry(add)
        assert loop(1.5, 2.0) == 3.5
        return sum(loop.stats.cache_hits.values())

    kept_loops._say_that_it_takes_a_while.cache_clear()
    with caplog.at_level("INFO", kept_loops.logger.name):
        assert [hits(), hits()] == [0, 1]
        assert [message.split(",")[0] for message in caplog.messages] == ["the loops of the scan are compiled"]
        caplog.clear()
        kept_loops._say_that_it_takes_a_while.cache_clear()
        assert hits() == 1 and not caplog.messages
    (path,) = (tmp_path / "loops").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert [hits(), hits()] == [0, 1]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{path} is damaged: it is not used, and made again"]


def test_numba_without_a_place_says_so_once(tmp_path, monkeypatch, caplog):
    pytest.importorskip("numba")
    from swinumamba_monai.ops.cpu import kept_loops
    from swinumamba_monai.ops.cpu.math import entry

    (tmp_path / "loops").write_text("a file where the folder should be")
    monkeypatch.setattr(kept_loops.numba.config, "CACHE_DIR", str(tmp_path / "loops"))
    kept_loops.log_once.cache_clear()
    for _ in range(2):
        assert entry(lambda a, b: a + b)(1.5, 2.0) == 3.5
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith("every process compiles its loops anew, set NUMBA_CACHE_DIR to keep them (")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "kept", 0o600)
    assert load_kept(tmp_path / "kept") is None
    keep(tmp_path / "kept", b"new")
    assert load_kept(tmp_path / "kept") == b"new"
