# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a training run: the best network, the last state to resume from, and what the run is."""

from __future__ import annotations

import io
import json
import logging
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import ensure_tuple
from torch import Tensor, nn

from swinumamba_monai.atomic import remove_unfinished, write_file
from swinumamba_monai.errors import InputError, explained, shown
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.run_lock import RunLock
from swinumamba_monai.weight_files import RECORD_NAME, read_checkpoint, read_record

logger = logging.getLogger(__name__)

MAX_EPOCHS = 1_000_000  # the schedule of so many is replayed in seconds
MAX_STEPS = 1 << 31  # number of steps between two changes of a gradient scaler's factor
SCALARS = ("step", "mu_product", "eta", "mu")  # names of what torch's optimizers keep of a parameter as one number

# What a run is resumed from; the rest is not in files of every version.
_STATE = {"model": Mapping, "optimizer": Mapping, "epoch": int, "best_metric": float, "best_metric_epoch": int}
_REST = {"best_next_metric": -math.inf, "scaler": {}, "settings": "{}", "seconds": 0.0}


def save_atomically(content: dict, path: Path) -> None:
    """``torch.save`` that leaves either the old file or the whole new one, whatever stops it.

    Args:
        content: anything that ``torch.save`` takes.
        path: path of the file; its folder is made if absent.

    Raises:
        InputError: the file could not be written (full disk, read-only folder); the old one is as it was.
    """
    stream = io.BytesIO()  # torch's own writer tells a full disk from nothing else that may go wrong
    torch.save(content, stream)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, stream.getbuffer())
    except OSError as error:
        kept = "the one before it is intact" if path.exists() else "there was none before it"
        reason = error.strerror or type(error).__name__
        raise InputError(f"the checkpoint {path} could not be written ({reason}); {kept}.") from error


def run_record(ckpt_path: str | PathLike | Sequence[str | PathLike], **facts) -> dict:
    """What is known of the training of a network, for the report of an evaluation.

    Args:
        ckpt_path: checkpoint of :class:`TrainingCheckpoint`, beside which its ``run.json`` lies, or several of them.
        facts: facts about the evaluation, to keep with it.

    Returns:
        ``facts`` and ``"training"``: a list with what each ``run.json`` holds, None where there is none.

    Raises:
        InputError: a ``run.json`` that is damaged.
    """
    return {**facts, "training": [read_record(path) for path in ensure_tuple(ckpt_path)]}


