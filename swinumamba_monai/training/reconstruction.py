# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of what masked image modelling has learned: image, what is seen of it, and what is made of that."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from torch import Tensor

from swinumamba_monai.atomic import replacing
from swinumamba_monai.painting import display_range
from swinumamba_monai.reports.figures import panel_figure

WIDTH = 2.4  # width of a panel, inches
TITLES = "image", "masked input", "reconstruction"
GREY = 0.5  # brightness of masked pixels, from 0 (black) to 1 (white)


class ReconstructionPicture(TensorBoardHandler):
    """Write ``reconstruction_epoch0005.png`` after a validation, and the same into TensorBoard.

    The images are the first of the validation; with a :class:`~swinumamba_monai.training.MaskedBatch` that has a seed
    their masks stay the same too, so that the pictures of a run can be laid side by side.

    Args:
        output_dir: folder of the pictures and of TensorBoard's events.
        num_images: number of rows of the picture, at most a batch.
        interval: number of epochs of the trainer from one picture to the next.
    """

    def __init__(self, output_dir: str | PathLike, num_images: int = 4, interval: int = 1) -> None:
        super().__init__(log_dir=str(output_dir))
        self.output_dir = Path(output_dir)
        self.num_images = num_images
        self.interval = interval
        self.rows: list[tuple[np.ndarray, ...]] = []

    def attach(self, engine: Engine) -> None:
        """Collect and draw in the validations of ``engine``, a MONAI evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _collect(self, engine: Engine) -> None:
        if engine.state.iteration == 1 and engine.state.epoch % self.interval == 0:
            items = engine.state.output[: self.num_images]
            self.rows = [_panels(item["image"], item["pred"], item["label"]) for item in items]

    def _draw(self, engine: Engine) -> None:
        rows, self.rows = self.rows, []
        if not rows:
            return
        name = engine.state.key_metric_name
        heading = f"epoch {engine.state.epoch}, {name} {engine.state.metrics[name]:.4f}"
        figure = panel_figure(rows, [TITLES], WIDTH, heading)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with replacing(self.output_dir / f"reconstruction_epoch{engine.state.epoch:04d}.png") as temporary:
            figure.savefig(temporary, dpi=120)
        self._writer.add_figure("reconstruction", figure, engine.state.epoch)


def _panels(image: Tensor, pred: Tensor, label: Tensor) -> tuple[np.ndarray, ...]:
    """The three panels of an image (c, h, w): (h, w) or (h, w, 3) in [0, 1], on the image's scale of brightness."""
    channels = 3 if image.shape[0] >= 3 else 1
    image, pred, label = (x[:channels].detach().float().cpu() for x in (image, pred, label))
    masked = ~label.isnan()
    low, span = display_range(image.numpy())

    def show(x: Tensor) -> np.ndarray:
        return ((x - low) / span).clamp(0, 1).permute(1, 2, 0).numpy()

    panels = show(image), np.where(masked.permute(1, 2, 0), GREY, show(image)), show(torch.where(masked, pred, image))
    return panels if channels == 3 else tuple(panel[..., 0] for panel in panels)
