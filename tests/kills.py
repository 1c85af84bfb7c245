# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Kill every command at random moments; the same command again must end as an undisturbed one.

    python tests/kills.py COUNT FOLDER [SEED]

Each kill begins in an empty folder. Half of them end the process alone, as when memory is short, half its workers too,
as when a container ends. After a kill every file that a reader would open is whole; after the same command again the
folder holds what two undisturbed runs have in common, to the last bit, and nothing of the killed one is left there or
among the temporary files. One line of JSON counts; what failed stays in FOLDER, and the exit code is 1.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "bundles")]
from bundle_runs import PRETRAIN, ROOT, SHORT, command, load_weights  # noqa: E402

LONGEST = 300  # seconds of a command; the slowest takes about twenty
TRAINING = {"max_epochs": 3, "num_workers": 1, "resume": "true", "ckpt_dir": "models", "output_dir": "log"}
LOGS = "events.out.tfevents"  # every run adds one


class Commands:
    """Command lines by name, all with small networks and images, that write into the folder where they are run.

    Args:
        folder: what they need is made there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained, self.evaluated = folder / "trained", folder / "evaluated"
        self.predicted, self.bundle = folder / "predicted", folder / "small" / "microscopy"
        own = [sys.executable, "-m", "swinumamba_monai"]
        sizes = ["--num_train", "6", "--num_validation", "2", "--num_test", "3", "--image_size", "64", "64"]
        self.preparing = [
            [*own, "synthesize", "microscopy", "--output_dir", str(folder / "microscopy"), *sizes],
            [*own, "synthesize", "abdomen_mri", "--output_dir", str(folder / "volumes"), "--num_slices", "4", *sizes],
            self.of("microscopy", "train", **SHORT, ckpt_dir=str(self.trained), output_dir=str(folder / "log")),
            self.of("microscopy", "inference", **self.small("inference"), output_dir=str(self.predicted)),
            self.of("microscopy", "evaluate", **self.small("evaluate"), output_dir=str(self.evaluated)),
        ]
        pretraining = {**PRETRAIN, "spatial_size": [64, 64], **TRAINING}
        self.lines = {
            "train": self.of("microscopy", "train", **SHORT | TRAINING),
            "train volumes": self.of("abdomen_mri", "train", **SHORT | TRAINING, cache_dir="cache"),
            "pretrain": self.of("microscopy", "pretrain", **pretraining),
            "inference": self.of("microscopy", "inference", **self.small("inference"), output_dir="out"),
            "evaluate": self.of("microscopy", "evaluate", **self.small("evaluate"), output_dir="out"),
            "prepare": [*own, "prepare", "microscopy", "--source_dir", str(folder / "raw"), "--output_dir", "out"],
            "synthesize": [*own, "synthesize", "microscopy", "--output_dir", "out", "--num_train", "40", *sizes[2:]],
            "package": [*own, "package", str(self.bundle), "--output_dir", "dist"],
            "halve": [*own, "halve", str(self.trained / "model.pt"), "half.safetensors"],
            "coco": [*own, "coco", str(self.predicted), "--images", str(folder / "microscopy"),
                     "--output_file", "cells.json"],
            "table": [*own, "table", "results", str(self.evaluated), "--output_dir", "tables"],
        }  # fmt: skip

    def of(self, bundle: str, kind: str, **options: object) -> list[str]:
        data = self.folder / {"microscopy": "microscopy", "abdomen_mri": "volumes"}[bundle]
        return command(bundle, kind, ROOT / bundle, dataset_dir=str(data), **options)

    def small(self, kind: str) -> dict:
        network = {name: value for name, value in SHORT.items() if name.startswith(("network_def#", "roi_size"))}
        place = {
            "inference": {"ckpt_path": str(self.trained / "model.pt")},
            "evaluate": {"ckpt_dir": str(self.trained)},
        }
        return {**network, **place[kind], "num_workers": 1}

    def prepare(self, run: Runner) -> None:
        """Make the data, a trained network and a small bundle."""
        random = np.random.default_rng(0)
        for number in range(25):  # as DSB-2018 has them: a folder an image, a mask a nucleus
            place = self.folder / "raw" / f"image{number}"
            for part in ("images", "masks"):
                (place / part).mkdir(parents=True)
            pixels = random.integers(0, 255, (96, 96), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / f"image{number}.png")
            for cell in range(9):
                mask = np.zeros((96, 96), np.uint8)
                mask[10 * cell : 10 * cell + 6, 8 * cell : 8 * cell + 12] = 255
                Image.fromarray(mask).save(place / "masks" / f"{cell}.png")
        for line in self.preparing:
            run(line, self.folder)
        shutil.copytree(ROOT / "microscopy", self.bundle, ignore=shutil.ignore_patterns("models", "eval", "synthetic"))
        config = self.bundle / "configs" / "inference.json"
        content = json.loads(config.read_text())
        content["network_def"] |= {key.split("#")[1]: value for key, value in SHORT.items() if "network_def#" in key}
        config.write_text(json.dumps(content))
        (self.bundle / "models").mkdir()
        shutil.copy(self.trained / "model.pt", self.bundle / "models")


class Runner:
    """Runs command lines with temporary files and a cache of their own.

    Args:
        folder: where these lie.
    """

    def __init__(self, folder: Path) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        extra = {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.environment = {**os.environ, **extra, "PYTHONPATH": str(TESTS.parent)}

    def __call__(self, line: list[str], folder: Path) -> float:
        """Run to the end, which must be a good one; the seconds that it took."""
        began = time.monotonic()
        done = subprocess.run(
            line, cwd=folder, env=self.environment, timeout=LONGEST, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise Failure(f"ended with {done.returncode}: {done.stdout[-1500:]}")
        return time.monotonic() - began

    def kill(self, line: list[str], folder: Path, seconds: float, workers_too: bool) -> bool:
        """Run for so long; whether it was still running then."""
        process = subprocess.Popen(
            line, cwd=folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return False
        (os.killpg if workers_too else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        return True

    def left(self) -> set[str]:
        """Temporary files; torch's cache of compiled code and this package's folder stay, but with nothing in it."""
        left = {str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")}
        ours = {name for name in left if name.startswith("swinumamba_monai-") and "/" not in name}
        return {name for name in left - ours if not name.startswith("torchinductor_")}


class Failure(Exception):
    """What a kill broke."""


def read(path: Path) -> object:
    """The content of a file, as far as it must be the same every time.

    Raises:
        Exception: the file is not whole.
    """
    match path.suffix:
        case ".pt":
            return _digest(load_weights(path))
        case ".safetensors":
            return _digest(safetensors.torch.load_file(path))
        case ".json":
            return json.loads(path.read_text())
        case ".npy":
            return hashlib.sha256(np.load(path).tobytes()).hexdigest()
        case ".gz":
            return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
        case ".png" | ".jpg":
            with Image.open(path) as image:
                return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(content: object) -> object:
    """Tensors of a checkpoint by their bytes; the seconds that a training took are others every time."""
    if isinstance(content, torch.Tensor):
        return hashlib.sha256(content.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    if isinstance(content, dict):
        return {str(key): _digest(value) for key, value in content.items() if key != "seconds"}
    return [_digest(value) for value in content] if isinstance(content, (list, tuple)) else content


def contents(folder: Path) -> dict[str, object]:
    """What every file but the logs holds, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(LOGS):
            try:
                found[str(path.relative_to(folder))] = read(path)
            except Exception as error:
                raise Failure(f"{path} is not whole: {error!r}") from error
    return found


