# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic microscopy: nuclei under a fluorescence microscope and in stained tissue, with exact instance maps.

No pixel of it is taken from a real image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.config import PathLike
from PIL import Image
from scipy.ndimage import gaussian_filter, label
from skimage.color import rgb_from_hed

from swinumamba_monai.data.synthetic.folder import write_synthetic
from swinumamba_monai.errors import InputError

MIN_IMAGE_SIZE = 64


def synthesize_microscopy(
    output_dir: PathLike,
    num_train: int = 24,
    num_validation: int = 4,
    num_test: int = 8,
    image_size: tuple[int, int] = (256, 256),
    seed: int = 0,
) -> Path:
    """Write images, instance maps and datalist of a synthetic dataset.

    Three of four images are fluorescence (8-bit gray), the fourth is stained tissue (8-bit RGB).

    Args:
        output_dir, num_train, num_validation, num_test, seed: see :meth:`swinumamba_monai.tasks.Task.synthesize`.
        image_size: height and width in pixels, 64 at least.

    Raises:
        InputError: The folder holds something else, a number is negative or the images are too small.
    """
    if min(image_size) < MIN_IMAGE_SIZE:
        raise InputError(f"Synthetic images of {tuple(image_size)} pixels are not possible; use at least 64.")

    def make(rng: np.random.Generator, index: int, image_path: Path, label_path: Path) -> None:
        image, instances = synthesize_image(rng, image_size, stained=index % 4 == 3)
        Image.fromarray(image).save(image_path)
        Image.fromarray(instances).save(label_path)

    description = f"Synthetic nuclei, {image_size[0]} x {image_size[1]} pixels, seed {seed}"
    counts = (num_train, num_validation, num_test)
    return write_synthetic(output_dir, "microscopy", counts, ".png", description, make, seed)


