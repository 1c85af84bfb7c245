# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a TIFF file are those of the whole image, and no more of the file is decoded for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.data import astronaut

from swinumamba_monai.data import read_image
from swinumamba_monai.data.files import tiff_rows
from swinumamba_monai.data.files.images import image_names
from swinumamba_monai.data.files.tiff_rows import open_rows
from swinumamba_monai.errors import InputError

PICTURE = astronaut()[:301, :277]
PLANES = np.moveaxis(PICTURE, -1, 0).copy()
TILED = {"tile": (64, 48)}
PALETTE = (np.arange(768) * 85).reshape(3, 256).astype(np.uint16)
FORMS = {
    "gray": (PICTURE[..., 0], {}),
    "gray in tiles": (PICTURE[..., 0], TILED),
    "gray in strips": (PICTURE[..., 0], {"rowsperstrip": 17, "compression": "zlib"}),
    "16 bits": (PICTURE[..., 0].astype(np.uint16) * 257, {**TILED, "compression": "lzw", "predictor": 2}),
    "big-endian": (PICTURE[..., 0].astype(np.uint16) * 257, {"byteorder": ">"}),
    "floats": (PICTURE[..., 0].astype(np.float32), {**TILED, "compression": "zlib", "predictor": 3}),
    "colours": (PICTURE, {**TILED, "photometric": "rgb", "compression": "zlib"}),
    "JPEG": (PICTURE, {"tile": (64, 48), "photometric": "rgb", "compression": "jpeg"}),
    "JPEG strips": (PICTURE, {"rowsperstrip": 16, "photometric": "rgb", "compression": "jpeg"}),
    "planar": (PLANES, {**TILED, "photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}),
    "alpha": (np.dstack([PICTURE, PICTURE[..., 0]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "palette": (PICTURE[..., 0], {**TILED, "photometric": "palette", "colormap": PALETTE}),
    "bits": (PICTURE[..., 0] > 100, {}),
    "BigTIFF": (PICTURE[..., 0], {**TILED, "bigtiff": True}),
    "channels as pages": (PLANES, {**TILED, "photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True}),
    "ImageJ": (PLANES.astype(np.uint16), {"imagej": True, "metadata": {"axes": "CYX"}}),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_image(form: str, tmp_path):
    pixels, options = FORMS[form]
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    whole = read_image(tmp_path / "a.tif")
    with open_rows(tmp_path / "a.tif") as image:
        assert image.shape == (301, 277)
        for start, stop in ((0, 301), (0, 1), (50, 130), (63, 65), (300, 301)):
            rows = image.read(start, stop)
            assert rows.dtype == whole.dtype
            np.testing.assert_array_equal(rows, whole[start:stop])
        assert [start for start, _ in image.bands(100)] == [0, 100, 200, 300]


@pytest.mark.parametrize("ome", [True, False])
def test_a_pyramid_is_its_largest_level(ome: bool, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=ome) as file:
        file.write(PICTURE[..., 0], **TILED, subifds=1)
        file.write(PICTURE[::2, ::2, 0], **TILED, subfiletype=1)
    with open_rows(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read(7, 99), PICTURE[7:99, :, 0])


def test_planes_of_a_stack(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PLANES, photometric="minisblack", metadata={"axes": "ZYX"}, **TILED)
    for plane, name in enumerate(image_names(tmp_path / "a.tif")):
        with open_rows(name) as image:
            np.testing.assert_array_equal(image.read(7, 99), PLANES[plane, 7:99])


@pytest.mark.parametrize("compression", ["zlib", None])
def test_only_the_tiles_of_the_rows_are_decoded(compression: str | None, tmp_path):
    """What lies behind the first two rows of tiles is cut off the file, and nobody notices before it is asked for."""
    tifffile.imwrite(tmp_path / "a.tif", PICTURE[..., 0], tile=(64, 48), compression=compression)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        end = file.pages[0].dataoffsets[2 * 6]  # six tiles lie side by side
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:end])
    with open_rows(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read(3, 128), PICTURE[3:128, :, 0])
        with pytest.raises(InputError, match=r"a\.tif cannot be decoded between the rows 100 and 129"):
            image.read(100, 129)


class TestWhatCannotBeReadInPart:
    def test_other_files_and_none(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"II*\0nothing")
        (tmp_path / "a.png").write_bytes(b"")
        assert [open_rows(tmp_path / name) for name in ("a.tif", "a.png", "none.tif")] == [None] * 3

    def test_pictures_that_are_to_be_turned(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", PICTURE, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
        assert open_rows(tmp_path / "a.tif") is None

    def test_one_compressed_strip(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tiff_rows, "MAX_PART", 10_000)
        tifffile.imwrite(tmp_path / "a.tif", PICTURE, photometric="rgb", rowsperstrip=301, compression="zlib")
        assert open_rows(tmp_path / "a.tif") is None
        tifffile.imwrite(tmp_path / "a.tif", PICTURE, photometric="rgb", rowsperstrip=301)
        with open_rows(tmp_path / "a.tif") as image:  # without compression the rows lie where they can be found
            np.testing.assert_array_equal(image.read(7, 99), PICTURE[7:99])

    def test_values_that_are_no_numbers(self, tmp_path):
        pixels = PICTURE[..., 0].astype(np.float32)
        pixels[200, 5] = np.nan
        tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=10)
        with open_rows(Path(tmp_path / "a.tif")) as image:
            image.read(0, 200)
            with pytest.raises(InputError, match="NaN"):
                image.read(100, 201)
