# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, whoever else writes there, and nothing is left of those killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from swinumamba_monai import atomic
from swinumamba_monai.atomic import check_output_folder, remove_unfinished, replacing, temporary_folder, writing_folder
from swinumamba_monai.run_lock import RunLock

WRITE = """
import os, sys, time
from swinumamba_monai import atomic
atomic.os.getpid = lambda: 1  # as in a container
for round in range(50):
    with atomic.replacing(sys.argv[1]) as temporary:
        temporary.write_text(sys.argv[2] * 10_000)
"""
HOLD = """
import sys, time
from swinumamba_monai.atomic import replacing, writing_folder
from swinumamba_monai.run_lock import RunLock
{block}
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start(monkeypatch):
    """Start Python with a program; it is killed at the end."""
    started = []

    def run(code: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait(timeout=300)


def hold(start, block: str, *arguments: object) -> subprocess.Popen:
    process = start(HOLD.format(block=block), *arguments)
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=300)


def test_a_file_is_replaced_whole(tmp_path) -> None:
    target = tmp_path / "model.pt"
    target.write_text("old")
    with pytest.raises(KeyError), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["model.pt"]
    with replacing(target) as temporary:
        assert temporary.suffix == ".pt"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["model.pt"]


def test_processes_with_one_number_do_not_meet(tmp_path, start) -> None:
    """Containers are all process 1, and may write one file into one folder."""
    target = tmp_path / "model.pt"
    writers = [start(WRITE, target, letter) for letter in "abcdef"]
    assert [writer.wait(timeout=300) for writer in writers] == [0] * len(writers)
    content = target.read_text()
    assert len(content) == 10_000 and len(set(content)) == 1 and os.listdir(tmp_path) == ["model.pt"]


def test_a_folder_appears_whole(tmp_path) -> None:
    with writing_folder(tmp_path / "a" / "volume") as temporary:
        (temporary / "image.npy").write_text("x")
        assert not (tmp_path / "a" / "volume").exists()
    assert os.listdir(tmp_path / "a") == ["volume"]
    with pytest.raises(OSError), writing_folder(tmp_path / "a" / "volume"):
        pass
    assert os.listdir(tmp_path / "a") == ["volume"] and os.listdir(tmp_path / "a" / "volume") == ["image.npy"]


@pytest.mark.parametrize("kind", ["replacing", "writing_folder"])
def test_what_the_killed_left_is_swept_and_what_the_living_write_is_not(tmp_path, start, monkeypatch, kind) -> None:
    process = hold(start, f"with {kind}(sys.argv[1]):", tmp_path / "model.pt")
    (tmp_path / ".notes-of-mine").write_text("stay")
    (unfinished,) = [path for path in tmp_path.iterdir() if path.name.endswith("model.pt")]
    remove_unfinished(tmp_path)
    assert unfinished.exists()
    kill(process)
    monkeypatch.setattr(atomic, "_swept", set())
    with replacing(tmp_path / "other.txt") as temporary:  # the first writer in the folder clears it
        temporary.write_text("x")
    assert sorted(os.listdir(tmp_path)) == [".notes-of-mine", "other.txt"]


@pytest.mark.parametrize("code", ["EBADF", "ENOLCK", "ENOSYS", "EOPNOTSUPP"])  # NFS, its locks not running, Lustre, ...
@pytest.mark.parametrize("kind", ["replacing", "writing_folder"])
def test_where_no_locks_are_a_sweep_spares_what_is_new(tmp_path, monkeypatch, kind, code) -> None:
    def flock(*_):
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", flock)
    left = tmp_path / f".{'0' * 32}-left.csv"
    left.touch()
    os.utime(left, (0, 0))
    with getattr(atomic, kind)(tmp_path / "new") as temporary:
        (temporary / "part" if temporary.is_dir() else temporary).write_text("x")
        remove_unfinished(tmp_path)  # as another process does
        assert temporary.exists() and not left.exists()
    assert os.listdir(tmp_path) == ["new"]


def test_one_run_at_a_time(tmp_path, start) -> None:
    path = tmp_path / "models" / ".checkpoint.pt.lock"
    process = hold(start, "lock = RunLock(sys.argv[1])\nlock.acquire()\nif True:", path)
    second = RunLock(path)
    assert second.acquire().startswith(f"process {process.pid} on ")
    assert json.loads(path.read_text())["process"] == process.pid
    kill(process)
    assert second.acquire() is None and second.acquire() is None and second.was_left
    third = RunLock(path)  # a later run of this process
    assert third.acquire() is None and not third.was_left
    third.release()


def test_a_full_disk_keeps_no_lock(tmp_path, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("swinumamba_monai.run_lock.os.write", full)
    lock = RunLock(tmp_path / "out" / ".predict.lock")
    with pytest.raises(OSError) as caught:
        lock.acquire()
    assert caught.value.filename == str(tmp_path / "out") and not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert lock.acquire() is None and not lock.was_left
    lock.release()


def test_a_lock_that_leads_elsewhere_empties_nothing(tmp_path) -> None:
    """As a stranger's folder may hold it."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        RunLock(tmp_path / "run" / ".lock").acquire()
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_among_what_is_swept_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / f".{'0' * 32}-a.csv")
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_forked_worker_does_not_keep_the_lock(tmp_path, start) -> None:
    fork = "import os\nlock = RunLock(sys.argv[1])\nlock.acquire()\nif not os.fork(): time.sleep(10)\nelse:"
    path = tmp_path / "lock"
    process = hold(start, fork, path)
    kill(process)
    began = time.monotonic()
    lock = RunLock(path)
    assert lock.acquire() is None and lock.was_left and time.monotonic() - began < 5
    lock.release()
    assert not path.exists()


