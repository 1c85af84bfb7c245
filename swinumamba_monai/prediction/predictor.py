# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle as a function: image in, labels and a table of the objects out.

The bundle's ``inference.json`` is all that decides: its preprocessing, network, inferer and postprocessing are built
and called as MONAI's evaluator calls them, without what it writes. So the labels are those that
``python -m monai.bundle run inference`` writes.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.networks.utils import eval_mode
from monai.transforms import Compose, SaveImaged
from monai.utils import convert_to_numpy, ensure_tuple

from swinumamba_monai.bundle_options import check_option
from swinumamba_monai.data.files.images import ImageFileReader, check_pixels
from swinumamba_monai.data.files.limits import MAX_CHANNELS
from swinumamba_monai.data.inputs import Inputs
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError, plain_errors, quoted
from swinumamba_monai.inference.polygons import class_names
from swinumamba_monai.inference.uncertainty import class_scores
from swinumamba_monai.prediction.location import CONFIG, find_bundle
from swinumamba_monai.prediction.objects import find_doubts, join_tables, object_table
from swinumamba_monai.prediction.progress import count_windows, counting

__all__ = ["Prediction", "Predictor"]

logger = logging.getLogger(__name__)

Paths = str | PathLike | Sequence[str | PathLike]


@dataclass(frozen=True)
class Prediction:
    """What was found in an image; ``labels, table = prediction`` unpacks it.

    Args:
        labels: number of the cell, or of the class, at every pixel (H, W) or voxel (X, Y, Z) of the image, int32; of a
            stack (Z, H, W), where no two cells of the stack have one number.
        table: a row for every cell or class, see :func:`~swinumamba_monai.prediction.objects.object_table`; of a stack
            with a column ``slice``.
        doubts: why the answer is not to be trusted, a phrase each.
        image: the image as it was read, float32.
        data: everything that the bundle's postprocessing gave, by key; none for a stack.
    """

    labels: np.ndarray
    table: dict[str, np.ndarray]
    doubts: tuple[str, ...]
    image: np.ndarray
    data: Mapping[Hashable, object] = field(default_factory=dict)

    def __iter__(self) -> Iterator[object]:
        yield self.labels
        yield self.table


