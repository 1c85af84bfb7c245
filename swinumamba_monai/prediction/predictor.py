# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle as a function: image in, labels and a table of the objects out.

The bundle's ``inference.json`` is all that decides: its preprocessing, network, inferer and postprocessing are built
and called as MONAI's evaluator calls them, without what it writes. So the labels are those that
``python -m monai.bundle run inference`` writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils import convert_to_numpy, ensure_tuple
from PIL import Image
from torch import nn

from swinumamba_monai.bundle_failures import explain_failure
from swinumamba_monai.bundle_options import as_literal, check_option
from swinumamba_monai.data.files.images import image_names
from swinumamba_monai.data.files.limits import MAX_CHANNELS, most_channels
from swinumamba_monai.data.files.pixel_checks import check_pixels, check_steps
from swinumamba_monai.data.files.tiff_rows import TiffRows
from swinumamba_monai.data.inputs import Inputs
from swinumamba_monai.data.sampling.transforms import DOUBT_KEY
from swinumamba_monai.devices import find_device
from swinumamba_monai.errors import InputError, plain_errors, quoted
from swinumamba_monai.inference.one_image import ImageInference, as_loaded
from swinumamba_monai.inference.polygons import class_names
from swinumamba_monai.inference.rescaling import AUTO
from swinumamba_monai.inference.uncertainty import class_scores
from swinumamba_monai.prediction.artefacts import artefact_cells, dark_cells
from swinumamba_monai.prediction.location import CONFIG, find_bundle
from swinumamba_monai.prediction.objects import find_doubts, join_tables, object_table, seen_in
from swinumamba_monai.prediction.progress import count_windows, counting

logger = logging.getLogger(__name__)

