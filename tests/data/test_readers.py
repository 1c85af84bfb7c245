# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Image files are read with every channel and bit, and what cannot be read is named."""

from __future__ import annotations

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImaged
from PIL import Image

from swinumamba_monai.data.files import limits
from swinumamba_monai.data.files.images import (
    ImageFileReader,
    MultiplexFileReader,
    image_names,
    read_image,
    read_instances,
)
from swinumamba_monai.errors import InputError, find_input_error

# 2 x 3 pixels, so that rows and columns cannot be confused.
GRAY = np.array([[0, 1, 2], [30, 128, 255]], dtype=np.uint8)
RGB = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1)
RGBA = np.dstack([RGB, GRAY])
GRAY16 = np.array([[3, 260, 517], [7713, 32899, 65535]], dtype=np.uint16)
RGB16 = RGB.astype(np.uint16) * 256 + 7


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
@pytest.mark.parametrize("pixels", [GRAY, RGB, RGBA], ids=["gray", "rgb", "rgba"])
def test_8_bit_pixels_come_back(tmp_path, suffix, pixels):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels[..., :3] if suffix == ".bmp" and pixels.ndim == 3 else pixels)


@pytest.mark.parametrize("pixels", [GRAY16, RGB16, np.dstack([RGB16, GRAY16])], ids=["gray", "rgb", "rgba"])
def test_16_bit_png_keeps_all_bits(tmp_path, pixels):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels)


def test_jpeg(tmp_path):
    Image.new("L", (5, 4), 100).save(tmp_path / "gray.jpg")
    Image.new("RGB", (5, 4), (200, 100, 50)).save(tmp_path / "rgb.jpeg", quality=95)
    Image.new("CMYK", (5, 4), (255, 0, 0, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    np.testing.assert_array_equal(read_image(tmp_path / "gray.jpg"), np.full((4, 5), 100))
    assert np.abs(read_image(tmp_path / "rgb.jpeg").astype(int) - [200, 100, 50]).max() <= 3
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - [0, 255, 255]).max() <= 3  # cyan, not 4 channels


def test_one_bit_palette_and_gray_with_alpha(tmp_path):
    Image.fromarray(GRAY > 100).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png"), [[0, 0, 0], [0, 255, 255]])
    palette = Image.new("P", (2, 2))
    palette.putdata([0, 1, 1, 0])
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png")[0], [[10, 20, 30], [40, 50, 60]])
    Image.fromarray(np.dstack([GRAY, 255 - GRAY])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), GRAY)
    (tmp_path / "alpha16.png").write_bytes(imagecodecs.png_encode(np.dstack([GRAY16, GRAY16 // 2])))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha16.png"), GRAY16)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int16", "int32", "float32", "float64"])
def test_tiff_types_and_compressions(tmp_path, dtype, compression):
    pixels = (GRAY.astype(dtype) * 100 - (0 if "u" in dtype else 50)).astype(dtype)
    byteorder = ">" if dtype.startswith(">") else None
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, byteorder=byteorder)
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.dtype(dtype).newbyteorder("=") and image.dtype.isnative
    np.testing.assert_array_equal(image, pixels)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb", "planarconfig": "separate"},
        {"photometric": "minisblack", "imagej": True, "metadata": {"axes": "CYX"}},
        {"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}},
    ],
    ids=["planar", "imagej", "ome"],
)
def test_tiff_with_channels_first_becomes_channels_last(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(np.moveaxis(RGB16, -1, 0)), **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RGB16)


def test_tiff_bits_palettes_and_second_channels(tmp_path):
    tifffile.imwrite(tmp_path / "bit.tif", GRAY > 100)
    np.testing.assert_array_equal(read_image(tmp_path / "bit.tif"), [[0, 0, 0], [0, 255, 255]])
    colormap = np.zeros((3, 256), dtype=np.uint16)
    colormap[:, 1] = [10 * 257, 20 * 257, 30 * 257]
    tifffile.imwrite(tmp_path / "palette.tif", GRAY, photometric="palette", colormap=colormap)
    expected = np.zeros((2, 3, 3), dtype=np.uint8)
    expected[0, 1] = [10, 20, 30]
    np.testing.assert_array_equal(read_image(tmp_path / "palette.tif"), expected)
    two = np.dstack([GRAY, 255 - GRAY])
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "alpha.tif", two, extrasamples=["unassalpha"], **options)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.tif"), GRAY)
    tifffile.imwrite(tmp_path / "fluorescence.tif", two, extrasamples=["unspecified"], **options)
    np.testing.assert_array_equal(read_image(tmp_path / "fluorescence.tif"), two)


def refused(path, *words):
    """The sentence with which ``path`` is refused; it has the file name and the given words."""
    with pytest.raises(InputError) as error:
        read_image(path)
    for word in (path.name, *words):
        assert word in str(error.value)


def test_stacks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "time.tif", np.zeros((5, 8, 9), np.uint16), photometric="minisblack")
    refused(tmp_path / "time.tif", "stack", "(5, 8, 9)")
    z_stack = np.zeros((3, 8, 9), np.uint16)  # three planes are no colours
    tifffile.imwrite(tmp_path / "z.tif", z_stack, photometric="minisblack", imagej=True, metadata={"axes": "ZYX"})
    refused(tmp_path / "z.tif", "stack", "ZYX")
    with tifffile.TiffWriter(tmp_path / "series.tif") as file:
        file.write(GRAY, metadata=None)
        file.write(RGB, photometric="rgb", metadata=None)
    refused(tmp_path / "series.tif", "2 separate images")


