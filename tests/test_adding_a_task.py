# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A task is a module and a line, as docs/adding_a_task.md says; an unknown one is a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from monai.data import NumpyReader

from swinumamba_monai import tasks
from swinumamba_monai.cli import main
from swinumamba_monai.data import dataset_dir_or_synthetic, load_class_names, load_datalist
from swinumamba_monai.data.files.label_map import LabelMap
from swinumamba_monai.data.prepare.dataset import PrepareOptions, check_and_write
from swinumamba_monai.data.prepare.found_pairs import FoundPairs
from swinumamba_monai.data.prepare.inspection import PairReport
from swinumamba_monai.data.prepare.layouts import match_by_name
from swinumamba_monai.data.synthetic.folder import write_synthetic
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks import TASKS, Task, TaskFiles, find_task

CLASSES = ("background", "spot")


def list_arrays(path: Path) -> list[dict[str, str]]:
    return [{"image": str(file)} for file in sorted(Path(path).glob("*.npy"))]


def inspect_arrays(image, label, class_names) -> PairReport:
    pixels, classes = np.load(image), np.load(label)
    if classes.max() >= len(class_names):
        return PairReport(problem=f"{label} has the class {classes.max()}.")
    counts = {number: int(count) for number, count in enumerate(np.bincount(classes.ravel())) if count}
    return PairReport(shape=pixels.shape, dtype=str(pixels.dtype), class_counts=counts, sample=pixels.reshape(-1, 1))


def prepare_arrays(source_dir, output_dir, options=None, label_map=None):
    found = FoundPairs("arrays", Path(source_dir))
    images, labels = (sorted((found.source / name).glob("*.npy")) for name in ("images", "labels"))
    match_by_name(images, labels, found, lambda file: file.stem)
    return check_and_write("arrays", found, output_dir, options or PrepareOptions(), LabelMap.of_names(CLASSES))


def synthesize_arrays(output_dir, num_train=4, num_validation=1, num_test=1, image_size=(16, 16), seed=0):
    def make(rng, index, image, label):
        np.save(image, rng.random(image_size, dtype=np.float32))
        np.save(label, rng.integers(0, 2, image_size, dtype=np.uint8))

    counts = (num_train, num_validation, num_test)
    return write_synthetic(output_dir, "arrays", counts, ".npy", f"arrays, seed {seed}", make, seed, CLASSES)


@pytest.fixture
def arrays(monkeypatch) -> Task:
    """The file and the line."""
    module = ModuleType("swinumamba_monai.tasks.arrays")
    module.FILES = TaskFiles(
        class_names=CLASSES,
        reader=NumpyReader,
        is_image=lambda path: path.suffix == ".npy",
        list_images=list_arrays,
        inspect=inspect_arrays,
        prepare=prepare_arrays,
        synthesize=synthesize_arrays,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    task = Task("arrays", "–", ("dsc",), 1, 2, (16, 16))
    monkeypatch.setitem(TASKS, task.name, task)
    return task


def test_everything_takes_it_by_its_name(arrays, tmp_path, capsys):
    made = tmp_path / "made"
    counts = ["--num_train", "8", "--num_validation", "2", "--num_test", "2"]
    assert main(["synthesize", "arrays", "--output_dir", str(made), *counts]) == 0
    assert load_class_names(made) == list(CLASSES) and len(load_datalist(made, "training")) == 8
    assert main(["prepare", "arrays", "--source_dir", str(made), "--output_dir", str(tmp_path / "out")]) == 0
    assert f"ready: --dataset_dir {tmp_path / 'out'} --num_classes 2" in capsys.readouterr().out
    assert sum(len(load_datalist(tmp_path / "out", section)) for section in ("training", "validation", "test")) == 12
    default = dataset_dir_or_synthetic(None, str(tmp_path / "default"), "arrays")
    assert len(load_datalist(default, "training")) == 4
    assert Path(arrays.files.list_images(made / "images")[0]["image"]).name == "synthetic_000.npy"


def test_its_pairs_are_inspected_and_its_images_known(arrays, tmp_path):
    made = find_task("arrays").synthesize(tmp_path / "made")
    np.save(made / "labels" / "synthetic_000.npy", np.full((16, 16), 7, np.uint8))
    with pytest.raises(InputError, match="has the class 7"):
        load_datalist(made, "training")
    content = json.loads((made / "datalist.json").read_text())
    content["test"][0]["image"] = "datalist.json"
    (made / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is no image of arrays"):
        load_datalist(made, "test")
    with pytest.raises(InputError, match="have no slices; leave num_slices out"):
        arrays.synthesize(tmp_path / "other", num_slices=3)


@pytest.mark.parametrize("name", ["Spleen", "", None, 3, ["microscopy"], {"a": 1}, "x" * 10_000, "\x1b[31m"])
def test_an_unknown_task_is_one_sentence(tmp_path, name):
    """A datalist of the Decathlon has the name of its organ."""
    made = find_task("microscopy").synthesize(tmp_path / "made", **TASKS["microscopy"].small_data, num_train=1)
    content = {**json.loads((made / "datalist.json").read_text()), "name": name}
    (made / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"there is no task .*; choose from abdomen_mri, endoscopy, microscopy"
    ) as caught:
        load_datalist(made, "training")
    assert str(made) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_no_folder_is_not_the_working_directory(tmp_path, monkeypatch):
    """As of a variable of the shell that is not set."""
    source = find_task("microscopy").synthesize(tmp_path / "source")
    monkeypatch.chdir(source)
    for arguments, name in ((("", tmp_path / "out"), "source_dir"), ((source, " "), "output_dir")):
        with pytest.raises(InputError, match=f"{name} is empty"):
            find_task("microscopy").prepare(*arguments)
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path / "bare")
    with pytest.raises(InputError, match="output_dir is empty"):
        find_task("microscopy").synthesize("")
    with pytest.raises(InputError, match="dataset_dir is empty"):
        dataset_dir_or_synthetic("", str(tmp_path / "synthetic"))


def test_looking_a_task_up_loads_no_reader():
    code = (
        "import sys; from swinumamba_monai.tasks import TASKS; TASKS['microscopy'].roi_size; "
        "print([m for m in ('torch', 'monai', 'nibabel', 'tifffile', 'imagecodecs', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stderr


def test_the_tasks_are_those_of_the_bundles():
    bundles = Path(__file__).parents[1] / "bundles"
    assert set(tasks.TASKS) == {folder.name for folder in bundles.iterdir() if (folder / "configs").is_dir()}
