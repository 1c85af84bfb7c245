# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The predictor gives what the bundle's inference writes, of files and of arrays in every layout."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.measure import regionprops
from small_weights import run_inference

from swinumamba_monai import Predictor
from swinumamba_monai.data import read_image
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError
from swinumamba_monai.prediction import find_bundle
from swinumamba_monai.prediction.objects import find_doubts
from swinumamba_monai.tasks import TASKS


def predictor_of(small, **options) -> Predictor:
    return Predictor(small.task, small.checkpoint, device="cpu", **{**small.options, **options})


@pytest.fixture(scope="module")
def cells(small_bundle) -> Predictor:
    return predictor_of(small_bundle("microscopy"))


@pytest.fixture(scope="module")
def image(small_bundle) -> np.ndarray:
    return read_image(small_bundle("microscopy").images[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_labels_are_those_of_the_bundles_inference(task, small_bundle, tmp_path):
    small = small_bundle(task)
    places = {"dataset_dir": str(small.folder), "output_dir": str(tmp_path / "out"), "ckpt_path": str(small.checkpoint)}
    run_inference(task, **places, **small.options)
    predictor = predictor_of(small)
    for path in small.images:
        (file,) = (tmp_path / "out").glob(f"{path.name.split('.')[0]}_*s.*")
        written = np.asarray(nib.load(file).dataobj) if task == "abdomen_mri" else read_image(file)
        labels, table = predictor(path)
        np.testing.assert_array_equal(labels, written)
        assert labels.dtype == np.int32 and len(np.unique(labels)) > 2, "random weights, but they must find something"
        assert table["label"].tolist() == np.unique(labels)[1:].tolist()


class TestArrays:
    def test_are_as_good_as_files(self, cells, image, small_bundle):
        from_file = cells(small_bundle("microscopy").images[0])
        weight = torch.tensor(image, dtype=torch.float32, requires_grad=True)
        layouts = image.tolist(), np.asfortranarray(image), image.astype(np.uint16), torch.tensor(image)
        layouts += (torch.tensor(image).bfloat16(),)  # which has room for eight bits
        for array in (image, *layouts, weight):
            from_array = cells(array)
            np.testing.assert_array_equal(from_array.labels, from_file.labels)
            assert all(np.array_equal(from_array.table[name], from_file.table[name]) for name in from_file.table)

    def test_of_colours_and_of_one_channel(self, cells, image):
        gray = image if image.ndim == 2 else image[..., 0]
        expected = cells(gray).labels
        for array in (gray[..., None], np.dstack([gray] * 3), np.dstack([gray] * 4)):
            np.testing.assert_array_equal(cells(array).labels, expected)
        assert cells(np.dstack([gray, gray])).labels.shape == gray.shape

    def test_a_stack_is_predicted_slice_by_slice(self, cells, image):
        slices = np.stack([image, np.zeros_like(image), image[::-1]])
        alone = [cells(part) for part in slices]
        labels, table = cells(slices, stack=True)
        assert labels.shape == (3, *image.shape[:2])
        for part, found in zip(labels, alone, strict=True):
            np.testing.assert_array_equal(part > 0, found.labels > 0)
        counts = [found.labels.max() for found in alone]
        assert np.unique(labels[2])[1:].tolist() == list(range(sum(counts[:2]) + 1, sum(counts) + 1))
        np.testing.assert_array_equal(table["slice"], np.repeat([0, 1, 2], counts))
        np.testing.assert_array_equal(table["label"], np.arange(1, sum(counts) + 1))

    def test_a_stack_of_a_file(self, cells, image, tmp_path):
        slices = np.stack([image, image[::-1]])
        tifffile.imwrite(tmp_path / "stack.tif", slices, photometric="rgb" if image.ndim == 3 else "minisblack")
        np.testing.assert_array_equal(
            cells(tmp_path / "stack.tif", stack=True).labels, cells(slices, stack=True).labels
        )
        with pytest.raises(InputError, match=r"stack of 2 planes; give stack=True, or .*stack#000000\.tif") as no:
            cells(tmp_path / "stack.tif")
        np.testing.assert_array_equal(cells(str(no.value).split("such as ")[1][:-1]).labels, cells(image).labels)
        Image.fromarray(image).save(tmp_path / "a.png")
        Image.fromarray(image[1:]).save(tmp_path / "b.png")
        (tmp_path / "stack.tif").unlink()
        with pytest.raises(InputError, match="slices of a stack are of one size"):
            cells(tmp_path, stack=True)

    def test_classes_of_a_stack_keep_their_numbers(self, small_bundle):
        predictor = predictor_of(small_bundle("endoscopy"))
        frame = read_image(small_bundle("endoscopy").images[0])
        alone = predictor(frame)
        labels, table = predictor(np.stack([frame, frame]), stack=True)
        np.testing.assert_array_equal(labels, np.stack([alone.labels] * 2))
        assert table["name"].tolist() == alone.table["name"].tolist() * 2

    def test_are_left_as_they_are(self, cells, image):
        array = image.astype(np.float32)
        cells(array)
        np.testing.assert_array_equal(array, image)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 200), (7, 5, 3)])
    def test_of_any_size(self, cells, shape):
        assert cells(np.random.default_rng(0).random(shape)).labels.shape == shape[:2]

    @pytest.mark.parametrize(
        ("array", "stack", "words"),
        [
            (np.zeros((5, 40, 50)), False, r"has the shape \(5, 40, 50\); give .* stack=True"),
            (np.zeros((3, 40, 50)), False, r"channels come first, give np.moveaxis\(array, 0, -1\)"),
            (np.zeros((2, 3, 40, 50)), True, r"channels come first, give np.moveaxis\(array, 1, -1\)"),
            (np.full((4, 4), -1e300), False, "beyond 1e\\+30, which float32 cannot sum"),
            (np.full((4, 4), np.float32(-3e38)), False, "beyond 1e\\+30"),
            (np.linspace(0, 1e-50, 16).reshape(4, 4), False, "float32 cannot tell apart; subtract the least"),
            (np.zeros(7), False, r"has the shape \(7,\)"),
            (np.zeros((40, 50)), True, r"give \(Z, H, W\)"),
            (np.zeros((2, 40, 50, 7)), True, "C up to 4"),
            (np.zeros((0, 4)), False, "which is none"),
            (np.full((4, 4), np.nan), False, "NaN or infinite"),
            (np.zeros((4, 4), complex), False, "pixels of type complex"),
            (np.ma.masked_less(np.ones((4, 4)), 2), False, r"masked; give numbers for them by array.filled"),
            (["a.png", np.zeros((4, 4))], False, "list cannot be made an array"),
            ("nowhere.png", False, "nowhere.png does not exist"),
        ],
    )
    def test_that_cannot_be_used_are_one_sentence(self, cells, array, stack, words):
        with pytest.raises(InputError, match=words):
            cells(array, stack=stack)

    def test_of_many_channels_one_of_which_is_named(self, small_bundle, image):
        many = np.dstack([np.zeros((*image.shape[:2], 6), image.dtype), np.atleast_3d(image)[..., :1]])
        found, alone = (
            predictor_of(small_bundle("microscopy"), channel=6)(many),
            predictor_of(small_bundle("microscopy")),
        )
        np.testing.assert_array_equal(found.labels, alone(many[..., 6]).labels)
        assert found.image.shape == many.shape and "intensity_mean-6" in found.table

    def test_of_volumes_are_not_taken(self, small_bundle):
        with pytest.raises(InputError, match="takes volumes with their geometry; give the path"):
            predictor_of(small_bundle("abdomen_mri"))(np.zeros((4, 4, 4)))


