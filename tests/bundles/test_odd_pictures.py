# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Composites, stacks, turned pictures and videos go through the bundles as plain images do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from bundle_runs import NETWORK, SHORT, run
from PIL import Image

from swinumamba_monai.cli import main
from swinumamba_monai.data import read_classes, read_instances
from swinumamba_monai.inference.polygons import geojson

RANDOM = np.random.default_rng(0)
GREEN = np.zeros((3, 256), np.uint16)
GREEN[1] = np.arange(256) * 257


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 255, shape, dtype=np.uint8)


def write_pictures(folder: Path) -> None:
    """A composite of Fiji, a stack, a palette with alpha and a picture on its side."""
    folder.mkdir(parents=True)
    options = {"imagej": True, "photometric": "palette", "colormap": GREEN}
    tifffile.imwrite(folder / "composite.tif", pixels(2, 48, 64), metadata={"axes": "CYX"}, **options)
    tifffile.imwrite(folder / "stack.tif", pixels(2, 48, 64), photometric="minisblack", metadata={"axes": "ZYX"})
    palette = Image.frombytes("PA", (64, 48), pixels(48, 64, 2).tobytes())
    palette.putpalette(pixels(768).tolist())
    palette.save(folder / "palette.tif")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels(48, 64, 3)).save(folder / "turned.jpg", exif=exif)


SIZES = {
    "composite": (48, 64),
    "palette": (48, 64),
    "stack#000000": (48, 64),
    "stack#000001": (48, 64),
    "turned": (64, 48),
}


@pytest.mark.parametrize("bundle", ["microscopy", "endoscopy"])
def test_inference(bundle, trained_in, tmp_path):
    write_pictures(tmp_path / "images")
    run(
        bundle,
        "inference",
        tmp_path,
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "out"),
        output_ext=".tiff",
        ckpt_path=str(trained_in(bundle) / "models" / "model.pt"),
        **NETWORK,
    )
    kind, read = {"microscopy": ("instances", read_instances), "endoscopy": ("classes", read_classes)}[bundle]
    for name, size in SIZES.items():
        assert read(tmp_path / "out" / f"{name}_{kind}.tiff").shape == size
    metadata = Path(__file__).parents[2] / "bundles" / bundle / "configs" / "metadata.json"
    arguments = ["--images", str(tmp_path / "images"), "--output_file", str(tmp_path / "coco.json")]
    assert main(["coco", str(tmp_path / "out"), *arguments, "--metadata", str(metadata)]) == 0
    content = json.loads((tmp_path / "coco.json").read_text())
    found = {Path(image["file_name"]).stem: (image["height"], image["width"]) for image in content["images"]}
    assert found == SIZES


def test_training_and_evaluation(tmp_path):
    """From what microscopes and QuPath write to scores."""
    source = tmp_path / "source"
    numbers = np.zeros((48, 64), np.int64)
    numbers[4:20, 5:25], numbers[25:44, 30:60] = 1, 2
    options = {"imagej": True, "photometric": "palette", "colormap": GREEN}
    (source / "images").mkdir(parents=True)
    (source / "labels").mkdir()
    for number in range(5):
        path = source / "images" / f"{number}.tif"
        tifffile.imwrite(path, pixels(2, 48, 64), metadata={"axes": "CYX"}, **options)
        (source / "labels" / f"{number}.tif.geojson").write_text(json.dumps(geojson(numbers)))
    arguments = ["--source_dir", str(source), "--output_dir", str(tmp_path / "prepared")]
    assert main(["prepare", "microscopy", *arguments]) == 0
    options = {**SHORT, "dataset_dir": str(tmp_path / "prepared")}
    run("microscopy", "train", tmp_path, **options)
    run("microscopy", "evaluate", tmp_path, output_dir=str(tmp_path / "scores"), num_figures=1, **options)
    assert len((tmp_path / "scores" / "metrics.csv").read_text().splitlines()) == 2
