# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""How far the network is within one image."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from swinumamba_monai.inference.mirroring import MirrorInferer
from swinumamba_monai.inference.rescaling import AUTO, RescalingInferer

PATIENCE = 3  # seconds that an image may take before a bar appears for it
SECONDS_IN_A_FILE = 30  # seconds between two states of a bar that goes into a log


@contextmanager
def bar_of(total: int | None, unit: str, **options: object) -> Iterator[tqdm]:
    """A progress bar on the terminal, or lines now and then in a log.

    What is logged to the terminal in the meantime gets lines of its own, above the bar.

    Args:
        total: number of units when all is done; None where it is not known.
        unit: what is counted, such as ``"image"``.
        options: further arguments of :class:`tqdm.tqdm`.
    """
    interval = 0.1 if sys.stderr.isatty() else SECONDS_IN_A_FILE
    with logging_redirect_tqdm(), tqdm(total=total, unit=unit, mininterval=interval, **options) as bar:
        yield bar


def count_windows(inferer: MirrorInferer | RescalingInferer, shape: Sequence[int]) -> int | None:
    """How many windows the network sees of an image in its own size, mirror images counted; None in another size.

    Args:
        inferer: around a sliding window in two dimensions, also slice by slice.
        shape: spatial shape of the image as the inferer gets it.
    """
    if isinstance(inferer, RescalingInferer):
        return count_windows(inferer.inferer, shape) if inferer.diameter in (None, AUTO) else None
    window: SlidingWindowInferer = inferer.inferer
    sides = (*window.roi_size, 1)[: len(shape)]
    count = len(inferer.flips)
    for size, side, overlap in zip(shape, sides, ensure_tuple_rep(window.overlap, len(shape))):
        count *= math.ceil(max(size - side, 0) / max(int(side * (1 - overlap)), 1)) + 1
    return count


@contextmanager
def counting(network: nn.Module, windows: int | None, shown: bool) -> Iterator[Callable[..., Tensor]]:
    """The network, with a bar of the windows that it has seen once the image takes long.

    Args:
        network: maps windows (b, c, h, w) to logits.
        windows: how many there will be; None if that is not known.
        shown: whether there is a bar at all.
    """
    with bar_of(windows, "window", delay=PATIENCE, leave=False, disable=not shown) as bar:

        def counted(batch: Tensor, *args: object, **kwargs: object) -> Tensor:
            logits = network(batch, *args, **kwargs)
            bar.update(len(batch))
            return logits

        yield counted
