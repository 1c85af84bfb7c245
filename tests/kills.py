# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Kill every command at random moments; the same command again must end as an undisturbed one.

    python tests/kills.py COUNT FOLDER [SEED [COMMAND ...]]

Each kill begins in an empty folder. Half of them end the process alone, as when memory is short, half its workers too,
as when a container ends. After a kill every file that a reader would open is whole; after the same command again the
folder holds what two undisturbed runs have in common, to the last bit, and nothing of the killed one is left there or
among the temporary files. Lines of JSON count by command; what failed stays in FOLDER, and the exit code is 1.

All runs are forks of this process, which has imported what they need, so that a kill meets the work and not the
imports, which take longer. That a fork ends as a process of its own does is shown by ``test_forked.py``.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import monai.bundle  # noqa: F401 (what the forks need)
import numpy as np
import safetensors.torch
import torch
from PIL import Image

import swinumamba_monai

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS / "bundles"), str(TESTS / "distribution")]
from bundle_runs import PRETRAIN, ROOT, SHORT, command, load_weights  # noqa: E402
from forked import become  # noqa: E402
from small_bundles import copy_bundle  # noqa: E402

LONGEST = 300  # seconds of a command; the slowest takes about twenty
TRAINING = {"max_epochs": 3, "num_workers": 1, "resume": "true", "ckpt_dir": "models", "output_dir": "log"}
ANY = object()
LOGS = "events.out.tfevents"  # every run adds one
OWN = [sys.executable, "-m", "swinumamba_monai"]
SIZES = ["--num_train", "6", "--num_validation", "2", "--num_test", "3", "--image_size", "64", "64"]


