# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic abdominal MRI: thick slices of a body with 13 organs, uneven coil sensitivity and Rician noise.

Organs are ellipsoids with wavy surfaces at about their anatomical places. No voxel is taken from a real image.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.config import PathLike
from scipy.ndimage import gaussian_filter

from swinumamba_monai.data.files.label_map import ABDOMEN_CLASSES
from swinumamba_monai.data.synthetic.folder import write_synthetic
from swinumamba_monai.errors import InputError

MIN_IMAGE_SIZE = 48
MIN_SLICES = 4

# The part of the body that the slices cover, and the width and depth that fit into a slice, in mm.
_HEIGHT, _WIDTH, _DEPTH = 190.0, 390.0, 300.0

# Orientations in which scanners and converters store volumes.
_ORIENTATIONS = ("LPS", "RAS", "LAS", "PSL")

# Centre and radii in mm (right, anterior, superior of the middle of the body) and brightness in fat-suppressed T2
# weighting. Later ones lie in front of earlier ones. "-" are no organs of the dataset.
_ORGANS = (
    ("-", (0, -62, 0), (23, 19, 900), 0.22),  # vertebrae
    ("-", (0, -88, 0), (9, 9, 900), 1.0),  # spinal canal
    ("-", (38, -62, -60), (22, 18, 70), 0.16),  # psoas muscles
    ("-", (-38, -62, -60), (22, 18, 70), 0.16),
    ("liver", (82, 8, 42), (72, 76, 62), 0.36),
    ("liver", (18, 34, 55), (55, 38, 34), 0.36),
    ("stomach", (-58, 32, 48), (48, 34, 44), 0.52),
    ("spleen", (-104, -30, 42), (30, 44, 46), 0.80),
    ("right kidney", (60, -46, -22), (26, 28, 50), 0.95),
    ("left kidney", (-60, -46, -8), (26, 28, 50), 0.95),
    ("pancreas", (-6, 8, 2), (62, 13, 15), 0.46),
    ("duodenum", (34, 4, -22), (19, 17, 36), 0.60),
    ("gallbladder", (62, 40, 2), (17, 17, 28), 1.20),
    ("inferior vena cava", (20, -24, 0), (12, 10, 900), 0.06),
    ("aorta", (-8, -28, 0), (11, 11, 900), 0.28),
    ("right adrenal gland", (38, -34, 40), (15, 6, 14), 0.40),
    ("left adrenal gland", (-36, -34, 46), (15, 6, 14), 0.40),
    ("esophagus", (-8, -4, 92), (10, 9, 34), 0.44),
)
_FAT, _MUSCLE = 0.12, 0.18


def synthesize_abdomen_mri(
    output_dir: PathLike,
    num_train: int = 8,
    num_validation: int = 2,
    num_test: int = 2,
    image_size: tuple[int, int] = (128, 160),
    num_slices: int = 24,
    seed: int = 0,
) -> Path:
    """Write volumes, label volumes and datalist of a synthetic dataset with the paper's 13 organs.

    Volumes are 16-bit NIfTI files of axial slices, about 190 mm high, in several orientations and spacings.

    Args:
        output_dir, num_train, num_validation, num_test, seed: see :meth:`swinumamba_monai.tasks.Task.synthesize`.
        image_size: height and width of a slice in voxels, 48 at least.
        num_slices: number of slices of a volume, 4 at least.

    Raises:
        InputError: The folder holds something else, a number is negative or the volumes are too small.
    """
    if min(image_size) < MIN_IMAGE_SIZE or num_slices < MIN_SLICES:
        raise InputError(
            f"Synthetic volumes of {num_slices} slices of {tuple(image_size)} pixels are not possible; use at least "
            f"{MIN_SLICES} of {MIN_IMAGE_SIZE}."
        )

    def make(rng: np.random.Generator, index: int, image_path: Path, label_path: Path) -> None:
        volume, classes, affine = synthesize_volume(rng, image_size, num_slices)
        target = nib.orientations.axcodes2ornt(_ORIENTATIONS[index % len(_ORIENTATIONS)])
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), target)
        for array, path in ((volume, image_path), (classes, label_path)):
            image = nib.Nifti1Image(array, affine).as_reoriented(turn)
            image.header.set_xyzt_units("mm")
            nib.save(image, path)

    size = f"{image_size[0]} x {image_size[1]} x {num_slices}"
    description = f"Synthetic abdominal MRI, {size} voxels, seed {seed}"
    counts = (num_train, num_validation, num_test)
    return write_synthetic(output_dir, "abdomen_mri", counts, ".nii.gz", description, make, seed, ABDOMEN_CLASSES)


