# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What the training recipe does around the optimizer's step and after a validation, as handlers of MONAI's engines."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from torch import nn

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import find_encoder


class EarlyStop:
    """Stop after so many validations without a better key metric.

    It counts from the epoch of the best metric, which is restored with a checkpoint, so a resumed run stops where an
    uninterrupted one does. (MONAI's ``EarlyStopHandler`` counts from the resumption.)

    Args:
        patience: number of validations.
        val_interval: number of epochs from one validation to the next.

    >>> trainer, evaluator = Engine(lambda *_: evaluator.run([0])), Engine(lambda *_: None)
    >>> EarlyStop(patience=2).attach(trainer, evaluator)
    >>> evaluator.state.best_metric_epoch = 1  # no later one is better
    >>> trainer.run([0], max_epochs=10).epoch
    3
    """

    def __init__(self, patience: int, val_interval: int = 1) -> None:
        self.patience = patience
        self.val_interval = val_interval

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Look after every validation, and before the first epoch of a resumed run, whether to stop the trainer."""
        trainer.add_event_handler(Events.STARTED, self._look, trainer, evaluator)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._look, trainer, evaluator)

    def _look(self, _: Engine, trainer: Engine, evaluator: Engine) -> None:
        best = evaluator.state.best_metric_epoch
        if best > 0 and trainer.state.epoch // self.val_interval - best // self.val_interval >= self.patience:
            trainer.terminate()


class FiniteWeights:
    """End a training whose weights are no numbers any more, before its checkpoints take them over.

    A loss of NaN makes every weight NaN in the next step, and nothing that follows learns. The weights are looked at
    once an epoch: looking at each loss would make a GPU wait.

    Args:
        network: network to train.

    >>> network = nn.Linear(1, 1).requires_grad_(False)
    >>> _ = network.weight.fill_(torch.nan)
    >>> FiniteWeights(network)(Engine(lambda *_: None))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    swinumamba_monai.errors.InputError: the training has diverged: in epoch 0 weight became infinite or no number. ...
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Look after every epoch of ``engine``, a MONAI trainer, before the handlers that are attached later."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for name, parameter in self.network.named_parameters():
            if not parameter.isfinite().all():
                raise InputError(
                    f"the training has diverged: in epoch {engine.state.epoch} {name} became infinite or no number. "
                    "Take a smaller learning_rate or gradient_clip, or amp bf16 or off for fp16; the checkpoints "
                    "of the epochs before are kept."
                )


class FreezeEncoder:
    """Leave the encoder as it was pretrained for the first epochs (paper, section IV-B).

    The patch embedding, which is not taken from the foundation model, learns from the start. Gradients are dropped
    instead of switched off, because they have to pass through the encoder to reach it, and because DDP wants the same
    parameters in every step.

    Args:
        network: network to train; one without a VMamba encoder is trained as a whole from the start.
        epochs: number of epochs in which the encoder stays as it is.

    >>> from swinumamba_monai.networks import SwinUMamba
    >>> network = SwinUMamba(1, 2, depths=(1, 1, 1, 1), feature_size=8)
    >>> for parameter in network.parameters():
    ...     parameter.grad = torch.ones_like(parameter)
    >>> FreezeEncoder(network)(Engine(lambda *_: None))
    >>> {name.split(".")[0] for name, p in network.vssm_encoder.named_parameters() if p.grad is not None}  # these learn
    {'patch_embed'}
    """

    def __init__(self, network: nn.Module, epochs: int = 10) -> None:
        self.epochs = epochs
        encoder = find_encoder(network)
        parameters = [] if encoder is None else encoder.named_parameters()
        self.parameters = [p for name, p in parameters if not name.startswith("patch_embed.")]

    def attach(self, engine: Engine) -> None:
        """Call the handler after every backward of ``engine``, a MONAI trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.epoch <= self.epochs:
            for parameter in self.parameters:
                parameter.grad = None


class GradientClip:
    """Scale the gradients down to a global norm before the optimizer's step, under AMP too.

    Args:
        max_norm: largest 2-norm of the gradient over all parameters.

    >>> weight, trainer = nn.Parameter(torch.zeros(2)), Engine(lambda *_: None)
    >>> trainer.optimizer, trainer.scaler = torch.optim.SGD([weight]), None
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> GradientClip(max_norm=1.0)(trainer)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """

    def __init__(self, max_norm: float = 12.0) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Call the handler after every backward of ``engine``, a MONAI trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
