# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Dice similarity coefficient (DSC) and NSD of every class, in two readings.

``published`` is what the evaluation scripts of U-Mamba print, which Swin-UMamba's tables were made with
(``evaluation/abdomen_DSC_Eval.py`` and its three sisters), before they round to four digits:

- A class that neither image has scores 1, one that only one of them has scores 0. The endoscopy scripts score only
  classes that one of both has, and by taking the smallest label of an image for background they overlook a class where
  there is no background; an image without any scored class stops them, and is nan here.
- The abdomen scripts cut aorta, IVC and oesophagus to the slices of the truth along the third axis, without the last
  one. An organ of a single slice has nothing left: its DSC is nan, the NSD script stops, and both are nan here.
- Endoscopy images are measured as volumes of one slice, in which every pixel of a mask has surface above and below:
  this NSD weighs areas, and concentric discs of 20 and 12 pixels score 0.63.

Their score of a case is the mean over the classes that are not nan.

``corrected`` scores every class in every case on all slices: 1 if neither image has it, 0 if only one has. Images of
two dimensions, and volumes of one slice, are compared by their contours. Leaning slices, as a tilted gantry makes them,
are put where they lie before surfaces are compared in mm. A distance equal to the tolerance counts even
where float32, in which NIfTI headers hold the spacing, makes it a little longer. The score of a case is the mean over
the classes that one of both images has, and 1 if there are none: with the others, a frame whose two instruments of
seven are both wrong would score 0.71.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_numpy, ensure_tuple_rep

from swinumamba_monai.data.files.grids import MIN_LEAN, lean_of, put_upright
from swinumamba_monai.data.files.label_map import simple_name
from swinumamba_monai.errors import InputError
from swinumamba_monai.metrics.case_scores import CORRECTED, MEAN, PUBLISHED, CaseMetric, CaseScores, Column, dice
from swinumamba_monai.metrics.surface import find_boundaries, surface_dice

READINGS = PUBLISHED, CORRECTED
FLOAT32_SLACK = 1 + 1e-6


def published_scores(
    truth: np.ndarray, pred: np.ndarray, tolerance: float, spacing: Sequence[float], cut_slices: bool = False
) -> tuple[float, float]:
    """DSC and NSD of one class as the published scripts compute them; see the module's docstring.

    Args:
        truth: boolean mask of shape (H, W) or (H, W, D).
        pred: predicted boolean mask of the same shape.
        tolerance: tolerance of the NSD, in the unit of the spacing.
        spacing: distance of neighbouring pixels along every axis; that of the slice, which an image becomes, is 1.
        cut_slices: whether both are cut to the slices [first, last) of the truth along the third axis.
    """
    if truth.any() != pred.any():
        return 0.0, 0.0
    if not truth.any():
        return 1.0, 1.0
    if truth.ndim == 2:
        truth, pred, spacing = truth[..., None], pred[..., None], (*spacing, 1.0)
    if cut_slices:
        slices = np.flatnonzero(truth.any(axis=(0, 1)))
        if len(slices) == 1:
            return float("nan"), float("nan")
        truth, pred = (mask[..., slices[0] : slices[-1]] for mask in (truth, pred))
    return dice(truth, pred), surface_dice(*find_boundaries(truth, pred, spacing), tolerance)


def corrected_scores(
    truth: np.ndarray, pred: np.ndarray, tolerance: float, spacing: Sequence[float]
) -> tuple[float, float]:
    """DSC and NSD of one class, by contours (surfaces) in the unit of the spacing; see the module's docstring.

    Args:
        truth: boolean mask of shape (H, W) or (H, W, D).
        pred: predicted boolean mask of the same shape.
        tolerance: tolerance of the NSD, in the unit of the spacing.
        spacing: distance of neighbouring pixels along every axis.
    """
    if truth.any() != pred.any():
        return 0.0, 0.0
    if not truth.any():
        return 1.0, 1.0
    if truth.ndim == 3 and truth.shape.count(1) == 1:
        axis = truth.shape.index(1)
        truth, pred, spacing = truth.squeeze(axis), pred.squeeze(axis), np.delete(spacing, axis)
    return dice(truth, pred), surface_dice(*find_boundaries(truth, pred, spacing), tolerance * FLOAT32_SLACK)


