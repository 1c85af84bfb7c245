# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Composites and palettes of microscopes, stacks plane by plane, and pictures that are to be turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from monai.transforms import LoadImage
from PIL import Image, ImageOps

from swinumamba_monai.data.files.images import ImageFileReader, image_names, read_classes, read_image, read_instances
from swinumamba_monai.data.listing import load_images
from swinumamba_monai.errors import InputError

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLORMAP = np.zeros((3, 256), np.uint16)
COLORMAP[1] = np.arange(256) * 257  # ImageJ's green


def composite(path: Path, channels: int) -> np.ndarray:
    """What Fiji writes of an 8-bit composite: several channels, and the first one's colours as the palette."""
    pixels = np.stack([GRAY + 20 * number for number in range(channels)])
    metadata = {"axes": "CYX", "mode": "composite"}
    tifffile.imwrite(path, pixels, imagej=True, photometric="palette", colormap=COLORMAP, metadata=metadata)
    return np.moveaxis(pixels, 0, -1)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_the_channels_of_a_composite_are_its_values(channels, tmp_path):
    pixels = composite(tmp_path / "a.tif", channels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)
    loaded = LoadImage(reader=ImageFileReader, ensure_channel_first=True)(tmp_path / "a.tif")
    np.testing.assert_array_equal(loaded.numpy(), np.moveaxis(pixels, -1, 0))


def test_a_palette_with_alpha(tmp_path):
    green = [value for number in range(256) for value in (0, number, 0)]
    with_alpha = Image.frombytes("PA", (4, 3), np.dstack([GRAY, 255 - GRAY]).tobytes())
    with_alpha.putpalette(green)
    with_alpha.save(tmp_path / "a.tif")
    expected = np.dstack([0 * GRAY, GRAY, 0 * GRAY])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    palette = Image.frombytes("P", (4, 3), GRAY.tobytes())
    palette.putpalette(green)
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    for name in ("a.tif", "a.png"):  # of a label the numbers count
        np.testing.assert_array_equal(read_classes(tmp_path / name), GRAY)


def test_no_reader_gives_more_than_three_dimensions(tmp_path):
    random = np.random.default_rng(0)
    for number, axes in enumerate(("CYXS", "CYX", "YXS", "ZYX", "TZCYX", "YX")):
        shape = {"C": 2, "Y": 5, "X": 6, "S": 3, "Z": 3, "T": 2}
        pixels = random.integers(0, 9, [shape[axis] for axis in axes], dtype=np.uint8)
        for photometric in ("minisblack", "palette", "rgb"):
            if (photometric == "rgb") != axes.endswith("S"):
                continue
            options = {"colormap": COLORMAP} if photometric == "palette" else {}
            path = tmp_path / f"{number}_{photometric}.tif"
            tifffile.imwrite(path, pixels, photometric=photometric, metadata={"axes": axes}, **options)
            try:
                assert read_image(path).ndim in (2, 3)
            except InputError as error:
                assert path.name in str(error)


