# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes with half of a batch each train as one process with the whole batch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from forked import START_METHOD
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.engines.utils import default_prepare_batch

from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.training import FreezeEncoder, GradientClip, MaskedBatch, MaskedImageModel

CONFIGS = Path(__file__).parents[2] / "bundles" / "microscopy" / "configs"
STEPS = 3


def config_loss(workflow: str) -> torch.nn.Module:
    """The loss that the bundle trains with; of the paper's classes, where Dice is over the batch of all processes."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / f"{workflow}.json"))
    parser["target"] = "classes"
    return parser.get_parsed_content("loss")


def network() -> SwinUMambaD:
    torch.manual_seed(0)
    small = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8, "d_state": 2}
    return SwinUMambaD(3, 3, **small, drop_path_rate=0, scan_backend="portable")


def batches() -> list[dict[str, torch.Tensor]]:
    """Four images a step, with classes of very different sizes in the two halves."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(STEPS):
        image = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
        threshold = torch.tensor([-1.0, -1.0, 1.5, 1.5], dtype=torch.float64).view(4, 1, 1, 1)
        label = (image[:, :1] > threshold).double() + (image[:, 1:2] > threshold).double()
        result.append({"image": image, "label": label})
    return result


def train(workflow: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train on this process's part; the losses of the steps and the weights after them."""
    torch.set_num_threads(1)
    share = 4 // idist.get_world_size()
    part = slice(idist.get_rank() * share, (idist.get_rank() + 1) * share)
    prepare_batch = default_prepare_batch
    net = network()
    if workflow == "pretrain":
        torch.manual_seed(1)
        net = MaskedImageModel(net)
        masks = MaskedBatch(mask_patch_size=16, seed=0)

        def prepare_batch(batch, *args, **kwargs):
            """The masks of the whole batch, and then the part."""
            image, target, (mask,), _ = masks(batch)
            return image[part], target[part], (mask[part],), {}

        data = batches()
    else:
        data = [{name: value[part] for name, value in batch.items()} for batch in batches()]
    net = net.double()
    wrapped = torch.nn.parallel.DistributedDataParallel(net) if idist.get_world_size() > 1 else net
    losses = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=data,
        prepare_batch=prepare_batch,
        network=wrapped,
        optimizer=torch.optim.AdamW(net.parameters(), lr=1e-3, eps=1e-5, weight_decay=0.05),
        loss_function=config_loss(workflow),
        train_handlers=[FreezeEncoder(net, epochs=0), GradientClip(12.0)],
        decollate=False,
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run()
    return losses, net.state_dict()


def in_each_process(local_rank: int, folder: str) -> None:
    for workflow in ("train", "pretrain"):
        torch.save(train(workflow), f"{folder}/{workflow}{local_rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    # They meet through a file: ignite's port is the same in every run, and two runs on one machine would fight over it.
    meeting = (folder / "meeting").as_uri()
    group = {"nproc_per_node": 2, "init_method": meeting, "timeout": timedelta(seconds=300)}
    idist.spawn("gloo", in_each_process, (str(folder),), start_method=START_METHOD, **group)
    return folder


@pytest.mark.parametrize("workflow", ["train", "pretrain"])
def test_as_one_process_with_the_double_batch(workflow, two_processes):
    """In float64; only the order of sums differs, and AdamW's eps of 1e-5 amplifies that: 1e-16 / 1e-5 · lr a step."""
    losses, weights = train(workflow)
    (losses0, weights0), (losses1, weights1) = (torch.load(two_processes / f"{workflow}{rank}.pt") for rank in (0, 1))
    assert losses == pytest.approx([(a + b) / 2 for a, b in zip(losses0, losses1)], rel=1e-10)
    for name, value in weights.items():
        assert torch.equal(weights0[name], weights1[name]), name
        torch.testing.assert_close(weights0[name], value, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_the_halves_alone_have_another_loss():
    """What the test above would miss if the loss were of each process's part: Dice over a batch is no mean."""
    loss, net = config_loss("train"), network().double()
    batch = batches()[0]
    with torch.no_grad():
        heads, label = net(batch["image"]), batch["label"]
        whole = loss(heads, label)
        halves = [loss([head[part] for head in heads], label[part]) for part in (slice(0, 2), slice(2, 4))]
    assert abs(sum(halves) / 2 - whole) > 1e-3
