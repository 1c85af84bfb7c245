# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A COCO file holds the very pixels that it was made from."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from matplotlib.path import Path as Outline
from PIL import Image

from swinumamba_monai.cli import main
from swinumamba_monai.inference import to_coco
from swinumamba_monai.inference.polygons import geojson

METADATA = Path(__file__).parents[2] / "bundles" / "endoscopy" / "configs" / "metadata.json"


def pixels(annotation: dict, height: int, width: int) -> np.ndarray:
    """The mask of an annotation, as the format's definition reads it."""
    segmentation = annotation["segmentation"]
    if annotation["iscrowd"]:
        assert segmentation["size"] == [height, width] and sum(segmentation["counts"]) == height * width
        values = np.arange(len(segmentation["counts"])) % 2
        return np.repeat(values, segmentation["counts"]).astype(bool).reshape((height, width), order="F")
    middles = np.argwhere(np.ones((height, width)))[:, ::-1] + 0.5
    inside = np.zeros(len(middles), bool)
    for polygon in segmentation:
        assert len(polygon) >= 8 and len(polygon) % 2 == 0
        ring = np.reshape(polygon, (-1, 2))
        inside |= Outline(np.concatenate([ring, ring[:1]])).contains_points(middles)
    return inside.reshape(height, width)


@pytest.mark.parametrize("names", [None, {1: "shaft", 2: "tip", 5: "clip"}], ids=["cells", "classes"])
def test_pixels_boxes_and_ids(names):
    random = np.random.default_rng(0)
    maps = [random.choice([0, 0, 1, 2, 5], tuple(random.integers(2, 14, 2))) for _ in range(12)]
    ring = np.ones((3, 4), int)  # no zero before its first run
    ring[1, 1] = 0
    maps += [ring, np.pad(ring, 2)]
    content = to_coco([(f"{i}.png", numbers) for i, numbers in enumerate(maps)], names)
    assert [image["file_name"] for image in content["images"]] == [f"{i}.png" for i in range(len(maps))]
    assert {c["id"]: c["name"] for c in content["categories"]} == (names or {1: "cell"})
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert {a["iscrowd"] for a in content["annotations"]} == {0, 1}
    for image, numbers in zip(content["images"], maps):
        present = [number for number in (1, 2, 5) if (numbers == number).any()]
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert [a["category_id"] for a in own] == (present if names else [1] * len(present))
        for number, annotation in zip(present, own, strict=True):
            mask = numbers == number
            np.testing.assert_array_equal(pixels(annotation, image["height"], image["width"]), mask)
            left, top, width, height = annotation["bbox"]
            assert annotation["area"] == mask.sum() == mask[top : top + height, left : left + width].sum()
            assert mask[[top, top + height - 1]].any(1).all() and mask[:, [left, left + width - 1]].any(0).all()


def test_many_cells_cost_what_they_cover():
    """Ten thousand cells of a slide took twenty times as long as their polygons: a mask of the slide for each."""
    numbers = np.zeros((3000, 3000), np.int32)
    numbers[5:-5:100, 5:-5:100] = np.arange(900).reshape(30, 30) + 1
    numbers = np.maximum(numbers, np.roll(numbers, 1, 1))
    start = time.process_time()
    polygons = geojson(numbers)
    middle = time.process_time()
    content = to_coco([("a.png", numbers)])
    seconds = time.process_time() - middle
    assert len(content["annotations"]) == len(polygons["features"]) == 900
    assert seconds < 3 * (middle - start) + 0.5  # a mask of the slide for each is eight seconds or more