class Predictor:
    """The network of a bundle with all that belongs before and behind it, built once, to be called on any images.

    Args:
        bundle: ``microscopy``, ``endoscopy``, ``abdomen_mri``, or the folder of a bundle.
        checkpoint: weights, or several files for the mean of their logits; with None those of the bundle.
        device: such as ``cuda:1`` or ``cpu``; with None a GPU if there is one.
        bundle_dir: where the bundle lies, see :func:`~swinumamba_monai.prediction.location.find_bundle`.
        progress: whether to show how far the network is within an image that takes long.
        options: values of entries of the bundle's ``inference.json``, such as ``min_size=0``, or
            ``**{"network_def#feature_size": 32}``.

    Attributes:
        bundle_dir: folder of the bundle.
        checkpoints: files that the weights came from.
        of_volumes: whether the bundle takes volumes, from files alone, for they have a geometry.
        savers: the transforms of the config that write results.
        class_names: by number, where the bundle tells classes; None where it tells cells, each with a number.

    Raises:
        InputError: there is no such bundle, device or checkpoint, or the config does not have such an option.

    >>> labels, table = Predictor("microscopy")(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: str | PathLike = "microscopy",
        checkpoint: str | PathLike | Sequence[str | PathLike] | None = None,
        device: str | torch.device | None = None,
        bundle_dir: str | PathLike | None = None,
        progress: bool = False,
        **options: object,
    ) -> None:
        self.bundle_dir = find_bundle(bundle, bundle_dir)
        self.device = find_device(device)
        self.progress = progress
        config = ConfigParser()
        config.read_config(str(self.bundle_dir / CONFIG))
        for name, value in options.items():
            check_option(name, value, config.get())
        given = {"bundle_root": str(self.bundle_dir), "device": str(self.device), "num_workers": 0, **options}
        if checkpoint is not None:
            paths = [str(path) for path in ensure_tuple(checkpoint)]
            given["ckpt_path"] = paths[0] if len(paths) == 1 else paths
        config.update(given)
        self._config, self._given = config, tuple(options)
        self.of_volumes = "spacing" in config
        try:
            with plain_errors():
                self._build()
        except InputError:
            raise
        except Exception as error:  # a config can fail in any way
            raise InputError(f"{self.bundle_dir / CONFIG} fails: {quoted(error)}.") from error

    def _build(self) -> None:
        get = self._config.get_parsed_content
        self.checkpoints = [Path(path) for path in ensure_tuple(get("ckpt_path"))]
        if missing := [path for path in self.checkpoints if not path.is_file()]:
            raise InputError(
                f"there are no weights {missing[0]}; train the bundle {self.bundle_dir.name} first, or give a "
                "checkpoint."
            )
        self._load, *prepare = get("preprocessing").flatten().transforms
        self._prepare = Compose(prepare)
        self._network, self._inferer = get("ensemble"), get("inferer")
        get("checkpointloader")
        self._amp_dtype = get("amp_dtype")
        results = get("postprocessing").flatten().transforms
        self.savers = [transform for transform in results if isinstance(transform, SaveImaged)]
        self._postprocess = Compose([transform for transform in results if transform not in self.savers])
        keys = [transform.scores_key for transform in results if getattr(transform, "scores_key", None)]
        self._scores_key = keys[0] if keys else None
        self.class_names = None if keys else class_names(self.bundle_dir / "configs" / "metadata.json")

    def list_images(self, path: str | PathLike) -> Inputs:
        """What there is to predict in a file, a folder or a prepared dataset, as the bundle's inference finds it.

        None is read yet. What could not even be listed, such as a video of no kind, is under ``bad``.

        Raises:
            InputError: there is nothing that the bundle can read.
        """
        with plain_errors():
            self._config.update({"dataset_dir": str(path), "check_images": False, "skip_bad": True})
            return self._config.get_parsed_content("dataset#data")

    def __call__(self, image: np.ndarray | torch.Tensor | Paths, stack: bool = False) -> Prediction:
        """Predict one image, or the slices of a stack one by one.

        Args:
            image: path of an image or volume, or the paths of its channels; or an array or tensor (H, W), or (H, W, C)
                with up to four channels.
            stack: whether the file is a stack, or the array has slices as its first axis: (Z, H, W) or (Z, H, W, C).

        Raises:
            InputError: the file or the array cannot be used.
        """
        if self.of_volumes and (stack or not _is_path(image)):
            raise InputError(f"{self.bundle_dir.name} takes volumes with their geometry; give the path of a file.")
        if _is_path(image):
            items = self.list_images(image) if stack else [{"image": image}]
            with plain_errors():
                loaded = [self._load(item)["image"] for item in items]
                return self._predict_stack(loaded) if stack else self._predict(*loaded)
        array = check_pixels(np.asarray(image.cpu() if isinstance(image, torch.Tensor) else image), "the array")
        channels = array.shape[3 if stack else 2 :]
        if array.ndim - stack not in (2, 3) or (channels and channels[0] > MAX_CHANNELS):
            wanted = "(Z, H, W) or (Z, H, W, C)" if stack else "(H, W) or (H, W, C), or (Z, H, W) with stack=True"
            raise InputError(f"the array has the shape {array.shape}; give {wanted}, C up to {MAX_CHANNELS}.")
        with plain_errors():
            return self._predict_stack(list(map(_as_loaded, array))) if stack else self._predict(_as_loaded(array))

    def _predict_stack(self, loaded: Sequence[MetaTensor]) -> Prediction:
        if len(sizes := {tuple(image.shape) for image in loaded}) > 1:
            raise InputError(f"the slices of a stack are of one size, but here they have the shapes {sorted(sizes)}.")
        slices, last = [self._predict(image) for image in loaded], 0
        for found in slices if self.class_names is None else ():
            found.labels[found.labels > 0] += last
            found.table["label"] += last
            last = max(last, found.labels.max())
        labels, images = (np.stack([getattr(found, name) for found in slices]) for name in ("labels", "image"))
        doubts = tuple(f"slice {number}: {doubt}" for number, found in enumerate(slices) for doubt in found.doubts)
        return Prediction(labels, join_tables([found.table for found in slices]), doubts, images)

    def _predict(self, loaded: MetaTensor) -> Prediction:
        """What MONAI's ``SupervisedEvaluator`` does with an item of the dataset, then the table."""
        image = np.array(loaded)  # a copy, for the preprocessing may work in place
        batch = list_data_collate([self._prepare({"image": loaded})])
        batch["image"] = inputs = batch["image"].to(self.device)
        autocast = nullcontext() if self._amp_dtype is None else torch.autocast("cuda", dtype=self._amp_dtype)
        windows = count_windows(self._inferer, inputs.shape[2:])
        with eval_mode(self._network), autocast, counting(self._network, windows, self.progress) as network:
            batch["pred"] = self._inferer(inputs, network)
        (item,) = decollate_batch(batch)
        data = self._postprocess(item)
        del data["image"]  # as the network saw it, and where it did: an answer that is kept must not keep GPU memory
        labels = convert_to_numpy(data["pred"])[0].astype(np.int32)
        scores = data[self._scores_key] if self._scores_key else class_scores(item["pred"])[1:]
        doubts = tuple(find_doubts(image, labels, self.class_names is None, self._given))
        for doubt in doubts:
            logger.warning("%s: %s", loaded.meta.get("filename_or_obj", "the array"), doubt)
        return Prediction(labels, object_table(labels, image, scores, self.class_names), doubts, image, data)


def _is_path(image: object) -> bool:
    """Whether this is a path, or the paths of several channels."""
    parts = image if isinstance(image, (list, tuple)) and image else [image]
    return all(isinstance(part, (str, PathLike)) for part in parts)


def _as_loaded(array: np.ndarray) -> MetaTensor:
    """An array (H, W) or (H, W, C) as MONAI's ``LoadImage`` gives what it has read."""
    return MetaTensor.ensure_torch_and_prune_meta(array.astype(np.float32), ImageFileReader.metadata(array))
