# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What a dataset looks like in numbers, and which crop, batch and spacing follow from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from swinumamba_monai.data.prepare.inspection import PairReport
from swinumamba_monai.errors import listed
from swinumamba_monai.nnunet_pooling import pad_for_pooling

FINGERPRINT_NAME = "fingerprint.json"

_AXES = ("right-left", "anterior-posterior", "superior-inferior")
# For slices across each axis of RAS: the orientation that shows them as radiologists see them, rows first, and the
# axes of RAS along its rows and columns. Axial, coronal and sagittal slices are across 2, 1 and 0.
AXIAL = "PLS"
_VIEWS = {2: (AXIAL, (1, 0)), 1: ("ILA", (2, 0)), 0: ("IPR", (2, 1))}

# Constants of nnU-Net v2's ExperimentPlanner: what its network may hold in a GPU of 8 GB, in numbers of the feature
# maps of a batch of 12; the part of the dataset that a batch may show.
_REFERENCE_ELEMENTS = 85_000_000
_REFERENCE_BATCH_SIZE = 12
_MAX_PART_OF_DATASET = 0.05
_MIN_BATCH_SIZE = 2
_LARGEST_CROP = 2048


def make_fingerprint(reports: Sequence[PairReport], class_names: Sequence[str] = ()) -> dict:
    """Describe the images that a network is developed on (training and validation; a test section is not looked at).

    Args:
        reports: the images' reports, without problems.
        class_names: background first; none for cells.

    Returns:
        "cases"; "sizes" (how many images have each, the ten most frequent) and "size_median"; for volumes also
        "orientations", "spacing_median", "spacing_min", "spacing_max" (mm, with the axes of "axes"); "dtypes";
        "intensities", one dictionary per channel with the statistics of foreground pixels, as nnU-Net takes them;
        "classes", for each the "fraction" of all pixels and the number of "cases" that have it; "instances" for cells;
        "proposal", see :func:`propose`.
    """
    shapes = np.array([report.shape[: 3 if report.spacing else 2] for report in reports])
    counts = Counter("x".join(map(str, shape)) for shape in shapes.tolist())
    result: dict = {
        "cases": len(reports),
        "sizes": dict(counts.most_common(10)),
        "size_median": np.median(shapes, axis=0).tolist(),
    }
    if reports[0].spacing:
        spacings = np.array([report.spacing for report in reports])
        result["axes"] = list(_AXES)
        result["orientations"] = dict(Counter(report.orientation for report in reports).most_common())
        for name, function in (("median", np.median), ("min", np.min), ("max", np.max)):
            result[f"spacing_{name}"] = function(spacings, axis=0).round(4).tolist()
    result["dtypes"] = dict(Counter(report.dtype for report in reports).most_common())
    result["intensities"] = _intensities(reports)
    if class_names:
        result["classes"] = _classes(reports, class_names)
    else:
        result["instances"] = sum(report.num_instances for report in reports)
    # Cells are learnt as background, interior and boundary.
    result["proposal"] = propose(reports, len(class_names) or 3)
    return result


def propose(reports: Sequence[PairReport], num_classes: int) -> dict:
    """Crop size, batch size and, for volumes, orientation and in-plane spacing, as nnU-Net's planner would choose them.

    Slices are taken across the axis with the largest median spacing (the superior-inferior one when all are equal). The
    spacing in them is the median over all volumes, as in nnU-Net v2, and images count with the size that they have
    after resampling to it. Crop and batch: :func:`propose_2d`.

    Returns:
        "roi_size" [rows, columns], "batch_size", and for volumes "spacing" [rows, columns] in mm and "axcodes", the
        orientation in which the last axis is the one across the slices.
    """
    if not reports[0].spacing:
        sizes = np.array([report.shape[:2] for report in reports], dtype=float)
        return propose_2d(np.median(sizes, axis=0), num_classes, float(np.prod(np.median(sizes, axis=0))) * len(sizes))
    spacings = np.array([report.spacing for report in reports])
    target = np.median(spacings, axis=0)
    across = 2 - int(np.argmax(target[::-1]))
    axcodes, plane = _VIEWS[across]
    target_plane = target[list(plane)]
    sizes = np.array([report.shape for report in reports]) * 1.0
    for axis in plane:
        sizes[:, axis] = np.round(sizes[:, axis] * spacings[:, axis] / target[axis])
    median = np.median(sizes, axis=0)
    proposal = propose_2d(median[list(plane)], num_classes, float(np.prod(median)) * len(reports), target_plane)
    return {**proposal, "spacing": target_plane.round(4).tolist(), "axcodes": axcodes}


