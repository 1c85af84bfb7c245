# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The base of every network here: images of any size, metadata, CUDA graphs, and outputs for deep supervision."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from swinumamba_monai.errors import InputError, is_bundle_command, listed, report_plainly
from swinumamba_monai.ops.backends import is_exporting

from .cuda_graphs import CUDAGraphs

logger = logging.getLogger(__name__)

ONNX_BY_MONAI = is_bundle_command() and "onnx_export" in sys.argv[1:2]  # once: torch.compile cannot follow the question
TELLS_EXPORT = hasattr(torch.compiler, "is_exporting")  # not before torch 2.7


def next_multiple(side: int, step: int) -> int:
    """The smallest multiple of ``step`` that is not less than ``side``."""
    if TELLS_EXPORT and torch.compiler.is_compiling() and not is_exporting():
        # A range needs a constant, so that torch.compile makes a program for each size; Inductor cannot order the
        # strides that symbolic sizes lead to.
        side = len(range(side))
    # written so that sizes which torch.export keeps symbolic cancel to multiples
    return (side + step - 1) // step * step


def continued(x: Tensor, size: Sequence[int]) -> Tensor:
    """An image (b, c, *spatial) continued at the ends by its last pixels to ``size``, the sides of *spatial."""
    ends = [whole - side for whole, side in zip(size, x.shape[2:])]
    return F.pad(x, [n for end in reversed(ends) for n in (0, end)], mode="replicate")


