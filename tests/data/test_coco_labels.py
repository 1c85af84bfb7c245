# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Labels in COCO files: their images are found by name, and what cannot be read is one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from picture_datasets import TWO, fill, problems, save

from swinumamba_monai.data.files.annotations import read_annotations
from swinumamba_monai.data.files.shapes import rasterize
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy


def test_sections_in_names_of_coco_files(tmp_path):
    source = tmp_path / "source"
    (source / "annotations").mkdir(parents=True)
    for part, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4))):
        images = [image for image in coco()["images"] if image["id"] in numbers]
        annotations = [item for item in coco()["annotations"] if item["image_id"] in numbers]
        content = coco(images=images, annotations=annotations)
        (source / "annotations" / f"contest_{part}2017.json").write_text(json.dumps(content))
        for number in numbers:
            save(source / "images" / f"{number}.png")
    report = prepare_microscopy(source, tmp_path / "out")
    assert report.sizes == {"training": 2, "validation": 1, "test": 2}


def test_a_bad_file_of_labels_does_not_stop_the_others(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / f"{number}.png")
    (source / "a.json").write_text(json.dumps(coco()))
    (source / "b.json").write_text("{")
    assert "b.json is no JSON" in problems(source)
    report = prepare_microscopy(source, tmp_path / "good", PrepareOptions(skip_bad=True))
    assert sum(report.sizes.values()) == 5 and len(report.problems) == 1
    (source / "a.json").unlink()
    assert "no known layout" in problems(source) and "b.json is no JSON" in problems(source)


def coco(**changes) -> dict:
    segmentation = [[1, 1, 5, 1, 5, 4, 1, 4]]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png", "height": 10, "width": 12} for number in range(5)],
        "categories": [{"id": 3, "name": "grasper"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 3, "segmentation": segmentation} for number in range(5)
        ],
    }
    return {**content, **changes}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": coco()["images"][:4]}, "an annotation of image 4"),
        ({"images": [{**image, "file_name": "0.png"} for image in coco()["images"]]}, "names 0.png twice"),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 3, "segmentation": [], "bbox": [1, 1, 2, 2]}]},
            "box",
        ),
        (
            {"annotations": [{"id": 1, "image_id": 0, "category_id": 4, "segmentation": [[1, 1, 2, 2, 3, 1]]}]},
            "KeyError",
        ),
        (
            {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": {"size": [10, 12], "counts": [5, 9]}}]},
            "runs of 14 pixels",
        ),
        (  # github.com/cvat-ai/cvat/issues/6014
            {"annotations": [{"image_id": 0, "category_id": 3, "segmentation": [5, 9, 106]}]},
            "must be a list of outlines",
        ),
        (
            {
                "annotations": [
                    {"image_id": 0, "category_id": 3, "segmentation": {"size": [1 << 20, 1 << 20], "counts": [1]}}
                ]
            },
            "no lengths",
        ),
    ],
)
def test_bad_coco(change, words, tmp_path):
    source = fill(tmp_path / "source", labels=None)
    (source / "instances.json").write_text(json.dumps(coco(**change)))
    assert words in problems(source)


def test_coco_names_and_sizes(tmp_path):
    source = tmp_path / "source"
    for number in range(5):
        save(source / "train" / f"{number}.png")
        save(source / "other" / f"{number}.png")
    content = coco()
    for image in content["images"]:
        image["file_name"] = f"train\\{image['id']}.png"
    content["images"][4]["height"] = 11
    (source / "annotations.json").write_text(json.dumps(content))
    sentence = problems(source, "endoscopy")
    assert "is for an image of (11, 12) pixels, but its image has (10, 12)" in sentence
    assert sentence.count("has no label") == 5 and "other" in sentence  # not the images of the other folder
    content["images"][4] |= {"height": 10, "file_name": "nowhere.png"}
    (source / "annotations.json").write_text(json.dumps(content))
    assert "names nowhere.png, of which there are 0" in problems(source, "endoscopy")


def test_classes_of_outlines(tmp_path):
    source = fill(tmp_path / "source", labels=None)
    (source / "instances.json").write_text(json.dumps(coco()))
    assert "a shape of 'grasper', which is no class" in problems(source, "endoscopy", TWO)
    prepare_endoscopy(source, tmp_path / "named")
    assert json.loads((tmp_path / "named" / "datalist.json").read_text())["labels"]["1"] == "grasper"
    (tmp_path / "map.json").write_text(json.dumps({"background": [0, 3], "tool": 1}))  # its number is background here
    with pytest.raises(InputError, match="nothing but background"):
        prepare_endoscopy(source, tmp_path / "out", None, tmp_path / "map.json")


def test_annotations_by_their_ids(tmp_path):
    """LIVECell's COCO file has an object of them, and no list."""
    source = fill(tmp_path / "source", labels=None)
    content = coco()
    content["annotations"] = {str(annotation["id"]): annotation for annotation in content["annotations"]}
    (source / "instances.json").write_text(json.dumps(content))
    assert prepare_microscopy(source, tmp_path / "out").instances == 5


def test_annotations_without_an_area_and_bad_ones_are_named(tmp_path, caplog):
    """Tools leave polygons of two points behind; of one annotation of thousands the id is said."""
    triangle = [1, 1, 5, 1, 5, 5]
    annotation = {"id": 17, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 4, 4], triangle]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 6}],
        "annotations": [annotation, {**annotation, "id": 18, "segmentation": [[2, 2, 4, 4]]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    annotations = read_annotations(path)["a.png"]
    painted = rasterize(annotations, [1, 2], (6, 6))
    assert set(np.unique(painted)) == {0, 1} and "has 1 shapes that are smaller than a pixel" in caplog.text
    for change, words in (({"category_id": 7}, "id 17, that cannot be read"), ({"segmentation": []}, "id 17, of the")):
        path.write_text(json.dumps({**content, "annotations": [{**annotation, **change}]}))
        with pytest.raises(InputError, match=words):
            read_annotations(path)