@pytest.mark.parametrize("mode", ["P", "LA", "CMYK"])
def test_a_pil_image_whose_numbers_are_no_brightness_is_refused(mode):
    """``np.asarray`` gives the indices into its palette, for one, which look like an image of another kind."""
    predictor = Predictor(device="cpu", network="$torch.nn.Identity()", checkpointloader=None)
    picture = Image.new("RGB", (64, 64)).convert("L" if mode == "LA" else "RGB").convert(mode)
    with pytest.raises(InputError, match=rf"mode {mode} are not its brightness; give image\.convert\('RGB'\)"):
        predictor(picture)


class TestTable:
    def test_is_what_regionprops_says(self, cells, image):
        found = cells(image)
        regions = regionprops(found.labels, image)
        for row, region in enumerate(regions):
            values = {name: column[row] for name, column in found.table.items()}
            assert (values["label"], values["area"]) == (region.label, region.area)
            assert (values["centroid-0"], values["centroid-1"]) == pytest.approx(region.centroid)
            assert tuple(values[f"bbox-{side}"] for side in range(4)) == region.bbox
            means = [value for name, value in values.items() if name.startswith("intensity_mean")]
            assert means == pytest.approx(np.atleast_1d(region.intensity_mean).tolist()), "of the image as it was read"

    def test_pandas_takes_it(self, cells, image):
        pandas = pytest.importorskip("pandas")
        found = cells(image)
        frame = pandas.DataFrame(found.table)
        assert len(frame) == found.labels.max() and frame["area"].sum() == (found.labels > 0).sum()

    def test_the_score_is_the_mean_probability(self, small_bundle, image):
        found = predictor_of(small_bundle("microscopy"), save_probabilities=True)(image)
        foreground = 1 - np.asarray(found.data["probabilities"][0])
        expected = [foreground[found.labels == number].mean() for number in found.table["label"]]
        np.testing.assert_allclose(found.table["score"], expected, atol=1e-6)  # sums of float32

    def test_the_score_of_a_class_is_that_of_its_pixels(self, small_bundle):
        small = small_bundle("endoscopy")
        found = predictor_of(small, save_probabilities=True)(small.images[0])
        probabilities = np.asarray(found.data["probabilities"])
        expected = [probabilities[number][found.labels == number].mean() for number in found.table["label"]]
        np.testing.assert_allclose(found.table["score"], expected, atol=1e-6)
        assert set(found.table["name"]) <= set(predictor_of(small).class_names.values())

    def test_nothing_found_is_an_empty_table_and_a_doubt(self, small_bundle, image, caplog):
        predictor = predictor_of(small_bundle("microscopy"), min_size=10**6)
        found = predictor(image)
        assert not found.labels.any() and {len(column) for column in found.table.values()} == {0}
        assert found.doubts and "nothing was found" in caplog.text
        assert not predictor(np.full((20, 20), 7)).doubts, "in a flat image there is nothing to find"

    @pytest.mark.parametrize("channels", [False, True])
    @pytest.mark.parametrize("brightest, contrast", [(1e4, None), (1e6, "20%")])
    def test_voxels_that_take_the_contrast_from_all_others(self, brightest, contrast, channels):
        volume = np.random.default_rng(0).normal(500, 200, (100, 100, 100)).astype(np.float32)
        volume[3, 4, 5] = brightest
        if channels:
            volume = np.stack([volume, np.random.default_rng(1).normal(0, 1e5, volume.shape)], axis=-1)
        doubts = find_doubts(volume, {"area": np.array([300.0])})
        assert [f"these have {contrast} of the contrast" in doubt for doubt in doubts] == [True] * bool(contrast)

    def test_a_slice_of_air_is_no_doubt(self):
        """Every second voxel of two million was of one slice."""
        volume = np.random.default_rng(0).normal(500, 200, (1000, 1000, 2))
        volume[..., 0] *= 1e-3
        assert not find_doubts(volume, {"area": np.array([300.0])})

    @pytest.mark.parametrize("score, unsure", [(0.3, True), (0.6, False)])
    def test_a_network_that_is_not_sure_says_so(self, score, unsure):
        table = {"area": np.array([300.0, 300.0]), "score": np.array([score, score])}
        doubts = find_doubts(np.arange(400).reshape(20, 20) ** 2, table, of_cells=True)
        assert doubts == ["the network is not sure of what it found (mean score 0.30); look at the outlines"] * unsure

    def test_cells_of_a_size_that_the_network_does_not_know(self):
        table = {"area": np.array([20.0, 20.0]), "score": np.array([0.9, 0.9])}
        image = np.arange(400).reshape(20, 20) ** 2
        (doubt,) = find_doubts(image, table, of_cells=True)
        assert doubt == "the cells are 5 pixels across, but the network knows 9 to 64; try --diameter 5"
        assert not find_doubts(image, table, of_cells=True, given=["diameter"])

    @pytest.mark.parametrize(("said", "doubted"), [(41, True), (19, False), (6, False), (4.9, True), (None, False)])
    def test_cells_of_another_size_than_was_said(self, said, doubted):
        table = {"area": np.array([78.5, 78.5]), "score": np.array([0.9, 0.9])}
        doubts = find_doubts(np.arange(400).reshape(20, 20) ** 2, table, True, ["diameter"], said=said)
        assert doubts == [f"the cells are 10 pixels across, not {said} as --diameter says; leave that out"] * doubted

    @pytest.mark.parametrize(("ground", "words"), [(30, None), (100, "neither dark nor bright"), (190, "add --invert")])
    def test_a_ground_that_is_not_dark(self, ground, words):
        """In relief cells have a bright side and a dark one."""
        image = np.full((20, 20), ground)
        image[4:8, 4:8], image[4:8, 8:12] = 0, 220
        table = {"area": np.array([300.0]), "score": np.array([0.9])}
        doubts = find_doubts(image, table, of_cells=True)
        assert len(doubts) == (words is not None) and all(words in doubt for doubt in doubts)

    @pytest.mark.parametrize(("red", "words"), [(1, None), (2, "50% of the cells are red"), (4, "100% of the")])
    def test_red_blood_cells_are_no_nuclei(self, red, words):
        image, colours = np.full((20, 20, 3), (240, 235, 200)), np.full((4, 3), (100, 60, 140))
        colours[:red] = 210, 110, 120
        image[2:18:4, 2:6] = colours[:, None]
        means = {f"intensity_mean-{channel}": colours[:, channel] for channel in range(3)}
        table = {"area": np.full(4, 300.0), "score": np.full(4, 0.9), **means}
        doubts = find_doubts(image, table, of_cells=True)
        assert len(doubts) == (words is not None) and all(words in doubt for doubt in doubts)
        assert not find_doubts(image, table, of_cells=True, given=["channel"])

    def test_a_fourth_channel_that_is_no_even_transparency(self):
        table = {"area": np.array([300.0, 300.0]), "score": np.array([0.9, 0.9])}
        image = np.stack([np.arange(400.0).reshape(20, 20) ** 2] * 4, -1)
        doubts = find_doubts(image, table, of_cells=True)
        assert doubts == ["the fourth channel is taken for transparency; if it shows cells, try --channel 3"]
        assert not find_doubts(image, table, of_cells=True, given=["channel"])
        image[..., 3] = 255
        assert not find_doubts(image, table, of_cells=True)