def unfinished(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*")]


def main(count: int, folder: Path, seed: int = 0) -> int:
    run, chance, outcomes = Runner(folder), random.Random(seed), Counter()
    commands = Commands(folder)
    commands.prepare(run)
    expected, seconds = {}, {}
    for name, line in commands.lines.items():
        twice = []
        for time_ in ("once", "again"):
            place = folder / "undisturbed" / name / time_
            place.mkdir(parents=True)
            seconds[name] = min(run(line, place), seconds.get(name, LONGEST))
            twice.append(contents(place))
        first, second = twice
        assert first.keys() == second.keys() and not unfinished(place) and not run.left(), (name, run.left())
        expected[name] = {path: content for path, content in first.items() if content == second[path]}
        others = sorted(first.keys() - expected[name].keys())
        print(
            f"{name}: {seconds[name]:.1f} s, {len(expected[name])} files the same every time, not: {others}", flush=True
        )
    for number in range(count):
        name = list(commands.lines)[number % len(commands.lines)]
        line, place = commands.lines[name], folder / "killed" / f"{number} {name}"
        place.mkdir(parents=True)
        moment, workers_too = chance.uniform(0.3, 1.0) * seconds[name], chance.random() < 0.5
        try:
            outcomes["killed"] += run.kill(line, place, moment, workers_too)
            stopped = [path for path in place.rglob("*") if path.is_file() and not _is_hidden(path, place)]
            for path in stopped:
                if not path.name.startswith(LOGS):
                    _expect_readable(path)
            seconds[name] = run(line, place)  # the machine may be busier than it was
            got = contents(place)
            differ = {path for path in expected[name] if got.get(path) != expected[name][path]}
            surplus = got.keys() - twice_keys(folder, name)
            if differ or surplus or unfinished(place) or run.left():
                raise Failure(f"other files {sorted(differ)}, more {sorted(surplus)}, left {run.left()}")
            shutil.rmtree(place)
        except (Failure, subprocess.TimeoutExpired) as error:
            outcomes["failed"] += 1
            print(f"FAILED {place}, killed after {moment:.1f} s, workers too: {workers_too}: {error}", flush=True)
            shutil.rmtree(run.temporary)  # so that the next begins clean
            run.temporary.mkdir()
        outcomes["tried"] += 1
        if number % 10 == 9:
            print(json.dumps(outcomes), flush=True)
    print(json.dumps({"failed": 0, **outcomes}))
    return int(outcomes["failed"] > 0)


def twice_keys(folder: Path, name: str) -> set[str]:
    """The paths of all files of an undisturbed run."""
    place = folder / "undisturbed" / name / "once"
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _expect_readable(path: Path) -> None:
    try:
        read(path)
    except Exception as error:
        raise Failure(f"after the kill {path} is not whole: {error!r}") from error


if __name__ == "__main__":
    number, place = int(sys.argv[1]), Path(sys.argv[2]).resolve()
    place.mkdir(parents=True)
    sys.exit(main(number, place, *map(int, sys.argv[3:])))