class TrainingCheckpoint:
    """Keep ``model.pt``, the network with the best validation metric, and ``checkpoint.pt``, the last epoch's state.

    ``model.pt`` is a bare state dict, what MONAI's loaders and exporters expect. The best metric travels in
    ``checkpoint.pt``, so a resumed run replaces ``model.pt`` by a better network only. While the key metric stays 0,
    as the F1 of cells does at first, the best network is the one with the best of the evaluator's next metric.

    ``run.json`` beside them (of ``X_checkpoint.pt``: ``X_run.json``) says what the run is: its settings, the number
    of parameters, epochs, the seconds they took with their validations, and on a GPU its name and the most memory
    that torch held of it. :func:`run_record` reads it.

    A run resumes after its last whole epoch: what was done of the next is done again. No random state is saved,
    because :class:`~swinumamba_monai.training.SeedEveryEpoch` makes that of an epoch from its number.

    Args:
        ckpt_dir: folder of the two files, made when the first is written.
        network: network that is trained, without its DDP wrapper.
        optimizer: optimizer of the network.
        lr_scheduler: learning rate scheduler, stepped once an epoch.
        resume: whether to go on from ``checkpoint.pt``; without such a file it begins anew, with a warning.
        best_name: name of the file of the best network.
        last_name: name of the file of the last epoch's state.
        settings: options that make the run what it is. A run resumed with others is warned that it ends elsewhere; as
            with others that :func:`~swinumamba_monai.networks.build_network` was given for the network.
        overwrite: whether a network of another training that lies at ``best_name`` may be replaced.
    """

    def __init__(
        self,
        ckpt_dir: str | PathLike,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        resume: bool = False,
        best_name: str = "model.pt",
        last_name: str = "checkpoint.pt",
        settings: Mapping | None = None,
        overwrite: bool = False,
    ) -> None:
        self.best_path = Path(ckpt_dir) / best_name
        self.last_path = Path(ckpt_dir) / last_name
        self.record_path = self.last_path.with_name(last_name.replace("checkpoint.pt", RECORD_NAME))
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.resume = resume
        further = {"network_def": getattr(network, "further_options", {})}
        self.settings = json.dumps({**(settings or {}), **further}, default=str)  # a class of torch may be given there
        self.overwrite = overwrite
        self._seconds = 0.0
        self._best_next_metric = -math.inf
        self._lock = RunLock(self.last_path.with_name(f".{last_name}.lock"))

    def attach(self, trainer: Engine, evaluator: Engine) -> None:
        """Restore the state if asked to, and save from now on; call it after the engines' own handlers are attached.

        Args:
            trainer: trainer, whose epoch ends with the validation.
            evaluator: evaluator, which holds the best metric.

        Raises:
            InputError: the folder holds a run or a network that would be overwritten, or a checkpoint that cannot be
                resumed; another run is using it, or nothing can be written there.
        """
        was_killed = self._take_folder(trainer)
        if self.resume and self.last_path.exists():
            self._restore(trainer, evaluator)
        elif self.resume:
            logger.warning("nothing to resume in %s, training starts from the beginning", self.last_path.parent)
        elif self.last_path.exists():
            raise InputError(
                f"{self.last_path.parent} already holds a training run: go on with it by --resume true, "
                "or choose another --ckpt_dir."
            )
        # A run that was killed in its first epoch may have left its own network, and no checkpoint.
        protected = not (self.overwrite or was_killed or self.last_path.exists())
        if protected and self.best_path.exists() and idist.get_rank() == 0:
            raise InputError(
                f"{self.best_path} is a network of another training, which this one would replace at its first "
                "validation; choose another --ckpt_dir, or move that file away."
            )
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._save_best)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._save_last, evaluator)
        trainer.add_event_handler(Events.COMPLETED, self._tell_place, evaluator)

    def _take_folder(self, trainer: Engine) -> bool:
        """Keep other runs out of the folder until this one has ended; whether the last one there was killed."""
        if idist.get_rank() > 0:
            return False
        try:
            self._lock.take("a training", "--ckpt_dir")
            remove_unfinished(self.last_path.parent)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"{self.last_path.parent} cannot be written to ({reason}); choose another --ckpt_dir."
            ) from error
        run = trainer.run

        def run_and_release(*args: object, **kwargs: object) -> object:  # ignite has no event for every end of a run
            try:
                return run(*args, **kwargs)
            finally:
                self._lock.release()

        trainer.run = run_and_release
        return self._lock.was_left

    def _start_epoch(self, trainer: Engine) -> None:
        self._epoch_start = time.perf_counter()

    def _save_best(self, evaluator: Engine) -> None:
        others = (value for name, value in evaluator.state.metrics.items() if name != evaluator.state.key_metric_name)
        next_metric = next(others, -math.inf)
        if evaluator.state.best_metric == 0 and next_metric > self._best_next_metric:
            self._best_next_metric = float(next_metric)
            evaluator.state.best_metric_epoch = evaluator.state.epoch
        if evaluator.state.best_metric_epoch == evaluator.state.epoch and idist.get_rank() == 0:
            save_atomically(self.network.state_dict(), self.best_path)

    def _save_last(self, trainer: Engine, evaluator: Engine) -> None:
        if idist.get_rank() > 0 or evaluator.should_terminate:  # a validation cut short: the epoch is not whole
            return
        self._seconds += time.perf_counter() - self._epoch_start
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": trainer.state.epoch,
            "best_metric": float(evaluator.state.best_metric),
            "best_metric_epoch": evaluator.state.best_metric_epoch,
            "best_next_metric": self._best_next_metric,
            "scaler": trainer.scaler.state_dict() if trainer.scaler else {},
            "settings": self.settings,
            "seconds": self._seconds,
        }
        save_atomically(state, self.last_path)
        self._write_record(state)
        if evaluator.state.best_metric_epoch == -1:  # not validated yet: the last network is the best one known
            save_atomically(self.network.state_dict(), self.best_path)

    def _tell_place(self, evaluator: Engine) -> None:
        """Say where the best network is, and its score; nothing where the run was stopped before there is one."""
        if idist.get_rank() > 0 or not self.best_path.exists():
            return
        said = "the last one, for none was validated"
        if (epoch := evaluator.state.best_metric_epoch) != -1:
            said = f"of epoch {epoch}, {evaluator.state.key_metric_name} {evaluator.state.best_metric:.4f}"
        logger.info("the best network is %s: %s", self.best_path, said)

    def _write_record(self, state: Mapping) -> None:
        record = {name: state[name] for name in ("epoch", "best_metric_epoch", "seconds")}
        # Without options of a network that was given none, as in records of earlier versions: they are of one row.
        record = {name: value for name, value in json.loads(self.settings).items() if value != {}} | record
        record["parameters"] = sum(p.numel() for p in self.network.parameters())
        if torch.cuda.is_available():
            record |= {"gpu": torch.cuda.get_device_name(), "gpu_bytes": torch.cuda.max_memory_reserved()}
        try:
            write_file(self.record_path, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{self.record_path} cannot be written ({error}); {self.last_path} is whole.") from error

    def _restore(self, trainer: Engine, evaluator: Engine) -> None:
        state = _REST | read_checkpoint(self.last_path)
        kinds = _STATE | {name: type(value) for name, value in _REST.items()}
        known = all(isinstance(state.get(name), kind) for name, kind in kinds.items())
        if not known or not 0 <= state["epoch"] <= MAX_EPOCHS or not state["best_metric_epoch"] <= state["epoch"]:
            raise InputError(f"{self.last_path} is not a checkpoint of a training run, it cannot be resumed.")
        if math.isnan(state["best_metric"] + state["seconds"]) or not 0 <= state["seconds"] < math.inf:
            raise InputError(f"{self.last_path} says of its run what is no number, it cannot be resumed.")
        changed, best = self._changed_settings(state), (state["best_metric"], state["best_metric_epoch"])
        try:
            load_pretrained(self.network, state["model"], strict=True)
        except InputError as error:
            raise InputError(f"{self.last_path} cannot be resumed with {changed or 'this network'}: {error}") from error
        self._restore_optimizer(state["optimizer"], state["epoch"])
        trainer.state.epoch = state["epoch"]
        self._seconds = state["seconds"]
        self._best_next_metric = state["best_next_metric"]
        trainer.state.iteration = state["epoch"] * trainer.state.epoch_length
        evaluator.state.best_metric, evaluator.state.best_metric_epoch = best
        trainer.add_event_handler(Events.STARTED, self._restore_scaler, self._scaler_state(state["scaler"]))
        if changed:
            logger.warning("resumed with %s; it will not end where the run as begun would have", changed)
        epoch, epochs = state["epoch"], trainer.state.max_epochs
        logger.info("resumed after epoch %d of %d, best metric %.4f of epoch %d", epoch, epochs, *best)
        if epoch >= epochs:
            logger.warning("the run has its %d epochs, there is nothing left to train", epochs)
            self._lock.release()

    def _scaler_state(self, saved: Mapping) -> dict:
        """What a gradient scaler has found out, without its options, which are those of this run."""
        if not saved:  # a run without one
            return {}
        with explained(f"{self.last_path} holds the state of another gradient scaler", "it cannot be resumed"):
            state = {"scale": float(saved["scale"]), "_growth_tracker": int(saved["_growth_tracker"])}
            if not 0 < state["scale"] < math.inf or not 0 <= state["_growth_tracker"] < MAX_STEPS:
                raise ValueError("numbers that it never has")
        return state

    @staticmethod
    def _restore_scaler(trainer: Engine, state: dict) -> None:
        """MONAI's trainer makes its gradient scaler when the run starts."""
        if trainer.scaler and state:
            trainer.scaler.load_state_dict(trainer.scaler.state_dict() | state)

    def _changed_settings(self, state: Mapping) -> str:
        with explained(f"{self.last_path} has unreadable settings", "it cannot be resumed"):
            before, now = dict(json.loads(state["settings"])), json.loads(self.settings)
        changed = {name: old for name, old in before.items() if now.get(name, old) != old}
        return ", ".join(f"{name} {now[name]!r} (was {shown(repr(old))})" for name, old in changed.items())

    def _restore_optimizer(self, saved: dict, epoch: int) -> None:
        """The state of each parameter; options stay those of this run, and the schedule is replayed, not restored, so
        that a run can be resumed for more epochs than first planned.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the scheduler steps before the optimizer
            for _ in range(epoch):
                self.lr_scheduler.step()
        rates = self.lr_scheduler.get_last_lr()
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        problem, advice = f"{self.last_path} holds the state of another optimizer", "it cannot be resumed"
        with explained(problem, advice, AttributeError, LookupError, OverflowError, TypeError, ValueError):
            if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in groups]:
                raise ValueError("of other parameters")
            like = _state_like(self.optimizer)
            states = {}
            for index, state in saved["state"].items():
                if not isinstance(state, Mapping) or (state and state.keys() != like.keys()):
                    raise ValueError(f"not with {', '.join(sorted(like))}")
                if type(index) is not int or index < 0:
                    raise ValueError("of parameters without a number")
                states[index] = _own_state(state, parameters[index], like)
            self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate


def _state_like(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """What an optimizer keeps of a parameter, which it says nowhere: one like it makes a step with a single number."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    groups = [{**group, "params": [parameter]} for group in optimizer.param_groups[:1]]
    like = object.__new__(type(optimizer))
    like.__setstate__({"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": groups})
    like.step()
    return like.state[parameter]


def _own_state(state: Mapping, parameter: nn.Parameter, like: Mapping) -> dict[str, object]:
    """An optimizer's state of a parameter in tensors of its own; ValueError unless each is one number, or fits it.

    The fused optimizers' kernels trust what they are given: they write along the memory of a state, which in a file
    may be too short, in another order, or shared with another's.
    """
    own = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            fits = value.ndim == 0 if name in SCALARS else value.shape == parameter.shape
            if not fits or not value.is_floating_point() or not value.isfinite().all():
                raise ValueError(f"{name} does not fit its parameter")
        elif not isinstance(value, (int, float, type(None))) or (
            isinstance(like[name], Tensor) and name not in SCALARS
        ):
            raise ValueError(f"{name} is a {type(value).__name__}")
        if isinstance(value, Tensor) and value.ndim:
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        elif isinstance(like[name], Tensor):
            value = torch.full_like(like[name], float(value))
        own[name] = value
    return own