def test_large_numbers_cost_no_memory():
    numbers = np.zeros((64, 64), np.int64)
    numbers[2:9, 3:8], numbers[20:25, 20:30] = 10**8, 2**31 - 1
    tracemalloc.start()
    content, polygons = to_coco([("a.png", numbers)]), geojson(numbers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [feature["properties"]["name"] for feature in polygons["features"]] == ["cell 100000000", "cell 2147483647"]
    assert [annotation["bbox"] for annotation in content["annotations"]] == [[3, 2, 5, 7], [20, 20, 10, 5]]
    assert peak < 10e6  # bytes; the map itself has 32,768


class TestCommand:
    @pytest.fixture
    def images(self, tmp_path) -> Path:
        (tmp_path / "images").mkdir()
        for name in ("a", "b"):
            Image.new("RGB", (6, 5)).save(tmp_path / "images" / f"{name}.png")
        return tmp_path / "images"

    def run(self, folder: Path, images: Path, *options: str) -> int:
        arguments = [str(folder), "--images", str(images), "--output_file", str(folder / "coco.json"), *options]
        return main(["coco", *arguments])

    def test_cells(self, images, tmp_path, capsys):
        Image.fromarray(np.eye(5, 6, dtype=np.uint16) * 3).save(tmp_path / "b_instances.png")
        assert self.run(tmp_path, images) == 0
        assert "1 images, 1 annotations" in capsys.readouterr().out
        content = json.loads((tmp_path / "coco.json").read_text())
        assert [image["file_name"] for image in content["images"]] == ["b.png"]

    def test_every_suffix_that_inference_writes(self, images, tmp_path, capsys):
        for name, suffix in (("a", ".tif"), ("b", ".tiff")):
            tifffile.imwrite(tmp_path / f"{name}_instances{suffix}", np.eye(5, 6, dtype=np.uint16))
        assert self.run(tmp_path, images) == 0
        assert "2 images, 2 annotations" in capsys.readouterr().out

    def test_planes_of_a_stack(self, tmp_path, capsys):
        """Inference takes a stack plane by plane, and calls the results so."""
        (tmp_path / "images").mkdir()
        tifffile.imwrite(tmp_path / "images" / "z.tif", np.zeros((2, 5, 6), np.uint8), metadata={"axes": "ZYX"})
        for number in range(2):
            Image.fromarray(np.eye(5, 6, dtype=np.uint16)).save(tmp_path / f"z#{number:06d}_instances.png")
        assert self.run(tmp_path, tmp_path / "images") == 0
        assert "2 images, 2 annotations" in capsys.readouterr().out

    def test_images_of_several_folders(self, tmp_path):
        """As a prepared dataset has them: the same names in each, and so have the predictions."""
        items = []
        for folder, pixels in (("one", 3), ("two", 4)):
            for place in (tmp_path / folder, tmp_path / "data" / folder):
                place.mkdir(parents=True)
            Image.new("RGB", (6, 5)).save(tmp_path / "data" / folder / "0.png")
            Image.fromarray(np.eye(5, 6, dtype=np.uint16)[:pixels]).save(tmp_path / folder / "0_instances.png")
            items.append({"image": f"{folder}/0.png", "label": f"{folder}/0.png"})
        (tmp_path / "data" / "datalist.json").write_text(json.dumps({"test": items}))
        assert self.run(tmp_path, tmp_path / "data") == 0
        content = json.loads((tmp_path / "coco.json").read_text())
        assert [image["file_name"] for image in content["images"]] == ["one/0.png", "two/0.png"]
        assert [annotation["area"] for annotation in content["annotations"]] == [3, 4]

    def test_classes_need_their_names(self, images, tmp_path, capsys):
        Image.fromarray(np.full((5, 6), 7, np.uint8)).save(tmp_path / "a_classes.png")
        assert self.run(tmp_path, images) == 1 and "give the metadata.json" in capsys.readouterr().err
        assert self.run(tmp_path, images, "--metadata", str(METADATA)) == 0
        Image.fromarray(np.full((5, 6), 77, np.uint8)).save(tmp_path / "a_classes.png")
        assert self.run(tmp_path, images, "--metadata", str(METADATA)) == 1
        assert "holds class 77" in capsys.readouterr().err

    def test_classes_have_the_names_of_the_training(self, images, tmp_path, capsys):
        """Of the bundle's weights, or of those that are named; as in what the inference itself writes."""
        Image.fromarray(np.full((5, 6), 2, np.uint8)).save(tmp_path / "a_classes.png")
        bundle = tmp_path / "bundle"
        (bundle / "configs").mkdir(parents=True)
        metadata = shutil.copy(METADATA, bundle / "configs")
        for folder, names in (("models", ["background", "grasper", "scissors"]), ("other", ["background", "a", "b"])):
            (bundle / folder).mkdir()
            (bundle / folder / "model.pt").touch()
            (bundle / folder / "run.json").write_text(json.dumps({"class_names": names}))
        for options, names in (((), ["grasper", "scissors"]), (("--ckpt_path", bundle / "other/model.pt"), ["a", "b"])):
            assert self.run(tmp_path, images, "--metadata", metadata, *map(str, options)) == 0
            content = json.loads((tmp_path / "coco.json").read_text())
            assert [category["name"] for category in content["categories"]] == names
        assert self.run(tmp_path, images, "--metadata", metadata, "--ckpt_path", "nosuch.pt") == 1
        assert "nosuch.pt does not exist" in capsys.readouterr().err
        Image.fromarray(np.full((5, 6), 3, np.uint8)).save(tmp_path / "a_classes.png")
        assert self.run(tmp_path, images, "--metadata", metadata) == 1
        assert "holds class 3" in capsys.readouterr().err

    @pytest.mark.parametrize("content", [None, "", "[1]", "{}", json.dumps({"network_data_format": "x" * 9999})])
    def test_metadata_that_are_none(self, images, tmp_path, capsys, content):
        """Cells need none, but who names a file means one."""
        Image.fromarray(np.eye(5, 6, dtype=np.uint16)).save(tmp_path / "a_instances.png")
        metadata = tmp_path / "metadata.json"
        if content is not None:
            metadata.write_text(content)
        assert self.run(tmp_path, images, "--metadata", str(metadata)) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "does not name the classes" in error and len(error) < 400 + len(str(tmp_path))
        assert not (tmp_path / "coco.json").exists()

    def test_of_two_files_of_an_image_the_png_counts(self, images, tmp_path):
        for suffix, size in ((".tif", 2), (".png", 1)):
            Image.fromarray(np.eye(5, 6, dtype=np.uint16)[:size]).save(tmp_path / f"a_instances{suffix}")
        assert self.run(tmp_path, images) == 0
        assert [a["area"] for a in json.loads((tmp_path / "coco.json").read_text())["annotations"]] == [1]

    def test_predictions_of_two_bundles(self, images, tmp_path, capsys):
        Image.new("L", (6, 5)).save(tmp_path / "a_classes.png")
        Image.new("L", (6, 5)).save(tmp_path / "a_instances.png")
        assert self.run(tmp_path, images, "--metadata", str(METADATA)) == 1
        assert "classes beside instances" in capsys.readouterr().err

    def test_nothing_predicted(self, images, tmp_path, capsys):
        assert self.run(tmp_path, images) == 1
        assert "has no NAME_instances.png" in capsys.readouterr().err and not (tmp_path / "coco.json").exists()