def synthesize_volume(
    rng: np.random.Generator, image_size: tuple[int, int], num_slices: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One volume and its classes.

    Args:
        rng: source of every random choice.
        image_size: (H, W): voxels from front to back and from side to side.
        num_slices: voxels from bottom to top.

    Returns:
        The volume (W, H, S) int16 and the classes (W, H, S) uint8, along right, anterior and superior, and the affine.
    """
    height, width = image_size
    in_plane = max(_WIDTH / width, _DEPTH / height) * rng.uniform(0.97, 1.08)
    spacing = np.array([in_plane, in_plane, _HEIGHT / num_slices * rng.uniform(0.92, 1.0)])
    shape = (width, height, num_slices)
    x, y, z = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing)), indexing="ij", sparse=True
    )
    size = rng.uniform(0.92, 1.06) * rng.uniform(0.96, 1.04, 3)  # of this patient
    place = x / size[0] + rng.normal(0, 4), y / size[1] + rng.normal(0, 4), z / size[2] + rng.normal(0, 8)
    signal, cavity = _draw_body(rng, place)
    classes = np.zeros(shape, dtype=np.uint8)
    brightness = {name: value * rng.uniform(0.88, 1.12) for name, *_, value in _ORGANS}
    for name, centre, radii, value in _ORGANS:
        inside = cavity & _ellipsoid(rng, place, centre, radii)
        signal[inside] = value if name == "-" else brightness[name]
        classes[inside] = 0 if name == "-" else ABDOMEN_CLASSES.index(name)
    # Vessels shine in the liver: the zero lines of noise wind like them. And every tissue has a grain.
    noise = gaussian_filter(rng.standard_normal(shape), (2.5, 2.5, 1.0))
    vessels = np.exp(-((noise / (0.12 * noise.std())) ** 2))
    signal *= 1 + 0.8 * vessels * (classes == ABDOMEN_CLASSES.index("liver"))
    signal *= 1 + 0.15 * gaussian_filter(rng.standard_normal(shape), (1.2, 1.2, 0.4))
    signal = gaussian_filter(signal, (0.6, 0.6, 0.25))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing + rng.uniform(-30, 30, 3)
    return _scan(rng, signal), classes, affine


def _draw_body(rng: np.random.Generator, place: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The signal of skin, fat, muscles and bowel, and where the abdominal cavity is (bool)."""
    x, y, z = place
    outline = (np.abs(x) / 168) ** 2.3 + (np.abs(y) / 118) ** 2.3 + 0 * z
    fat = rng.uniform(0.06, 0.2)  # how thick the layer under the skin is
    signal = np.where(outline < 1, _FAT, 0.0).astype(np.float32)
    signal[outline < 1 - fat] = _MUSCLE
    cavity = outline < (1 - fat) * 0.86
    signal[cavity] = _FAT
    for _ in range(rng.integers(10, 18)):  # bowel, below and in front
        centre = rng.uniform((-95, -10, -110), (95, 70, 0))
        radius = rng.uniform(10, 22)
        loop = cavity & _ellipsoid(rng, place, centre, radius * rng.uniform(0.7, 1.5, 3))
        signal[loop] = rng.choice([0.03, 0.3, 0.5, 0.8])  # air, wall, contents, fluid
    return signal, cavity


def _ellipsoid(
    rng: np.random.Generator, place: tuple[np.ndarray, ...], centre: tuple[float, ...], radii: tuple[float, ...]
) -> np.ndarray:
    """Where a wavy ellipsoid lies (bool), a little moved, resized and turned about the long axis of the body."""
    centre = np.asarray(centre, dtype=float) + rng.normal(0, 3, 3)
    radii = np.asarray(radii, dtype=float) * rng.uniform(0.88, 1.12, 3)
    x, y, z = (axis - middle for axis, middle in zip(place, centre))
    turn = rng.normal(0, 0.12)
    u = (x * np.cos(turn) + y * np.sin(turn)) / radii[0]
    v = (y * np.cos(turn) - x * np.sin(turn)) / radii[1]
    w = z / radii[2]
    angle = np.arctan2(v, u)
    surface = 1.0
    for wave in range(2, 5):
        surface = surface + rng.normal(0, 0.16 / wave) * np.cos(wave * angle + rng.uniform(0, 6) + rng.normal(0, 2) * w)
    return u**2 + v**2 + w**2 < surface


def _scan(rng: np.random.Generator, signal: np.ndarray) -> np.ndarray:
    """What the scanner makes of the signal, int16: coil sensitivity, contrast, and the magnitude of a noisy signal."""
    u, v, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in signal.shape), indexing="ij", sparse=True)
    slopes, bends = rng.normal(0, 0.22, 3), rng.normal(0, 0.15, 3)
    bias = np.exp(slopes[0] * u + slopes[1] * v + slopes[2] * w + bends[0] * u**2 + bends[1] * v**2 + bends[2] * u * v)
    signal = np.clip(signal, 0, None) ** rng.uniform(0.85, 1.2) * bias
    noise = rng.uniform(0.01, 0.035)
    real, imaginary = rng.normal(0, noise, (2, *signal.shape))
    magnitude = np.hypot(signal + real, imaginary)
    return np.round(magnitude * np.exp(rng.uniform(np.log(200), np.log(1500)))).astype(np.int16)
