# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of pictures in docs/own_data.md is made, and read again as it says."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from doc_tables import rows
from own_pictures import PALETTE, SIZE, image_of, palette_image, save
from PIL import Image

from swinumamba_monai.data.files.images import image_names, read_classes, read_image, stated_orientation
from swinumamba_monai.data.files.video import VIDEO_SUFFIXES

GRAY = image_of("a")[..., 0]
RGB = image_of("a")
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
    with tifffile.TiffWriter(folder / "slide.tif") as file:
        for pixels in (GRAY, GRAY[::2, ::2]):
            file.write(pixels, photometric="minisblack", metadata=None, description="Aperio Image Library")
    return {"a.tif": GRAY, "slide.tif": GRAY}


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
    "TIFF pyramid, or with a thumbnail, or a slide of a scanner under the name `.tif`": pyramid,
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


def test_no_picture_is_made_that_the_page_does_not_list():
    assert set(PICTURES) <= set(rows("Pictures"))