@pytest.mark.parametrize(
    "pixels",
    [GRAY * 1e-50, GRAY * 1.0 + 1e12, GRAY.astype(np.uint32) + 3_000_000_000],
    ids=["tiny", "on_a_large_number", "integers_on_a_large_number"],
)
def test_pixels_that_float32_makes_one_are_refused(pixels, tmp_path):
    """Otherwise the network sees a flat image, in which nothing is found without a word."""
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    refused(tmp_path / "a.tif", "float32 cannot tell apart; subtract the least")


@pytest.mark.parametrize(
    "pixels",
    [GRAY * 1e-40, GRAY * 1.0 + 1e8, GRAY.astype(np.uint32) * 1000 + 3_000_000_000, np.array([[0.3, 0.1 + 0.2]])],
    ids=["small", "on_a_number", "integers", "flat_but_for_rounding"],
)
def test_pixels_that_float32_tells_apart_are_read(pixels, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)


def test_many_channels_where_one_is_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 8, 9), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", ome=True, metadata={"axes": "CYX"})
    image, _ = MultiplexFileReader().get_data([tmp_path / "a.tif"])
    np.testing.assert_array_equal(image, np.moveaxis(pixels, 0, -1))
    tifffile.imwrite(
        tmp_path / "b.tif", np.zeros((8, 9, 65), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(InputError, match=r"65 channels, but 64 is the limit; keep those that matter\.$"):
        MultiplexFileReader().get_data([tmp_path / "b.tif"])


def test_an_animation_is_refused(tmp_path):
    """Pillow reads its first picture, and the others would be passed over in silence."""
    Image.fromarray(GRAY).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(255 - GRAY)])
    refused(tmp_path / "a.png", "animation of 2 pictures; save each as a file of its own")


