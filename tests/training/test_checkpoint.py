# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of resuming that need a GPU in a real run; whole runs are resumed in tests/bundles."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.training import TrainingCheckpoint, autocast_dtype, default_amp, run_record
from swinumamba_monai.training.checkpoint import save_atomically


def start(folder, scaler, resume=False, epochs=1, settings=None):
    """Train nothing for some epochs, with a gradient scaler that is made when the run starts, as MONAI's is."""
    network = SwinUMambaD(1, 2, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1), feature_size=2, d_state=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, 1
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    trainer.scaler = scaler
    checkpoint = TrainingCheckpoint(folder, network, optimizer, schedule, resume=resume, settings=settings)
    checkpoint.attach(trainer, evaluator)
    trainer.run([0], max_epochs=epochs, epoch_length=1)
    return trainer


def test_the_gradient_scaler_goes_on(tmp_path):
    """With what it has found out; its options are those of the run that goes on."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    scaler.scale(torch.ones(()))  # makes its state
    scaler._growth_tracker.fill_(2)
    start(tmp_path, scaler)
    resumed = torch.amp.GradScaler("cpu", growth_interval=7)
    start(tmp_path, resumed, resume=True, epochs=2)
    state = resumed.state_dict()
    assert (state["scale"], state["_growth_tracker"], state["growth_interval"]) == (4.0, 2, 7)


def test_the_end_says_where_the_best_network_is(tmp_path, caplog):
    caplog.set_level("INFO")
    start(tmp_path / "none", None)
    assert f"the best network is {tmp_path}/none/model.pt: the last one, for none was validated" in caplog.messages
    validated(tmp_path / "all", [(0.1, 0.5), (0.25, 0.4), (0.2, 0.3)])
    assert f"the best network is {tmp_path}/all/model.pt: of epoch 2, val_f1 0.2500" in caplog.messages


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "abc"}, {"seconds": torch.nan}, {"seconds": -1.0}, {"seconds": torch.zeros(3)}, {"seconds": None},
        {"best_metric": torch.nan}, {"best_metric_epoch": 10**30}, {"best_next_metric": "a"}, {"settings": 5},
        {"settings": "[1]"}, {"scaler": [1]}, {"scaler": {"scale": 1.0}},
        {"scaler": {"scale": torch.nan, "_growth_tracker": 0}}, {"scaler": {"scale": 1.0, "_growth_tracker": 10**30}},
        {"scaler": {"scale": torch.ones(2), "_growth_tracker": 0}}, {"epoch": -1}, {"epoch": 10**12},
    ],
)  # fmt: skip
def test_a_record_of_the_run_that_cannot_be(tmp_path, change):
    """It is refused before the run, and not when an epoch's work is to be kept."""
    start(tmp_path, torch.amp.GradScaler("cpu"))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save(state | change, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="cannot be resumed"):
        start(tmp_path, torch.amp.GradScaler("cpu"), resume=True, epochs=2)


def test_settings_of_a_stranger_are_quoted_in_part(tmp_path, caplog):
    start(tmp_path, None, settings={"seed": 0})
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["settings"] = json.dumps({"seed": "y" * 10_000})
    torch.save(state, tmp_path / "checkpoint.pt")
    start(tmp_path, None, resume=True, epochs=2, settings={"seed": 0})
    (line,) = [record.getMessage() for record in caplog.records if "resumed with seed" in record.getMessage()]
    assert len(line) < 250


def test_weights_of_another_network_are_refused_with_the_changed_options(tmp_path):
    start(tmp_path, None, settings={"network_name": "A"})
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["model"].popitem()
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"point\.pt cannot be resumed with network_name 'B' \(was 'A'\): .* lacks"):
        start(tmp_path, None, resume=True, epochs=2, settings={"network_name": "B"})


