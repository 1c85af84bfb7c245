# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The three bundles on a real MONAI Label server, driven over HTTP.

The server needs an environment of its own: ``make test-label`` sets it up and names its Python.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import requests
from label_server import Server, make_served, needs_server, run, stem
from PIL import Image

from swinumamba_monai.data import read_image
from swinumamba_monai.inference import geojson
from swinumamba_monai.serving.annotations import elements
from swinumamba_monai.tasks import TASKS
from swinumamba_monai.weight_files import read_weights, save_half_precision

pytestmark = needs_server
OWN_NAMES = ["background", "Greifer", "greifer", *(f"class {number}" for number in range(3, 8))]
LABELS = {
    "abdomen_mri": {"liver": 1, "left kidney": 13},
    "endoscopy": {"Greifer": 1, "greifer": 2, "class 7": 7},
    "microscopy": {"cell": 1},
}


def predict(bundle: Path, images: Path, out: Path) -> Path:
    """The file that the command line makes of an image."""
    config = str(bundle / "configs" / "inference.json")
    run(
        "monai.bundle", "run", "inference", "--config_file", config, "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(out),
    )  # fmt: skip
    (file,) = [path for path in out.iterdir() if "overlay" not in path.name]
    return file


def assert_same(answer: Path, file: Path) -> None:
    if file.suffix == ".gz":
        a, b = nib.load(answer), nib.load(file)
        np.testing.assert_array_equal(a.affine, b.affine)
        np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    else:
        np.testing.assert_array_equal(read_image(answer), read_image(file))


def plain_polygons(collection: dict) -> list[tuple[str, list[list[int]]]]:
    """The label and the corners of every polygon of a GeoJSON."""
    return [(element["label"], contour) for element in elements(collection) for contour in element["contours"]]


def asap_polygons(content: bytes) -> list[tuple[str, list[list[int]]]]:
    return [
        (annotation.get("Name"), [[int(c.get("X")), int(c.get("Y"))] for c in annotation.iter("Coordinate")])
        for annotation in ElementTree.fromstring(content).iter("Annotation")
    ]


@pytest.mark.parametrize("task", TASKS)
def test_server_gives_what_the_command_line_gives_and_learns(task, tmp_path) -> None:
    data, bundle, studies = make_served(task, tmp_path)
    model = bundle / "models" / "model.pt"
    if task == "microscopy":  # as it ships
        save_half_precision(model, model.with_suffix(".safetensors"))
        model.unlink()
    if task == "endoscopy":  # trained on classes of one's own
        model.with_name("run.json").write_text(json.dumps({"class_names": OWN_NAMES}))
    images = sorted(studies.iterdir())
    expected = {image: predict(bundle, image, tmp_path / "expected" / image.name) for image in images}
    answer = tmp_path / f"answer{'.nii.gz' if task == 'abdomen_mri' else '.png'}"

    with Server(bundle, studies, tmp_path / "server.log") as server:
        labels = server.info["models"][task]["labels"]
        assert LABELS[task].items() <= labels.items() and "background" not in labels
        for image, file in expected.items():
            assert_same(server.infer(task, image, answer), file)
        if task == "abdomen_mri":
            for image in images[:2]:
                volume = nib.load(image)
                label = nib.Nifti1Image(np.ones(volume.shape, np.uint8), volume.affine)
                server.save_label(image, f"{stem(image)}.nii.gz", gzip.compress(label.to_bytes()))
            said = {"label_info": [{"name": "liver", "idx": 1}, {"name": "left kidney", "idx": 2}]}  # as Slicer says it
            files = {"label": ("label.nii.gz", gzip.compress(label.to_bytes()))}
            url = f"{server.url}/datastore/label?image={stem(image)}"
            refused = requests.put(url, files=files, data={"params": json.dumps(said)}, timeout=60)
            assert refused.status_code == 400 and "left kidney as number 2, and here that is 13" in refused.text
        else:
            check_polygons(server, task, bundle, expected, tmp_path)
            truth = data / json.loads((data / "datalist.json").read_text())["test"][0]["label"]
            server.save_label(images[0], truth.name, truth.read_bytes())
            server.save_label(images[1], "label.xml", server.ask_by_qupath(task, images[1], upload=False))

        for pretrained in (True, False):  # a second training does not trip over the first
            before = read_weights(model)
            server.train(task, pretrained)
            change = max((weight - before[name]).abs().max() for name, weight in read_weights(model).items())
            assert 0 < change < 0.01 if pretrained else change > 0.1
        assert_same(server.infer(task, images[0], answer), predict(bundle, images[0], tmp_path / "after"))


def check_polygons(server: Server, task: str, bundle: Path, expected: dict[Path, Path], folder: Path) -> None:
    """The plugins for QuPath and CVAT get those of what the command line predicts."""
    names = None if task == "microscopy" else dict(enumerate(OWN_NAMES))
    for image, file in expected.items():
        collection = geojson(read_image(file).astype(int), names)
        answer = server.call("POST", f"/infer/{task}?image={stem(image)}&output=json").json()
        assert answer["polygons"] == collection and collection["features"]
        for upload in (False, True):
            assert asap_polygons(server.ask_by_qupath(task, image, upload)) == plain_polygons(collection)
    photo = folder / "cvat.jpg"  # what the plugin sends, whatever the image is
    frame = next(image for image in expected if image.name == "rgb.png")
    Image.open(frame).save(photo)
    answers = server.ask_by_cvat(task, frame)
    assert {answer["type"] for answer in answers} == {"polygon"}
    found = [(answer["label"], np.reshape(answer["points"], (-1, 2)).tolist()) for answer in answers]
    predicted = read_image(predict(bundle, photo, folder / "cvat")).astype(int)
    assert found == plain_polygons(geojson(predicted, names))
