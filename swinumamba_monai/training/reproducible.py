# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that can be stopped at any moment and end where an uninterrupted one ends."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd, worker_init_fn

__all__ = ["SeedEveryEpoch", "StopOnSigterm", "init_worker"]

logger = logging.getLogger(__name__)


class SeedEveryEpoch:
    """Let everything random of an epoch follow from the seed, the number of the epoch and the process alone.

    Sampling, augmentation, drop path and masks of epoch 7 are then the same whether epochs 1 to 6 ran before it in
    this process or in one that was killed. So there is no random state to save, on any number of processes and kinds
    of device, and none that a checkpoint could lack.

    The loader's iterator, which takes the seed of its workers from torch's random state, is made after the epoch has
    started, by ignite. Without workers the transforms of the dataset keep random states of their own over the epochs:
    they are seeded here.

    Args:
        seed: seed of the run.
        dataset: dataset that the trainer draws from.
    """

    def __init__(self, seed: int, dataset: torch.utils.data.Dataset) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Call the handler at the start of every epoch of ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        sequence = np.random.SeedSequence((self.seed % 2**32, engine.state.epoch, idist.get_rank()))
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # every device
        set_rnd(self.dataset, seed)


class StopOnSigterm:
    """End a run in good order when the system asks for it, as Slurm does before it takes the machine back.

    Python may be anywhere when the signal comes, so the run ends after the iteration that it is in: loggers are closed
    and no file is left half-written. Of several processes each stops after the same iteration. There is nothing to
    save: ``checkpoint.pt`` holds the last whole epoch, and the epoch begun is done again in the same way.

    The signal reaches the loader's workers and the other processes of the job too. With :func:`init_worker` workers go
    on until the run has stopped; where one of them dies first all the same, the run counts as stopped, not as failed.

    Outside of the main thread (MONAI Label trains in another) there are no signals, and this only runs the trainer.
    """

    exit_code = 128 + signal.SIGTERM

    def __init__(self) -> None:
        self.received = False

    def run(self, trainer: Engine, evaluator: Engine) -> None:
        """Run the trainer, and end the process with exit code 143 if it was stopped.

        Args:
            trainer: trainer, which ends after its iteration.
            evaluator: evaluator within the trainer's epochs; it ends too, and that validation does not count.
        """
        if threading.current_thread() is not threading.main_thread():
            trainer.run()
            return
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop_trainer)
        # Processes validate different numbers of images, so there they cannot agree on one to stop after.
        if idist.get_world_size() == 1:
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_evaluator, trainer)
        before = signal.signal(signal.SIGTERM, self._receive)
        try:
            trainer.run()
            stopped = self.received and trainer.should_terminate  # it may have come after the last iteration of all
        except Exception:
            if not self.received:
                raise
            stopped = True
        finally:
            signal.signal(signal.SIGTERM, before)
        if stopped:
            if idist.get_rank() == 0:
                logger.warning(
                    "stopped by SIGTERM in epoch %d of %d; --resume true goes on from the last whole epoch, and ends "
                    "where an uninterrupted run ends",
                    trainer.state.epoch,
                    trainer.state.max_epochs,
                )
            sys.exit(self.exit_code)

    def _receive(self, *_) -> None:
        self.received = True

    def _stop_trainer(self, trainer: Engine) -> None:
        if idist.get_world_size() > 1:
            self.received = bool(idist.all_reduce(int(self.received), "MAX"))
        if self.received:
            trainer.terminate()

    def _stop_evaluator(self, evaluator: Engine, trainer: Engine) -> None:
        if self.received:
            evaluator.terminate()
            trainer.terminate()


def init_worker(worker_id: int) -> None:
    """``worker_init_fn`` of a loader: MONAI's, and the worker heeds SIGTERM from its own parent alone.

    Slurm and torchrun send the signal to every process of a job, but the run needs its workers until it has stopped.
    Who sent a signal is known on Linux only; elsewhere the workers are as MONAI has them.

    Args:
        worker_id: number of the worker.
    """
    worker_init_fn(worker_id)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the thread below, which sees the sender
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
