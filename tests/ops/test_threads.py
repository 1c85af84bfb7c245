# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every task of a kernel runs once, on torch's threads or Python's, and its error is not lost."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from swinumamba_monai.ops.cpu import threads


@pytest.fixture(params=["team", "pool"])
def two_threads(request, monkeypatch):
    """Two threads of the kind that a process has, and of the kind that a forked one has."""
    monkeypatch.setattr(threads, "_forked", request.param == "pool")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tasks", [1, 2, 7, 8, 100])
def test_every_task_runs_once(two_threads, tasks):
    done = []
    threads.run_tasks(lambda start, stop, offset: done.extend(range(start + offset, stop + offset)), tasks, 5)
    assert sorted(done) == list(range(5, tasks + 5))


def test_two_threads_work(two_threads):
    names, both_there = set(), threading.Barrier(2, timeout=60)

    def kernel(start, stop):
        if threading.get_ident() not in names:
            names.add(threading.get_ident())
            both_there.wait()

    threads.run_tasks(kernel, 100)
    assert len(names) == 2


def test_the_error_of_a_task_is_raised(two_threads):
    def kernel(start, stop):
        raise ValueError(f"task {start}")

    with pytest.raises(ValueError, match="task"):
        threads.run_tasks(kernel, 10)


def test_tensors_arrive_as_arrays(two_threads):
    target = torch.zeros(10)

    def kernel(start, stop, array):
        array[start:stop] = 1

    threads.run_tasks(kernel, 10, target.requires_grad_())
    assert (target == 1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses no OpenMP library of this kind elsewhere")
def test_linux_has_a_team():
    assert threads._start_team() is not None