class TestOptions:
    def test_go_to_the_config(self, small_bundle, image):
        small = small_bundle("microscopy")
        assert len(predictor_of(small, min_size=30)(image).table["label"]) < len(
            predictor_of(small)(image).table["label"]
        )

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"min_sise": 3}, "--min_sise is no option of this config; did you mean --min_size"),
            ({"min_size": "many"}, "--min_size must be a whole number"),
            ({"output_ext": 5}, "--output_ext must be a word, such as .png; got 5"),
            ({"device": "warp"}, "device 'warp' cannot be used"),
            ({"device": 3.5}, "device '3.5' cannot be used"),
            ({"bundle": None}, "bundle must be a task .* or a path; got None"),
            ({"bundle": ["microscopy"]}, "bundle must be a task .* or a path"),
            ({"bundle_dir": 5}, "bundle_dir must be a task .* or a path; got 5"),
            ({"bundle": ""}, "bundle is empty; give a task"),
            ({"bundle_dir": ""}, "bundle_dir is empty; give a task"),
            ({"device": ""}, "device '' cannot be used"),
            ({"checkpoint": ""}, "checkpoint is empty; give a file of weights"),
            ({"checkpoint": []}, "checkpoint is empty; give a file of weights"),
            ({"roi_size": 4}, "--roi_size must be .* from 16 on; got 4"),
            ({"diameter": 0.5}, "--diameter must be a number from 1 to 100000 or auto or None; got 0.5"),
            ({"checkpoint": "nowhere.pt"}, "there are no weights nowhere.pt"),
            ({"bundle": "telescopy"}, "'telescopy' is no task .* and no folder of a bundle"),
            ({"num_classes": 5}, "--num_classes is made by the config"),
        ],
    )
    def test_that_cannot_be_are_one_sentence(self, small_bundle, given, words):
        small = small_bundle("microscopy")
        with pytest.raises(InputError, match=words):
            Predictor(**{"bundle": small.task, "checkpoint": small.checkpoint, **small.options, **given})

    def test_another_number_of_classes_has_no_names_of_the_paper(self, small_bundle):
        small, network = small_bundle("endoscopy"), {"_target_": "torch.nn.Conv2d", "in_channels": 3, "kernel_size": 1}
        given = {"network_def": {**network, "out_channels": 3}, "num_classes": 3, "checkpointloader": None}
        predictor = Predictor(small.task, small.checkpoint, "cpu", **given)
        assert predictor.class_names == {1: "class 1", 2: "class 2"}
        assert set(predictor(small.images[0]).table["name"]) <= {"class 1", "class 2"}

    def test_a_device_by_number_is_a_gpu_and_never_the_cpu(self):
        try:
            assert find_device(0).type != "cpu"
        except InputError as error:
            assert "device '0' cannot be used" in str(error)

    def test_a_bundle_without_weights_says_so(self):
        with pytest.raises(InputError, match="train the bundle endoscopy first, or give a checkpoint"):
            Predictor("endoscopy")

    def test_several_checkpoints_are_an_ensemble(self, small_bundle, image):
        small = small_bundle("microscopy")
        twice = Predictor(small.task, [small.checkpoint] * 2, device="cpu", **small.options)
        np.testing.assert_array_equal(twice(image).labels, predictor_of(small)(image).labels)


class TestLocation:
    def test_a_bundle_of_the_working_directory_is_not_taken_for_its_name(self, tmp_path, monkeypatch):
        (tmp_path / "microscopy" / "configs").mkdir(parents=True)
        (tmp_path / "microscopy" / "configs" / "inference.json").write_text("{}")
        monkeypatch.chdir(tmp_path)
        assert not find_bundle("microscopy").is_relative_to(tmp_path)
        assert find_bundle("./microscopy") == find_bundle("microscopy", ".") == tmp_path / "microscopy"
        assert find_bundle("microscopy", tmp_path / "microscopy") == tmp_path / "microscopy"

    def test_without_the_repository_the_sentence_says_how_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr("swinumamba_monai.prediction.location.__file__", str(tmp_path / "a" / "b" / "c.py"))
        monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
        with pytest.raises(InputError, match=r"bundles are no part of the package.*download.*bundle_dir"):
            Predictor("microscopy")


def test_the_package_is_light_and_has_the_predictor():
    code = "import sys, swinumamba_monai as s; assert 'Predictor' in dir(s); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    ).stdout.split()
    assert not {"torch", "monai", "numpy", "skimage"} & set(loaded)