def init_conv(module: nn.Module) -> None:
    """nnU-Net's initialisation of a convolution of maps or volumes; of another module nothing changes."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def drop_path_rates(first: float, last: float, depths: Sequence[int]) -> list[list[float]]:
    """Drop path rates of the blocks of each stage, from that of the first of all to that of the last."""
    return [part.tolist() for part in torch.linspace(first, last, sum(depths), device="cpu").split(list(depths))]


class BaseNetwork:
    """What a segmentation network does around its layers: its ``forward``, from the image to the logits of its size.

    It is the first base class of a network, before :class:`torch.nn.Module` or before a network of MONAI's. The network
    sets ``in_channels`` and ``step``, the multiples that its layers need the sides of an image to be, and has
    :meth:`logits`, unless the class after this one is a network whose ``forward`` returns them. Where it sets
    ``_graphs``, its launches on a GPU are recorded and replayed.

    >>> class Threshold(BaseNetwork, torch.nn.Module):
    ...     in_channels, step = 1, (4, 4)
    ...     def logits(self, x, all_heads):
    ...         return [x - 0.5]
    >>> Threshold()(torch.ones(1, 1, 5, 7)).shape
    torch.Size([1, 1, 5, 7])
    """

    in_channels: int
    out_channels: int | None = None  # where the class says so
    spatial_dims = 2
    step: Sequence[int]
    two_pixels = False  # whether the coarsest map has two pixels at least, as an instance norm of it needs
    heads_in_eval = False  # whether deep_supervision goes on in evaluation mode, as nnU-Net's validation wants it
    _deep_supervision = False
    _graphs: CUDAGraphs | None = None

    @property
    def deep_supervision(self) -> bool:
        """Whether all heads are returned; without, :meth:`coarse_heads` want no gradient: none would come."""
        return self._deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        self._deep_supervision = enabled
        for head in self.coarse_heads():
            head.requires_grad_(enabled)

    def coarse_heads(self) -> Sequence[torch.nn.Module]:
        """The layers that serve nothing but the logits at coarser scales."""
        return []

    @property
    def all_heads(self) -> bool:
        """Whether :meth:`forward` returns the logits at all scales."""
        return self.deep_supervision and (self.training or self.heads_in_eval)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """As of every module, but not where some of what is loaded is this network's own, left as it was.

        ``monai.bundle.load(..., model=net)`` and ``monai.networks.utils.copy_model_state`` leave what has another size
        in the file, or is not in it, and hand over the network's own. Taken with a warning is what
        :func:`~swinumamba_monai.pretrained.load_pretrained` takes: a network for other classes or channels, and an
        encoder alone.

        Raises:
            ValueError: of any other network's weights a part would be loaded, or nothing; it stays as it was.
        """
        own = self.state_dict()
        places = {name: _place_of(tensor) for name, tensor in state_dict.items()}
        kept = [name for name, place in places.items() if place and place == _place_of(own.get(name))]
        if kept and not hasattr(state_dict, "_metadata"):  # which torch's own have, and MONAI's copies do not
            counted = f"{len(kept)} of {len(own)} tensors"
            why = f"none of their name and size was given: {listed(kept)}"
            if not self._may_keep(kept, own):
                raise ValueError(
                    f"{counted} would stay as they were, because {why}; make the network that the weights are of, or "
                    "give those that are to be taken to load_state_dict(..., strict=False)."
                )
            logger.warning("%s stay as they were, because %s", counted, why)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _may_keep(self, kept: Sequence[str], own: Mapping[str, Tensor]) -> bool:
        """Whether tensors all depend on the classes or channels, or are all that lie beside the encoder."""
        if self.out_channels is None:
            return True  # cannot be told

        def depends(tensor: Tensor) -> bool:
            of_classes = tensor.ndim in (1, 4, 5) and tensor.shape[0] == self.out_channels
            return of_classes or (tensor.ndim in (4, 5) and tensor.shape[1] == self.in_channels)

        rest = [name for name in kept if not depends(own[name])]
        beside = [name for name in own if not name.startswith("vssm_encoder.") and not depends(own[name])]
        return not rest or (len(beside) < len(own) - len(kept) and rest == beside)

    def logits(self, x: Tensor, all_heads: bool) -> list[Tensor]:
        """Logits for an image of :meth:`padded_size`, (b, in_channels, *spatial): a list of (b, out_channels, ...).

        The finest come first; where ``all_heads`` is False they are the only ones.
        """
        heads = super().forward(x)
        return heads if isinstance(heads, list) else [heads]

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """The size that an image of ``size`` is continued to."""
        *sides, last = (next_multiple(side, step) for side, step in zip(size, self.step))
        if self.two_pixels:
            pixels = math.prod(side // step for side, step in zip([*sides, last], self.step))
            # 1 of one pixel, else 0. No condition, which an exported network would keep. And not 1 // pixels, times
            # the step: ONNX Runtime makes step // pixels of that.
            last = last + 2 // (pixels + 1) * self.step[-1]
        return [*sides, last]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """
        Args:
            x: image of any size, (b, in_channels, *spatial). What is short of :meth:`padded_size` is continued at the
                ends by its last pixels, and the logits are cut back.

        Returns:
            logits (b, out_channels, *spatial); with ``deep_supervision``, in training mode or where ``heads_in_eval``
            was set to True, the list of the logits at all scales, finest first, each of ceil(side / scale) pixels
            along a side.

        Raises:
            ValueError: an input of other dimensions or channels, or without a pixel.
        """
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels or 0 in x.shape:
            axes = ", ".join("dhw"[-self.spatial_dims :])
            raise ValueError(f"expected an input of shape (b, {self.in_channels}, {axes}), got {tuple(x.shape)}.")
        if ONNX_BY_MONAI and is_exporting():
            report_plainly()
            raise InputError(
                "MONAI's onnx_export cannot tell torch how to write the scan; use "
                "python -m swinumamba_monai export onnx."
            )
        image = x.as_tensor() if isinstance(x, MetaTensor) else x
        if self._graphs is None:
            heads = self._heads(image)
        else:
            heads = self._graphs.run(self, self._heads, image, self.all_heads)
        if isinstance(x, MetaTensor):
            heads = [convert_to_dst_type(head, x, dtype=head.dtype)[0] for head in heads]
        return heads if self.all_heads else heads[0]

    def __prepare_scriptable__(self) -> None:
        """What ``torch.jit.script`` asks first, so also MONAI's ``ckpt_export`` without a trace."""
        report_plainly()
        raise InputError(
            "torch.jit.script cannot read these networks: for TorchScript add --use_trace True --input_shape "
            f'"[1,{self.in_channels},64,64]" to ckpt_export, for ONNX use python -m swinumamba_monai export onnx.'
        )

    def _heads(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        x = continued(x, self.padded_size(size))
        return [_cut(head, size, x.shape[2:]) for head in self.logits(x, self.all_heads)]


def _place_of(tensor: object) -> int:
    """Where the numbers of a tensor lie in memory; 0 where there are none."""
    return tensor.data_ptr() if isinstance(tensor, Tensor) else 0


def _cut(head: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """The part of a head that belongs to the image; the head's own sides divide those of the padded image."""
    scales = [whole // own for whole, own in zip(padded, head.shape[2:])]
    sides = [(side + scale - 1) // scale for side, scale in zip(size, scales)]
    if not is_exporting():
        return head[(..., *map(slice, sides))]
    # The strides of a slice tell whether anything was cut, which would tie an exported program to sizes of one kind.
    for axis, side in enumerate(sides, start=2):
        head = head.index_select(axis, torch.arange(side, device=head.device))
    return head
