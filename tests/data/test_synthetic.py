# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The synthetic dataset is exact, reproducible, whole, and never in somebody's way."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from swinumamba_monai.data.datalist import load_datalist
from swinumamba_monai.data.files.images import read_image, read_instances
from swinumamba_monai.data.prepare.inspection import check_pairs, inspect_cells
from swinumamba_monai.data.synthetic import folder
from swinumamba_monai.data.synthetic.folder import dataset_dir_or_synthetic, remind_of_synthetic
from swinumamba_monai.data.synthetic.microscopy import synthesize_image, synthesize_microscopy
from swinumamba_monai.errors import InputError

SMALL = {"num_train": 3, "num_validation": 1, "num_test": 2, "image_size": (80, 96)}


def content(folder):
    """Every file below a folder with its bytes."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_dataset_has_the_sections_and_sizes(tmp_path):
    folder = synthesize_microscopy(tmp_path / "new" / "data", **SMALL)
    assert folder == tmp_path / "new" / "data"
    for section, count in (("training", 3), ("validation", 1), ("test", 2)):
        items = load_datalist(folder, section, check=False)
        assert check_pairs(items, inspect_cells) == [None] * len(items)
        assert len(items) == count
        for item in items:
            assert read_image(item["image"]).shape[:2] == read_instances(item["label"]).shape == (80, 96)
    assert len(content(folder)) == 13
    assert [path.name for path in folder.parent.iterdir()] == ["data"]  # the temporary folder is gone


def test_images_are_reproducible(tmp_path):
    first = content(synthesize_microscopy(tmp_path / "a", **SMALL))
    assert content(synthesize_microscopy(tmp_path / "b", **SMALL)) == first
    other = content(synthesize_microscopy(tmp_path / "c", **SMALL, seed=1))
    assert all(other[name] != data for name, data in first.items())


@pytest.mark.parametrize("stained", [False, True])
def test_an_image_and_its_map(stained):
    sizes = []
    for seed in range(4):
        image, instances = synthesize_image(np.random.default_rng(seed), (256, 256), stained)
        assert image.dtype == np.uint8 and image.shape == ((256, 256, 3) if stained else (256, 256))
        assert instances.dtype == np.uint16
        numbers = np.unique(instances)
        np.testing.assert_array_equal(numbers, np.arange(numbers.size))  # 1..N, none is hidden
        for number, box in enumerate(ndimage.find_objects(instances), start=1):
            assert ndimage.label(instances[box] == number)[1] == 1  # each in one piece
        gray = image.mean(-1) if stained else image.astype(float)
        inside, outside = gray[instances > 0].mean(), gray[instances == 0].mean()
        assert inside < 0.8 * outside if stained else inside > 2 * outside
        sizes.append(numbers.size - 1)
    assert min(sizes) >= 3 and max(sizes) >= 20


def test_some_nuclei_touch():
    touching = 0
    for seed in range(4):
        _, instances = synthesize_image(np.random.default_rng(seed), (256, 256), stained=False)
        touching += instances.max() - ndimage.label(instances)[1]
    assert touching >= 10


def test_an_existing_dataset_is_used_again_and_others_are_left_alone(tmp_path):
    folder = synthesize_microscopy(tmp_path / "a", **SMALL)
    image = folder / "images" / "synthetic_000.png"
    before = image.stat().st_mtime_ns
    synthesize_microscopy(folder, **SMALL)
    assert image.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="describes other data"):
        synthesize_microscopy(folder, **SMALL, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        synthesize_microscopy(tmp_path / "mine", **SMALL)
    with pytest.raises(InputError, match="is no folder"):
        synthesize_microscopy(tmp_path / "mine" / "thesis.txt", **SMALL)
    (tmp_path / "empty").mkdir()
    assert len(content(synthesize_microscopy(tmp_path / "empty", **SMALL))) == 13


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("swinumamba_monai.data.synthetic.folder.write_datalist", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthesize_microscopy(tmp_path / "a", **SMALL)
    assert not any(tmp_path.iterdir())


def test_what_a_killed_run_leaves_is_known_by_its_name(tmp_path, monkeypatch):
    """The next one that writes there removes what has such a name and is held by nobody."""
    seen = []
    write = folder.write_datalist
    monkeypatch.setattr(folder, "write_datalist", lambda place, *a, **b: [seen.append(place), write(place, *a, **b)])
    (tmp_path / f".{'0' * 32}-a" / "images").mkdir(parents=True)
    synthesize_microscopy(tmp_path / "a", **SMALL)
    assert seen[0].parent == tmp_path and re.fullmatch(r"\.[0-9a-f]{32}-a", seen[0].name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("change", [{"num_test": -1}, {"image_size": (63, 96)}])
def test_impossible_datasets_are_refused(tmp_path, change):
    with pytest.raises(InputError, match="not possible"):
        synthesize_microscopy(tmp_path / "a", **{**SMALL, **change})


def test_dataset_dir_or_synthetic(tmp_path, monkeypatch, caplog):
    assert dataset_dir_or_synthetic("/data/mine", str(tmp_path / "a")) == "/data/mine"
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(synthesize_microscopy, "__defaults__", (2, 1, 1, (64, 64), 0))
    with caplog.at_level(logging.INFO):
        assert dataset_dir_or_synthetic(None, str(tmp_path / "a")) == str(tmp_path / "a")
    assert "synthetic" in caplog.text
    assert len(load_datalist(tmp_path / "a", "training")) == 2


def test_the_synthetic_dataset_is_asked_for_by_name(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthesize_microscopy, "__defaults__", (2, 1, 1, (64, 64), 0))
    made = str(tmp_path / "bundle" / "made")
    assert dataset_dir_or_synthetic("synthetic", made, default=False) == made
    remind_of_synthetic("synthetic", made)
    assert f"This run used the synthetic dataset in {made}" in caplog.text
    caplog.clear()
    remind_of_synthetic("mine", "mine")
    assert not caplog.text
    (tmp_path / "synthetic").mkdir()
    assert dataset_dir_or_synthetic("synthetic", made) == "synthetic", "a folder of this name goes first"


@pytest.mark.parametrize(("dataset_dir", "sentence"), [(None, "--dataset_dir is missing"), (20241125, "got 20241125")])
def test_no_dataset_is_guessed(tmp_path, dataset_dir, sentence):
    with pytest.raises(InputError, match=sentence):
        dataset_dir_or_synthetic(dataset_dir, str(tmp_path / "a"), default=False)
    assert not any(tmp_path.iterdir())


def test_several_may_ask_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: synthesize_microscopy(tmp_path / "a", **SMALL), range(4)))
    assert folders == [tmp_path / "a"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(content(tmp_path / "a")) == 13
