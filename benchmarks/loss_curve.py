# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The same thousand training steps with two scan backends: does the loss end in the same place?

Two runs that differ in rounding alone part after some hundred steps, so no tolerance on single losses can be right for
all of them. Three questions can be answered, and each can fail:

1. Over the first steps, before rounding has grown, do the losses agree to ``--tolerance``?
2. Is it the same curve? The curves of two backends from one seed must lie closer together than those of one backend
   from two seeds (initial weights and drop path; the batches are the same). A curve is the moving mean of the losses,
   a distance the mean over all of its steps, and both are averaged over the pairs that were run.
3. Do both learn, that is, end below the loss they began with?
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from swinumamba_monai.analysis.measurement import free, reason
from swinumamba_monai.analysis.steps import autocast
from swinumamba_monai.data import load_datalist, synthesize_microscopy
from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.ops.backends import choose_backend

from .cases import TOY, TRAIN_CONFIG, recipe
from .record import Record, make_parser, start

COLUMNS = {
    "backend": "backend",
    "seed": "seed",
    "steps": "steps",
    "first loss": "first_loss",
    "mean of the last": "last_mean",
    "seconds": "seconds",
    "failed": "error",
}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--scan_backends", nargs=2, default=None, help="default: what auto takes here, and portable")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="runs of both backends")
    parser.add_argument("--other_seeds", nargs="*", type=int, default=[2], help="runs of the first backend alone")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--window", type=int, default=100, help="steps of a moving mean, and of the mean at the end")
    parser.add_argument("--first", type=int, default=10, help="steps at the beginning that must agree")
    parser.add_argument("--tolerance", type=float, default=None, help="default: 1e-3 in fp32, 2e-2 in bf16, relative")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--feature_size", type=int, default=96)
    parser.add_argument("--roi_size", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--dataset_dir", default=None, help="a prepared microscopy dataset; default: synthetic cells")
    parser.add_argument("--judge", nargs="+", type=Path, metavar="RECORD", help="run nothing, unite these and judge")
    arguments = parser.parse_args(argv)
    device = start(arguments)
    if arguments.quick:
        arguments.feature_size, arguments.roi_size, arguments.batch_size = TOY["feature_size"], 32, 1
        arguments.steps, arguments.window, arguments.first = 6, 2, 2
        arguments.seeds, arguments.other_seeds = [0], [1]
    auto = choose_backend("auto", device.type, torch.float32)
    first, second = arguments.scan_backends or (auto, "portable" if auto != "portable" else "reference")
    tolerance = arguments.tolerance or {"fp32": 1e-3, "bf16": 2e-2}[arguments.precision]
    notes = [
        f"Swin-UMamba†, feature_size {arguments.feature_size}, {arguments.precision}, {arguments.batch_size} "
        f"crops a batch of {arguments.roi_size}², AdamW 1e-4, clip 12, drop path 0.2; the same batches in every run.",
        f"The last {arguments.window} steps are averaged.",
    ]
    united = unite(arguments.judge) if arguments.judge else None  # before the first file is written
    record = Record("loss_curve", arguments, COLUMNS, notes)
    if united:
        record.content = united
        curves = {(row["backend"], row["seed"]): np.array(row["losses"]) for row in record.content["rows"]}
        judge(record, curves, first, second, tolerance, arguments)
        plot(record, curves, arguments.window)
        return
    images = load_images(arguments)
    seeds = [(backend, seed) for seed in arguments.seeds for backend in (first, second)]
    seeds += [(first, seed) for seed in arguments.other_seeds]
    curves = {}
    for backend, seed in seeds:
        row = {"backend": backend, "seed": seed, "steps": arguments.steps}
        try:
            choose_backend(backend, device.type, torch.float32)
            begin = time.perf_counter()
            losses = train(images, backend, seed, device, arguments)
        except Exception as error:
            record.add({**row, "error": reason(error)})
            free(device)
            continue
        curves[backend, seed] = losses
        row |= {"first_loss": float(losses[0]), "last_mean": float(losses[-arguments.window :].mean())}
        record.add({**row, "seconds": time.perf_counter() - begin, "losses": [float(f"{x:.6g}") for x in losses]})
    judge(record, curves, first, second, tolerance, arguments)
    plot(record, curves, arguments.window)


def unite(paths: list[Path]) -> dict:
    """One record of the runs of several, each run once.

    Raises:
        InputError: the records are not of one commit, machine and kind of run.
    """
    records = [json.loads(path.read_text()) for path in paths]

    def kind(record: dict) -> list:
        gpu = record["hardware"].get("gpu", {}).get("name")
        return [
            record["benchmark"],
            record["git_commit"],
            record["versions"],
            record["settings"],
            gpu,
            record["notes"][0],
        ]

    for path, record in zip(paths, records):
        if kind(record) != kind(records[0]):
            raise InputError(f"{path} is of another machine, commit or kind of run than {paths[0]}.")
    content = {**records[0], "command": "; ".join(record["command"] for record in records)}
    content["notes"] = content["notes"][:2]
    rows = {(row["backend"], row["seed"]): row for record in reversed(records) for row in record["rows"]}
    content["rows"] = [rows[key] for key in sorted(rows)]
    return content


def load_images(arguments) -> list[dict[str, torch.Tensor]]:
    """Images (3, H, W) float32, normalised, and class maps (1, H, W) float32, by the bundle's own transforms."""
    config = ConfigParser(ConfigParser.load_config_file(TRAIN_CONFIG))
    config["target"] = "classes"
    transforms = [config.get_parsed_content(name) for name in ("load_transforms", "train#label_transforms")]
    with tempfile.TemporaryDirectory() as work:
        folder = arguments.dataset_dir or Path(work) / "data"
        if arguments.dataset_dir is None:
            number, side = (2, 64) if arguments.quick else (32, 256)
            synthesize_microscopy(folder, num_train=number, num_validation=1, num_test=1, image_size=(side, side))
        return [Compose(transforms[0] + transforms[1])(item) for item in load_datalist(folder, "training")]


def make_batch(images, step: int, arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops, flipped at random, the same for a step in every run."""
    rng = np.random.default_rng([arguments.seed, step])
    side, crops = arguments.roi_size, []
    while len(crops) < arguments.batch_size:
        item = images[rng.integers(len(images))]
        pair = torch.cat([item["image"], item["label"]])
        pair = torch.nn.functional.pad(pair, (0, max(side - pair.shape[2], 0), 0, max(side - pair.shape[1], 0)))
        top, left = (rng.integers(length - side + 1) for length in pair.shape[1:])
        flips = [axis for axis in (1, 2) if rng.random() < 0.5]
        crops.append(pair[:, top : top + side, left : left + side].flip(flips))
    batch = torch.stack(crops)
    return batch[:, :-1], batch[:, -1:]


def train(images, backend: str, seed: int, device: torch.device, arguments) -> np.ndarray:
    """The losses of all steps of one run."""
    torch.manual_seed(seed)
    size = TOY if arguments.quick else {"feature_size": arguments.feature_size}
    network = SwinUMambaD(3, 3, **size, scan_backend=backend).to(device).train()
    loss_function, optimizer = recipe(network, device)
    losses = torch.empty(arguments.steps, device=device)
    for step in range(arguments.steps):
        image, label = (t.to(device) for t in make_batch(images, step, arguments))
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, arguments.precision):
            loss = loss_function(network(image), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        losses[step] = loss.detach()
        if step % 100 == 0:
            print(f"loss_curve: {backend}, seed {seed}, step {step}: {float(losses[step]):.4f}", flush=True)
    return losses.cpu().numpy()


def judge(record: Record, curves: dict, first: str, second: str, tolerance: float, arguments) -> None:
    """Answer the three questions in the record; an answer that could not be had is None."""
    verdict = {"backends": [first, second], "tolerance": tolerance}
    verdict |= {"first_steps_agree": None, "same_curve": None, "both_learn": None}
    seeds = sorted({seed for backend, seed in curves if backend == second and (first, seed) in curves})
    if seeds and all(np.isfinite(losses).all() for losses in curves.values()):
        pairs = [(curves[first, seed], curves[second, seed]) for seed in seeds]
        apart = [np.abs(a - b) / np.abs(a) for a, b in pairs]
        verdict["largest_early_difference"] = float(max(x[: arguments.first].max() for x in apart))
        verdict["steps_within_tolerance"] = [int(np.argmax(np.append(x, np.inf) > tolerance)) for x in apart]
        verdict["first_steps_agree"] = verdict["largest_early_difference"] <= tolerance
        verdict["both_learn"] = all(losses[-arguments.window :].mean() < losses[0] for pair in pairs for losses in pair)
        smooth = {key: moving_mean(losses, arguments.window) for key, losses in curves.items()}
        between = [distance(smooth[first, seed], smooth[second, seed]) for seed in seeds]
        of_seeds = [distance(smooth[a], smooth[b]) for a, b in itertools.combinations(smooth, 2) if a[0] == b[0]]
        verdict["distances_of_backends"] = between
        if of_seeds:
            verdict["mean_distance_of_backends"] = float(np.mean(between))
            verdict["mean_distance_of_seeds"] = float(np.mean(of_seeds))
            verdict["same_curve"] = verdict["mean_distance_of_backends"] < verdict["mean_distance_of_seeds"]
    record.content["verdict"] = verdict
    record.content["notes"].append(f"Verdict: {verdict}.")
    record.save()
    print(f"loss_curve: {verdict}", flush=True)


def moving_mean(losses: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(losses, np.ones(window) / window, mode="valid")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def plot(record: Record, curves: dict, window: int) -> None:
    """Write ``loss_curve.png``: the moving mean of every run, and the two backends' raw losses from one seed behind."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    backends = sorted({backend for backend, _ in curves})
    raw = min(seed for _, seed in curves)
    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    for (backend, seed), losses in curves.items():
        style = {"color": f"C{seed}", "linestyle": "-" if backend == backends[0] else "--"}
        if seed == raw:
            axis.plot(losses, alpha=0.15, **style)
        smooth = moving_mean(losses, window)
        axis.plot(np.arange(window - 1, len(losses)), smooth, label=f"{backend}, seed {seed}", **style)
    axis.set(xlabel="step", ylabel="loss", title=f"Swin-UMamba†, moving mean of {window} steps, raw behind")
    axis.legend()
    figure.tight_layout()
    figure.savefig(record.output_dir / "loss_curve.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
