# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic endoscopy: one to three robotic instruments of seven kinds before wet tissue with vessels.

Instruments are drawn from tapered rods, which have the shading of metal cylinders. No pixel is taken from a real image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monai.config import PathLike
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from swinumamba_monai.data.files.label_map import ENDOSCOPY_CLASSES
from swinumamba_monai.data.synthetic.folder import write_synthetic
from swinumamba_monai.errors import InputError

MIN_IMAGE_SIZE = 64

_STEEL, _SHAFT = (0.66, 0.68, 0.70), (0.17, 0.17, 0.19)


@dataclass(frozen=True)
class _Kind:
    """How an instrument looks; lengths are in widths of its shaft.

    Attributes:
        jaws: number of jaws.
        length: length of a jaw.
        width: widths of a jaw at its root and at its tip.
        curve: angle by which the jaws bend, in radians.
        opening: the largest angle of a jaw to the axis, in radians.
        colour: colour of the jaws, RGB.
        wrist: colour of the part between shaft and jaws.
        slot: whether a jaw has a long hole, as graspers have.
    """

    jaws: int
    length: float
    width: tuple[float, float]
    curve: float
    opening: float
    colour: tuple[float, float, float]
    wrist: tuple[float, float, float]
    slot: bool = False


_KINDS = {
    "large needle driver": _Kind(2, 1.0, (0.62, 0.40), 0.0, 0.30, (0.74, 0.66, 0.42), _STEEL),
    "prograsp forceps": _Kind(2, 1.7, (0.42, 0.36), 0.15, 0.45, _STEEL, _STEEL, slot=True),
    "monopolar curved scissors": _Kind(2, 1.5, (0.34, 0.06), 0.6, 0.55, (0.78, 0.80, 0.82), (0.80, 0.42, 0.16)),
    "cadiere forceps": _Kind(2, 2.3, (0.62, 0.58), 0.0, 0.25, (0.56, 0.58, 0.62), (0.36, 0.37, 0.40), slot=True),
    "bipolar forceps": _Kind(2, 2.1, (0.34, 0.14), 0.45, 0.35, (0.60, 0.64, 0.70), (0.24, 0.36, 0.62)),
    "vessel sealer": _Kind(2, 2.4, (0.70, 0.52), 0.2, 0.16, (0.52, 0.50, 0.48), (0.84, 0.84, 0.82)),
    "drop-in ultrasound probe": _Kind(1, 2.2, (1.25, 1.05), 0.1, 0.0, (0.82, 0.78, 0.64), (0.30, 0.30, 0.31)),
}


def synthesize_endoscopy(
    output_dir: PathLike,
    num_train: int = 24,
    num_validation: int = 4,
    num_test: int = 8,
    image_size: tuple[int, int] = (384, 640),
    seed: int = 0,
) -> Path:
    """Write frames, masks and datalist of a synthetic dataset with the paper's seven instruments.

    Frames are 8-bit RGB, masks have one class number per pixel.

    Args:
        output_dir, num_train, num_validation, num_test, seed: see :meth:`swinumamba_monai.tasks.Task.synthesize`.
        image_size: height and width in pixels, 64 at least.

    Raises:
        InputError: The folder holds something else, a number is negative or the frames are too small.
    """
    if min(image_size) < MIN_IMAGE_SIZE:
        raise InputError(f"Synthetic frames of {tuple(image_size)} pixels are not possible; use at least 64.")

    def make(rng: np.random.Generator, index: int, image_path: Path, label_path: Path) -> None:
        frame, classes = synthesize_frame(rng, image_size, first=index)
        Image.fromarray(frame).save(image_path)
        Image.fromarray(classes).save(label_path)

    description = f"Synthetic endoscopy, {image_size[0]} x {image_size[1]} pixels, seed {seed}"
    counts = (num_train, num_validation, num_test)
    return write_synthetic(output_dir, "endoscopy", counts, ".png", description, make, seed, ENDOSCOPY_CLASSES)


