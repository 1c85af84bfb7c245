# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Polygons to and from MONAI Label's plugins hold the very pixels."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import geojson
from swinumamba_monai.serving.annotations import elements, read_asap

NAMES = {1: "large needle driver", 3: "clip"}


def write_asap(found: list[dict], path: Path) -> Path:
    """As MONAI Label and its extension for QuPath write it."""
    lines = ["<ASAP_Annotations><Annotations>"]
    for element in found:
        for contour in element["contours"]:
            corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(contour))
            lines.append(f'<Annotation Name="{element["label"]}"><Coordinates>{corners}</Coordinates></Annotation>')
    path.write_text("".join([*lines, "</Annotations></ASAP_Annotations>"]))
    return path


@pytest.fixture
def solid() -> np.ndarray:
    """Numbers without holes: at the rim, touching each other, a single pixel, not convex, in two pieces."""
    numbers = np.zeros((9, 12), int)
    numbers[:3, :4] = 1
    numbers[3, 3:8] = 3
    numbers[4:6, 7] = 3
    numbers[6:, 9:] = 1
    numbers[8, 0] = 3
    return numbers


def test_classes_there_and_back(solid, tmp_path) -> None:
    found = elements(geojson(solid, NAMES))
    assert [(element["label"], len(element["contours"])) for element in found] == [(NAMES[1], 2), (NAMES[3], 2)]
    path = write_asap(found, tmp_path / "label.xml")
    capitals = {number: name.upper() for number, name in NAMES.items()}  # clients of MONAI Label may use other cases
    np.testing.assert_array_equal(read_asap(path, solid.shape, capitals), solid)
    both = {1: NAMES[1], 2: NAMES[1].upper(), 3: NAMES[3]}  # and some classes differ in nothing else
    np.testing.assert_array_equal(read_asap(path, solid.shape, both), solid)


def test_every_polygon_is_a_cell(solid, tmp_path) -> None:
    found = elements(geojson(solid))
    assert {element["label"] for element in found} == {"cell"}
    cells = read_asap(write_asap(found, tmp_path / "label.xml"), solid.shape)
    assert cells.dtype == np.uint16
    for number, pixels in enumerate([np.s_[:3, :4], np.s_[6:, 9:], None, np.s_[8, 0]], start=1):
        expected = np.zeros_like(solid, bool)
        if pixels is None:
            expected[3, 3:8] = expected[4:6, 7] = True
        else:
            expected[pixels] = True
        np.testing.assert_array_equal(cells == number, expected)


def test_holes_are_filled(tmp_path) -> None:
    ring = np.ones((5, 5), int)
    ring[2, 2] = 0
    path = write_asap(elements(geojson(ring)), tmp_path / "label.xml")
    np.testing.assert_array_equal(read_asap(path, (6, 5)), np.pad(np.ones((5, 5)), [(0, 1), (0, 0)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<ASAP_Annotations>", "ParseError"),
        ("<A><Annotations><Annotation /></Annotations></A>", "Name"),
        ('<A><Annotations><Annotation Name="cell"><Coordinate X="a" Y="1" /></Annotation></Annotations></A>', "'a'"),
        ('<A><Annotations><Annotation Name="Tumor" /></Annotations></A>', "'Tumor'; the classes are cell"),
        ('<A><Annotations><Annotation Name="cell" /></Annotations></A>', "needs three points or more"),
        (f'<A><Annotations><Annotation Name="{"t" * 1_000_000}" /></Annotations></A>', r"tt\.\.\.'; the classes"),
        ("<!DOCTYPE A [<!ENTITY b 'c'>]><A>&b;</A>", "declares entities"),
        (
            '<A><Annotations><Annotation Name="cell"><Coordinate X="inf" Y="1" /></Annotation></Annotations></A>',
            "all of them numbers",
        ),
    ],
)
def test_refusals(content, message, tmp_path) -> None:
    path = tmp_path / "label.xml"
    with pytest.raises(InputError, match="FileNotFound"):
        read_asap(path, (4, 4))
    for encoding in ("utf-8", "utf-16"):
        path.write_text(content, encoding=encoding)
        with pytest.raises(InputError, match=message) as caught:
            read_asap(path, (4, 4))
        assert len(str(caught.value)) < 400 + len(str(path))


def test_a_jagged_outline_takes_no_hour(tmp_path) -> None:
    """A hundred thousand corners, in and far outside of a large image: scikit-image would test each with each pixel."""
    corners = [(x, 3000 * (x % 2) - 1e9 * (x == 7)) for x in range(100_000)]
    path = write_asap([{"label": "cell", "contours": [corners]}], tmp_path / "label.xml")
    began = time.process_time()
    with pytest.raises(InputError, match="simplify it"):
        read_asap(path, (2000, 2000))
    assert read_asap(write_asap([{"label": "cell", "contours": [corners[8:9000]]}], path), (2000, 2000)).any()
    assert time.process_time() - began < 20
