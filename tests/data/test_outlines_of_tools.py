# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes as annotation tools export them, painted and compared with the pixels that a formula gives."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from picture_datasets import save
from PIL import Image

from swinumamba_monai.data.files.annotations import read_annotations, read_outlines
from swinumamba_monai.data.files.imagej_roi import read_rois
from swinumamba_monai.data.files.shapes import numbers_of, rasterize
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.errors import InputError
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

SIZE = (40, 60)
Y, X = np.mgrid[:40, :60] + 0.5  # the middles of the pixels
SQUARE = [(5, 5), (15, 5), (15, 15), (5, 15)]


def painted(annotations) -> np.ndarray:
    return rasterize(annotations, numbers_of(annotations.shapes), SIZE)


def cvat(folder: Path, shapes: str) -> np.ndarray:
    image = f'<image id="0" name="a.png" width="60" height="40">{shapes}</image>'
    (folder / "a.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")
    return painted(read_annotations(folder / "a.xml")["a.png"])


def polygon(points, group: int = 0) -> str:
    text = ";".join(f"{x},{y}" for x, y in points)
    return f'<polygon label="cell" points="{text}" z_order="0" group_id="{group}"/>'


@pytest.mark.parametrize("degrees", [0, 30, 90, 340])
def test_boxes_and_ellipses_of_cvat_are_turned_with_the_clock(degrees, tmp_path):
    angle = np.deg2rad(degrees)
    along = (X - 30) * np.cos(angle) + (Y - 20) * np.sin(angle)
    across = -(X - 30) * np.sin(angle) + (Y - 20) * np.cos(angle)
    box = f'<box label="cell" xtl="18.3" ytl="16.1" xbr="41.7" ybr="23.9" rotation="{degrees}"/>'
    np.testing.assert_array_equal(cvat(tmp_path, box), (abs(along) < 11.7) & (abs(across) < 3.9))
    ellipse = f'<ellipse label="cell" cx="30" cy="20" rx="14.3" ry="5.2" rotation="{degrees}"/>'
    inside = (along / 14.3) ** 2 + (across / 5.2) ** 2 < 1
    assert np.count_nonzero(cvat(tmp_path, ellipse) != inside) <= 2  # 360 corners are not quite an ellipse


def test_a_group_of_cvat_is_one_cell(tmp_path):
    """As CVAT itself exports groups to COCO; a mask of the group counts, too."""
    other = [(x + 30, y) for x, y in SQUARE]
    mask = '<mask label="cell" rle="0, 4" left="50" top="30" width="2" height="2" group_id="7"/>'
    expected = np.zeros(SIZE, int)
    expected[5:15, 5:15] = expected[30:32, 50:52] = 1
    expected[5:15, 35:45] = 2
    found = cvat(tmp_path, polygon(SQUARE, 7) + polygon(other) + mask)
    assert len(np.unique(found)) == 3
    assert found[6, 6] == found[31, 51] != found[6, 36]
    np.testing.assert_array_equal(found > 0, expected > 0)
    # What lies between the parts of a group hides the lower one all the same.
    right = [(x + 5, y) for x, y in SQUARE]
    found = cvat(tmp_path, polygon(SQUARE, 7) + polygon(right) + polygon([(x + 10, y) for x, y in SQUARE], 7))
    assert found[6, 6] == found[6, 16] == found[6, 24] != found[6, 12]


def coco(**of_images: object) -> dict:
    images = [{"id": number, "file_name": f"{number}.png", **of_images} for number in (1, 2, 3)]
    flat = [float(value) for point in SQUARE for value in point]
    shapes = [{"id": n, "image_id": str(n), "category_id": 1, "segmentation": [flat]} for n in (1, 2, 3)]
    return {"images": images, "annotations": shapes, "categories": [{"id": 1, "name": "cell"}]}


