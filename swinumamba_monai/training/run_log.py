# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a run was told, and its learning rate, beside its losses in TensorBoard and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Write the hyper-parameters when a run starts, and the learning rate of every epoch.

    TensorBoard gets both. MLflow gets the hyper-parameters; MONAI's handler logs the learning rate there itself.

    Args:
        log_dir: folder of the TensorBoard events.
        optimizer: optimizer of the run.
        hyper_parameters: values by name; what is no number, text or switch is logged as its text.
    """

    def __init__(
        self, log_dir: str | PathLike, optimizer: torch.optim.Optimizer, hyper_parameters: Mapping[str, object]
    ) -> None:
        self.log_dir = str(log_dir)
        self.optimizer = optimizer
        self.hyper_parameters = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in hyper_parameters.items()
        }

    def attach(self, trainer: Engine, handlers: Sequence[object]) -> None:
        """Log from the start of the run on, in the first of its processes.

        Among the handlers of the trainer ``--tracking mlflow`` has put MLflow's.
        """
        if idist.get_rank() > 0:
            return
        trainer.add_event_handler(Events.STARTED, self._start)
        for handler in handlers:
            if isinstance(handler, MLFlowHandler):
                trainer.add_event_handler(Events.STARTED, self._tell, handler)  # after its own, which begins its run

    def _tell(self, handler: MLFlowHandler) -> None:
        run_id = handler.cur_run.info.run_id
        known = handler.client.get_run(run_id).data.params  # MLflow refuses another value, of a run that is resumed
        for name in self.hyper_parameters.keys() - known.keys():
            handler.client.log_param(run_id, name, self.hyper_parameters[name])

    def _start(self, trainer: Engine) -> None:
        writer = SummaryWriter(self.log_dir)
        writer.add_hparams(self.hyper_parameters, {}, run_name=".")
        trainer.add_event_handler(Events.EPOCH_STARTED, self._log_rate, writer)
        trainer.add_event_handler(Events.COMPLETED, lambda: writer.close())

    def _log_rate(self, trainer: Engine, writer: SummaryWriter) -> None:
        writer.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], trainer.state.epoch)
        writer.flush()