def propose_2d(
    shape: Sequence[float], num_classes: int, num_pixels: float, spacing: Sequence[float] = (1.0, 1.0)
) -> dict[str, list[int] | int]:
    """Crop "roi_size" [H, W] and "batch_size" by the rule of nnU-Net v2 (Isensee et al. 2021; ``ExperimentPlanner``).

    1. The crop starts as the median image, cut to 2048 × 2048 pixels (in mm a square of that area).
    2. An axis is halved by pooling as long as it keeps 4 pixels and its pixels are less than twice as long as the
       shortest; a single axis only while it has 12. The crop is padded until every pooling divides it.
    3. While the feature maps of nnU-Net's own network (32 features, doubled up to 512, two convolutions a stage) exceed
       the reference of 85 million elements, the axis that is longest relative to the median image loses one step.
    4. The batch is 12 × 85 million / elements, at most what covers 5 % of all training pixels, and at least 2.

    On the three tasks of the paper this gives its crops and batches: 320 × 320 and 30, 384 × 640 and 13, 512 × 512 and
    12. Swin-UMamba† needs another amount of memory than nnU-Net's network; the paper kept these sizes nevertheless.

    Args:
        shape: the median size (H, W) of the images, after resampling, in pixels.
        num_classes: number of classes, background included.
        num_pixels: number of pixels of all training images together, after resampling.
        spacing: the size of a pixel along H and W after resampling.
    """
    shape, spacing = np.asarray(shape, dtype=float), np.asarray(spacing, dtype=float)
    square = 1 / spacing * np.sqrt(_LARGEST_CROP**2 / np.prod(1 / spacing))
    crop, poolings = pad_for_pooling(np.minimum(np.round(square), shape).astype(int), spacing)
    while (elements := _feature_map_elements(crop, poolings, num_classes)) > _REFERENCE_ELEMENTS:
        axis = int(np.argmax(crop / shape))
        smaller = crop.copy()
        smaller[axis] -= 2 ** poolings[axis]
        # The step is the one that the smaller crop's own poolings ask for, so that they divide the result.
        step = 2 ** pad_for_pooling(smaller, spacing)[1][axis]
        crop[axis] -= step
        crop, poolings = pad_for_pooling(crop, spacing)
    batch_size = round(_REFERENCE_ELEMENTS / elements * _REFERENCE_BATCH_SIZE)
    covered = round(num_pixels * _MAX_PART_OF_DATASET / np.prod(crop))
    return {"roi_size": crop.tolist(), "batch_size": max(min(batch_size, covered), _MIN_BATCH_SIZE)}


def _feature_map_elements(crop: np.ndarray, poolings: np.ndarray, num_classes: int) -> int:
    """Elements of all feature maps of nnU-Net's plain U-Net for one image: those behind convolutions, and the heads."""
    levels = int(poolings.max())
    # The axis with fewer poolings keeps its size in the last stages.
    pixels = [int(np.prod(crop // 2 ** np.minimum(poolings, level))) for level in range(levels + 1)]
    features = [min(32 * 2**level, 512) for level in range(levels + 1)]
    encoder = sum(2 * f * n for f, n in zip(features, pixels))
    # A decoder stage: two convolutions and the transposed one before them, and a head for deep supervision.
    decoder = sum((3 * f + num_classes) * n for f, n in zip(features[:-1], pixels[:-1]))
    return encoder + decoder


def describe_fingerprint(content: Mapping) -> str:
    """The fingerprint as text for people, some ten lines."""

    def joined(values: Sequence[float]) -> str:
        return " x ".join(f"{value:g}" for value in values)

    sizes = listed(f"{size} ({count})" for size, count in content["sizes"].items())
    lines = [
        f"training and validation: {content['cases']} images, median size {joined(content['size_median'])}",
        f"sizes: {sizes}; data types: {', '.join(content['dtypes'])}",
    ]
    if "axes" in content:
        axes = ", ".join(content["axes"])
        median, least, most = (joined(content[f"spacing_{name}"]) for name in ("median", "min", "max"))
        lines.append(f"spacing in mm ({axes}): median {median}, from {least} to {most}")
        lines.append(f"orientations: {', '.join(content['orientations'])}")
    lines += [
        f"foreground intensity, channel {number}: mean {c['mean']:.4g}, std {c['std']:.4g}, "
        f"0.5 % {c['percentile_00_5']:.4g}, median {c['median']:.4g}, 99.5 % {c['percentile_99_5']:.4g}"
        for number, c in enumerate(content["intensities"])
    ]
    if "classes" in content:
        lines.append("classes (part of all pixels, images that have it):")
        lines += [f"  {name}: {c['fraction']:.3%}, {c['cases']}" for name, c in content["classes"].items()]
    else:
        lines.append(f"instances: {content['instances']}")
    proposal = ", ".join(f"{name} {json.dumps(value)}" for name, value in content["proposal"].items())
    lines.append(f"as nnU-Net would plan it: {proposal} (the bundle's defaults stay the paper's)")
    return "\n".join(lines)


def _intensities(reports: Sequence[PairReport]) -> list[dict[str, float]]:
    """Statistics per channel of the samples; images with fewer channels than others do not count for the rest."""
    channels = max(report.sample.shape[1] for report in reports)
    result = []
    for channel in range(channels):
        values = np.concatenate([r.sample[:, channel] for r in reports if r.sample.shape[1] > channel]).astype(float)
        low, median, high = np.percentile(values, [0.5, 50, 99.5])
        numbers = {"mean": values.mean(), "std": values.std(), "min": values.min(), "percentile_00_5": low}
        numbers |= {"median": median, "percentile_99_5": high, "max": values.max()}
        result.append({name: float(number) for name, number in numbers.items()})
    return result


def _classes(reports: Sequence[PairReport], class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    totals = Counter({number: 0 for number in range(len(class_names))})
    cases: Counter[int] = Counter()
    for report in reports:
        totals.update(report.class_counts)
        cases.update(report.class_counts.keys())
    pixels = sum(totals.values())
    return {
        name: {"fraction": totals[number] / pixels, "cases": cases[number]} for number, name in enumerate(class_names)
    }
