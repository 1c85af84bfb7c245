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
    """End a run in good order at SIGTERM, as Slurm sends before it takes the machine back, and at Ctrl-C (SIGINT).

    Python may be anywhere when the signal comes, so the run ends after the iteration that it is in: loggers are closed
    and no file is left half-written. Of several processes each stops after the same iteration. There is nothing to
    save: ``checkpoint.pt`` holds the last whole epoch, and the epoch begun is done again in the same way.

    A second Ctrl-C ends the process at once.

    The signal reaches the loader's workers and the other processes of the job too. With :func:`init_worker` workers go
    on until the run has stopped; where one of them dies first all the same, the run counts as stopped, not as failed.

    Outside of the main thread (MONAI Label trains in another) there are no signals, and this only runs the trainer.
    """

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = 0  # number of the signal

    def run(self, trainer: Engine, evaluator: Engine) -> None:
        """Run the trainer, and end the process with exit code 143 (Ctrl-C: 130) if it was stopped.

        It ends after its iteration, and so does the evaluator within its epochs: that validation does not count.

        Args:
            trainer: trainer to run.
            evaluator: evaluator that runs within the trainer's epochs.
        """
        if threading.current_thread() is not threading.main_thread():
            trainer.run()
            return
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop_trainer)
        # Processes validate different numbers of images, so there they cannot agree on one to stop after.
        if idist.get_world_size() == 1:
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_evaluator, trainer)
        before = {number: signal.signal(number, self._receive) for number in self.signals}
        try:
            trainer.run()
            stopped = self.received and trainer.should_terminate  # it may have come after the last iteration of all
        except Exception:
            if not self.received:
                raise
            stopped = True
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if stopped:
            if idist.get_rank() == 0:
                place = f"epoch {trainer.state.epoch} of {trainer.state.max_epochs}"
                logger.warning(
                    "stopped by %s in %s; --resume true goes on from the last whole epoch, and ends where an "
                    "uninterrupted run ends", signal.Signals(self.received).name, place
                )  # fmt: skip
            sys.exit(128 + self.received)

    def _receive(self, number: int, _: object) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _stop_trainer(self, trainer: Engine) -> None:
        if idist.get_world_size() > 1:
            self.received = int(idist.all_reduce(self.received, "MAX"))
        if self.received:
            trainer.terminate()

    def _stop_evaluator(self, evaluator: Engine, trainer: Engine) -> None:
        if self.received:
            evaluator.terminate()
            trainer.terminate()


def init_worker(worker_id: int) -> None:
    """``worker_init_fn`` of a loader: MONAI's, and the worker heeds SIGTERM from its own parent alone, SIGINT never.

    Slurm, torchrun and Ctrl-C reach every process of a job, but the run needs its workers until it has stopped. Who
    sent a signal is known on Linux only; elsewhere the workers are as MONAI has them.
    """
    worker_init_fn(worker_id)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the thread below, which sees the sender
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