def test_the_lock_is_gone_when_the_process_ends(tmp_path) -> None:
    take = "from swinumamba_monai.run_lock import RunLock; RunLock(sys.argv[1]).acquire()"
    code = f"import sys; {take}; sys.exit(3)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], timeout=300)
    assert done.returncode == 3 and not Path(tmp_path / "lock").exists()


def test_a_temporary_folder_of_a_killed_process_goes_with_the_next(tmp_path, start, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    process = hold(start, "from swinumamba_monai.atomic import temporary_folder\nwith temporary_folder('label'):")
    with temporary_folder("label") as folder:
        assert folder.is_dir() and len(list(folder.parent.iterdir())) == 2
    kill(process)
    monkeypatch.setattr(atomic, "_swept", set())
    with temporary_folder("label") as folder:
        assert list(folder.parent.iterdir()) == [folder]
    assert not folder.exists()


WORKERS = """
import multiprocessing, os, sys, time
from multiprocessing.util import get_temp_dir
from swinumamba_monai.atomic import gather_worker_files
gather_worker_files()
worker = multiprocessing.get_context("fork").Process(target=lambda: print(get_temp_dir(), flush=True))
worker.start()
worker.join()
assert os.path.isdir(get_temp_dir())
print(get_temp_dir(), flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no forks")
def test_what_workers_share_goes_with_the_process_or_the_next(tmp_path, start, monkeypatch) -> None:
    short = tempfile.mkdtemp(dir="/tmp")  # sockets need short paths
    monkeypatch.setenv("TMPDIR", short)
    killed = start(WORKERS, 60)
    of_worker, of_parent = killed.stdout.readline(), killed.stdout.readline()
    assert (
        of_worker == of_parent
        and of_parent.startswith(short)
        and os.listdir(short) == [f"swinumamba_monai-{os.getuid()}"]
    )
    kill(killed)
    assert Path(of_parent.strip()).exists()
    following = start(WORKERS, 0)
    assert following.wait(timeout=300) == 0
    (folder,) = Path(short).iterdir()
    assert not list(folder.iterdir())
    folder.rmdir()
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    following = start(WORKERS, 0)  # multiprocessing's own
    assert f"{long}/pymp-" in following.stdout.readline() and following.wait(timeout=300) == 0
    Path(short).rmdir()


def test_an_error_names_the_place_that_was_asked_for(tmp_path):
    place = tmp_path / "a.csv"
    with pytest.raises(OSError) as caught, replacing(place):
        raise OSError(errno.ENOSPC, "full")  # as a write to an open file: the system names none
    assert caught.value.filename == str(place)
    with pytest.raises(OSError) as caught, writing_folder(place) as folder:
        (folder / "b" / "c").touch()
    assert caught.value.filename == str(place / "b" / "c")
    with pytest.raises(OSError) as caught, replacing(tmp_path / "none" / "a.csv"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "a.csv")
    with pytest.raises(OSError) as caught, replacing(place):
        raise OSError(errno.EIO, "of an input, perhaps")
    assert caught.value.filename is None
    with pytest.raises(OSError) as caught, replacing(place) as temporary:
        raise OSError(errno.ENOSPC, "full", "in.csv", None, str(temporary))  # as shutil.copyfile
    assert (caught.value.filename, caught.value.filename2) == ("in.csv", str(place))
    assert not any(tmp_path.iterdir())


def test_a_folder_is_tried_before_the_work(tmp_path, monkeypatch):
    check_output_folder(tmp_path / "new" / "deep")
    assert not any((tmp_path / "new" / "deep").iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(OSError) as caught:
            check_output_folder(place)
        assert caught.value.filename == str(place)

    def read_only(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", read_only)  # root may write everywhere
    with pytest.raises(OSError) as caught:
        check_output_folder(tmp_path / "new")
    assert caught.value.filename == str(tmp_path / "new")
