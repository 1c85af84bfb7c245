# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks give the cells of the whole image, each once, and say before the work what they cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, SaveImaged
from torch import nn

from swinumamba_monai.data import ImageFileReader, InvertLightd, NormalizeLookd, ToRGBd, read_instances
from swinumamba_monai.data.files.tiff_rows import TiffRows
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import (
    BlockInference,
    ClassesToInstancesd,
    FittingWindowInferer,
    ImageInference,
    InstanceWriter,
    MemoryNeed,
    MirrorInferer,
    RescalingInferer,
    blocks,
    keep_folders,
    memory,
    writers,
)
from swinumamba_monai.inference.blocks import _numbers_of, _own_cells, _Span
from swinumamba_monai.inference.one_image import as_loaded
from swinumamba_monai.instances import FlowsToInstancesd

RADIUS, GROUND = 10, 30


def draw(height: int, width: int, apart: int = 31, ground_at: Callable = lambda y, x: GROUND) -> tuple[np.ndarray, int]:
    """Discs in rows and columns, brightest in their centres, (H, W) uint8; and how many there are."""
    rows, columns = np.mgrid[:height, :width]
    y, x = (np.minimum(at % apart, apart - at % apart) for at in (rows, columns))
    distance = np.hypot(y, x)
    whole = (rows > apart // 2) & (columns > apart // 2)  # none on the first edges; of the others there is a part
    inside = (distance <= RADIUS) & whole
    image = np.where(inside, 250 - 10 * distance, ground_at(rows, columns)).astype(np.uint8)
    count = len(range(apart, height + RADIUS, apart)) * len(range(apart, width + RADIUS, apart))
    return image, count


class Uphill(nn.Module):
    """A perfect network for such discs: it goes up to where they are brightest, and knows what is brighter than gray.

    It sees three pixels; so what it says of a pixel depends on the look, and on windows only at their edges.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :1]
        near = F.pad(x, [1, 1, 1, 1], mode="replicate")
        flow = torch.cat([near[..., 2:, 1:-1] - near[..., :-2, 1:-1], near[..., 1:-1, 2:] - near[..., 1:-1, :-2]], 1)
        inside = 20 * (x + 0.5)
        return torch.cat([-inside, inside, flow / flow.norm(dim=1, keepdim=True).clamp_min(1e-3)], 1)


CLASSES = ClassesToInstancesd("pred", min_size=12, scores_key="scores")


class Three(nn.Module):
    """The same in three classes; there is no boundary, and the discs do not touch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-20 * x[:, :1], 20 * x[:, :1], -20 - 0 * x[:, :1]], 1)


@pytest.fixture
def make(tmp_path) -> Callable[..., BlockInference]:
    def make(
        block_size: int = 192,
        diameter: float | str | None = None,
        invert: bool = False,
        network: nn.Module | None = None,
        normalize: object = None,
        results: object = None,
        savers: int = 1,
    ) -> BlockInference:
        """The parts of the bundle, around such a network."""
        looks = ([InvertLightd("image")] if invert else []) + [normalize or NormalizeLookd("image")]
        load = [LoadImaged("image", ImageFileReader), EnsureChannelFirstd("image"), ToRGBd("image")]
        window = FittingWindowInferer((64, 64), 4, 0.5, mode="gaussian")
        saver = SaveImaged(
            "pred",
            output_dir=tmp_path,
            output_postfix="instances",
            output_ext=".png",
            separate_folder=False,
            writer=InstanceWriter,
        )
        inference = ImageInference(
            Compose([*load, *looks]),
            network or Uphill(),
            RescalingInferer(MirrorInferer(window), diameter),
            Compose([results or FlowsToInstancesd("pred", scores_key="scores"), *[saver] * savers]),
            torch.device("cpu"),
        )
        return BlockInference(inference, MemoryNeed(4, postprocessing=32), block_size)

    return make


@pytest.fixture
def save(tmp_path) -> Callable[[np.ndarray], Path]:
    def save(image: np.ndarray, name: str = "slide.tif", **options: object) -> Path:
        options = {"tile": (128, 128), "compression": "zlib", "photometric": "minisblack", **options}
        tifffile.imwrite(tmp_path / name, image, **options)
        return tmp_path / name

    return save


def labels_of(by_blocks: BlockInference, path: Path) -> np.ndarray:
    items = [{"image": str(path)}]
    keep_folders(Compose(by_blocks.inference.savers), items)
    by_blocks.run(items)
    return read_instances(path.with_name(f"{path.stem}_instances.tif"))