# PIL's modes: palettes, inks, gray with alpha.
OTHER_MODES = {"P", "PA", "LA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}

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
        bundle_dir: folder of the bundle, or its name, see :func:`~swinumamba_monai.prediction.location.find_bundle`.
        progress: whether to show how far the network is within an image that takes long.
        options: values of entries of the bundle's ``inference.json``, such as ``min_size=0``, or
            ``**{"network_def#feature_size": 32}``.

    Attributes:
        bundle_dir: folder of the bundle.
        checkpoints: files that the weights came from.
        of_volumes: whether the bundle takes volumes, from files alone, for they have a geometry.
        savers: the transforms of the config that write results.
        class_names: names by number, where the bundle tells classes; None where it tells cells, each with a number.
        channel: number of the channel that is looked at; None for all.
        blocks: predicts images that are too large for a call, by blocks; None where the bundle cannot do that.

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
        root = as_literal(str(self.bundle_dir))
        given = {"bundle_root": root, "device": str(self.device), "num_workers": 0, **options}
        if checkpoint is not None:
            paths = [as_literal(str(path)) for path in ensure_tuple(checkpoint)]
            if not paths or not all(map(str.strip, paths)):
                raise InputError("checkpoint is empty; give a file of weights, or leave it out for the bundle's own.")
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
            if sentence := explain_failure(error, options, config.get()):
                raise sentence from error
            raise InputError(f"{self.bundle_dir / CONFIG} fails: {quoted(error)}.") from error

    def _build(self) -> None:
        get = self._config.get_parsed_content
        self.checkpoints = [Path(path) for path in ensure_tuple(get("ckpt_path"))]
        if missing := [path for path in self.checkpoints if not path.is_file()]:
            raise InputError(
                f"there are no weights {missing[0]}; train the bundle {self.bundle_dir.name} first, or give a "
                "checkpoint."
            )
        self._inference = ImageInference(
            *map(get, ("preprocessing", "ensemble", "inferer", "postprocessing")), self.device, get("amp_dtype")
        )
        get("checkpointloader")
        self.savers = self._inference.savers
        of_cells = self._inference.scores_key is not None
        metadata = self.bundle_dir / "configs" / "metadata.json"
        self.class_names = None if of_cells else class_names(metadata, get("num_classes"), self.checkpoints)
        self._need = get("memory") if "memory" in self._config else None  # bundles made before 2026-11-28 have none
        self.channel = get("channel") if "channel" in self._config else None
        self.blocks = get("blocks") if "blocks" in self._config else None
        if self.blocks is not None:
            self.blocks.progress = self.progress

    def list_images(self, path: str | PathLike) -> Inputs:
        """What there is to predict in a file, a folder or a prepared dataset, as the bundle's inference finds it.

        None is read yet. What could not even be listed, such as a video of no kind, is under ``bad``.

        Raises:
            InputError: there is nothing that the bundle can read.
        """
        with plain_errors():
            listing = {"dataset_dir": as_literal(str(path)), "check_images": False, "skip_bad": True}
            self._config.update(listing | ({"blocks": None} if self.blocks else {}))  # large ones are not told apart
            return self._config.get_parsed_content("dataset#data")

    def __call__(self, image: np.ndarray | torch.Tensor | Paths, stack: bool = False) -> Prediction:
        """Predict one image, or the slices of a stack one by one.

        Args:
            image: path of an image or volume, or the paths of its channels; or an array or tensor (H, W), or (H, W, C)
                with up to four channels, or up to 64 where one is chosen by the option ``channel``.
            stack: whether the file is a stack, or the array has slices as its first axis: (Z, H, W) or (Z, H, W, C).

        Raises:
            InputError: the file or the array cannot be used.
        """
        if self.of_volumes and (stack or not _is_path(image)):
            raise InputError(f"{self.bundle_dir.name} takes volumes with their geometry; give the path of a file.")
        if _is_path(image):
            items = self._items_of(image, stack)
            with plain_errors():
                loaded = [self._inference.load(item)["image"] for item in items]
        else:
            array = _array_of(image, stack, most_channels(self.channel))
            loaded = [as_loaded(part) for part in (array if stack else [array])]
        with plain_errors():
            return self._predict_stack(loaded) if stack else self._predict(*loaded)

    def _items_of(self, image: Paths, stack: bool) -> Sequence[Mapping[str, object]]:
        """What the bundle's transforms read of a path, or of the paths of channels: one item, or those of a stack."""
        of_one = isinstance(image, (str, PathLike))
        if of_one and not stack and len(planes := image_names(Path(image))) > 1:
            raise InputError(
                f"{image} is a stack of {len(planes)} planes; give stack=True, or the name of one, such as {planes[0]}."
            )
        is_chosen = "series" in self._given and of_one and Path(image).is_dir()
        items = self.list_images(image) if stack or is_chosen else [{"image": image}]
        if is_chosen and len(items) > 1:
            raise InputError(f"{image} has {len(items)} volumes of this series; call it for one of its folders.")
        if self.blocks is not None and (large := self.blocks.open(image)):
            with large:
                self._check_large(large)
        return items

    def _check_large(self, image: TiffRows) -> None:
        """Refuse an image that does not fit into memory, before it is read."""
        needed = self._need.estimate(np.broadcast_to(np.uint8(0), image.shape), {})
        self._need.refuse(image.path, image.shape, needed, "the command predict and predict_images go by blocks")

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
        name = loaded.meta.get("filename_or_obj", "the array")
        if self._need is not None:
            self._need.check(name, loaded, loaded.meta)
        image = np.array(loaded)  # a copy, for the preprocessing may work in place

        def counted(network: nn.Module, shape: torch.Size) -> AbstractContextManager[Callable[..., torch.Tensor]]:
            return counting(network, count_windows(self._inference.inferer, shape), self.progress)

        item, data = self._inference(loaded, around=counted)
        del data["image"]  # as the network saw it, and where it did: an answer that is kept must not keep GPU memory
        labels = convert_to_numpy(data["pred"])[0].astype(np.int32)
        key = self._inference.scores_key
        scores, seen = data[key] if key else class_scores(item["pred"])[1:], seen_in(image, self.channel)
        table = object_table(labels, image, scores, self.class_names, self.channel)
        looked_again = getattr(self._inference.inferer, "diameter", None) == AUTO
        of_cells = (artefact_cells(labels, seen), dark_cells(labels, seen)) if self.class_names is None else ()
        doubts = self.doubts(seen, table, looked_again, *of_cells)
        for doubt in doubts:
            logger.warning("%s: %s", name, doubt)
        if doubt := getattr(item["image"], "meta", {}).get(DOUBT_KEY):  # which is in the log already
            doubts = (*doubts, doubt)
        return Prediction(labels, table, doubts, image, data)

    def doubts(
        self,
        image: np.ndarray,
        table: Mapping[str, np.ndarray],
        looked_again: bool = False,
        artefacts: Collection[int] = (),
        dark: Collection[int] = (),
    ) -> tuple[str, ...]:
        """See :func:`~swinumamba_monai.prediction.objects.find_doubts`.

        Args:
            image: the image as it was read.
            table: columns of :func:`~swinumamba_monai.prediction.objects.object_table` by name.
            looked_again: whether cells of another size than the network knows were looked for in another size of the
                image, so that their size is no doubt.
            artefacts: numbers of what :func:`~swinumamba_monai.prediction.artefacts.artefact_cells` finds.
            dark: numbers of what :func:`~swinumamba_monai.prediction.artefacts.dark_cells` finds.
        """
        given = {*self._given, "diameter"} if looked_again else self._given
        diameter = getattr(self._inference.inferer, "diameter", None)
        said = None if diameter == AUTO else diameter
        return tuple(find_doubts(image, table, self.class_names is None, given, artefacts, said, dark))


def _is_path(image: object) -> bool:
    """Whether this is a path, or the paths of several channels."""
    parts = image if isinstance(image, (list, tuple)) and image else [image]
    return all(isinstance(part, (str, PathLike)) for part in parts)


def _array_of(image: object, stack: bool, most: int) -> np.ndarray:
    """What a caller gave instead of a path, as an array of finite numbers with up to ``most`` channels last."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # which NumPy does not have
    if isinstance(image, Image.Image) and image.mode in OTHER_MODES:
        raise InputError(
            f"the numbers of a PIL image of mode {image.mode} are not its brightness; give image.convert('RGB')."
        )
    if np.ma.is_masked(image):
        raise InputError("pixels of the array are masked; give numbers for them by array.filled(...).")
    try:
        array = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{type(image).__name__} cannot be made an array: {quoted(error)}.") from error
    array = check_steps(check_pixels(array, "the array"), "the array")
    channels = array.shape[3 if stack else 2 :]
    if array.ndim - stack not in (2, 3) or (channels and channels[0] > most):
        wanted = "(Z, H, W) or (Z, H, W, C)" if stack else "(H, W) or (H, W, C), or (Z, H, W) with stack=True"
        first = array.ndim - stack == 3 and array.shape[stack] <= MAX_CHANNELS
        how = f"; if the channels come first, give np.moveaxis(array, {int(stack)}, -1)" if first else ""
        raise InputError(f"the array has the shape {array.shape}; give {wanted}, C up to {most}{how}.")
    return array
