# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Cells of an image that is too large for the memory: block by block, each with a margin that its neighbours see, too.

What a block shows goes through the very transforms, network, inferer and postprocessing of a whole image. Its look is
that of the whole image, and blocks begin where windows of the bundle's size would lie in the whole image, too. A cell
belongs to the block in whose core, which is the block without its margins, its centroid lies.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
from monai.transforms import Compose, NormalizeIntensityd
from monai.utils import convert_to_numpy
from scipy import ndimage
from tqdm import tqdm

from swinumamba_monai.cells import keep_cells
from swinumamba_monai.data.files.limits import most_channels
from swinumamba_monai.data.files.pixel_checks import check_steps
from swinumamba_monai.data.files.tiff_rows import TiffRows, open_rows
from swinumamba_monai.data.sampling.intensity import sampling_step
from swinumamba_monai.errors import InputError
from swinumamba_monai.inference.kept_blocks import KeptBlocks
from swinumamba_monai.inference.memory import MemoryNeed
from swinumamba_monai.inference.one_image import ImageInference, as_loaded
from swinumamba_monai.inference.rescaling import AUTO
from swinumamba_monai.inference.writers import LABEL_TILE, write_label_rows

logger = logging.getLogger(__name__)

MARGIN = 256  # pixels that a block sees of its neighbours: half a window, and four of the largest cells that are known
MARGIN_OF_CELLS = 4  # the same in diameters, where cells are said to be larger
# Pixels beyond its core in which a block takes a cell that no block before has taken: each may see the centroid of a
# cell on the seam in the other's core.
SLACK = 8


@dataclass(frozen=True)
class Block:
    """What was found in a block.

    Args:
        corner: row and column of the block's first pixel in the image.
        image: the block (H, W) or (H, W, C), as it was read.
        labels: numbers (H, W) of the cells that are this block's, from 1 on.
        scores: scores of these cells, (n,).
        before: number of cells of earlier blocks; a cell's number in the image is that much higher.
        cut: number of the cells that reach beyond the margin, and are not whole.
        rows: rows (h, W of the image) of the whole map that are final now, from row ``corner[0]`` on; none before the
            last block of a row of blocks.
    """

    corner: tuple[int, int]
    image: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    before: int
    cut: int
    rows: np.ndarray


