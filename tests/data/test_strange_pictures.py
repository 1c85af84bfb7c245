# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of strangers: named wrongly, with white as zero, pyramids, thumbnails, ImageMagick's EXIF data."""

from __future__ import annotations

import io
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from swinumamba_monai.data.files.images import image_names, read_classes, read_image, read_instances, stated_orientation
from swinumamba_monai.data.files.tiff_rows import open_rows
from swinumamba_monai.errors import InputError

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)
MASK = GRAY % 3 == 1  # what is white, and the object


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".TIF"])
def test_what_is_in_a_picture_decides_not_its_name(kind, suffix, tmp_path):
    Image.fromarray(GRAY).save(tmp_path / f"a{suffix}", kind, **({"quality": 100} if kind == "JPEG" else {}))
    assert np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - GRAY).max() <= (2 if kind == "JPEG" else 0)
    if kind == "JPEG":
        with pytest.raises(InputError, match="JPEG, which does not keep cell numbers"):
            read_instances(tmp_path / f"a{suffix}")
    else:
        np.testing.assert_array_equal(read_instances(tmp_path / f"a{suffix}"), GRAY)


def test_a_stack_and_a_turned_picture_of_other_names(tmp_path):
    tifffile.imwrite(tmp_path / "stack.png", np.stack([GRAY, GRAY + 1]), photometric="minisblack")
    first, second = image_names(tmp_path / "stack.png")
    np.testing.assert_array_equal(read_image(second), GRAY + 1)
    np.testing.assert_array_equal(read_instances(first), GRAY)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(GRAY).save(tmp_path / "turned.tif", "PNG", exif=exif)
    assert stated_orientation(tmp_path / "turned.tif") == 6 and read_image(tmp_path / "turned.tif").shape == (4, 3)


def test_a_folder_called_like_a_picture(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert image_names(tmp_path / "a.png") == [str(tmp_path / "a.png")]
    with pytest.raises(InputError, match="is no file"):
        read_image(tmp_path / "a.png")


GROUP4 = pytest.mark.skipif(not hasattr(imagecodecs, "ccittfax4_decode"), reason="imagecodecs is older than 2026.3")


@pytest.mark.parametrize("compression", [pytest.param("group4", marks=GROUP4), "raw", "tiff_lzw"])
def test_one_bit_with_white_as_zero_is_what_is_seen(compression, tmp_path):
    """As Photoshop and ImageMagick save masks; Pillow is the independent reader."""
    Image.fromarray(MASK).save(tmp_path / "a.tif", compression=compression, tiffinfo={262: 0})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric == 0
    with Image.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(np.asarray(file), MASK)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), MASK * 255)
    np.testing.assert_array_equal(read_classes(tmp_path / "a.tif"), MASK * 255)


def test_gray_with_white_as_zero(tmp_path):
    """Of scanners turned over like DICOM's MONOCHROME1; numbers of labels stay, and what ImageJ and tifffile mean."""
    for dtype in (np.uint8, np.uint16):
        path, pixels = tmp_path / f"{np.dtype(dtype)}.tif", GRAY.astype(dtype)
        tifffile.imwrite(path, pixels, photometric="miniswhite", software="scanner", metadata=None)
        np.testing.assert_array_equal(read_image(path), np.iinfo(dtype).max - pixels)
        np.testing.assert_array_equal(read_instances(path), GRAY)
    tifffile.imwrite(tmp_path / "fiji.tif", GRAY, photometric="miniswhite", software="", imagej=True)
    np.testing.assert_array_equal(read_image(tmp_path / "fiji.tif"), GRAY)
    tifffile.imwrite(tmp_path / "bool.tif", MASK)  # tifffile declares white as zero here, and means 1
    np.testing.assert_array_equal(read_classes(tmp_path / "bool.tif"), MASK * 255)


def test_palettes_of_one_bit_and_of_eight(tmp_path):
    colormap = np.array([[10, 200], [20, 100], [30, 50]], np.uint16) * 257
    palette = [(320, "H", 6, tuple(colormap.ravel().tolist()), True)]
    tifffile.imwrite(tmp_path / "bit.tif", MASK, photometric="minisblack", extratags=palette)
    with tifffile.TiffFile(tmp_path / "bit.tif", mode="r+") as file:
        file.pages[0].tags[262].overwrite(3)  # the photometric, which tifffile does not write so
    expected = np.where(MASK[..., None], [200, 100, 50], [10, 20, 30])
    np.testing.assert_array_equal(read_image(tmp_path / "bit.tif"), expected)
    np.testing.assert_array_equal(read_classes(tmp_path / "bit.tif"), MASK)
    eight = np.zeros((3, 256), np.uint16)
    eight[1] = np.arange(256)  # libtiff takes a palette without larger numbers for one of 8 bits
    tifffile.imwrite(tmp_path / "eight.tif", GRAY, photometric="palette", colormap=eight)
    np.testing.assert_array_equal(read_image(tmp_path / "eight.tif"), np.dstack([0 * GRAY, GRAY, 0 * GRAY]))


