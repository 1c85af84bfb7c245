# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Threads fall asleep sooner where cores are scarce, and no longer than that."""

from __future__ import annotations

import sys
import threading

import pytest

from swinumamba_monai.ops.cpu import threads, waiting
from swinumamba_monai.ops.cpu.waiting import Waiting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch uses no OpenMP library of this kind elsewhere")


class Machine:
    """A clock and a count of seconds without a core that a test sets."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.without_core = 0.0, 0.0
        monkeypatch.setattr(waiting.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(waiting, "seconds_without_core", lambda: self.without_core)
        self.waiting = Waiting(threads._start_team())

    def after(self, seconds: float, without_core: float) -> bool:
        self.now += seconds
        self.without_core += without_core
        self.waiting.look()
        return self.waiting.short


@pytest.fixture
def machine(monkeypatch):
    machine = Machine(monkeypatch)
    machine.after(0, 0)
    yield machine
    machine.after(1, 0)


def test_a_neighbour_comes_and_goes(machine):
    before = set(threading.enumerate())  # with a team that this process has where its cores are scarce by now

    def team_threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "swinumamba-waiting" and t not in before]

    assert not machine.after(1, 0.05), "a twentieth of the time is nothing"
    assert machine.after(1, 0.5)
    assert len(team_threads()) == 1
    assert machine.after(1, 0.05), "neither crowded nor alone: as before"
    assert len(team_threads()) == 1
    (held,) = team_threads()
    assert not machine.after(1, 0.01)
    held.join(timeout=300)
    assert not team_threads()


def test_looks_are_not_taken_more_often_than_that_costs_nothing(machine):
    assert not machine.after(0.2, 0.2)
    assert machine.after(0.1, 0)


def test_another_thread_has_another_count(machine):
    thread = threading.Thread(target=machine.after, args=(1, 1))
    thread.start()
    thread.join(timeout=300)
    assert not machine.waiting.short
    assert not machine.after(1, 1), "nor has this one anything to compare with"
    assert machine.after(1, 1)


def test_systems_that_do_not_count(machine, monkeypatch):
    monkeypatch.setattr(waiting, "seconds_without_core", lambda: None)
    assert not machine.after(1, 1)
    assert not machine.after(1, 1)


def test_linux_counts():
    assert waiting.seconds_without_core() >= 0


def test_more_threads_than_cores_after_it(machine, monkeypatch):
    sizes = []
    monkeypatch.setattr(waiting.os, "sched_getaffinity", lambda process: range(16))
    monkeypatch.setattr(waiting.torch, "get_num_threads", lambda: 4)
    machine.waiting._start_team = lambda function, data, size, flags: sizes.append(size)
    assert machine.after(1, 1)
    assert sizes == [14], "torch's 4, and 13 of another thread's team, which counts too"