class Commands:
    """Command lines by name, all with small networks and images, that write into the folder where they are run.

    Args:
        folder: what they need is made there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        evaluated, predicted = str(folder / "evaluated"), str(folder / "predicted")
        bundle, volumes = str(folder / "small" / "microscopy"), str(folder / "small" / "abdomen_mri")
        weights, data = f"{bundle}/models/model.pt", str(folder / "microscopy")
        config = f"{bundle}/configs/inference.json"
        # Evaluations and predictions that other commands gather
        self.before = {
            "coco": self.of("microscopy", "inference", **self.small("microscopy", "inference"), output_dir=predicted),
            "table": self.of("microscopy", "evaluate", **self.small("microscopy", "evaluate"), output_dir=evaluated),
        }
        pretraining = {**PRETRAIN, "picture_interval": 1, "spatial_size": [64, 64], **TRAINING}
        everything = ["--format", "masks", "geojson", "coco", "roi", "--device", "cpu"]
        self.lines = {
            "train": self.of("microscopy", "train", **SHORT | TRAINING),
            "train volumes": self.of("abdomen_mri", "train", **SHORT | TRAINING, cache_dir="cache"),
            "pretrain": self.of("microscopy", "pretrain", **pretraining),
            "inference": self.of("microscopy", "inference", **self.small("microscopy", "inference"), output_dir="out"),
            "inference volumes": self.of("abdomen_mri", "inference", **self.small("abdomen_mri", "inference"),
                                         output_dir="out"),
            "evaluate": self.of("microscopy", "evaluate", **self.small("microscopy", "evaluate"), output_dir="out"),
            "evaluate volumes": self.of("abdomen_mri", "evaluate", **self.small("abdomen_mri", "evaluate"),
                                        output_dir="out"),
            "prepare": [*OWN, "prepare", "microscopy", "--source_dir", str(folder / "raw"), "--output_dir", "out"],
            "prepare volumes": [*OWN, "prepare", "abdomen_mri", "--source_dir", str(folder / "abdomen_mri"),
                                "--output_dir", "out"],
            "synthesize": [*OWN, "synthesize", "microscopy", "--output_dir", "out", "--num_train", "40", *SIZES[2:]],
            "predict": [*OWN, "predict", bundle, data, "--output_dir", "out", *everything],
            "predict volumes": [*OWN, "predict", volumes, str(folder / "abdomen_mri"), "--output_dir", "out",
                                "--device", "cpu"],
            "package": [*OWN, "package", bundle, "--output_dir", "dist"],
            "verify": [*OWN, "verify", bundle],
            "halve": [*OWN, "halve", weights, "half.safetensors"],
            "export": [*OWN, "export", "program", "--config_file", config, "--ckpt_file", weights,
                       "--filepath", "a.pt2"],
            "coco": [*OWN, "coco", predicted, "--images", data, "--output_file", "cells.json"],
            "table": [*OWN, "table", "results", evaluated, "--output_dir", "tables"],
            "complexity": [*OWN, "table", "complexity", "--tasks", "microscopy", "--systems", "SwinUMambaD", "nnUNet",
                           "--encoders", "--output_dir", "tables"],
            "erf": [*OWN, "erf", "--network_name", "nnUNet", "SwinUMambaD", "--num_images", "1", "--roi_size", "64",
                    "64", "--device", "cpu", "--output_dir", "fields"],
        }  # fmt: skip

    def of(self, bundle: str, kind: str, **options: object) -> list[str]:
        return command(bundle, kind, ROOT / bundle, dataset_dir=str(self.folder / bundle), **options)

    def small(self, bundle: str, kind: str) -> dict:
        """Options of a run with the weights of the small bundle."""
        network = {name: value for name, value in SHORT.items() if name.startswith(("network_def#", "roi_size"))}
        models = self.folder / "small" / bundle / "models"
        weights = {"inference": {"ckpt_path": str(models / "model.pt")}, "evaluate": {"ckpt_dir": str(models)}}[kind]
        return {**network, **weights, "num_workers": 1}

    def prepare(self, run: Runner, names: list[str]) -> None:
        """Make the data, small bundles with random weights, and what the named commands gather."""
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
                Image.fromarray(mask).save(place / "masks" / f"nucleus{cell}.png")
        for bundle in ("microscopy", "abdomen_mri") if any("volumes" in name for name in names) else ("microscopy",):
            more = ["--num_slices", "4"] if bundle == "abdomen_mri" else []
            run([*OWN, "synthesize", bundle, "--output_dir", str(self.folder / bundle), *SIZES, *more], self.folder)
            copy_bundle(bundle, self.folder / "small")
        for name in names:
            if name in self.before:
                run(self.before[name], self.folder)


class Runner:
    """Runs command lines with temporary files of their own.

    Args:
        folder: where these lie.
    """

    def __init__(self, folder: Path) -> None:
        self.temporary, self.log = folder / "tmp", folder / "log.txt"
        self.temporary.mkdir()
        extra = {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        os.environ.update({**extra, "PYTHONPATH": str(TESTS.parent)})
        tempfile.tempdir = None
        torch.set_num_threads(1)  # a process with threads cannot be forked
        for module in pkgutil.walk_packages(swinumamba_monai.__path__, "swinumamba_monai."):
            if not module.name.endswith("__main__") and ".serving" not in module.name:
                importlib.import_module(module.name)

    def __call__(self, line: list[str], folder: Path) -> float:
        """Run to the end, which must be a good one; the seconds that it took."""
        began = time.monotonic()
        code = self._wait(self._fork(line, folder), LONGEST)
        if code != 0:
            raise Failure(f"ended with {code}: {self.log.read_text()[-1500:]}")
        return time.monotonic() - began

    def kill(self, line: list[str], folder: Path, seconds: float, workers_too: bool) -> bool:
        """Run for so long; whether it was still running then."""
        process = self._fork(line, folder)
        if self._wait(process, seconds) is not None:
            return False
        with suppress(ProcessLookupError):  # it has no group of its own yet
            if workers_too:
                os.killpg(process, signal.SIGKILL)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return True

    def _fork(self, line: list[str], folder: Path) -> int:
        """The number of a process that does what ``python -m`` would do with the rest of the line."""
        if process := os.fork():
            return process
        os.setsid()
        become(line, folder, self.log, self.log)

    @staticmethod
    def _wait(process: int, seconds: float) -> int | None:
        """Its exit code, or None if it is not over after so long."""
        end = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= end:
                return None
            time.sleep(0.005)

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


def main(count: int, folder: Path, seed: int, names: list[str]) -> int:
    run, chance, outcomes = Runner(folder), random.Random(seed), defaultdict(Counter)
    commands = Commands(folder)
    names = names or list(commands.lines)
    commands.prepare(run, names)
    expected, seconds = {}, {}
    for number in range(count):
        name = names[number % len(names)]
        line, place = commands.lines[name], folder / "killed" / f"{number} {name}"
        if name not in expected:
            expected[name], seconds[name] = undisturbed(run, line, folder / "undisturbed" / name)
        place.mkdir(parents=True)
        moment, workers_too = chance.random() * seconds[name], chance.random() < 0.5
        try:
            outcomes[name]["killed"] += run.kill(line, place, moment, workers_too)
            stopped = [path for path in place.rglob("*") if path.is_file() and not _is_hidden(path, place)]
            for path in stopped:
                if not path.name.startswith(LOGS):
                    _expect_readable(path)
            seconds[name] = run(line, place)  # the machine may be busier than it was
            got = contents(place)
            differ = {
                path for path, content in expected[name].items() if content is not ANY and got.get(path) != content
            }
            surplus = got.keys() - expected[name].keys()
            lacking = expected[name].keys() - got.keys()
            if differ or surplus or lacking or unfinished(place) or run.left():
                raise Failure(
                    f"other files {sorted(differ)}, more {sorted(surplus)}, lacking {sorted(lacking)}, "
                    f"left {unfinished(place)} {run.left()}"
                )
            shutil.rmtree(place)
        except Failure as error:
            outcomes[name]["failed"] += 1
            print(f"FAILED {place}, killed after {moment:.1f} s, workers too: {workers_too}: {error}", flush=True)
            shutil.rmtree(run.temporary)  # so that the next begins clean
            run.temporary.mkdir()
        outcomes[name]["tried"] += 1
        if number % 10 == 9:
            print(json.dumps(outcomes), flush=True)
    total = sum(outcomes.values(), Counter({"failed": 0}))
    print(json.dumps({**outcomes, "all": {"failed": 0, **total}}))
    return int(total["failed"] > 0)


def undisturbed(run: Runner, line: list[str], folder: Path) -> tuple[dict[str, object], float]:
    """What every file holds after a run, ``ANY`` where two runs differ, and the seconds that it takes."""
    found = []
    for place in (folder / "first", folder / "second"):
        place.mkdir(parents=True)
        seconds = run(line, place)
        found.append(contents(place))
        assert not unfinished(place) and not run.left(), (line, unfinished(place), run.left())
    first, second = found
    assert first.keys() == second.keys(), (line, first.keys() ^ second.keys())
    expected = {path: content if content == second[path] else ANY for path, content in first.items()}
    others = sorted(path for path, content in expected.items() if content is ANY)
    print(f"{folder.name}: {seconds:.1f} s, {len(expected)} files, not the same every time: {others}", flush=True)
    return expected, seconds


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _expect_readable(path: Path) -> None:
    try:
        read(path)
    except Exception as error:
        raise Failure(f"after the kill {path} is not whole: {error!r}") from error


if __name__ == "__main__":
    number, place, *rest = sys.argv[1:]
    Path(place).mkdir(parents=True)
    sys.exit(main(int(number), Path(place).resolve(), int(rest[0]) if rest else 0, rest[1:]))