class DiceNSDMetric(CaseScores):
    """DSC and NSD of every class and their mean, MONAI's way: call it on every batch, then :meth:`aggregate`.

    ``y_pred`` and ``y`` are (1, H, W) or (1, H, W, D) class indices, or scores or one-hot with a channel for the
    background and one per class; volumes have their slices along the last axis, as NIfTI files have. The buffer holds a
    row per case: DSC and NSD in both readings, for the mean and every class, and the pixels of every class.

    Args:
        class_names: names of the labels 1, 2, ... in order.
        tolerances: tolerances of the NSD, one per class (in order, or by name, where those of other classes may be
            among them; ``kidney_right`` is the right kidney) or one for all, in mm if ``in_mm``, else in pixels.
        in_mm: whether the unit is mm, by the spacing of the truth, a MetaTensor; else it is pixels.
        cut_slices: classes that the published reading cuts to the truth's slices, without the last one, as labels or
            by name; names of other classes may be among them.
        only_present: whether the published reading scores only classes that truth or prediction has.
        key: name of the column that counts as the metric's value.
        regions: labels by name, whose unions are scored instead of the classes. Tolerances and
            ``cut_slices`` are then those of the regions, in this order.

    Raises:
        InputError: tolerances or labels do not fit the classes, or predictions and truths do not fit the above.

    >>> truth = torch.zeros(1, 1, 8, 8)
    >>> truth[..., 2:6] = 1
    >>> metric = DiceNSDMetric(["liver"], tolerances=2)
    >>> row = metric(truth, truth.roll(2, -1))
    >>> metric.aggregate().item()
    0.5
    """

    def __init__(
        self,
        class_names: Sequence[str],
        tolerances: Mapping[str, float] | Sequence[float] | float,
        in_mm: bool = False,
        cut_slices: Sequence[int | str] = (),
        only_present: bool = False,
        key: str = "dsc_corrected",
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.class_names = [name.strip().replace(" ", "_") for name in class_names]
        self.labels_of = [tuple(labels) for labels in (regions or {}).values()]
        self.labels_of = self.labels_of or [(label,) for label in range(1, len(class_names) + 1)]
        class_names = list(regions or class_names)
        self.scored = [name.strip().replace(" ", "_") for name in class_names]
        if len(set(self.scored) - {MEAN}) < len(self.scored):
            raise InputError(f"Class names must differ from each other and from '{MEAN}': {', '.join(class_names)}.")
        super().__init__(_columns(self.scored), key)
        simple_names = [simple_name(name) for name in class_names]
        if isinstance(tolerances, Mapping):
            known = {simple_name(name): tolerance for name, tolerance in tolerances.items()}
            if missing := [name for name in class_names if simple_name(name) not in known]:
                raise InputError(
                    f"There is no NSD tolerance for {', '.join(missing)}: give one each, or one for all "
                    "(nsd_tolerances)."
                )
            tolerances = [known[name] for name in simple_names]
        cut_names = {simple_name(cut) for cut in cut_slices if isinstance(cut, str)}
        cut_slices = [cut for cut in cut_slices if not isinstance(cut, str)]
        cut_slices += [label for label, name in enumerate(simple_names, start=1) if name in cut_names]
        try:
            self.tolerances = ensure_tuple_rep(tolerances, len(self.scored))
        except ValueError as error:
            raise InputError(
                f"There are {len(tolerances)} NSD tolerances for {len(class_names)} classes: give one each, or one."
            ) from error
        if not all(0 <= tolerance < np.inf for tolerance in self.tolerances):
            raise InputError(f"NSD tolerances must be finite and not negative, unlike {self.tolerances}.")
        if not set(cut_slices) <= set(range(1, len(self.scored) + 1)):
            raise InputError(f"cut_slices holds labels from 1 to {len(self.scored)}, not {list(cut_slices)}.")
        self.in_mm = in_mm
        self.cut_slices = tuple(cut_slices)
        self.only_present = only_present

    def labels(self, pred: torch.Tensor, truth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        pair = self._read(truth, "truth"), self._read(pred, "prediction")
        if pair[0].shape != pair[1].shape:
            raise InputError(
                f"Truth of shape {pair[0].shape} and prediction of shape {pair[1].shape} must lie on the same grid: "
                "bring the prediction back to it (Invertd) before it is scored."
            )
        return pair

    def score(self, pred: torch.Tensor, truth: torch.Tensor) -> list[float]:
        truth_labels, pred_labels = self.labels(pred, truth)
        spacing = self._spacing(truth, truth_labels.ndim)
        affine = convert_to_numpy(truth.affine) if self.in_mm and truth_labels.ndim == 3 else np.eye(4)
        is_leaning = lean_of(affine) > MIN_LEAN
        # What the scripts take for the labels of an image.
        found = {*np.unique(truth_labels)[1:], *np.unique(pred_labels)[1:]}
        published, corrected, pixels = [], [], []
        for number, (labels, tolerance) in enumerate(zip(self.labels_of, self.tolerances), start=1):
            pair = tuple(np.isin(image, labels) for image in (truth_labels, pred_labels))
            if self.only_present and not found.intersection(labels):
                published.append((np.nan, np.nan))
            else:
                published.append(published_scores(*pair, tolerance, spacing, number in self.cut_slices))
            if is_leaning:
                (*upright,), (sizes, _) = zip(*(put_upright(mask, affine) for mask in pair))
                corrected.append(corrected_scores(*upright, tolerance, sizes))
            else:
                corrected.append(corrected_scores(*pair, tolerance, spacing))
            pixels.append([np.count_nonzero(mask) for mask in pair])
        scores = np.array([published, corrected])  # reading, class, score
        present = np.sum(pixels, axis=1) > 0
        means = [_mean(scores[0], np.nan), _mean(scores[1, present], 1.0)]
        return [*np.ravel(means), *scores.swapaxes(0, 1).ravel(), *np.ravel(pixels).astype(float)]

    def settings(self) -> dict[str, object]:
        return {
            "tolerances": dict(zip(self.scored, self.tolerances, strict=True)),
            "tolerance_unit": "mm" if self.in_mm else "pixels",
            "published_cut_slices": [self.scored[label - 1] for label in self.cut_slices],
            "published_only_present": self.only_present,
        }

    def caption(self, row: Mapping[str, float]) -> str:
        return f"DSC {row['dsc_corrected']:.3f}, NSD {row['nsd_corrected']:.3f}"

    def heading(self) -> str:
        return "DSC and NSD in the corrected reading, mean over classes."

    def _read(self, labels: torch.Tensor, what: str) -> np.ndarray:
        num_classes = len(self.class_names)
        if labels.ndim not in (3, 4) or labels.shape[0] not in (1, num_classes + 1):
            raise InputError(
                f"A {what} of shape {tuple(labels.shape)} cannot be read: give class indices (1, H, W) or "
                f"(1, H, W, D), or {num_classes + 1} channels, background first, for the {num_classes} classes."
            )
        whole = labels.argmax(0) if labels.shape[0] > 1 else labels[0].to(torch.int32)
        if labels.shape[0] == 1 and ((whole != labels[0]) | (whole < 0) | (whole > num_classes)).any():
            raise InputError(
                f"A {what} must hold the labels 0 to {num_classes} ({', '.join(self.class_names)}), but this one has "
                f"values from {labels.min():g} to {labels.max():g}, or between whole numbers."
            )
        return convert_to_numpy(whole)

    def _spacing(self, truth: torch.Tensor, spatial_dims: int) -> Sequence[float]:
        if not self.in_mm:
            return (1.0,) * spatial_dims
        if not isinstance(truth, MetaTensor):
            raise InputError(
                "A truth without metadata has no spacing in mm: load it with LoadImaged, or measure pixels."
            )
        # The published script reads NIfTI headers, which hold float32.
        return np.asarray(truth.pixdim[:spatial_dims], np.float32).astype(np.float64)


def _mean(scores: np.ndarray, of_nothing: float) -> list[float]:
    """Mean over the classes, (classes, 2), that are not nan, for DSC and NSD."""
    return [column[~np.isnan(column)].mean() if not np.isnan(column).all() else of_nothing for column in scores.T]


def _columns(class_names: Sequence[str]) -> list[Column]:
    """In the order of :meth:`DiceNSDMetric.score`."""
    scores = [
        Column("_".join((score, reading, *label)), score, reading, *label)
        for label in ((), *((name,) for name in class_names))
        for reading in READINGS
        for score in ("dsc", "nsd")
    ]
    pixels = [
        Column(f"{which}_pixels_{name}", f"{which}_pixels", label=name, is_count=True)
        for name in class_names
        for which in ("truth", "pred")
    ]
    return scores + pixels


class DiceNSD(CaseMetric):
    """DSC and NSD as a (key) metric of a MONAI evaluator.

    In a config, for volumes whose prediction was brought back to the truth's grid::

        {"_target_": "swinumamba_monai.metrics.DiceNSD",
         "class_names": ["liver", "right kidney", "spleen"],
         "tolerances": [5, 3, 3],
         "in_mm": true,
         "output_transform": "$monai.handlers.from_engine(['pred', 'label'])"}

    Its arguments are those of :class:`DiceNSDMetric` and of :class:`~swinumamba_monai.metrics.case_scores.CaseMetric`.
    """

    scores = DiceNSDMetric