def test_coco_without_sizes_and_with_ids_as_texts(tmp_path):
    for number in (1, 2, 3):
        save(tmp_path / "in" / "images" / f"{number}.png", np.full(SIZE, 7, np.uint8))
    place = tmp_path / "in" / "labels.json"
    place.write_text(json.dumps(coco()))
    assert prepare_microscopy(tmp_path / "in", tmp_path / "out").instances == 3
    made = np.asarray(Image.open(tmp_path / "out" / "labels" / "2.png"))
    np.testing.assert_array_equal(made, (abs(X - 10) < 5) & (abs(Y - 10) < 5))
    place.write_text(json.dumps(coco(height=60, width=40)))
    with pytest.raises(InputError, match=r"labels.json \(of 2\.png\) is for an image of \(60, 40\) pixels"):
        prepare_microscopy(tmp_path / "in", tmp_path / "other")
    place.write_text(json.dumps(coco(id=1)))
    with pytest.raises(InputError, match="one id to several images"):
        prepare_microscopy(tmp_path / "in", tmp_path / "other")


def roi(kind: int, box, subtype: int = 0, fractions=None) -> bytes:
    """A region of ImageJ of one kind, as its RoiEncoder writes it."""
    data = bytearray(128)
    struct.pack_into(">4shBB4h", data, 0, b"Iout", 228, kind, 0, *box)
    struct.pack_into(">2h", data, 48, subtype, 128 if fractions else 0)
    if fractions:
        struct.pack_into(">4f", data, 18, *fractions)
    return bytes(data)


def test_rectangles_and_ovals_of_imagej_with_fractions(tmp_path):
    """The whole numbers in the header are rounded, and a fraction of a pixel decides whose pixels are inside."""
    place = tmp_path / "a.roi"
    for fractions, left, top in ((None, 20, 10), ((20.8, 10.9, 14.9, 9.9), 20.8, 10.9)):
        width, height = (14.9, 9.9) if fractions else (16, 11)
        place.write_bytes(roi(1, (10, 20, 21, 36), fractions=fractions))
        inside = (X > left) & (X < left + width) & (Y > top) & (Y < top + height)
        np.testing.assert_array_equal(painted(read_rois(place)), inside)
        place.write_bytes(roi(2, (10, 20, 21, 36), fractions=fractions))
        along, across = (X - left) / width * 2 - 1, (Y - top) / height * 2 - 1
        assert np.count_nonzero(painted(read_rois(place)) != (along**2 + across**2 < 1)) <= 2
    for subtype in (1, 4):
        place.write_bytes(roi(1, (10, 20, 21, 36), subtype))
        with pytest.raises(InputError, match=r"a\.roi.*a text or a picture, which has no pixels"):
            read_rois(place)
    place.write_bytes(roi(1, (10, 20, 21, 36), fractions=(float("nan"), 1, 2, 3)))
    with pytest.raises(InputError, match="no ROI file"):
        read_rois(place)


def test_roifile_gives_the_same(tmp_path):
    roifile = pytest.importorskip("roifile")
    region = roifile.ImagejRoi.frompoints(np.array([(5.2, 6.1), (25.4, 6.3), (15.1, 30.2)]))
    region.roitype = roifile.ROI_TYPE.POLYGON
    region.tofile(tmp_path / "a.roi")
    ((rings,),) = (shape.polygons for shape in read_rois(tmp_path / "a.roi").shapes)
    np.testing.assert_allclose(rings[0], region.coordinates(), atol=1e-5)