class BlockInference:
    """Find cells in large images by blocks.

    Args:
        inference: the prediction of a block; cells are looked for in the size that they have, unless it says another.
        need: memory that an image takes.
        block_size: pixels of the sides of a block with its margins, made a multiple of 256. Images with more than twice
            the pixels of a block go by blocks, if they can be read so; 0 lets none.
        progress: whether to show the blocks.
        channel: number of the channel that is looked at, from 0; with one, images may have up to ``MOST_CHANNELS``.
            None for all.

    Raises:
        InputError: blocks too small for the margins of any cells.
    """

    def __init__(
        self,
        inference: ImageInference,
        need: MemoryNeed,
        block_size: int = 4096,
        progress: bool = False,
        channel: int | None = None,
    ) -> None:
        self.need, self.progress, self.channel = need, progress, channel
        diameter = inference.inferer.diameter
        self.inference = copy.copy(inference)
        if diameter == AUTO:  # which would find cells of different sizes in the blocks of an image
            self.inference.inferer = inference.inferer.inferer
        known = 0 if diameter in (None, AUTO) else diameter
        self.margin = math.ceil(max(MARGIN, MARGIN_OF_CELLS * known) / LABEL_TILE) * LABEL_TILE
        self.block_size = block_size // LABEL_TILE * LABEL_TILE
        if block_size and self.block_size <= 2 * MARGIN:
            least = 2 * MARGIN + LABEL_TILE
            raise InputError(f"block_size is {block_size}, but blocks need margins: {least} or more, or 0 for none.")

    def open(self, name: str | PathLike | Sequence[str | PathLike]) -> TiffRows | None:
        """The image of a path, to be closed, if it goes by blocks; the paths of several channels never do."""
        image = None
        if self.block_size and isinstance(name, (str, PathLike)):
            image = open_rows(name, most_channels(self.channel))
        if image is None or math.prod(image.shape) > 2 * self.block_size**2:
            return image
        image.close()
        return None

    def check(self, image: TiffRows) -> None:
        """Refuse, by an InputError before the work, what blocks cannot do, or not with the memory there is."""
        if len(self.inference.savers) > 1:
            raise InputError(
                f"{image.path} is so large that it is predicted in blocks, which give the cells alone; leave "
                "save_polygons, save_probabilities and save_entropy out."
            )
        if self.block_size <= 2 * self.margin:
            raise InputError(
                f"{image.path} is so large that it is predicted in blocks of {self.block_size} pixels, but for cells "
                f"of the diameter {self.inference.inferer.diameter:g} their margins alone have {2 * self.margin}; give "
                f"block_size={2 * self.margin + LABEL_TILE}, or 0 to predict it whole."
            )
        side = min(self.block_size, max(image.shape))
        first = image.read(0, 1)
        needed = self.need.estimate(np.broadcast_to(np.uint8(0), (side, side, *first.shape[2:])), {})
        needed += side * (2 * first.nbytes + 8 * image.width)  # a row of blocks, and its labels
        self.need.refuse(image.path, image.shape, needed, "give a smaller block_size")

    def read_once(self, image: TiffRows) -> np.ndarray:
        """Every n-th pixel, (H, W) or (H, W, C), as many as its look is made of; all of the image is read for it."""
        step = sampling_step(math.prod(image.shape))
        bands = image.bands(self.block_size)
        return check_steps(np.concatenate([band[-start % step :: step, ::step] for start, band in bands]), image.path)

    def blocks(self, image: TiffRows, overview: np.ndarray, kept: KeptBlocks | None = None) -> Iterator[Block]:
        """Predict an image block by block, from top left, along the rows.

        Args:
            image: image that :meth:`open` gave.
            overview: what :meth:`read_once` gave of it, whose brightness all blocks are normalised by.
            kept: what is kept of its blocks; None keeps none.
        """
        find = partial(self._find, prepare=_fitted(self.inference.prepare, overview))
        find = kept.finder(overview, find) if kept else find
        bands, columns = self._spans(image.height), self._spans(image.width)
        labels, cells = np.zeros((0, image.width), np.int32), 0
        logger.info("%s: %d blocks of up to %d pixels", image.path, len(bands) * len(columns), self.block_size)
        with tqdm(total=len(bands) * len(columns), unit="block", disable=not self.progress, leave=False) as bar:
            for band, next_band in zip(bands, [*bands[1:], None]):
                pixels = image.read(band.start, band.stop)
                new = np.zeros((len(pixels) - len(labels), image.width), np.int32)
                labels = np.concatenate([labels, new])
                final = len(pixels) if next_band is None else next_band.start - band.start
                for span in columns:
                    block = pixels[:, span.start : span.stop]
                    written = labels[:, span.start : span.stop]
                    found, scores = find(block)
                    own, cut = _own_cells(found, written, band, span)
                    numbers = _numbers_of(found, written, own)
                    np.copyto(written, numbers + cells, where=numbers > 0)
                    rows = labels[: final if span is columns[-1] else 0]
                    yield Block((band.start, span.start), block, numbers, scores[own[1:]], cells, cut, rows)
                    cells += np.count_nonzero(own)
                    bar.update()
                labels = labels[final:].copy()

    def run(self, items: Sequence[Mapping[str, str]]) -> None:
        """Predict the "image" of each item and write its cells, as the bundle's ``inference`` does."""
        for item in items:
            with self.open(item["image"]) as image:
                file = self.file_of(item["image"])
                _, cut = self.write(image, file)
                logger.info("%s: written to %s", image.path, file)
                if cut:
                    logger.warning("%s: %s", image.path, self.doubt(cut))

    def write(
        self,
        image: TiffRows,
        file: Path,
        gather: Callable[[Block], None] = lambda block: None,
        kept: KeptBlocks | None = None,
    ) -> tuple[np.ndarray, int]:
        """Predict an image and write its cells.

        Args:
            image: image that :meth:`open` gave.
            file: ``.tif`` file to write, whole or not at all.
            gather: called with every block before its rows are written.
            kept: what is kept of its blocks; None keeps none.

        Returns:
            what :meth:`read_once` gives, and how many cells are not whole.

        Raises:
            InputError: it cannot be predicted in blocks, or not with the memory there is; its file is damaged.
        """
        self.check(image)
        overview, cut = self.read_once(image), 0

        def rows() -> Iterator[np.ndarray]:
            nonlocal cut
            for block in self.blocks(image, overview, kept):
                cut += block.cut
                gather(block)
                yield block.rows

        write_label_rows(file, image.shape, rows())
        return overview, cut

    def doubt(self, cut: int) -> str:
        """What is said of cells that are not whole."""
        return (
            f"{cut} cells reach over the margin of {self.margin} pixels around their block and are cut; give their "
            "diameter, or a larger block_size"
        )

    def file_of(self, name: str) -> Path:
        """The file of an image's cells: a TIFF file, whatever the others are, for it can be written by parts."""
        file = Path(self.inference.savers[0].saver.folder_layout.filename(subject=name))
        return file if file.suffix.lower() in (".tif", ".tiff") else file.with_suffix(".tif")

    def _find(self, block: np.ndarray, prepare: Compose) -> tuple[np.ndarray, np.ndarray]:
        """The cells of a block (H, W) and their scores."""
        _, data = self.inference(as_loaded(block), prepare)
        return convert_to_numpy(data["pred"])[0].astype(np.int32), np.asarray(data[self.inference.scores_key])

    def _spans(self, size: int) -> list[_Span]:
        """The blocks along one axis."""
        step = self.block_size - 2 * self.margin
        count = 1 + max(0, math.ceil((size - self.block_size) / step))
        spans = []
        for number in range(count):
            first, last = number == 0, number == count - 1
            start, stop = number * step, size if last else number * step + self.block_size
            core = (start if first else start + self.margin, stop if last else stop - self.margin)
            spans.append(_Span(start, stop, core, (first, last)))
        return spans