class Given(Metric):
    """A metric with one value after the other."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        return next(self.values)


def validated(folder, scores, resume=False):
    """The epoch whose network is ``model.pt`` after each further epoch of a run with these (F1, Dice)."""
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    f1, dice = (Given(values) for values in zip(*scores))
    batches = [{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}]
    evaluator = SupervisedEvaluator(
        "cpu", batches, network, key_val_metric={"val_f1": f1}, additional_metrics={"val_dice": dice}
    )
    trainer = Engine(lambda engine, batch: None)
    trainer.state.max_epochs, trainer.state.epoch_length, trainer.scaler = 10, 1, None
    best = []

    def validate():
        torch.nn.init.constant_(network.bias, trainer.state.epoch)
        evaluator.run(trainer.state.epoch)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    TrainingCheckpoint(folder, network, optimizer, schedule, resume=resume).attach(trainer, evaluator)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: best.append(int(torch.load(folder / "model.pt", weights_only=True)["bias"]))
    )
    trainer.run([0], max_epochs=trainer.state.epoch + len(scores), epoch_length=1)
    return best


def test_while_f1_stays_0_the_best_network_follows_dice(tmp_path):
    assert validated(tmp_path, [(0, torch.nan), (0, 0.2), (0, 0.1), (0, 0.4)]) == [1, 2, 2, 4]
    assert validated(tmp_path, [(0, 0.3), (0, 0.5), (0.1, 0.2), (0, 0.9), (0.05, 0.9)], resume=True) == [4, 6, 7, 7, 7]


@pytest.mark.parametrize("before, now", [(None, "scaler"), ("scaler", None), (None, None)])
def test_amp_may_be_turned_on_and_off(before, now, tmp_path):
    make = {"scaler": lambda: torch.amp.GradScaler("cpu"), None: lambda: None}
    start(tmp_path, make[before]())
    start(tmp_path, make[now](), resume=True, epochs=2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2


def test_checkpoint_of_another_network(tmp_path):
    start(tmp_path, None)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["model"]["decoder.seg_layers.0.bias"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="lacks decoder"):
        start(tmp_path, None, resume=True)


def adam(folder, resume=False, **options):
    """The optimizer of a run that is begun, or gone on with, and has trained for one step."""
    network = SwinUMambaD(1, 2, depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1), feature_size=2, d_state=1)
    optimizer = torch.optim.AdamW(network.parameters(), **{"lr": 0.1, **options})
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    trainer.state.max_epochs, trainer.state.epoch_length = 1, 1
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    trainer.scaler = None
    TrainingCheckpoint(folder, network, optimizer, schedule, resume=resume).attach(trainer, evaluator)
    if not resume:
        trainer.run([0], max_epochs=1, epoch_length=1)
    return optimizer


def state_of_adam(folder, **options):
    adam(folder, **options)
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def spoil(change):
    def spoilt(state):
        change(state["optimizer"]["state"][0], state["optimizer"])

    return spoilt


@pytest.mark.parametrize(
    "change",
    [
        spoil(lambda first, _: first.update(exp_avg_sq=torch.ones(1))),
        spoil(lambda first, _: first.update(exp_avg=torch.ones(10_000))),
        spoil(lambda first, _: first.update(exp_avg=first["exp_avg"].long())),
        spoil(lambda first, _: first.update(exp_avg=first["exp_avg"] * torch.nan)),
        spoil(lambda first, _: first.update(step=torch.ones(3))),
        spoil(lambda first, _: first.update(step=torch.tensor(torch.inf))),
        spoil(lambda first, _: first.update(exp_avg="text")),
        spoil(lambda first, _: first.update(exp_avg=0.5)),
        spoil(lambda first, _: first.pop("exp_avg")),
        spoil(lambda first, _: first.update(momentum_buffer=torch.ones(1))),
        spoil(lambda first, _: first.update(step=10**400)),
        spoil(lambda _, optimizer: optimizer["state"].update({-1: dict(optimizer["state"][0])})),
        spoil(lambda _, optimizer: optimizer["state"].update({0: torch.ones(3)})),
        spoil(lambda _, optimizer: optimizer["state"].update({10_000: {"step": torch.tensor(1.0)}})),
        spoil(lambda _, optimizer: optimizer["state"].update(name={})),
        spoil(lambda _, optimizer: optimizer["param_groups"][0]["params"].pop()),
        spoil(lambda _, optimizer: optimizer.update(param_groups=[])),
        spoil(lambda _, optimizer: optimizer.pop("state")),
        spoil(lambda _, optimizer: optimizer.update(state=[1, 2])),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, change):
    """A fused optimizer would write beyond the end of one that is too short."""
    state = state_of_adam(tmp_path)
    change(state)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="holds the state of another optimizer"):
        adam(tmp_path, resume=True)


@pytest.mark.parametrize("fused", [True, False])
def test_states_get_memory_of_their_own(tmp_path, fused):
    """A kernel goes along the memory of a state: in another order, or shared with another's, it would be spoilt."""
    state = state_of_adam(tmp_path)
    states = state["optimizer"]["state"]
    index = next(i for i, part in states.items() if part["exp_avg"].ndim > 1)
    turned = torch.rand(states[index]["exp_avg"].shape[::-1]).permute(*reversed(range(states[index]["exp_avg"].ndim)))
    states[index] |= {"exp_avg": turned, "exp_avg_sq": turned, "step": 3}
    torch.save(state, tmp_path / "checkpoint.pt")
    optimizer = adam(tmp_path, resume=True, fused=fused)
    parameter = optimizer.param_groups[0]["params"][index]
    found = optimizer.state[parameter]
    assert found["exp_avg"].stride() == parameter.stride() and found["step"].item() == 3
    assert found["exp_avg"].data_ptr() != found["exp_avg_sq"].data_ptr()
    torch.testing.assert_close(found["exp_avg"], turned)
    optimizer.step()


