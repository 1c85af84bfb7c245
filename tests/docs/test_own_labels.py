# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the tables of labels of pictures in docs/own_data.md is made, and read again as it says."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from doc_tables import rows
from own_pictures import (
    CLASSES,
    NAMES,
    SIZE,
    check,
    image_of,
    numbers_of,
    one_coco_file,
    palette_image,
    same_cells,
    save,
)
from scipy.io import savemat

from swinumamba_monai.data import load_datalist
from swinumamba_monai.data.files.images import read_classes, read_image, read_instances
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

COLOURS = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0), 3: (9, 9, 200)}


def without_hole(name: str) -> np.ndarray:
    """The same, for forms that have no holes."""
    numbers = numbers_of(name)
    numbers[4:6, 4:12][numbers[4:6, 4:12] == 0] = 1
    return numbers


def write_numbers(folder: Path, name: str) -> np.ndarray:
    suffix = ".png" if name in "ab" else ".tif"
    save(folder / f"{name}{suffix}", numbers_of(name).astype(np.uint16))
    return numbers_of(name)


def write_three_channels(folder: Path, name: str) -> np.ndarray:
    save(folder / f"{name}.png", np.dstack([numbers_of(name)] * 3))
    return numbers_of(name)


def write_palette(folder: Path, name: str) -> np.ndarray:
    palette_image(numbers_of(name)).save(folder / f"{name}{'.png' if name in 'ab' else '.tif'}")
    return numbers_of(name)


def write_array(folder: Path, name: str) -> np.ndarray:
    np.save(folder / f"{name}.npy", numbers_of(name).astype(np.int32 if name in "ab" else np.float64))
    return numbers_of(name)


def write_geojson(folder: Path, name: str) -> np.ndarray:
    content = geojson(numbers_of(name), CLASSES)
    if name == "a":  # QuPath writes a bare list too, with the region that was searched around the cells
        region = {"type": "Polygon", "coordinates": [[[0, 0], [24, 0], [24, 20], [0, 20], [0, 0]]]}
        for feature in content["features"]:
            feature["properties"]["objectType"] = "cell"
        around = {"type": "Feature", "geometry": region, "properties": {"objectType": "annotation"}}
        content = [around, *content["features"]]
    (folder / f"{name}{'.geojson' if name in 'ab' else '.json'}").write_text(json.dumps(content))
    return numbers_of(name)