def qupath(place: Path, *names: str | None) -> None:
    """A square for each name of a class, side by side; None has no classification."""
    features = []
    for number, name in enumerate(names):
        ring = [[x + 20 * number, y] for x, y in [*SQUARE, SQUARE[0]]]
        classification = {"classification": {"name": name, "color": [1, 2, 3]}} if name else {}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        properties = {"objectType": "annotation", **classification}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    place.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_outlines_without_a_class(tmp_path):
    """Where no outline has a class all are the foreground; one among others is no class without a name."""
    (tmp_path / "in" / "labels").mkdir(parents=True)
    for number in range(3):
        save(tmp_path / "in" / "images" / f"{number}.png", np.full((*SIZE, 3), 7, np.uint8))
        qupath(tmp_path / "in" / "labels" / f"{number}.geojson", None, None)
    prepare_endoscopy(tmp_path / "in", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert content["labels"] == {"0": "background", "1": "foreground"}
    made = np.asarray(Image.open(tmp_path / "out" / "labels" / "1.png"))
    np.testing.assert_array_equal(made, ((abs(X - 10) < 5) | (abs(X - 30) < 5)) & (abs(Y - 10) < 5))
    for number in range(3):
        qupath(tmp_path / "in" / "labels" / f"{number}.geojson", "grasper", None)
    assert [shape.name for shape in read_outlines(tmp_path / "in" / "labels" / "0.geojson").shapes] == ["grasper", ""]
    with pytest.raises(InputError, match=r"0\.geojson has a shape without a class"):
        prepare_endoscopy(tmp_path / "in", tmp_path / "other")


def test_a_label_that_was_made_is_named_by_its_image(tmp_path):
    """What is odd about it lies in a folder that is gone when the sentence is read."""
    (tmp_path / "in" / "labels").mkdir(parents=True)
    for number in range(4):
        save(tmp_path / "in" / "images" / f"{number}.png", np.full(SIZE, 7, np.uint8))
        array = np.zeros(SIZE if number < 3 else (9, 9), np.uint8)
        array[2:5, 2:5] = number > 0
        np.save(tmp_path / "in" / "labels" / f"{number}.npy", array)
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out", PrepareOptions(skip_bad=True))
    image = tmp_path / "in" / "images"
    assert f"the label of {image / '0.png'} has no cell." in report.warnings
    (problem,) = report.problems
    assert problem.startswith(f"the label of {image / '3.png'} has (9, 9) pixels")


def test_hidden_folders_and_masks_with_alpha(tmp_path):
    """A clone with its ``.git``, and masks of one cell each that a tool saved as RGBA."""
    for number in range(3):
        place = tmp_path / "in" / f"s{number}"
        for folder, names in (("images", ["a"]), ("masks", ["x", "y"])):
            for column, name in enumerate(names):
                pixels = np.zeros((*SIZE, 4), np.uint8)
                pixels[5:9, 20 * column : 20 * column + 9, :3] = 255
                pixels[..., 3] = 255
                save(place / folder / f"{name}.png", pixels)
    (tmp_path / "in" / ".git" / "objects").mkdir(parents=True)
    (tmp_path / "in" / ".git" / "objects" / "ab12").write_bytes(b"x")
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert report.instances == 6
    assert report.inputs.not_taken == {"hidden": [".git"]}


def test_what_cellpose_saves_besides_masks_is_no_image(tmp_path):
    for name in ("a", "b", "c", "_flows"):
        for end in ("", "_cp_masks", "_flows", "_dP", "_cp_output"):
            pixels = np.zeros(SIZE, np.uint8)
            pixels[3:9, 4:9] = 1
            save(tmp_path / "in" / f"{name}{end}.png", pixels)
    report = prepare_microscopy(tmp_path / "in", tmp_path / "out")
    assert report.instances == 4
    assert len(report.inputs.not_taken[".png files"]) == 12


def test_names_of_a_split_have_no_suffix(tmp_path):
    for name in ("a.1", "b.1", "c.1", "d.1"):
        for folder in ("images", "labels"):
            save(tmp_path / "in" / folder / f"{name}.png", np.eye(40, dtype=np.uint8))
    split = {"train": ["a.1", "b.1"], "val": ["c.1.png"], "test": ["e"]}
    (tmp_path / "in" / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError) as error:
        prepare_microscopy(tmp_path / "in", tmp_path / "out")
    lines = str(error.value).splitlines()[1:]
    assert lines[0].endswith(
        "names c.1.png, but there is no such pair of image and label; write c.1, without the suffix."
    )
    assert lines[1].endswith("names e, but there is no such pair of image and label.")
    folds = [{"train": ["a.1", "b.1"], "val": ["e"]}]
    (tmp_path / "in" / "split.json").rename(tmp_path / "in" / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(InputError, match=r"splits_final\.json names e, but"):
        prepare_microscopy(tmp_path / "in", tmp_path / "out", PrepareOptions(fold=0))