def test_a_state_beyond_its_memory_is_refused(tmp_path):
    """All of its elements are the last one of a storage that is large enough for as many: found by a crash."""
    state = state_of_adam(tmp_path)
    first = state["optimizer"]["state"][0]
    shape = first["exp_avg"].shape
    first["exp_avg"] = torch.zeros(shape.numel()).as_strided(shape, (0,) * len(shape), shape.numel() - 1)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="names its elements more than once"):
        adam(tmp_path, resume=True, fused=True)


def test_options_are_those_of_the_run_that_goes_on(tmp_path):
    """What is said, recorded and used is one value, whatever a file says."""
    state = state_of_adam(tmp_path, weight_decay=0.05)
    state["optimizer"]["param_groups"][0] |= {"fused": True, "betas": (0.0, 0.0), "lr": 7.0, "maximize": True}
    torch.save(state, tmp_path / "checkpoint.pt")
    optimizer = adam(tmp_path, resume=True, weight_decay=0.9)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.9 and not group["fused"] and group["betas"] == (0.9, 0.999)
    assert group["lr"] == 0.05 and not group["maximize"]  # 0.1, halved once by the schedule
    for index, p in enumerate(group["params"]):
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], state["optimizer"]["state"][index]["exp_avg"])


class TestFolder:
    def test_a_delivered_network_is_not_replaced(self, tmp_path):
        (tmp_path / "model.pt").write_bytes(b"delivered")
        for resume in (False, True):
            with pytest.raises(InputError, match=r"model\.pt is a network of another training"):
                start(tmp_path, None, resume=resume)
        assert (tmp_path / "model.pt").read_bytes() == b"delivered"

    def test_that_of_a_run_killed_in_its_first_epoch_is(self, tmp_path):
        (tmp_path / "model.pt").write_bytes(b"of the first epoch")
        (tmp_path / ".checkpoint.pt.lock").write_text('{"process": 1}')
        start(tmp_path, None)
        assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "checkpoint.pt", "run.json"}
        assert torch.load(tmp_path / "model.pt", weights_only=True)

    @pytest.mark.parametrize("resume", [False, True])
    def test_two_runs(self, tmp_path, resume):
        take = "print(RunLock(sys.argv[1]).acquire(), flush=True)"
        code = f"import sys, time; from swinumamba_monai.run_lock import RunLock; {take}; time.sleep(60)"
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / ".checkpoint.pt.lock")], stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout.readline() == "None\n"
            with pytest.raises(InputError, match=f"a training is running in .* \\(process {other.pid} on "):
                start(tmp_path, None, resume=resume)
        finally:
            other.kill()
            other.wait(timeout=300)
        start(tmp_path, None, resume=resume)

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "models").write_text("")
        with pytest.raises(InputError, match=r"models cannot be written to \(.*choose another --ckpt_dir"):
            start(tmp_path / "models", None)

    def test_a_full_disk_is_called_that(self, tmp_path, monkeypatch):
        def fail(path, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(InputError, match=r"could not be written \(No space left on device\); there was none"):
            save_atomically({}, tmp_path / "checkpoint.pt")

    def test_another_error_is_not_taken_for_one_of_the_disk(self, tmp_path, monkeypatch):
        def die(*args):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

        monkeypatch.setattr(torch, "save", die)
        with pytest.raises(RuntimeError, match="worker"):
            save_atomically({}, tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, '"text"', "\x00\x1b[31m"])
def test_a_damaged_record_is_one_sentence(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json cannot be read .*; remove it") as caught:
        run_record(tmp_path / "model.pt")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


class TestAmp:
    def test_names(self):
        cuda = torch.device("cuda")
        dtypes = [autocast_dtype(name, cuda) for name in ("bf16", "fp16", "off")]
        assert dtypes == [torch.bfloat16, torch.float16, None]
        assert autocast_dtype("off", torch.device("cpu")) is None

    @pytest.mark.parametrize("name", [True, False, "fp32", None])
    def test_other_names(self, name):
        with pytest.raises(InputError, match="one of bf16, fp16, off"):
            autocast_dtype(name, torch.device("cuda"))

    def test_default_without_a_gpu(self):
        assert default_amp(torch.device("cpu")) == "off"