@dataclass(frozen=True)
class _Span:
    """Rows or columns of a block: all, those of its core, and whether it begins or ends where the image does."""

    start: int
    stop: int
    core: tuple[int, int]
    at_edge: tuple[bool, bool]


def _fitted(transforms: Compose, overview: np.ndarray) -> Compose:
    """The transforms, with all that they would take from a block taken from the whole image."""
    item, fitted = {"image": as_loaded(overview)}, []
    for transform in transforms.transforms:
        if isinstance(transform, NormalizeIntensityd):
            channels = item["image"].as_tensor().float().flatten(1)
            transform = copy.deepcopy(transform)
            transform.normalizer.subtrahend = channels.mean(1).numpy()
            transform.normalizer.divisor = channels.std(1, unbiased=False).numpy()
        elif hasattr(transform, "fitted"):
            transform = transform.fitted(item)
        item = transform(item)
        fitted.append(transform)
    return Compose(fitted)


def _own_cells(found: np.ndarray, written: np.ndarray, rows: _Span, columns: _Span) -> tuple[np.ndarray, int]:
    """Which cells (n + 1,) of a block are its own and not there yet, and how many of them are cut."""
    places = np.nonzero(found)
    numbers = found[places]
    area = np.bincount(numbers, minlength=1)
    own = 2 * np.bincount(numbers, written[places] > 0, len(area)) <= area
    for at, span in zip(places, (rows, columns)):
        centre = span.start + np.bincount(numbers, at, len(area)) / np.maximum(area, 1)
        own &= (centre >= span.core[0] - SLACK) & (centre < span.core[1] + SLACK)
    own[0] = False
    sides = zip((found[0], found[-1], found[:, 0], found[:, -1]), (*rows.at_edge, *columns.at_edge))
    cut = {number for side, at_edge in sides if not at_edge for number in np.unique(side).tolist() if own[number]}
    return own, len(cut)


def _numbers_of(found: np.ndarray, written: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The numbers (H, W) of a block's own cells, from 1 on, where no earlier cell is; each in one piece."""
    numbers = keep_cells(found, own)
    trimmed = np.unique(numbers[written > 0])
    numbers[written > 0] = 0
    boxes = ndimage.find_objects(numbers) if trimmed.any() else []
    for number in trimmed[trimmed > 0].tolist():
        box = boxes[number - 1]
        pieces, count = ndimage.label(numbers[box] == number)
        if count > 1:
            largest = np.bincount(pieces.ravel())[1:].argmax() + 1
            numbers[box][(pieces > 0) & (pieces != largest)] = 0
    return numbers