def assert_same_cells(by_blocks: BlockInference, path: Path, image: np.ndarray, count: int) -> None:
    """By blocks and whole, ``count`` cells are found of the very same pixels, with numbers of their own from 1 on."""
    ids = labels_of(by_blocks, path)
    others = np.asarray(by_blocks.inference(as_loaded(image))[1]["pred"])[0]
    pairs = np.unique(np.stack([ids.ravel(), others.ravel()]), axis=1)
    assert pairs.shape[1] == count + 1
    assert np.array_equal(pairs[0], np.arange(count + 1)) and np.array_equal(np.sort(pairs[1]), np.arange(count + 1))
    assert pairs[1, 0] == 0


class TestCells:
    """With blocks, margins, windows and tiles of a quarter of the usual size."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        for module, name in ((blocks, "MARGIN"), (blocks, "LABEL_TILE"), (writers, "LABEL_TILE")):
            monkeypatch.setattr(module, name, 64)

    # Blocks of 192 begin every 64 pixels, and discs lie every 31: on all seams.
    @pytest.mark.parametrize("shape", [(300, 330), (75, 1000), (1000, 75)])
    def test_are_those_of_the_whole_image(self, make, save, shape: tuple[int, int]):
        image, count = draw(*shape, ground_at=lambda y, x: 30 + 60 * y / shape[0])
        assert_same_cells(make(), save(image), image, count)

    def test_of_a_stain_inverted(self, make, save):
        """Colours, and the largest value of the whole image."""
        gray, count = draw(300, 300)
        image = 255 - np.dstack([gray, gray // 2, gray // 3])
        image[:, 190:] = np.maximum(image[:, 190:], 1) - 1  # the brightest pixels lie in the first blocks
        assert_same_cells(make(invert=True), save(image, photometric="rgb"), image, count)

    def test_by_classes(self, make, save):
        """The mean and the deviation are those of the whole image, of which one half is brighter than the other."""
        image, count = draw(300, 300)
        image[:, 150:] = np.where(image[:, 150:] > GROUND, image[:, 150:], 2 * GROUND)
        by_blocks = make(network=Three(), normalize=NormalizeIntensityd("image", channel_wise=True), results=CLASSES)
        assert_same_cells(by_blocks, save(image), image, count)

    def test_an_empty_part_stays_empty(self, make, save):
        """A block of noise alone is not stretched to the range of the image."""
        image, _ = draw(300, 300)
        image[:, 60:] = np.random.default_rng(0).integers(28, 33, (300, 240))
        ids = labels_of(make(), save(image))
        assert 10 <= ids.max() <= 20 and not ids[:, 60:].any()

    def test_no_more_than_a_row_of_blocks_is_read_at_a_time(self, make, save, monkeypatch):
        image, _ = draw(1000, 75)
        read, asked = TiffRows.read, []
        monkeypatch.setattr(TiffRows, "read", lambda self, *rows: asked.append(rows) or read(self, *rows))
        labels_of(make(), save(image))
        assert {start for start, _ in asked} == {
            *range(0, 1000, 192),
            *range(0, 833, 64),
        }  # for the look, for the cells
        assert max(stop - start for start, stop in asked) == 192

    def test_cells_that_are_cut_are_counted(self, make, save):
        image, _ = draw(300, 500)
        image[98:118] = 0
        image[100:115, 20:480] = 250  # longer than a block
        by_blocks = make(network=Three(), results=CLASSES)
        with by_blocks.open(save(image)) as opened:
            found = list(by_blocks.blocks(opened, by_blocks.read_once(opened)))
        assert sum(block.cut for block in found) > 0
        assert "1 cells reach over the margin of 64 pixels" in by_blocks.doubt(1)


class TestSeams:
    """Two blocks may see a cell a little differently, and the second knows only what the first has written."""

    ROWS = _Span(0, 8, (0, 8), (True, True))

    def found(self, *boxes: tuple[int, int, int, int]) -> np.ndarray:
        ids = np.zeros((8, 100), np.int32)
        for number, (top, bottom, left, right) in enumerate(boxes, start=1):
            ids[top:bottom, left:right] = number
        return ids

    def test_a_cell_is_written_once(self):
        columns = _Span(0, 100, (40, 100), (False, True))
        written = self.found((1, 5, 36, 44))
        found = self.found((1, 5, 38, 46), (1, 5, 20, 30), (1, 5, 60, 64))  # seen before, another's, its own
        own, cut = _own_cells(found, written, self.ROWS, columns)
        assert own.tolist() == [False, False, False, True] and cut == 0
        np.testing.assert_array_equal(_numbers_of(found, written, own), self.found((1, 5, 60, 64)))

    def test_a_cell_that_the_first_block_gave_away_is_kept(self):
        """Its centroid lay in the second block's core for the first, and lies in the first one's for the second."""
        own, _ = _own_cells(found := self.found((1, 5, 36, 40)), 0 * found, self.ROWS, _Span(0, 100, (40, 100), (0, 1)))
        assert own.tolist() == [False, True]

    def test_of_a_cell_that_is_partly_taken_the_largest_piece_stays(self):
        found, written = self.found((1, 7, 40, 60)), self.found((0, 8, 52, 55))
        own, _ = _own_cells(found, written, self.ROWS, _Span(0, 100, (40, 100), (False, True)))
        np.testing.assert_array_equal(_numbers_of(found, written, own), self.found((1, 7, 40, 52)))

    def test_a_cell_at_an_outer_edge_is_cut(self):
        found = self.found((0, 4, 90, 100), (5, 8, 90, 99))
        span = _Span(0, 100, (10, 90), (False, False))
        assert _own_cells(found, 0 * found, self.ROWS, span)[1] == 1
        assert _own_cells(found, 0 * found, self.ROWS, _Span(0, 100, (10, 100), (False, True)))[1] == 0


class TestSays:
    def test_which_images_go_by_blocks(self, make, save):
        more, not_more = np.zeros((768, 1537), np.uint8), np.zeros((768, 1536), np.uint8)
        with make(768).open(save(more)) as image:
            assert image.shape == (768, 1537)
        assert make(768).open(save(not_more)) is None
        assert make(block_size=0).open(save(more)) is None
        assert make(768).open([save(more)] * 2) is None

    def test_what_blocks_cannot_do(self, make, save):
        path = save(np.zeros((1100, 1100), np.uint8))
        with (
            make(768).open(path) as image,
            pytest.raises(InputError, match="leave save_polygons, save_probabilities and save_entropy out"),
        ):
            make(768, savers=2).check(image)
        with pytest.raises(InputError, match="block_size is 700, but blocks need margins: 768 or more, or 0 for none"):
            make(block_size=700)

    def test_blocks_too_small_for_the_cells_are_refused_where_an_image_needs_blocks(self, make, save):
        """Cells of 100 pixels have margins of 400, made 512; an image that is no larger than two blocks has none."""
        by_blocks = make(768, diameter=100)
        assert by_blocks.open(save(np.zeros((768, 1536), np.uint8), "small.tif")) is None
        with by_blocks.open(save(np.zeros((1100, 1100), np.uint8))) as image:
            words = "for cells of the diameter 100 their margins alone have 1024; give block_size=1280, or 0 to"
            with pytest.raises(InputError, match=words):
                by_blocks.check(image)
            make(1280, diameter=100).check(image)

    def test_no_block_is_looked_at_in_a_size_of_its_own(self, make):
        assert isinstance(make(768, diameter="auto").inference.inferer, MirrorInferer)
        assert make(1280, diameter=100).inference.inferer.diameter == 100

    def test_what_does_not_fit(self, make, save, monkeypatch):
        """768 x 768 pixels of 112 bytes are 66 MB, and 768 rows of 1100 pixels 8 MB; the whole image would be 136."""
        by_blocks, path = make(768), save(np.zeros((1100, 1100), np.uint8))
        with by_blocks.open(path) as image:
            monkeypatch.setattr(memory, "free_memory", lambda: 80_000_000)
            by_blocks.check(image)
            monkeypatch.setattr(memory, "free_memory", lambda: 60_000_000)
            with pytest.raises(InputError, match=r"slide\.tif \(1100 x 1100\) .* give a smaller block_size"):
                by_blocks.check(image)

    def test_a_damaged_tile_before_the_work(self, make, save):
        path = save(np.random.default_rng(0).integers(0, 255, (1100, 1100), np.uint8))
        path.write_bytes(path.read_bytes()[:-1000])
        with make(768).open(path) as image, pytest.raises(InputError, match=r"slide\.tif cannot be decoded"):
            make(768).read_once(image)