def write_labelme(folder: Path, name: str) -> np.ndarray:
    shift = ord(name) - ord("a")
    right = [[12 + shift, 14], [24, 14], [24, 20], [12 + shift, 20]]
    shapes = [
        {"label": "grasper", "shape_type": "rectangle", "points": [[11 + shift, 9], [2 + shift, 2]]},
        {"label": "hook", "shape_type": "rectangle", "points": [[3, 9], [9, 12]]},
        {"label": "clip", "shape_type": "polygon", "points": right},
    ]
    content = {"shapes": shapes, "imagePath": f"{name}.png", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    numbers = numbers_of(name)
    numbers[4:6, 4 + shift : 7 + shift] = 1  # the hole
    return numbers


def write_yolo(folder: Path, name: str) -> np.ndarray:
    expected, lines = write_labelme(folder, name), []
    for shape in json.loads((folder / f"{name}.json").read_text())["shapes"]:
        points = np.array(shape["points"])
        if len(points) == 2:
            points = np.array([points[0], [points[1][0], points[0][1]], points[1], [points[0][0], points[1][1]]])
        parts = (points / SIZE[::-1]).ravel()
        lines.append(f"{list(CLASSES.values()).index(shape['label'])} {' '.join(f'{part:.6f}' for part in parts)}")
    (folder / f"{name}.json").unlink()
    (folder / f"{name}.txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("\n".join(CLASSES.values()))
    return expected


def write_aperio(folder: Path, name: str) -> np.ndarray:
    """What labelme has, as regions of a layer for each class."""
    expected, layers = write_labelme(folder, name), ""
    for shape in json.loads((folder / f"{name}.json").read_text())["shapes"]:
        kind = "0" if shape["shape_type"] == "polygon" else "1"
        vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in shape["points"])
        region = f'<Regions><Region Id="1" Type="{kind}"><Vertices>{vertices}</Vertices></Region></Regions>'
        layers += (
            f'<Annotation Name=""><Attributes><Attribute Name="{shape["label"]}"/></Attributes>{region}</Annotation>'
        )
    (folder / f"{name}.json").unlink()
    (folder / f"{name}.xml").write_text(f"<Annotations>{layers}</Annotations>")
    return expected


def write_matlab(folder: Path, name: str) -> np.ndarray:
    classes = {"class": [[3], [2], [1]], "id": [[3], [2], [1]]} if name in "ab" else {"inst_type": [[1], [2], [3]]}
    savemat(folder / f"{name}.mat", {"inst_map": numbers_of(name), **classes})
    return numbers_of(name)


def one_cvat_video(folder: Path) -> dict[str, np.ndarray]:
    """The polygons alone, a track for each class, under the names of a video's frames."""
    maps = {}
    elements: dict[str, str] = dict.fromkeys(CLASSES.values(), "")
    for number, name in enumerate(NAMES):
        frame = f"frame_{number:06d}"
        (folder.parent / "images" / f"{name}.png").rename(folder.parent / "images" / f"{frame}.png")
        maps[name] = write_labelme(folder, name)
        content = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").unlink()
        for shape in content["shapes"]:
            kind = "polygon" if shape["shape_type"] == "polygon" else "box"
            low, high = np.min(shape["points"], axis=0), np.max(shape["points"], axis=0)
            where = f'xtl="{low[0]}" ytl="{low[1]}" xbr="{high[0]}" ybr="{high[1]}"'
            if kind == "polygon":
                where = f'points="{";".join(f"{x},{y}" for x, y in shape["points"])}"'
            elements[shape["label"]] += f'<{kind} frame="{number}" keyframe="1" outside="0" {where} z_order="0"/>'
    tracks = "".join(f'<track id="0" label="{label}">{shapes}</track>' for label, shapes in elements.items())
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES.values())
    size = f"<original_size><width>{SIZE[1]}</width><height>{SIZE[0]}</height></original_size>"
    meta = f"<meta><task><size>{len(NAMES)}</size><labels>{labels}</labels>{size}</task></meta>"
    (folder / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{tracks}</annotations>")
    return maps


def one_cvat_file(folder: Path) -> dict[str, np.ndarray]:
    maps = {name: numbers_of(name) for name in NAMES}
    images = []
    for number, (name, label) in enumerate(maps.items()):
        rows_, columns = np.nonzero(label == 1)
        top, left = rows_.min(), columns.min()
        window = (label == 1)[top : rows_.max() + 1, left : columns.max() + 1]
        changes = np.flatnonzero(np.diff(np.concatenate([[0], window.ravel()])))
        runs = np.diff(np.concatenate([[0], changes, [window.size]]))
        mask = f'<mask label="grasper" rle={quoteattr(", ".join(map(str, runs)))} left="{left}" top="{top}" '
        mask += f'width="{window.shape[1]}" height="{window.shape[0]}" z_order="0"/>'
        ring = [[3, 9], [9, 9], [9, 12], [3, 12]]
        polygon = f'<polygon label="hook" points="{";".join(f"{x}.0,{y}.0" for x, y in ring)}" z_order="0"/>'
        rows_, columns = np.nonzero(label == 3)
        box = f'<box label="clip" xtl="{columns.min()}" ytl="{rows_.min()}" xbr="{columns.max() + 1}" '
        box += f'ybr="{rows_.max() + 1}" z_order="0"/>'
        size = f'width="{SIZE[1]}" height="{SIZE[0]}"'
        images.append(f'<image id="{number}" name="{name}.png" {size}>{mask}{polygon}{box}<tag label="x"/></image>')
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES.values())
    meta = f"<meta><job><labels>{labels}</labels></job></meta>"
    text = f"<?xml version='1.0'?><annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"
    (folder / "annotations.xml").write_text(text)
    return maps