def synthesize_image(
    rng: np.random.Generator, image_size: tuple[int, int], stained: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One image (H, W) or (H, W, 3) uint8, and its instance map (H, W) uint16 with the ids 1 to n.

    Args:
        rng: source of every random choice.
        image_size: (H, W) in pixels.
        stained: stained tissue in transmitted light instead of fluorescence.
    """
    radius = rng.uniform(6, 9) if rng.random() < 0.4 else rng.uniform(9, 20)
    instances, thickness = _place_nuclei(rng, image_size, radius)
    render = _render_stained if stained else _render_fluorescence
    return render(rng, instances, thickness, radius), instances


def _place_nuclei(
    rng: np.random.Generator, image_size: tuple[int, int], radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Put nuclei of about ``radius`` pixels into the plane, alone, in touching pairs and in clusters.

    Returns:
        The instance map (H, W) uint16, and the thickness (H, W) of the nuclei, from 0 at the rim to 1 in the middle.
    """
    height, width = image_size
    instances = np.zeros(image_size, dtype=np.uint16)
    thickness = np.zeros(image_size)
    rows, columns = np.mgrid[:height, :width]
    elongation, clustering = rng.uniform(1.05, 1.9), rng.uniform(0.1, 0.7)
    grain = rng.uniform(0, np.pi)  # tissue and crowded cells align
    attempts = 4 + int(rng.uniform(0.1, 0.45) * height * width / (np.pi * radius**2))
    placed: list[tuple[float, float, float]] = []
    for _ in range(attempts):
        size = radius * rng.lognormal(0, 0.18)
        if placed and rng.random() < clustering:
            row, column, other = placed[rng.integers(len(placed))]
            angle, distance = rng.uniform(0, 2 * np.pi), (size + other) * rng.uniform(0.85, 1.1)
            row, column = row + distance * np.sin(angle), column + distance * np.cos(angle)
        else:
            row, column = rng.uniform(0, height), rng.uniform(0, width)
        reach = int(3 * size)
        top, left = max(int(row) - reach, 0), max(int(column) - reach, 0)
        window = np.s_[top : max(int(row) + reach, 0), left : max(int(column) + reach, 0)]
        depth = _nucleus(rng, rows[window] - row, columns[window] - column, size, elongation, grain)
        inside = depth > 0
        free = inside & (instances[window] == 0)
        # A nucleus may lie a little under another one, but what is seen of it is one piece.
        if free.sum() < max(0.85 * inside.sum(), 20) or label(free)[1] != 1:
            continue
        placed.append((row, column, size))
        instances[window][free] = len(placed)
        thickness[window][free] = depth[free]
    return instances, thickness


def _nucleus(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, size: float, elongation: float, grain: float
) -> np.ndarray:
    """The thickness of one nucleus around (0, 0): an ellipse with a wavy, at times dented, outline; 0 outside."""
    stretch = np.sqrt(elongation * rng.uniform(0.85, 1.15))
    turn = rng.normal(grain, 0.6)
    along = (columns * np.cos(turn) + rows * np.sin(turn)) / stretch
    across = (rows * np.cos(turn) - columns * np.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for wave in range(2, 6):
        outline += rng.normal(0, 0.25 / wave**2) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return np.clip(1 - (along**2 + across**2) / (size * outline) ** 2, 0, None)


def _render_fluorescence(
    rng: np.random.Generator, instances: np.ndarray, thickness: np.ndarray, radius: float
) -> np.ndarray:
    """Glowing DNA on a dark ground, (H, W) uint8: chromatin, focus, uneven light, photon and read noise."""
    glow = _per_nucleus(instances, rng.lognormal(0, 0.35, instances.max()))
    chromatin = 1 + rng.uniform(0.04, 0.2) * _texture(rng, instances.shape, max(radius / 12, 0.8))
    glow = glow * (0.5 + 0.5 * np.sqrt(thickness)) * np.clip(chromatin, 0.2, None)
    glow = _focus(rng, glow, instances, rng.uniform(0.8, 1.4))
    haze = rng.uniform(0, 0.15) * gaussian_filter(glow, 2 * radius)
    cytoplasm = rng.uniform(0, 0.02) * np.clip(_texture(rng, instances.shape, radius / 2), 0, None)
    scene = (glow + haze + cytoplasm + rng.uniform(0.01, 0.12)) * _uneven_light(rng, instances.shape, 0.4)
    photons = np.exp(rng.uniform(np.log(60), np.log(2000)))
    camera = rng.poisson(scene * photons) + rng.normal(0, 1.5, scene.shape)
    brightest = np.exp(rng.uniform(np.log(60), np.log(255)))  # many real images use a part of the 8 bits only
    return np.clip(camera / np.percentile(camera, 99.8) * brightest, 0, 255).round().astype(np.uint8)


def _render_stained(
    rng: np.random.Generator, instances: np.ndarray, thickness: np.ndarray, radius: float
) -> np.ndarray:
    """Hematoxylin nuclei in eosin tissue in transmitted light, (H, W, 3) uint8: each dye absorbs (Beer-Lambert)."""
    shape = instances.shape
    dye = _per_nucleus(instances, rng.lognormal(np.log(rng.uniform(0.7, 1.3)), 0.3, instances.max()))
    chromatin = np.clip(1 + rng.uniform(0.15, 0.35) * _texture(rng, shape, radius / 10), 0.3, None)
    rim = 0.35 * np.exp(-((thickness / 0.25) ** 2))  # heterochromatin lines the nuclear membrane
    dye = dye * (0.55 + 0.45 * np.sqrt(thickness) + rim) * chromatin
    hematoxylin = _focus(rng, dye, instances, rng.uniform(0.7, 1.2))
    hematoxylin += np.clip(0.06 + 0.05 * _texture(rng, shape, radius / 2), 0, None)
    ground = 0.25 * _texture(rng, shape, radius) + 0.15 * _texture(rng, shape, 2.0)
    fibres = np.exp(-((_texture(rng, shape, radius / 2) / 0.15) ** 2))  # the zero lines of noise wind like collagen
    eosin = np.clip(rng.uniform(0.15, 0.4) * (1 + ground + rng.uniform(0, 0.4) * fibres), 0.02, None)
    # From pink eosin to the violet ground of a single dye.
    pink = rng.uniform(0.1, 0.7)
    absorption = np.stack([rgb_from_hed[0], pink * rgb_from_hed[1] + (1 - pink) * np.array([0.5, 0.75, 0.2])])
    absorption += rng.normal(0, 0.04, (2, 3))
    light = 245 * _uneven_light(rng, shape, 0.08)[..., None]
    image = light * np.exp(-np.stack([hematoxylin, eosin], axis=-1) @ absorption)
    return np.clip(image + rng.normal(0, 2.5, image.shape), 0, 255).round().astype(np.uint8)


def _per_nucleus(instances: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An image (H, W) in which every nucleus has its own value, and the background 0."""
    return np.concatenate([[0.0], values])[instances]


def _texture(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Random spots of about ``scale`` pixels and none far larger, (H, W), mean 0 and standard deviation 1."""
    noise = rng.standard_normal(shape)
    spots = gaussian_filter(noise, scale) - gaussian_filter(noise, 3 * scale)
    return (spots - spots.mean()) / spots.std()


def _focus(rng: np.random.Generator, image: np.ndarray, instances: np.ndarray, blur: float) -> np.ndarray:
    """Blur the image by ``blur`` pixels, and one nucleus in eight, out of focus, three times as much."""
    far = _per_nucleus(instances, rng.random(instances.max()) < 0.125) > 0
    return gaussian_filter(np.where(far, 0, image), blur) + gaussian_filter(np.where(far, image, 0), 3 * blur)


def _uneven_light(rng: np.random.Generator, shape: tuple[int, int], fall: float) -> np.ndarray:
    """Light that falls off from a random point, (H, W): 1 there, and down to ``1 - fall`` at a distance of a side."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    row, column = rng.uniform(0.2, 0.8, 2) * shape
    return 1 - rng.uniform(0, fall) * np.clip(((rows - row) ** 2 + (columns - column) ** 2) / max(shape) ** 2, 0, 1)