def test_a_slide_of_a_scanner_is_its_largest_level(tmp_path):
    """As Aperio's scanners write it, renamed: thumbnail and label are full images by their tags."""
    file, colours = tmp_path / "slide.tif", np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    words = "Aperio Image Library v11\n{} [0,0 {}] (128x128) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"
    with tifffile.TiffWriter(file) as writer:
        for pixels, tiles in ((colours, (128, 128)), (colours[:90], None), (colours[::4, ::4], (64, 64))):
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            writer.write(pixels, tile=tiles, description=words.format(size, size), metadata=None)
        writer.write(colours[:40], description="Aperio label", metadata=None, subfiletype=1)
        writer.write(colours[:30], description="Aperio macro", metadata=None, subfiletype=9)
    assert image_names(file) == [str(file)]
    np.testing.assert_array_equal(read_image(file), colours)


def test_a_slide_of_philips_is_its_largest_level_and_white_where_nothing_was_scanned(tmp_path):
    """As CAMELYON's: tiles without tissue are left out, and OpenSlide shows them white."""
    file, colours = tmp_path / "slide.tif", np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    tiles = [colours[y : y + 128, x : x + 128] for y in (0, 128) for x in (0, 128)]
    level = '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING">"{0}" "{0}"'
    levels = "".join(f"{level.format(mm)}</Attribute></DataObject>" for mm in (0.00025, 0.0005))
    words = f'<DataObject ObjectType="DPUfsImport"><Attribute>{levels}</Attribute></DataObject>'
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(file) as writer:
        first = {"description": words, "software": "Philips DP v1.0"}
        writer.write(iter([*tiles[:3], None]), shape=colours.shape, dtype=np.uint8, **options, **first)
        writer.write(colours[::2, ::2], subfiletype=1, **options)
        for name in ("Macro", "Label"):
            writer.write(colours[:40], description=name, metadata=None, software=False)
    assert image_names(file) == [str(file)]
    seen = colours.copy()
    seen[128:, 128:] = 255
    np.testing.assert_array_equal(read_image(file), seen)
    with open_rows(file) as rows:
        np.testing.assert_array_equal(rows.read(100, 200), seen[100:200])


def test_components_of_inform_are_the_channels_of_one_image(tmp_path):
    """As PerkinElmer's scanners and inForm write a field of view, with a thumbnail in colours behind it."""
    components = np.random.default_rng(0).random((6, 40, 50), dtype=np.float32)
    options = {"software": "PerkinElmer-QPI", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a_component_data.tif") as writer:
        for component in components:
            writer.write(component, photometric="minisblack", **options)
        writer.write(np.zeros((10, 12, 3), np.uint8), photometric="rgb", **options)
    assert image_names(tmp_path / "a_component_data.tif") == [str(tmp_path / "a_component_data.tif")]
    image = read_image(tmp_path / "a_component_data.tif", max_channels=64)
    np.testing.assert_array_equal(image, np.moveaxis(components, 0, -1))


def test_pyramids_and_thumbnails_are_one_image(tmp_path):
    """As ImageMagick's ptif and cameras write them: smaller copies and masks of the first image behind it."""
    large = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(large, photometric="minisblack", metadata=None)
        file.write(large[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
        file.write(large[::4, ::4], photometric="minisblack", metadata=None, subfiletype=1)
    assert image_names(tmp_path / "a.tif") == [str(tmp_path / "a.tif")]
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), large)
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(large, photometric="minisblack", metadata=None)
        file.write(large[:30], photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match="2 separate images"):
        read_image(tmp_path / "two.tif")


@pytest.mark.parametrize("compressed", [False, True])
def test_orientation_as_imagemagick_keeps_it_in_png(compressed, tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    data = exif.tobytes()
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n"
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", text, zip=compressed)
    Image.fromarray(GRAY).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), GRAY[::-1, ::-1])


def test_a_transparent_colour_is_no_channel(tmp_path):
    """Of 16 bits, as of 8: tRNS names one colour."""
    buffer = io.BytesIO()
    deep = np.dstack([GRAY.astype(np.uint16) * 1000] * 3)
    deep[..., 1] += 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (4).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    buffer.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", bytes(6)))
    buffer.write(chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), deep)