def roi(kind: int, box: tuple[int, int, int, int], points=(), options: int = 0, path=()) -> bytes:
    """A file of ImageJ, as its RoiEncoder writes it; ``box`` is top, left, bottom, right."""
    header = bytearray(64)
    header[:4], header[6] = b"Iout", kind
    struct.pack_into(">h", header, 4, 227)
    struct.pack_into(">4hH", header, 8, *box, len(points))
    struct.pack_into(">i", header, 36, len(path))
    struct.pack_into(">h", header, 50, options)
    x, y = np.array(points).T if len(points) else (np.empty(0), np.empty(0))
    body = (x - box[1]).astype(">i2").tobytes() + (y - box[0]).astype(">i2").tobytes()
    if options & 128:
        body += x.astype(">f4").tobytes() + y.astype(">f4").tobytes()
    return bytes(header) + (np.array(path, ">f4").tobytes() if len(path) else body)


def write_rois(folder: Path, name: str) -> np.ndarray:
    numbers = numbers_of(name)
    left = 2 + ord(name) - ord("a")
    path = []
    for ring in ([(left, 2), (left + 9, 2), (left + 9, 9), (left, 9)],
                 [(left + 2, 4), (left + 5, 4), (left + 5, 6), (left + 2, 6)]):  # fmt: skip
        for place, (x, y) in enumerate(ring):
            path += [1.0 if place else 0.0, x, y]
        path.append(4.0)
    polygon = [(3, 9), (9, 9), (9, 12), (3, 12)]
    regions = {
        "composite": roi(1, (2, left, 9, left + 9), path=path),
        "polygon": roi(7, (9, 3, 12, 9), polygon, 128 if name == "b" else 0),
        "rectangle": roi(1, (14, 12 + ord(name) - ord("a"), 20, 24)),
    }
    if name == "d":  # a single region is a file of its own
        (folder / "d.roi").write_bytes(regions["polygon"])
        return (numbers == 2) * 2
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for region, content in regions.items():
            archive.writestr(f"{region}.roi", content)
    return numbers


def write_colours(folder: Path, name: str) -> np.ndarray:
    save(folder / f"{name}.png", np.array(list(COLOURS.values()), np.uint8)[numbers_of(name)])
    return numbers_of(name)


def write_black_and_white(folder: Path, name: str) -> np.ndarray:
    save(folder / f"{name}.png", (numbers_of(name) > 0).astype(np.uint8) * 255)
    return numbers_of(name) > 0


def write_soft(folder: Path, name: str) -> np.ndarray:
    white = (without_hole(name) > 0).astype(np.uint8) * 255
    if name in "ab":
        soft = np.where(white == 0, 60 * (np.arange(SIZE[1]) % 2), 190 + 60 * (np.arange(SIZE[1]) % 2))
        save(folder / f"{name}.png", soft.astype(np.uint8))
    else:
        save(folder / f"{name}.jpg", white, quality=95)
    return white > 0


Form = Callable[[Path, str], np.ndarray]
SHARED_FORMS: dict[str, Form] = {
    "the same in three equal channels": write_three_channels,
    "PNG or TIFF with a palette": write_palette,
    "`.npy`, whole numbers": write_array,
    "`.geojson`, `.json`: QuPath": write_geojson,
    "`.json`: labelme": write_labelme,
    "`.txt`: YOLO segmentation": write_yolo,
    "`.xml`: Aperio ImageScope": write_aperio,
    "`.mat`: MATLAB 5 to 7.2": write_matlab,
}
FOR_MANY = {
    "`.json`: COCO": one_coco_file,
    "`.xml`: CVAT for images 1.1": one_cvat_file,
    "`.xml`: CVAT for video 1.1": one_cvat_video,
}
CELLS: dict[str, Form] = {
    **SHARED_FORMS,
    "PNG or TIFF, a number for every cell": write_numbers,
    "`.zip`, `.roi`: ImageJ": write_rois,
}
MASKS: dict[str, Form] = {
    **SHARED_FORMS,
    "PNG or TIFF, a class number a pixel": write_numbers,
    "a colour for each class": write_colours,
    "black and white, 0 and 255": write_black_and_white,
    "black and white with soft edges, also JPEG": write_soft,
}