@pytest.mark.parametrize("layout", ["imagej", "ome", "tifffile", "pages", "big endian"])
@pytest.mark.parametrize("axes", ["ZYX", "TYX", "TZYX", "ZCYX", "TZCYX", "ZYXS", "CZYX"])
def test_stacks_are_read_plane_by_plane(layout, axes, tmp_path):
    sizes = {"T": 2, "Z": 5, "C": 2, "Y": 6, "X": 7, "S": 3}
    shape = [sizes[axis] for axis in axes]
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    pixels = pixels.astype(np.uint8) if axes.endswith("S") else pixels
    path, kind = tmp_path / "stack.tif", "rgb" if axes.endswith("S") else "minisblack"
    if layout == "imagej" and axes == "CZYX":
        pytest.skip("ImageJ has its axes in one order")
    if layout == "pages":  # nothing says what they are: each is a plane
        if "C" in axes:
            pytest.skip("pages without words are no channels")
        with tifffile.TiffWriter(path) as file:
            for plane in pixels.reshape(-1, *pixels.shape[-3 if kind == "rgb" else -2 :]):
                file.write(plane, photometric=kind, metadata=None, compression="zlib")
    else:
        options = {"imagej": {"imagej": True}, "ome": {"ome": True}, "big endian": {"byteorder": ">"}}.get(layout, {})
        tifffile.imwrite(path, pixels, photometric=kind, metadata={"axes": axes}, **options)
    names = image_names(path)
    number_of_planes = np.prod([sizes[axis] for axis in axes if axis in "TZ"])
    assert [Path(name).name for name in names] == [f"stack#{number:06d}.tif" for number in range(number_of_planes)]
    channels_last = np.moveaxis(pixels, axes.index("C"), -1) if "C" in axes else pixels
    own = 3 if "C" in axes or "S" in axes else 2
    expected = channels_last.reshape(-1, *channels_last.shape[-own:])
    for name, plane in zip(names, expected, strict=True):
        image = read_image(name)
        np.testing.assert_array_equal(image, plane)
        assert image.dtype == pixels.dtype and image.dtype.isnative
    assert [item["image"] for item in load_images(tmp_path)] == names
    with pytest.raises(InputError, match="none with the number 99"):
        read_image(tmp_path / "stack#000099.tif")
    with pytest.raises(InputError, match="stack with axes"):
        read_image(path)


@pytest.mark.parametrize("axes", ["ZYX", "CYX"])
def test_planes_that_a_file_names_and_lacks_are_refused(axes, tmp_path):
    """As of a recording that was stopped; tifffile gives zeros in their place."""
    pixels = np.arange(3 * 6 * 7, dtype=np.uint16).reshape(3, 6, 7)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": axes})
    description = tifffile.tiffcomment(path)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels[0], description=description, metadata=None)
        file.write(pixels[1], metadata=None)
    *names, lacking = image_names(path)
    assert len(names) == (2 if axes == "ZYX" else 0)
    for name, plane in zip(names, pixels):
        np.testing.assert_array_equal(read_image(name), plane)
    with pytest.raises(InputError, match="lacks a plane that its description names"):
        read_image(lacking)


def test_names_with_a_number_sign_are_names(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "plate#3.png")
    np.testing.assert_array_equal(read_image(tmp_path / "plate#3.png"), GRAY)
    assert image_names(tmp_path / "plate#3.png") == [str(tmp_path / "plate#3.png")]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", "16.png"])
def test_images_and_labels_are_turned_as_they_say(orientation, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    deep = suffix == "16.png"
    stored = np.kron(GRAY.astype(np.uint16) * 20, np.ones((8, 8), np.uint16))
    if suffix == ".tif":
        tifffile.imwrite(path, stored.astype(np.uint8), extratags=[(274, "H", 1, orientation, True)])
    else:
        picture = Image.fromarray(stored * 257 if deep else stored.astype(np.uint8))
        picture.save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    upright = Image.fromarray(stored.astype(np.uint8))
    upright.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright)).astype(int) * (257 if deep else 1)
    seen = read_image(path).astype(int)
    assert seen.shape == expected.shape and np.abs(seen - expected).max() <= (2 if suffix == ".jpg" else 0)
    if suffix in (".png", ".tif"):
        np.testing.assert_array_equal(read_instances(path), expected)


def test_labels_in_three_equal_channels(tmp_path):
    Image.fromarray(np.dstack([GRAY] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([GRAY] * 3 + [255 - 0 * GRAY])).save(tmp_path / "rgba.png")
    tifffile.imwrite(tmp_path / "planar.tif", np.stack([GRAY] * 3), photometric="rgb", planarconfig="separate")
    for name in ("rgb.png", "rgba.png", "planar.tif"):
        np.testing.assert_array_equal(read_classes(tmp_path / name), GRAY)
        np.testing.assert_array_equal(read_instances(tmp_path / name), GRAY)
    colours = np.dstack([GRAY] * 3)
    colours[0, 0, 2] = 1
    Image.fromarray(colours).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match="3 channels that differ"):
        read_classes(tmp_path / "colour.png")
