# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the tables in docs/own_data.md about pictures is made, and read again as it says."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.sax.saxutils import quoteattr

import imagecodecs
import numpy as np
import pytest
import tifffile
from doc_tables import rows
from PIL import Image

from swinumamba_monai.data import load_datalist
from swinumamba_monai.data.files.images import image_names, read_classes, read_image, read_instances, stated_orientation
from swinumamba_monai.data.files.video import VIDEO_SUFFIXES
from swinumamba_monai.data.prepare.dataset import PrepareOptions
from swinumamba_monai.inference.coco import to_coco
from swinumamba_monai.inference.polygons import geojson
from swinumamba_monai.tasks.endoscopy import prepare_endoscopy
from swinumamba_monai.tasks.microscopy import prepare_microscopy

SIZE = (20, 24)
NAMES = ("a", "b", "c", "d")
CLASSES = {1: "grasper", 2: "hook", 3: "clip"}
COLOURS = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0), 3: (9, 9, 200)}


def image_of(name: str) -> np.ndarray:
    """An image (H, W, 3), another one for every name."""
    return np.random.default_rng(ord(name[0])).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def numbers_of(name: str) -> np.ndarray:
    """Three regions, one with a hole and one that touches the edge, at another place for every name."""
    numbers = np.zeros(SIZE, np.uint8)
    shift = ord(name[0]) - ord("a")
    numbers[2:9, 2 + shift : 11 + shift] = 1
    numbers[4:6, 4 + shift : 7 + shift] = 0
    numbers[9:12, 3:9] = 2
    numbers[14:20, 12 + shift : 24] = 3
    return numbers


def without_hole(name: str) -> np.ndarray:
    """The same, for forms that have no holes."""
    numbers = numbers_of(name)
    numbers[4:6, 4:12][numbers[4:6, 4:12] == 0] = 1
    return numbers


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)


# Pictures

GRAY = image_of("a")[..., 0]
RGB = image_of("a")
PALETTE = [value for number in range(256) for value in (number, 255 - number, 7)]
AS_PALETTE = np.array(PALETTE, np.uint8).reshape(-1, 3)[GRAY]


def gray_png(folder: Path):
    save(folder / "8.png", GRAY)
    save(folder / "16.png", GRAY.astype(np.uint16) * 257)
    Image.fromarray(GRAY > 99).save(folder / "1.png")
    return {"8.png": GRAY, "16.png": GRAY.astype(np.uint16) * 257, "1.png": (GRAY > 99) * 255}


def colour_png(folder: Path):
    expected = {}
    for channels, pixels in (("rgb", RGB), ("rgba", np.dstack([RGB, GRAY]))):
        save(folder / f"{channels}.png", pixels)
        (folder / f"{channels}16.png").write_bytes(imagecodecs.png_encode(pixels.astype(np.uint16) * 257))
        expected |= {f"{channels}.png": pixels, f"{channels}16.png": pixels.astype(np.uint16) * 257}
    return expected


def palette_image(pixels: np.ndarray, mode: str = "P") -> Image.Image:
    image = Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes())
    image.putpalette(PALETTE)
    return image


def palette_png(folder: Path):
    palette_image(GRAY).save(folder / "a.png")
    palette_image(GRAY).save(folder / "b.png", transparency=bytes(range(256)))
    return {"a.png": AS_PALETTE, "b.png": AS_PALETTE}


def jpeg(folder: Path):
    for name, colour in (("L", 100), ("RGB", (200, 100, 50)), ("CMYK", (255, 0, 0, 0))):
        Image.new(name, SIZE[::-1], colour).save(folder / f"{name}.jpg", quality=100)
    flat = {"L.jpg": (100,), "RGB.jpg": (200, 100, 50), "CMYK.jpg": (0, 255, 255)}
    return {name: np.squeeze(np.full((*SIZE, len(colour)), colour)) for name, colour in flat.items()}