def test_pixels_that_cannot_be_used_are_refused(tmp_path):
    nan, infinite = GRAY.astype(np.float32), GRAY.astype(np.float32)
    nan[0, 0], infinite[1, 2] = np.nan, np.inf
    for name, pixels in (("nan.tif", nan), ("inf.tif", infinite)):
        tifffile.imwrite(tmp_path / name, pixels)
        refused(tmp_path / name, "NaN or infinite")
    missing = np.where(GRAY == 0, np.finfo(np.float32).min, GRAY).astype(np.float32)
    tifffile.imwrite(tmp_path / "missing.tif", missing)
    refused(tmp_path / "missing.tif", "beyond 1e+30", "replace them where they mark what is missing")
    tifffile.imwrite(tmp_path / "complex.tif", GRAY.astype(np.complex64))
    refused(tmp_path / "complex.tif", "complex64")
    five = np.zeros((8, 9, 5), np.uint8)
    tifffile.imwrite(tmp_path / "five.tif", five, photometric="minisblack", planarconfig="contig")
    refused(tmp_path / "five.tif", "5 channels", "or look for cells in one of them by --channel")
    for channels in (2, 7):
        tifffile.imwrite(tmp_path / "last.tif", np.zeros((40, 50, channels), np.uint16))  # as if it were 40 planes
        with pytest.raises(InputError, match=f"40 planes of 50 x {channels} pixels, as if its channels came last"):
            read_image(image_names(tmp_path / "last.tif")[0])
    tifffile.imwrite(tmp_path / "cmyk.tif", RGBA.astype(np.uint16), photometric="separated")
    refused(tmp_path / "cmyk.tif", "SEPARATED")


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", ".png")
    refused(tmp_path / "missing.png", "does not exist")
    for name in ("text.png", "text.jpg", "text.bmp", "text.tif"):
        (tmp_path / name).write_text("this is no image")
        refused(tmp_path / name, "cannot be decoded")


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.bmp", "d.tif", "lzw.tif", "deep.png"])
def test_truncated_files_are_refused(tmp_path, name):
    path = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if name == "deep.png":
        path.write_bytes(imagecodecs.png_encode(pixels.astype(np.uint16) * 257))
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", compression="lzw" if name == "lzw.tif" else None)
    else:
        Image.fromarray(pixels).save(path)
    assert read_image(path).shape == (64, 64, 3)
    content = path.read_bytes()
    for part in (0, 30, len(content) // 2, int(len(content) * 0.9)):
        path.write_bytes(content[:part])
        refused(path, "cannot be decoded")


def png_that_claims(height, width, bits):
    """A PNG of some hundred bytes with a header for a huge image."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_before_decoding(tmp_path, monkeypatch):
    for bits in (8, 16):
        (tmp_path / "bomb.png").write_bytes(png_that_claims(60000, 60000, bits))
        refused(tmp_path / "bomb.png", "60000 x 60000 pixels")
    # For the other formats a lower limit: their files of that size would have to be written first.
    for name in ("a.jpg", "a.bmp", "a.tif"):
        Image.new("L", (20, 10)).save(tmp_path / name)
    tifffile.imwrite(tmp_path / "tile.tif", np.zeros((4, 4), np.uint8), tile=(1024, 1024), compression="zlib")
    monkeypatch.setattr(limits, "MAX_PIXELS", 199)
    for name in ("a.jpg", "a.bmp", "a.tif"):
        refused(tmp_path / name, "10 x 20 pixels")
    refused(tmp_path / "tile.tif", "1024 x 1024 pixels")
    monkeypatch.setattr(limits, "MAX_PIXELS", 200)
    for name in ("a.jpg", "a.bmp", "a.tif"):
        assert read_image(tmp_path / name).shape == (10, 20)


def test_instance_maps(tmp_path):
    maps = {
        "a.png": GRAY16,
        "b.tif": GRAY.astype(np.int16),
        "c.tif": GRAY.astype(np.float32),
        "d.tif": np.array([[2**31 - 1, 0]], dtype=np.uint32),
    }
    for name, pixels in maps.items():
        if name.endswith("png"):
            Image.fromarray(pixels).save(tmp_path / name)
        else:
            tifffile.imwrite(tmp_path / name, pixels)
        instances = read_instances(tmp_path / name)
        assert instances.dtype == np.int32
        np.testing.assert_array_equal(instances, pixels)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (RGB, "3 channels"),
        (GRAY.astype(np.int16) - 1, "from -1 to 254"),
        (GRAY.astype(np.float32) + 0.5, "whole numbers"),
        (np.array([[2**31, 0]], dtype=np.uint32), "2147483648"),
    ],
    ids=["rgb", "negative", "fractions", "too large"],
)
def test_what_is_no_instance_map_is_refused(tmp_path, pixels, words):
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(InputError, match=r"a\.tif") as error:
        read_instances(tmp_path / "a.tif")
    assert words in str(error.value)


def load(reader=ImageFileReader):
    return Compose([LoadImaged(["image"], reader=reader), EnsureChannelFirstd(["image"])])


@pytest.mark.parametrize(
    "reader", [ImageFileReader, ImageFileReader(), "swinumamba_monai.data.files.images.ImageFileReader"]
)
def test_loadimaged_keeps_rows_first(tmp_path, reader):
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    gray = load(reader)({"image": tmp_path / "gray.png"})["image"]
    assert isinstance(gray, MetaTensor) and gray.dtype == torch.float32
    np.testing.assert_array_equal(gray.numpy(), GRAY[None])
    assert gray.meta["filename_or_obj"] == str(tmp_path / "gray.png")
    np.testing.assert_array_equal(gray.affine, np.eye(4))
    assert tuple(gray.meta["spatial_shape"]) == (2, 3)
    rgb = load(reader)({"image": str(tmp_path / "rgb.png")})["image"]
    np.testing.assert_array_equal(rgb.numpy(), np.moveaxis(RGB, -1, 0))


def test_several_files_are_the_channels_of_one_image(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    Image.fromarray(RGB).save(tmp_path / "b.png")
    Image.fromarray(GRAY[:1]).save(tmp_path / "c.png")
    image = load()({"image": [tmp_path / "a.png", tmp_path / "b.png"]})["image"]
    np.testing.assert_array_equal(image.numpy(), np.concatenate([GRAY[None], np.moveaxis(RGB, -1, 0)]))
    with pytest.raises(RuntimeError) as error:
        load()({"image": [tmp_path / "a.png", tmp_path / "c.png"]})
    assert "one size" in str(find_input_error(error.value))


def test_other_readers_do_not_take_over_a_refused_file(tmp_path):
    """LoadImage asks its default readers when ``read`` fails, and Pillow would open this file."""
    pixels = GRAY.astype(np.float32)
    pixels[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", pixels)
    with pytest.raises(RuntimeError) as error:
        load()({"image": tmp_path / "nan.tif"})
    assert "nan.tif" in str(find_input_error(error.value))


def test_batches_and_saving(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(GRAY).save(tmp_path / f"{name}.png")
    items = [{"image": tmp_path / "a.png"}, {"image": tmp_path / "b.png"}]
    batch = next(iter(DataLoader(Dataset(items, load()), batch_size=2)))
    assert batch["image"].shape == (2, 1, 2, 3)
    assert batch["image"].meta["filename_or_obj"] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    save = SaveImaged(
        "image", output_dir=tmp_path / "out", output_postfix="seg", output_ext=".png", separate_folder=False
    )
    save(load()(items[0]))
    assert (tmp_path / "out" / "a_seg.png").is_file()
    assert ImageFileReader().verify_suffix(["a.png", "b.TIF"]) and not ImageFileReader().verify_suffix("a.nii.gz")