def made(folder: Path, forms: dict[str, Form], row: str) -> dict[str, np.ndarray]:
    """The folders images and labels, and the expected label of every image."""
    for name in NAMES:
        save(folder / "images" / f"{name}.png", image_of(name))
    (folder / "labels").mkdir()
    if row in FOR_MANY:
        return FOR_MANY[row](folder / "labels")
    return {name: forms[row](folder / "labels", name) for name in NAMES}


@pytest.mark.parametrize("row", rows("Labels of cells"))
def test_labels_of_cells(row, tmp_path):
    source = tmp_path / "source"
    if row == "TIFF stack beside a stack of images":
        planes = np.stack([image_of(name) for name in NAMES])
        for folder in ("images", "labels"):
            pixels = planes if folder == "images" else np.stack([numbers_of(name) for name in NAMES])
            for name in ("x", "y", "z"):
                save(source / folder / f"{name}.tif", pixels, metadata={"axes": "ZYXS"[: pixels.ndim]})
        report = prepare_microscopy(source, tmp_path / "out")
        assert sum(report.sizes.values()) == 12 and report.sizes["test"] == report.sizes["validation"] == 4
        for item in load_datalist(tmp_path / "out", "test"):
            name = next(name for name in NAMES if np.array_equal(read_image(item["image"]), image_of(name)))
            np.testing.assert_array_equal(read_instances(item["label"]), numbers_of(name))
        return
    options = PrepareOptions()
    if row == "a mask for every cell, in a folder":
        expected = {name: numbers_of(name) for name in NAMES}
        options = PrepareOptions(mask_threshold=128)
        for name, numbers in expected.items():
            save(source / name / "images" / f"{name}.png", image_of(name))
            for number in (1, 2, 3):
                mask = np.where(numbers == number, 200, 90).astype(np.uint8)
                save(source / name / "masks" / f"cell{number}.png", mask)
    else:
        expected = made(source, CELLS, row)
    report = prepare_microscopy(source, tmp_path / "out", options)
    assert not report.problems
    check(tmp_path / "out", expected, read_instances, same_cells)


@pytest.mark.parametrize("row", rows("Labels of classes"))
def test_labels_of_classes(row, tmp_path):
    source = tmp_path / "source"
    expected = made(source, MASKS, row)
    label_map, options = None, PrepareOptions()
    if row == "a colour for each class":
        label_map = {name: list(COLOURS[number]) for number, name in CLASSES.items()}
    elif row.endswith("soft edges, also JPEG"):
        options = PrepareOptions(mask_threshold=128)
    elif not row.startswith(("black", *FOR_MANY)):
        label_map = {"background": 0, **{name: number for number, name in CLASSES.items()}}
    if label_map is not None:
        (tmp_path / "classes.json").write_text(json.dumps(label_map))
        label_map = tmp_path / "classes.json"
    report = prepare_endoscopy(source, tmp_path / "out", options, label_map)
    names = json.loads((tmp_path / "out" / "datalist.json").read_text())["labels"]
    one = row.startswith("black")
    assert list(names.values()) == ["background", *(["foreground"] if one else CLASSES.values())]
    assert not report.problems
    check(tmp_path / "out", expected, read_classes, np.array_equal)


@pytest.mark.parametrize(
    ("heading", "made"), [("Labels of cells", [*CELLS, *FOR_MANY]), ("Labels of classes", [*MASKS, *FOR_MANY])]
)
def test_nothing_is_made_that_the_page_does_not_list(heading, made):
    assert set(made) <= set(rows(heading))
