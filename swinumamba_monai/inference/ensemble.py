# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Several checkpoints of one network, such as those of the folds or seeds of a training, as one network."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from os import PathLike

import torch.nn as nn
from monai.utils import ensure_tuple
from torch import Tensor

from swinumamba_monai.errors import InputError
from swinumamba_monai.pretrained import load_pretrained


class Ensemble(nn.Module):
    """A network whose logits are the mean of those of its members, as nnU-Net averages its folds.

    Until :meth:`load` is called, and with a single checkpoint after it, it is the network itself.

    Args:
        network: first member, in evaluation mode when it is called.

    >>> from tempfile import TemporaryDirectory
    >>> ensemble = Ensemble(nn.Linear(1, 1, bias=False))
    >>> with TemporaryDirectory() as folder:
    ...     torch.save({"weight": torch.tensor([[1.0]])}, f"{folder}/fold0.pt")
    ...     torch.save({"weight": torch.tensor([[2.0]])}, f"{folder}/fold1.pt")
    ...     ensemble.load([f"{folder}/fold0.pt", f"{folder}/fold1.pt"])
    >>> ensemble.requires_grad_(False)(torch.ones(1, 1))
    tensor([[1.5000]])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList([network])

    def load(self, ckpt_path: str | PathLike | Sequence[str | PathLike]) -> None:
        """Give every checkpoint, of trained networks like the first member, a member of its own.

        Raises:
            InputError: there is no checkpoint, or one that cannot be read or does not fit.
        """
        paths = ensure_tuple(ckpt_path)
        if not paths:
            raise InputError("ckpt_path names no checkpoint; give a file, or a list of files for an ensemble.")
        network = self.members[0]
        self.members = nn.ModuleList([network, *(deepcopy(network) for _ in paths[1:])])
        for member, path in zip(self.members, paths, strict=True):
            load_pretrained(member, path, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, classes, h, w) of images (b, c, h, w)."""
        first, *others = self.members
        logits = first(x)
        for member in others:
            logits = logits + member(x)
        return logits / len(self.members)