def synthesize_frame(
    rng: np.random.Generator, image_size: tuple[int, int], first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One frame (H, W, 3) uint8 and its classes (H, W) uint8.

    Args:
        rng: source of every random choice.
        image_size: (H, W) in pixels.
        first: its remainder by seven is the kind of one of the instruments; the others are random.
    """
    scene = _draw_tissue(rng, image_size)
    classes = np.zeros(image_size, dtype=np.uint8)
    kinds = np.concatenate([[first % len(_KINDS)], rng.integers(len(_KINDS), size=rng.integers(0, 3))])
    # Instruments come in through the left, the right or the lower border, each at another place.
    places = rng.permutation(3)
    for kind, place in zip(rng.permutation(kinds), places):
        name = ENDOSCOPY_CLASSES[kind + 1]
        cover = _draw_instrument(rng, scene, _KINDS[name], int(place))
        classes[cover > 0.5] = kind + 1
    rows, columns = np.mgrid[-1 : 1 : image_size[0] * 1j, -1 : 1 : image_size[1] * 1j]
    light = 1.12 - rng.uniform(0.25, 0.6) * (
        (rows - rng.uniform(-0.3, 0.3)) ** 2 + (columns - rng.uniform(-0.3, 0.3)) ** 2
    )
    scene = gaussian_filter(scene * np.clip(light, 0.1, None)[..., None], (0.7, 0.7, 0))
    scene = scene * rng.uniform(0.8, 1.1) + rng.uniform(0, 0.06)  # exposure, and a little smoke
    noisy = scene * 255 + rng.normal(0, rng.uniform(1.5, 4), scene.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8), classes


def _draw_tissue(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """Folds of red tissue with fat, vessels and reflections of the lamp, (H, W, 3) from 0 to 1."""
    half = tuple(-(-size // 2) for size in image_size)  # noise is smooth: half the resolution is enough
    scale = max(half) / 320
    folds, spots, grain = (_texture(rng, half, sigma * scale) for sigma in (28, 10, 2.5))
    red = np.array([0.62, 0.22, 0.18]) * rng.uniform(0.85, 1.15, 3)
    fat = np.clip((_texture(rng, half, 24 * scale) - rng.uniform(0.2, 1.2)) * 2, 0, 1)[..., None]
    tissue = red * (1 - fat) + np.array([0.84, 0.60, 0.38]) * rng.uniform(0.94, 1.06, 3) * fat
    tissue = tissue * (1 + 0.16 * folds + 0.07 * spots + 0.05 * grain)[..., None]
    # The zero lines of noise wind and branch like vessels; another noise lets them come and go.
    line = _texture(rng, half, 16 * scale) / rng.uniform(0.05, 0.09)
    vessel = np.exp(-(line**2)) * np.clip(_texture(rng, half, 20 * scale) + 0.3, 0, 1)
    tissue *= 1 - vessel[..., None] * np.array([0.35, 0.6, 0.55])
    wet = _texture(rng, half, 3.5 * scale) + 0.8 * folds
    shine = np.clip((wet - np.quantile(wet, rng.uniform(0.975, 0.995))) * 2.5, 0, 1)
    tissue = tissue * (1 - shine[..., None]) + shine[..., None]
    full = zoom(tissue, (2, 2, 1), order=1)[: image_size[0], : image_size[1]]
    return np.clip(full, 0.01, 1.0)


def _draw_instrument(rng: np.random.Generator, scene: np.ndarray, kind: _Kind, place: int) -> np.ndarray:
    """Draw an instrument into the scene; where it covers the scene, (H, W) from 0 to 1."""
    height, width = scene.shape[:2]
    size = height * rng.uniform(0.075, 0.12)  # width of the shaft
    along = rng.uniform(0.25, 0.75)
    start = np.array([(along * height, -size), (along * height, width + size), (height + size, along * width)][place])
    aim = np.array([rng.uniform(0.25, 0.7) * height, rng.uniform(0.3, 0.7) * width])
    reach = rng.uniform(0.55, 0.95)
    joint = start + (aim - start) * reach
    direction = (joint - start) / np.linalg.norm(joint - start)
    bend = rng.normal(0, 0.3)  # of the wrist
    wrist = joint + size * 0.9 * _turn(direction, bend)
    rods = [(start, joint, size / 2, size / 2, _SHAFT, False)]
    rods.append((joint, wrist, size * 0.46, size * 0.40, kind.wrist, False))
    opening = rng.uniform(0.15, 1) * kind.opening
    for side in (-1, 1)[: kind.jaws]:
        heading = _turn(direction, bend + side * opening)
        point, parts = wrist, 4
        for part in range(parts):
            end = point + size * kind.length / parts * heading
            root, tip = kind.width
            radii = [size / 2 * (root + (tip - root) * (part + step) / parts) for step in (0, 1)]
            rods.append((point, end, *radii, kind.colour, kind.slot and 0 < part < parts - 1))
            point, heading = end, _turn(heading, -kind.curve / parts)
    cover = np.zeros((height, width))
    shadow = np.zeros((height, width))
    for rod in rods:
        window, across, _ = _rod_coordinates(rod, shadow.shape)
        shadow[window][np.abs(across) < 1] = 1
    shadow = gaussian_filter(shadow, size / 3)
    scene *= 1 - 0.5 * np.roll(shadow, (int(size / 4), int(size / 5)), (0, 1))[..., None]
    gleam = rng.uniform(0.5, 1.0)
    for rod in rods:
        _paint_rod(scene, cover, rod, gleam)
    return cover


def _paint_rod(scene: np.ndarray, cover: np.ndarray, rod: tuple, gleam: float) -> None:
    """Paint a rod as a lit metal cylinder, with soft edges; ``cover`` grows to where it lies."""
    colour, slot = np.array(rod[4]), rod[5]
    window, across, radius = _rod_coordinates(rod, cover.shape)
    alpha = np.clip((1 - np.abs(across)) * radius + 0.5, 0, 1)
    round_ = np.sqrt(np.clip(1 - across**2, 0, 1))
    shade = (0.35 + 0.65 * round_)[..., None] * colour
    shade = shade + gleam * (0.25 + 0.5 * colour.mean()) * np.exp(-(((across + 0.35) / 0.16) ** 2))[..., None]
    if slot:
        shade = np.where((np.abs(across) < 0.4)[..., None], 0.25 * colour, shade)
    scene[window] += alpha[..., None] * (shade - scene[window])
    cover[window] = np.maximum(cover[window], alpha)


def _rod_coordinates(rod: tuple, shape: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The window of a rod in an image, and in it the signed distance from the axis in radii, and the radius."""
    start, end, first, last = rod[:4]
    reach = max(first, last) + 2
    low = np.clip(np.floor(np.minimum(start, end) - reach), 0, shape).astype(int)
    high = np.clip(np.ceil(np.maximum(start, end) + reach), 0, shape).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    rows, columns = np.mgrid[window]
    axis = end - start
    length = max(float(np.linalg.norm(axis)), 1e-6)
    row, column = axis / length
    along = (rows - start[0]) * row + (columns - start[1]) * column
    part = np.clip(along / length, 0, 1)
    distance = np.hypot(rows - start[0] - part * axis[0], columns - start[1] - part * axis[1])
    side = np.where((rows - start[0]) * column - (columns - start[1]) * row < 0, -1.0, 1.0)
    radius = first + (last - first) * part
    return window, side * distance / radius, radius


def _turn(direction: np.ndarray, angle: float) -> np.ndarray:
    """A direction (row, column) turned by an angle in radians."""
    row, column = direction
    return np.array([row * np.cos(angle) - column * np.sin(angle), row * np.sin(angle) + column * np.cos(angle)])


def _texture(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Random spots of about ``scale`` pixels, (H, W), mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.standard_normal(shape), scale, mode="wrap", truncate=3)
    return (noise - noise.mean()) / noise.std()
