# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Polygons hold the very pixels that they were made from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import PolygonWriter, geojson
from swinumamba_monai.inference.polygons import class_names


def fill(collection: dict, numbers: list[int], shape: tuple[int, int]) -> np.ndarray:
    """The map of numbers whose features these are, by the even-odd rule at the middle of every pixel."""
    filled = np.zeros(shape, int)
    middles = np.argwhere(np.ones(shape))[:, ::-1] + 0.5
    for number, feature in zip(numbers, collection["features"], strict=True):
        geometry = feature["geometry"]
        many = geometry["type"] == "MultiPolygon"
        for polygon in geometry["coordinates"] if many else [geometry["coordinates"]]:
            inside = np.zeros(len(middles), bool)
            for ring in polygon:
                assert ring[0] == ring[-1]
                inside ^= Outline(ring).contains_points(middles)
            filled[inside.reshape(shape)] = number
    return filled


@pytest.mark.parametrize("seed", range(10))
def test_filling_gives_the_pixels_again(seed) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 16, 2))
    numbers = random.integers(0, 3, shape)
    present = [number for number in (1, 2) if (numbers == number).any()]
    np.testing.assert_array_equal(fill(geojson(numbers), present, shape), numbers)


@pytest.mark.parametrize("seed", range(10))
def test_no_ring_touches_itself(seed) -> None:
    """Else readers that keep to the standard, such as shapely, call the polygon invalid."""
    mask = (np.random.default_rng(seed).random((12, 12)) < 0.7).astype(int)
    (feature,) = geojson(mask)["features"]
    many = feature["geometry"]["type"] == "MultiPolygon"
    for polygon in feature["geometry"]["coordinates"] if many else [feature["geometry"]["coordinates"]]:
        for ring in polygon:
            assert len(set(map(tuple, ring))) == len(ring) - 1


def test_a_ring_has_a_hole_and_two_pieces_are_one_feature() -> None:
    ring = np.pad(np.ones((3, 3), int), 1)
    ring[2, 2] = 0
    (feature,) = geojson(ring)["features"]
    outer, hole = feature["geometry"]["coordinates"]
    assert sorted(map(tuple, outer[:-1])) == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert sorted(map(tuple, hole[:-1])) == [(2, 2), (2, 3), (3, 2), (3, 3)]
    (feature,) = geojson(np.array([[3, 0, 3]]), {3: "scissors"})["features"]
    assert feature["geometry"]["type"] == "MultiPolygon" and len(feature["geometry"]["coordinates"]) == 2
    assert feature["properties"]["classification"] == {"name": "scissors"}


def test_writer_writes_json_and_wants_names(tmp_path) -> None:
    writer = PolygonWriter()
    writer.set_data_array(np.eye(3)[None])
    writer.write(tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text())["features"][0]["properties"]["name"] == "cell 1"
    with pytest.raises(InputError, match="does not name the classes"):
        PolygonWriter(tmp_path / "metadata.json")


def test_classes_of_another_training_do_not_get_the_names_of_the_bundle(tmp_path, caplog) -> None:
    file = tmp_path / "metadata.json"
    channels = {"0": "background", "1": "liver", "2": "right kidney"}
    file.write_text(json.dumps({"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}))
    assert class_names(file) == class_names(file, 3) == {1: "liver", 2: "right kidney"} and not caplog.text
    assert class_names(file, 2) == {1: "class 1"}
    assert "metadata.json names 2 classes and the network has 1, so they are called class 1" in caplog.text
    assert class_names(file, 4) == {1: "class 1", 2: "class 2", 3: "class 3"}
    writer = PolygonWriter(file, 2)
    writer.set_data_array(np.eye(3)[None])
    writer.write(tmp_path / "a.geojson")
    assert json.loads((tmp_path / "a.geojson").read_text())["features"][0]["properties"]["name"] == "class 1"


def test_classes_have_the_names_of_their_training(tmp_path) -> None:
    """Where all networks of an ensemble were trained on the same ones, and they are as many as the network has."""
    file = tmp_path / "metadata.json"
    channels = {"0": "background", "1": "liver", "2": "right kidney"}
    file.write_text(json.dumps({"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}))
    of_bundle, weights = {1: "liver", 2: "right kidney"}, [tmp_path / "a" / "model.pt", tmp_path / "b" / "model.pt"]
    records = [path.with_name("run.json") for path in weights]
    for record in records:
        record.parent.mkdir()
        record.write_text(json.dumps({"class_names": ["background", "Leber", "Milz"]}))
    assert class_names(file, 3, weights) == class_names(file, 3, weights[0]) == {1: "Leber", 2: "Milz"}
    assert class_names(file, ckpt_path=weights) == {1: "Leber", 2: "Milz"}
    assert class_names(file, 2, weights) == {1: "class 1"}
    for other in (["background", "Milz", "Leber"], [], None):
        records[1].write_text(json.dumps({"class_names": other}))
        assert class_names(file, 3, weights) == class_names(file, ckpt_path=weights) == of_bundle
    assert class_names(file, ckpt_path=weights[1]) == of_bundle  # a training that knew no names
    records[1].unlink()
    assert class_names(file, 3, weights) == of_bundle
    records[0].write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        class_names(file, 3, weights)
