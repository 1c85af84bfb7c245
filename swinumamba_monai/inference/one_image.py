# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What MONAI's ``SupervisedEvaluator`` does with an item of the dataset, for what does not go through a dataset."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from monai.transforms import Compose, SaveImaged
from torch import Tensor, nn

from swinumamba_monai.data.files.images import ImageFileReader

Around = Callable[[nn.Module, torch.Size], AbstractContextManager[Callable[..., Tensor]]]


class ImageInference:
    """The way of one image through a bundle's ``inference.json``, but for its file: reading and writing.

    Args:
        preprocessing: transforms, of which the first reads the file.
        network: maps windows (b, c, h, w) to outputs.
        inferer: cuts the image into windows.
        postprocessing: transforms; those that write are in ``savers``.
        device: device of the network.
        amp_dtype: dtype of autocast; None without.

    Attributes:
        load: the transform that reads the file.
        prepare: the others before the network.
        savers: the transforms that write.
        scores_key: key under which the scores of the objects are; None where there are none.
    """

    def __init__(
        self,
        preprocessing: Compose,
        network: nn.Module,
        inferer: Inferer,
        postprocessing: Compose,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        self.load, *prepare = preprocessing.flatten().transforms
        self.prepare = Compose(prepare)
        self.network, self.inferer, self.device, self.amp_dtype = network, inferer, device, amp_dtype
        results = postprocessing.flatten().transforms
        self.savers = [transform for transform in results if isinstance(transform, SaveImaged)]
        self._postprocess = Compose([transform for transform in results if transform not in self.savers])
        keys = [transform.scores_key for transform in results if getattr(transform, "scores_key", None)]
        self.scores_key = keys[0] if keys else None

    def __call__(
        self, loaded: MetaTensor, prepare: Compose | None = None, around: Around | None = None
    ) -> tuple[dict[Hashable, object], dict[Hashable, object]]:
        """The item of an image, with "image" and "pred", before and after the postprocessing.

        Args:
            loaded: image as ``load`` gives it; it may be changed.
            prepare: instead of the transforms of the bundle.
            around: gives a context in which there is another network, such as one that counts its windows, for the
                network and the spatial shape of what the inferer will get.
        """
        batch = list_data_collate([(prepare or self.prepare)({"image": loaded})])
        batch["image"] = inputs = batch["image"].to(self.device)
        around = around or (lambda network, shape: nullcontext(network))
        autocast = nullcontext() if self.amp_dtype is None else torch.autocast("cuda", dtype=self.amp_dtype)
        with eval_mode(self.network), autocast, around(self.network, inputs.shape[2:]) as network:
            batch["pred"] = self.inferer(inputs, network)
        (item,) = decollate_batch(batch)
        return item, self._postprocess(item)


def as_loaded(array: np.ndarray) -> MetaTensor:
    """An array (H, W) or (H, W, C) as MONAI's ``LoadImage`` gives what it has read."""
    return MetaTensor.ensure_torch_and_prune_meta(array.astype(np.float32), ImageFileReader.metadata(array))
