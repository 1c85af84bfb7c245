# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Effective receptive field: how much each input pixel moves the centre of the output (paper, Fig. 7).

Source: Luo et al., "Understanding the effective receptive field in deep convolutional neural networks", NeurIPS 2016:
the gradient of the output's central position with respect to the input. Here it is that of the sum of all classes'
logits at the centre, its absolute values summed over the channels and averaged over the inputs. The paper took the
features of the encoder instead, over 1000 images of AbdomenMRI, and published no script for it. The logits are what all
systems have; they include the decoder, and with it what comes through the skip connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.config import PathLike
from monai.transforms import CenterSpatialCrop, NormalizeIntensity, SpatialPad
from torch import Tensor, nn

from swinumamba_monai.atomic import replacing
from swinumamba_monai.data import load_images, read_image
from swinumamba_monai.errors import InputError
from swinumamba_monai.reports.tables import write_csv

DECADES = 4  # powers of ten below a map's maximum that the colours show


def load_inputs(
    images: PathLike | None, num_images: int, in_channels: int, size: tuple[int, int], seed: int = 0
) -> list[Tensor]:
    """Images (in_channels, h, w) as a network gets them: zero mean, unit variance, cut or padded around the centre.

    Args:
        images: an image, a folder of images or a prepared dataset; None for normally distributed random input.
        num_images: number of images to take at the most, the first by name.
        in_channels: number of channels, 1 for the mean of the colours, 3 for RGB.
        size: size (h, w) of the inputs in pixels.
        seed: seed of random input.

    Raises:
        InputError: there is no image, one that cannot be read, or a number that cannot be.
    """
    if num_images < 1 or in_channels < 1 or (images is not None and in_channels not in (1, 3)):
        raise InputError(f"{num_images} images of {in_channels} channels are impossible; give at least 1, and 1 or 3.")
    if images is None:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(in_channels, *size, generator=generator) for _ in range(num_images)]
    normalize, crop, pad = NormalizeIntensity(channel_wise=True), CenterSpatialCrop(size), SpatialPad(size)
    inputs = []
    for item in load_images(images)[:num_images]:
        image = torch.as_tensor(np.atleast_3d(read_image(item["image"])).astype(np.float32)).permute(2, 0, 1)[:3]
        image = image.mean(0, keepdim=True) if in_channels == 1 else image.expand(3, -1, -1)
        inputs.append(torch.as_tensor(pad(crop(normalize(image)))))
    return inputs


def effective_receptive_field(network: nn.Module, inputs: Sequence[Tensor]) -> np.ndarray:
    """Mean over the inputs of |d sum of the central logits / d input|, summed over channels: (h, w), float64.

    Args:
        network: network that maps (1, c, h, w) to logits (1, classes, h, w); it is put into evaluation mode.
        inputs: tensors (c, h, w), all of one size.

    Raises:
        InputError: the gradient is 0 everywhere, or not finite.
    """
    network.eval()
    device = next(network.parameters()).device
    total = np.zeros(inputs[0].shape[1:])
    for image in inputs:
        x = image[None].to(device).requires_grad_()
        logits = network(x)
        centre = logits[0, :, logits.shape[2] // 2, logits.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(centre, x)
        total += gradient[0].abs().sum(0).double().cpu().numpy()
    if not np.isfinite(total).all() or not total.any():
        raise InputError("The network's central logits have no gradient that is finite and not 0 everywhere.")
    return total / len(inputs)


def energy_within(field: np.ndarray, num_radii: int = 32) -> list[tuple[float, float]]:
    """Pairs of the radius in pixels of a circle around a field's centre and the share of the field's sum within it.

    Args:
        field: field of shape (h, w), not negative.
        num_radii: number of circles, evenly spaced, the last of which holds everything.
    """
    distances = np.hypot(*np.meshgrid(*(np.arange(n) - n // 2 for n in field.shape), indexing="ij"))
    radii = np.linspace(0, distances.max(), num_radii + 1)[1:]
    return [(float(radius), float(field[distances <= radius].sum() / field.sum())) for radius in radii]


def write_erf(output_dir: PathLike, fields: Mapping[str, np.ndarray], heading: str) -> list[Path]:
    """A heat map of each field, all of them side by side, and their energy within growing radii.

    Args:
        output_dir: folder to write into; made if absent.
        fields: fields of shape (h, w) by the name of the network.
        heading: text above the figures.

    Returns:
        the files: ``NAME_erf.png`` of each, ``erf.png`` of all and ``erf.csv``.
    """
    folder = Path(output_dir)
    energies = {name: energy_within(field) for name, field in fields.items()}
    rows = [{"network": n, "radius": r, "share": share} for n, pairs in energies.items() for r, share in pairs]
    write_csv(folder, "erf", rows)
    paths = [folder / f"{name}_erf.png" for name in fields]
    for path, (name, field) in zip(paths, fields.items()):
        _draw(path, {name: field}, heading)
    _draw(folder / "erf.png", fields, heading)
    return [*paths, folder / "erf.png", folder / "erf.csv"]


def _draw(path: Path, fields: Mapping[str, np.ndarray], heading: str) -> None:
    """Dark is much, as in the paper; each map relative to its own largest value, over four decades."""
    figure = Figure(figsize=(3.4 * len(fields) + 1, 4), layout="constrained")
    figure.suptitle(f"Effective receptive field: log10 of value / largest value\n{heading}", fontsize=8)
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items()):
        shown = np.log10(np.maximum(field / field.max(), 10.0**-DECADES))
        picture = axis.imshow(shown, cmap="Greens", vmin=-DECADES, vmax=0)
        half = next(radius for radius, share in energy_within(field, 200) if share >= 0.5)
        axis.set_title(f"{name}\nhalf of it within {half:.0f} pixels", fontsize=9)
        axis.set_axis_off()
    figure.colorbar(picture, ax=axes.tolist(), shrink=0.7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