def deep_jpeg(folder: Path):
    gray = np.linspace(0, 4095, GRAY.size).reshape(GRAY.shape).astype(np.uint16)
    rgb = np.stack([gray, gray // 2, gray // 4], axis=-1)
    encode = partial(imagecodecs.jpeg_encode, level=100, bitspersample=12, subsampling="444")
    (folder / "gray.jpg").write_bytes(encode(gray))
    (folder / "rgb.jpg").write_bytes(encode(rgb))
    (folder / "exact.jpeg").write_bytes(imagecodecs.ljpeg_encode(gray * 16, bitspersample=16))
    exif = Image.Exif()
    exif[274] = 6
    segment = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    marked = encode(gray)[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + encode(gray)[2:]
    (folder / "turned.jpg").write_bytes(marked)
    return {"gray.jpg": gray, "rgb.jpg": rgb, "exact.jpeg": gray * 16, "turned.jpg": np.rot90(gray, -1)}


def bmp(folder: Path):
    save(folder / "gray.bmp", GRAY)
    save(folder / "rgb.bmp", RGB)
    return {"gray.bmp": GRAY, "rgb.bmp": RGB}


def gray_tiff(folder: Path):
    types = ("uint8", "int16", ">u2", "uint32", "float32")
    for number, dtype in enumerate(types):
        save(folder / f"{number}.tif", GRAY.astype(dtype), byteorder=">" if dtype[0] == ">" else None)
    return {f"{number}.tif": GRAY for number in range(len(types))}


def colour_tiff(folder: Path):
    save(folder / "a.tif", RGB, photometric="rgb")
    save(folder / "b.tif", np.ascontiguousarray(np.moveaxis(RGB, -1, 0)), photometric="rgb", planarconfig="separate")
    return {"a.tif": RGB, "b.tif": RGB}


def palette_tiff(folder: Path):
    palette_image(GRAY).save(folder / "a.tif")
    palette_image(np.dstack([GRAY, GRAY]), "PA").save(folder / "b.tif")
    return {"a.tif": AS_PALETTE, "b.tif": AS_PALETTE}


def cmyk_tiff(folder: Path):
    """As Pillow converts it, which wrote it."""
    inks = np.random.default_rng(5).integers(0, 255, (*SIZE, 4), dtype=np.uint8)
    inks[:2] = [(0, 0, 0, 0)], [(0, 0, 0, 255)]
    Image.fromarray(inks, "CMYK").save(folder / "a.tif", compression="tiff_lzw")
    expected = np.asarray(Image.open(folder / "a.tif").convert("RGB"))
    assert (expected[0] == 255).all() and (expected[1] == 0).all()
    return {"a.tif": expected}


def composite(folder: Path):
    expected = {}
    for channels in (2, 3, 4):
        pixels = np.stack([GRAY // (number + 1) for number in range(channels)])
        colormap = np.array(PALETTE, np.uint16).reshape(-1, 3).T * 257
        imagej = {"imagej": True, "photometric": "palette", "colormap": colormap}
        for name, options in (("imagej", imagej), ("ome", {"ome": True, "photometric": "minisblack"})):
            save(folder / f"{name}{channels}.tif", pixels, metadata={"axes": "CYX"}, **options)
            expected[f"{name}{channels}.tif"] = np.moveaxis(pixels, 0, -1)
    return expected


def stack(folder: Path):
    planes = np.stack([GRAY // (number + 1) for number in range(4)])
    save(folder / "z.tif", planes, imagej=True, metadata={"axes": "ZYX"})
    save(folder / "t.tif", planes, photometric="minisblack", metadata={"axes": "TYX"})
    assert [Path(name).name for name in image_names(folder / "z.tif")] == [f"z#{n:06d}.tif" for n in range(4)]
    return {f"{name}#{number:06d}.tif": planes[number] for name in "zt" for number in range(4)}


def one_bit(folder: Path):
    Image.fromarray(GRAY > 99).save(folder / "a.tif", compression="group4", tiffinfo={262: 0})  # white as zero
    Image.fromarray(GRAY > 99).save(folder / "b.tif")
    return {"a.tif": (GRAY > 99) * 255, "b.tif": (GRAY > 99) * 255}


def white_as_zero(folder: Path):
    save(folder / "a.tif", GRAY, photometric="miniswhite", software="scanner", metadata=None)
    save(folder / "b.tif", GRAY, photometric="miniswhite", imagej=True)
    np.testing.assert_array_equal(read_classes(folder / "a.tif"), GRAY)
    return {"a.tif": 255 - GRAY, "b.tif": GRAY}


def pyramid(folder: Path):
    with tifffile.TiffWriter(folder / "a.tif") as file:
        for step in (1, 2, 4):
            file.write(GRAY[::step, ::step], photometric="minisblack", metadata=None, subfiletype=int(step > 1))
    return {"a.tif": GRAY}


def turned(folder: Path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(GRAY).save(folder / "a.png", exif=exif)
    save(folder / "b.tif", GRAY, extratags=[(274, "H", 1, 6, True)])
    Image.new("L", (24, 20), 100).save(folder / "c.jpg", exif=exif)
    clockwise = np.rot90(GRAY, -1)
    return {"a.png": clockwise, "b.tif": clockwise, "c.jpg": np.full(clockwise.shape, 100)}


PICTURES = {
    "PNG, gray, 1 to 16 bits": gray_png,
    "PNG, RGB or RGBA, 8 or 16 bits": colour_png,
    "PNG, palette, with or without transparency": palette_png,
    "JPEG, gray, RGB or CMYK": jpeg,
    "JPEG, gray or RGB, of 12 bits, or of up to 16 without loss": deep_jpeg,
    "BMP": bmp,
    "TIFF, gray, integers or floats": gray_tiff,
    "TIFF, one bit a pixel": one_bit,
    "TIFF, gray, with white as zero": white_as_zero,
    "TIFF, RGB, interleaved or planar": colour_tiff,
    "TIFF, palette, with or without alpha": palette_tiff,
    "TIFF, CMYK of 8 bits": cmyk_tiff,
    "TIFF of two to four channels, ImageJ's or OME's": composite,
    "TIFF pyramid, or with a thumbnail": pyramid,
    "TIFF stack of planes in depth or time": stack,
    "any of them, to be turned by EXIF or a TIFF tag": turned,
}


@pytest.mark.parametrize("row", rows("Pictures"))
def test_pictures(row, tmp_path):
    if row.startswith("video: "):  # tests/data/test_odd_videos.py makes one of each
        named = {f".{name.lower()}" for name in row.removeprefix("video: ").split(", ")}
        assert named == set(VIDEO_SUFFIXES) - {".mpg"}
        return
    for name, pixels in PICTURES[row](tmp_path).items():
        image = read_image(tmp_path / name)
        assert image.shape == pixels.shape, name
        assert stated_orientation(tmp_path / name) == (6 if "be turned" in row or name == "turned.jpg" else 1)
        tolerance = 3 if name.endswith("jpg") else 0  # of a flat JPEG
        assert np.abs(image.astype(np.int64) - pixels.astype(np.int64)).max() <= tolerance, name


# Labels: what writes one form of the label of an image into the folder "labels".


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


def one_coco_file(folder: Path) -> dict[str, np.ndarray]:
    maps = {name: numbers_of(name) for name in NAMES}
    content = to_coco([(f"{name}.png", numbers) for name, numbers in maps.items()], CLASSES)
    runs = [a["segmentation"] for a in content["annotations"] if isinstance(a["segmentation"], dict)]
    assert runs, "some have holes"
    runs[0]["counts"] = compressed(runs[0]["counts"])
    (folder / "instances.json").write_text(json.dumps(content))
    return maps


def compressed(counts: list[int]) -> str:
    """COCO's text of run lengths, as the format's definition writes it."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            letter, number = number & 0x1F, number >> 5
            more = number != (-1 if letter & 0x10 else 0)
            text += chr((letter | 0x20 * more) + 48)
    return text


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


def same_cells(cells: np.ndarray, expected: np.ndarray) -> bool:
    """Whether both have the same cells, whatever their numbers are."""
    pairs = {(a, b) for a, b in zip(cells.ravel().tolist(), expected.ravel().tolist())}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and all(
        (a == 0) == (b == 0) for a, b in pairs
    )


def check(prepared: Path, expected: dict[str, np.ndarray], read, equal) -> None:
    """All images are there, each with its own pixels and label."""
    items = [item for part in ("training", "validation", "test") for item in load_datalist(prepared, part)]
    assert len(items) == len(expected)
    for item in items:
        label = read(item["label"])
        image = read_image(item["image"])
        name = next(name for name in expected if np.array_equal(image, image_of(name)))
        assert equal(label, expected.pop(name)), item


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


# Folders of pictures


def fill(pattern: str, name: str, source: Path, is_label: bool) -> None:
    """Write the file of a layout for another image than the one that the page names."""
    stem = re.compile(r"(?<![a-z])[ab](?![a-z])")
    save(source / stem.sub(name, pattern), numbers_of(name) if is_label else image_of(name))


@pytest.mark.parametrize("row", rows("Folders of pictures"))
def test_folders(row, tmp_path):
    source = tmp_path / "source"
    patterns = re.findall(r"`([^`]+)`", row)
    endoscopy = "video" in row
    if "instances.json" in row:
        for name in NAMES:
            save(source / "images" / f"{name}.png", image_of(name))
        (source / "annotations").mkdir()
        one_coco_file(source / "annotations")
    elif row.startswith("`s1/"):
        for name in NAMES:
            save(source / name / "images" / f"{name}.png", image_of(name))
            if len(patterns) == 2:
                save(source / name / "masks" / "labels.tif", numbers_of(name))
            else:
                for number in (1, 2, 3):
                    save(source / name / "masks" / f"{number}.png", (numbers_of(name) == number) * np.uint8(255))
    elif "frame_80" in row:
        for video, name in enumerate(NAMES):
            for pattern in patterns:
                path = pattern.replace("video01", f"video{video:02d}")
                save(source / path, np.dstack([numbers_of(name)] * 3) if "mask" in path else image_of(name))
            save(source / path.replace("watershed", "color"), image_of("x"))
    elif len(patterns) == 4:
        for name in NAMES:
            first = 2 if name == "d" else 0
            for number, pattern in enumerate(patterns[first : first + 2]):
                fill(pattern, name, source, bool(number))
    else:
        for video, name in enumerate(NAMES):
            for number, pattern in enumerate(patterns):
                fill(
                    pattern.replace("video01", f"video{video:02d}"),
                    name if not endoscopy else "a",
                    source,
                    bool(number),
                )
                if endoscopy:
                    path = source / pattern.replace("video01", f"video{video:02d}")
                    save(path, numbers_of(name) if number else image_of(name))
    if endoscopy:
        (tmp_path / "classes.json").write_text(json.dumps({"background": 0, "x": 1, "y": 2, "z": 3}))
        prepare_endoscopy(source, tmp_path / "out", None, tmp_path / "classes.json")
        check(tmp_path / "out", {name: numbers_of(name) for name in NAMES}, read_classes, np.array_equal)
        return
    prepare_microscopy(source, tmp_path / "out")
    if len(patterns) == 4:
        (test,) = load_datalist(tmp_path / "out", "test")
        assert np.array_equal(read_image(test["image"]), image_of("d")), "the folder is the section"
    check(tmp_path / "out", {name: numbers_of(name) for name in NAMES}, read_instances, same_cells)


@pytest.mark.parametrize(
    ("heading", "made"),
    [
        ("Pictures", list(PICTURES)),
        ("Labels of cells", [*CELLS, *FOR_MANY]),
        ("Labels of classes", [*MASKS, *FOR_MANY]),
    ],
)
def test_nothing_is_made_that_the_page_does_not_list(heading, made):
    assert set(made) <= set(rows(heading))
