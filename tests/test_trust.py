# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Files of strangers: nothing in them is run, nothing outside is read, and what they claim costs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.apps.utils import extractall
from monai.bundle import ConfigParser, ConfigWorkflow, load
from monai.handlers import CheckpointLoader
from PIL import Image
from small_weights import ON_CPU, SMALL_NETWORK

from swinumamba_monai.data import load_datalist, load_images, load_volumes
from swinumamba_monai.distribution import package_bundle
from swinumamba_monai.errors import InputError, find_input_error, log_once
from swinumamba_monai.tasks import find_task
from swinumamba_monai.weight_files import read_checkpoint, read_weights, save_half_precision

BUNDLES = Path(__file__).parents[1] / "bundles"
SMALL = {**SMALL_NETWORK, **ON_CPU}
EXPLODED = "exploded"


class Bomb:
    """Unpickled without care, it creates a file in the working directory."""

    def __reduce__(self):
        return os.system, (f"touch {EXPLODED}",)


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    """A checkpoint with a bomb in it, and the working directory that it would explode in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    pickle.loads(pickle.dumps(Bomb()))
    assert Path(EXPLODED).exists()  # so it would work
    Path(EXPLODED).unlink()
    keys = {"model": {"a": torch.zeros(1)}, "optimizer": {}, "epoch": 1, "best_metric": Bomb(), "best_metric_epoch": 1}
    torch.save(keys, tmp_path / "bomb.pt")
    yield tmp_path / "bomb.pt"
    assert not Path(EXPLODED).exists()


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "data"
    return find_task("microscopy").synthesize(folder, num_train=2, num_validation=1, num_test=1, image_size=(64, 64))


def run_config(run_id: str, *configs: str, **options) -> None:
    small = SMALL
    if run_id == "pretraining":
        small = {name.replace("_def#", "_def#network#"): value for name, value in SMALL.items() if name != "roi_size"}
        small |= {"spatial_size": [32, 32], "mask_patch_size": 16}
    files = [str(BUNDLES / "microscopy" / "configs" / f"{name}.json") for name in configs]
    workflow = ConfigWorkflow(
        config_file=files if len(files) > 1 else files[0],
        run_id=run_id,
        workflow_type="infer" if run_id == "inference" else "train",
        logging_file=False,
        **{**small, **options},
    )
    workflow.initialize()
    workflow.run()


class TestPickleBombs:
    """At every entrance of a checkpoint."""

    @pytest.mark.parametrize(
        ("run_id", "configs", "place", "option"),
        [
            ("training", ["train"], "pretrained.pt", "pretrained"),
            ("training", ["train"], "models/checkpoint.pt", "resume"),
            ("evaluating", ["train", "evaluate"], "models/model.pt", None),
            ("evaluating", ["train", "evaluate"], "other.pt", "ckpt_path"),
            ("inference", ["inference"], "models/model.pt", None),
            ("inference", ["inference"], "other.pt", "ckpt_path"),
            ("pretraining", ["pretrain"], "models/pretraining_checkpoint.pt", "resume"),
            ("pretraining", ["pretrain"], "pretrained.pt", "pretrained"),
        ],
    )
    def test_in_a_workflow(self, bomb, cells, run_id, configs, place, option):
        target = bomb.parent / place
        target.parent.mkdir(exist_ok=True)
        bomb.rename(target)
        options = {} if option is None else {option: True if option == "resume" else str(target)}
        with pytest.raises(Exception) as caught:  # MONAI wraps what is raised in a config
            run_config(run_id, *configs, dataset_dir=str(cells), bundle_root=str(bomb.parent), **options)
        assert "Python objects besides weights" in str(find_input_error(caught.value))

    def test_in_monais_own_loaders(self, bomb):
        (bomb.parent / "microscopy" / "models").mkdir(parents=True)
        (bomb.parent / "microscopy" / "models" / "model.pt").write_bytes(bomb.read_bytes())
        with pytest.raises(pickle.UnpicklingError):
            load("microscopy", bundle_dir=".", device="cpu")
        loader = CheckpointLoader(str(bomb), {"model": torch.nn.Linear(1, 1)})
        with pytest.raises(pickle.UnpicklingError):
            loader(None)

    def test_in_what_is_packaged(self, bomb, tmp_path):
        bundle = tmp_path / "bundles" / "microscopy"
        shutil.copytree(BUNDLES / "microscopy", bundle, ignore=shutil.ignore_patterns("models"))
        (bundle / "models").mkdir()
        bomb.rename(bundle / "models" / "model.pt")
        with pytest.raises(InputError, match="Python objects besides weights"):
            package_bundle(bundle, tmp_path / "dist")

    def test_in_a_file_called_safetensors(self, bomb):
        with pytest.raises(InputError, match="is a torch file; rename it"):
            read_checkpoint(bomb.rename(bomb.with_suffix(".safetensors")))


def test_with_a_network_of_ones_own_a_config_is_not_read(tmp_path, monkeypatch):
    """As the README says of ``monai.bundle.load(..., model=net)``."""
    monkeypatch.chdir(tmp_path)
    bundle = tmp_path / "microscopy"
    (bundle / "models").mkdir(parents=True)
    shutil.copytree(BUNDLES / "microscopy" / "configs", bundle / "configs")
    for config in bundle.glob("configs/*.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "network_def": f"$open('{EXPLODED}', 'w')"}))
    weights = {"weight": torch.full((1, 1), 5.0), "bias": torch.zeros(1)}
    torch.save(weights, bundle / "models" / "model.pt")
    network = load("microscopy", model=torch.nn.Linear(1, 1), bundle_dir=".", device="cpu")
    assert network.weight.item() == 5 and not Path(EXPLODED).exists()
    with pytest.raises(Exception):  # noqa: B017 (a file is no network; MONAI may say so as it likes)
        load("microscopy", bundle_dir=".", device="cpu")
    assert Path(EXPLODED).exists()  # so it would work


def test_compressed_records_of_a_checkpoint_are_not_unfolded(tmp_path):
    """torch.save stores them as they are; a few kilobytes could become gigabytes."""
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w", 8) as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
    assert read_checkpoint(tmp_path / "good.pt")
    with pytest.raises(InputError, match="compressed records"):
        read_checkpoint(tmp_path / "bad.pt")


def nested(levels: int, width: int) -> list:
    content: list = []
    for _ in range(levels):
        content = [content] * width
    return content


CRAFTED = {
    "stride 0": lambda: {"a": torch.zeros(1).expand(1 << 40)},
    "overlapping rows": lambda: {"a": torch.zeros(1000).as_strided((1 << 20, 1000), (0, 1))},
    "meta": lambda: {"a": torch.empty(1 << 40, device="meta")},
    "sparse": lambda: {"a": torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (1 << 40,))},
    "compressed rows": lambda: {"a": torch.eye(3).to_sparse_csr()},
    "quantized": lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)},
    "nested": lambda: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
    "deep": lambda: {"a": nested(60, 1)},
    "one tensor under many names": lambda: dict.fromkeys(map(str, range(10_000)), torch.zeros(1 << 16)),
    "deep inside": lambda: {"model": {"a": [{"b": torch.zeros(1).expand(1 << 40)}]}},
}


class TestCraftedTensors:
    """Checkpoints of a few hundred bytes that claim gigabytes, or tensors that are none."""

    @pytest.mark.parametrize("name", CRAFTED)
    def test_are_refused_at_once(self, name, tmp_path):
        path = tmp_path / "crafted.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(CRAFTED[name](), path)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        for read in (read_checkpoint, read_weights, lambda p: save_half_precision(p, tmp_path / "half.safetensors")):
            with pytest.raises(InputError) as caught:
                read(path)
            assert str(path) in str(caught.value) and len(str(caught.value)) < 500
        assert time.process_time() - began < 5
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200, "MB"

    def test_containers_in_each_other_many_times(self, tmp_path):
        """10^30 ways through them, but 31 containers."""
        torch.save({"a": torch.ones(2), "b": nested(18, 50)}, tmp_path / "wide.pt")
        assert read_checkpoint(tmp_path / "wide.pt")["a"].tolist() == [1, 1]

    def test_tied_weights_are_none(self, tmp_path):
        weight = torch.ones(4, 4)
        torch.save({"a": weight, "b": weight, "c": weight.t(), "d": weight[1]}, tmp_path / "tied.pt")
        assert set(read_weights(tmp_path / "tied.pt")) == set("abcd")

    @pytest.mark.parametrize("what", ["text", "numbers"])
    def test_claims_of_old_files(self, what, tmp_path):
        """Torch asks the system for the 3 or 4 GB that they claim, and reads to the file's end: virtual memory alone.

        What a process takes is its pages that were written to, so that is what is bounded here, and not its addresses.
        """
        stream = io.BytesIO()
        torch.save({"name": torch.ones(4)}, stream, _use_new_zipfile_serialization=False)
        content = stream.getvalue()
        replaced = {
            "text": [(b"X\4\0\0\0name", b"X\0\0\0\xc0name")],
            "numbers": [
                (b"K\4N", b"J\0\0\0\x40N"),
                (b"\4" + bytes(9) + b"\x80\x3f", bytes(3) + b"\x40" + bytes(6) + b"\x80\x3f"),
            ],
        }
        for old, new in replaced[what]:
            assert content.count(old) == 1
            content = content.replace(old, new)
        path = tmp_path / "old.pt"
        path.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match=r"old\.pt"):
            read_checkpoint(path)
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50, "MB"

    def test_an_old_torch_is_named(self, tmp_path, monkeypatch, caplog):
        torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
        for version, warns in (("2.9.1", True), ("2.10.0", False)):
            monkeypatch.setattr(torch, "__version__", version)
            log_once.cache_clear()
            caplog.clear()
            read_checkpoint(tmp_path / "model.pt")
            read_checkpoint(tmp_path / "model.pt")
            assert [version in record.message for record in caplog.records] == [True] * warns, "once"
        log_once.cache_clear()

    def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch):
        torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")

        def refuse(*args, **options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(torch, "load", refuse)
        with pytest.raises(InputError, match=r"cannot be opened \(Permission denied\)"):
            read_checkpoint(tmp_path / "model.pt")


class TestDatalists:
    @pytest.fixture
    def write(self, tmp_path):
        folder = tmp_path / "dataset"
        (folder / "images").mkdir(parents=True)
        Image.fromarray(np.ones((4, 4), np.uint8)).save(folder / "images" / "a.png")

        def write(image: str, name: str = "microscopy", **more: object) -> Path:
            item = {"image": image, "label": "images/a.png" if name == "microscopy" else "images"}
            (folder / "datalist.json").write_text(json.dumps({"name": name, "test": [item], **more}))
            return folder

        return write

    @pytest.mark.parametrize("image", ["../../etc/passwd", "/etc/passwd", "images/../../other/a.png", "/tmp/a.png"])
    def test_paths_that_lead_out(self, write, image):
        for read in (lambda folder: load_datalist(folder, "test"), load_images):
            with pytest.raises(InputError, match="outside of"):
                read(write(image))

    def test_links_that_lead_out(self, write, tmp_path):
        folder = write("images/link.png")
        Image.fromarray(np.ones((4, 4), np.uint8)).save(tmp_path / "secret.png")
        (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(InputError, match="outside of"):
            load_images(folder)

    def test_series_behind_links_that_lead_out(self, write, tmp_path):
        folder = write("images/case.dicom", "abdomen_mri")
        (tmp_path / "secret").mkdir()
        (folder / "images" / "case").symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match="outside of"):
            load_volumes(folder)

    def test_what_is_no_image(self, write):
        for image, source in (("passwd", "/etc"), ("zero", "/dev")):
            with pytest.raises(InputError, match="is no image of microscopy; name only images"):
                load_images(write(image, source_dir=source))
            with pytest.raises(InputError, match="is no image of abdomen_mri"):
                load_volumes(write(image, "abdomen_mri", source_dir=source))

    def test_a_pipe_does_not_hang(self, write):
        folder = write("images/pipe.png")
        os.mkfifo(folder / "images" / "pipe.png")
        with pytest.raises(InputError, match="is no file"):
            load_datalist(folder, "test")

    def test_a_circle_of_links(self, write):
        folder = write("images/circle.png")
        (folder / "images" / "circle.png").symlink_to("circle.png")
        with pytest.raises(InputError, match=r"is no path|does not exist"):
            load_datalist(folder, "test")

    def test_no_paths_at_all(self, write):
        for image in ("\0.png", "\ud800.png", "x" * 5000 + ".png"):
            with pytest.raises(InputError, match=r"is no path|does not exist"):
                load_datalist(write(image), "test")


@pytest.mark.parametrize("name", ["../evil", "/evil", "b/../../evil"])
def test_monai_unpacks_nothing_outside(name, tmp_path):
    """What ``monai.bundle download`` does with an archive; our own unpacking is tested in tests/distribution."""
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(name, "evil")
    (tmp_path / "deep").mkdir()
    with pytest.raises(ValueError, match="Unsafe path"):
        extractall(tmp_path / "b.zip", tmp_path / "deep")
    assert not (tmp_path / "evil").exists()


def test_evaluation_can_be_switched_off(tmp_path, monkeypatch):
    """As the README says: no expression of a config is evaluated, but its classes are still made."""
    monkeypatch.chdir(tmp_path)
    config = {"a": f"$open('{EXPLODED}', 'w')", "b": {"_target_": "datetime.date", "year": 1, "month": 2, "day": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "from monai.bundle import ConfigParser; p = ConfigParser(); p.read_config('config.json'); "
        "print(p.get_parsed_content('b'), p.get_parsed_content('a'))"
    )
    environment = {**os.environ, "MONAI_EVAL_EXPR": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout == f"0001-02-03 open('{EXPLODED}', 'w')\n", done.stderr[-2000:]
    assert not Path(EXPLODED).exists()
    parser = ConfigParser()
    parser.read_config("config.json")
    parser.get_parsed_content("a").close()
    assert Path(EXPLODED).exists()  # so it would work
