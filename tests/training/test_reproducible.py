# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Workers and SIGTERM, and what is random in an epoch; whole runs are stopped and resumed in tests/bundles."""

from __future__ import annotations

import multiprocessing
import random
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import RandScaleIntensityd

from swinumamba_monai.training import SeedEveryEpoch, StopOnSigterm, init_worker


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who sent a signal")
def test_a_worker_heeds_its_parent_alone():
    before = set(multiprocessing.active_children())
    loader = DataLoader(
        Dataset([{"image": i} for i in range(20)]), num_workers=1, prefetch_factor=1, worker_init_fn=init_worker
    )
    batches = iter(loader)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True, timeout=300)
    time.sleep(0.2)
    assert sum(1 for _ in zip(range(10), batches)) == 10
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    del batches


def draws(seed: int, epochs: list[int], num_workers: int) -> dict[int, tuple]:
    """What some epochs of one process draw, in the loader and outside of it."""
    dataset = Dataset([{"image": np.ones((1, 2, 2), np.float32)}] * 4, RandScaleIntensityd("image", 0.5, prob=1.0))
    loader = DataLoader(dataset, num_workers=num_workers, batch_size=2, shuffle=True)
    engine = Engine(lambda engine, batch: None)
    handler = SeedEveryEpoch(seed, dataset)
    drawn = {}
    for epoch in epochs:
        engine.state.epoch = epoch
        handler(engine)
        images = torch.cat([batch["image"][:, 0, 0, 0] for batch in loader]).tolist()
        drawn[epoch] = (*images, random.random(), np.random.rand(), torch.rand(()).item())
    return drawn


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_is_the_same_whatever_came_before(num_workers):
    uninterrupted, resumed = draws(7, [1, 2, 3], num_workers), draws(7, [3], num_workers)
    assert resumed[3] == uninterrupted[3]
    values = [value for epoch in uninterrupted.values() for value in epoch]
    assert len(set(values)) == len(values), "and no two epochs or images are alike"
    assert not set(draws(8, [3], num_workers)[3]) & set(values)


class TestStop:
    def test_an_error_of_the_run_is_not_hidden(self):
        def fail(engine, batch):
            raise RuntimeError("out of memory")

        trainer = Engine(fail)
        trainer.run = lambda: Engine.run(trainer, [0])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(RuntimeError, match="out of memory"):
            StopOnSigterm().run(trainer, Engine(lambda engine, batch: None))
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_after_the_iteration(self, caplog, number, code):
        ended = []

        def step(engine, batch):
            if batch == 1:
                signal.raise_signal(number)
            ended.append(batch)

        trainer = Engine(step)
        trainer.run = lambda: Engine.run(trainer, [0, 1, 2])
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as stopped:
            StopOnSigterm().run(trainer, Engine(lambda engine, batch: None))
        assert stopped.value.code == code and ended == [0, 1] and signal.getsignal(number) is before
        assert f"stopped by {number.name} in epoch 1 of 1; --resume true" in caplog.text

    def test_a_second_ctrl_c_does_not_wait(self):
        def step(engine, batch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        trainer = Engine(step)
        trainer.run = lambda: Engine.run(trainer, [0])
        with pytest.raises(KeyboardInterrupt):
            StopOnSigterm().run(trainer, Engine(lambda engine, batch: None))

    def test_a_worker_that_dies_of_the_signal_is_no_error(self):
        def fail(engine, batch):
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

        trainer = Engine(fail)
        trainer.run = lambda: Engine.run(trainer, [0])
        with pytest.raises(SystemExit) as stopped:
            StopOnSigterm().run(trainer, Engine(lambda engine, batch: None))
        assert stopped.value.code == 143

    def test_a_run_that_was_at_its_end_has_ended(self):
        trainer = Engine(lambda engine, batch: None)
        trainer.add_event_handler(Events.COMPLETED, lambda: signal.raise_signal(signal.SIGTERM))
        trainer.run = lambda: Engine.run(trainer, [0])
        StopOnSigterm().run(trainer, Engine(lambda engine, batch: None))
