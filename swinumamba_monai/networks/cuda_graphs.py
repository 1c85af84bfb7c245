# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: the launches of a forward recorded once and replayed, because issuing them one by one takes longer than
small batches compute.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["InferenceGraphs", "graph_training"]

logger = logging.getLogger(__name__)

MAX_GRAPHS = 4  # kept at a time; each holds the memory of one forward
CALLS_BEFORE = 2  # with the same kind of input before it is recorded, so that images of many sizes cost nothing


class _Graph:
    """One recorded forward and the memory it reads and writes."""

    def __init__(self, forward: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.addresses = [p.data_ptr() for p in parameters]
        autocast = torch.is_autocast_enabled("cuda")
        # weights cast outside of the graph would be freed with autocast's cache
        context = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=autocast, cache_enabled=False)
        with torch.inference_mode(False), torch.no_grad(), context:
            self.x = x.clone(memory_format=torch.contiguous_format)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                forward(self.x)  # whatever is set up by a first call
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.y = forward(self.x)
            self.used = torch.cuda.Event()

    def is_valid(self) -> bool:
        return self.addresses == [p.data_ptr() for p in self.parameters]

    def __call__(self, x: Tensor) -> Tensor:
        torch.cuda.current_stream().wait_event(self.used)
        self.x.copy_(x)
        self.graph.replay()
        y = self.y.clone()
        self.used.record()
        return y


class InferenceGraphs:
    """Replays a network's inference where that is possible, and is None-safe to copy, pickle and use from threads.

    A forward is recorded when the same shape, dtype and autocast come for the third time. It is run as usual in
    training, with gradients, on a CPU, inside ``torch.compile``, a trace or another recording, for subclasses of
    ``Tensor``, where a module has a forward hook, and while another thread replays. New values in the parameters are
    seen; parameters that moved (``.to``, ``load_state_dict(assign=True)``) are recorded anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: OrderedDict[tuple, int] = OrderedDict()
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._failed = False

    def __deepcopy__(self, memo: dict) -> InferenceGraphs:
        return InferenceGraphs()

    def __reduce__(self) -> tuple:
        return InferenceGraphs, ()

    def run(self, network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``forward(x)``, replayed if it can be.

        Args:
            network: whose parameters and modules ``forward`` uses.
            forward: computes one tensor from one tensor, the same way for every input of a shape.
            x: its input.
        """
        if self._failed or not _is_replayable(network, x) or not self._lock.acquire(blocking=False):
            return forward(x)
        try:
            graph = self._find(network, forward, x)
            return forward(x) if graph is None else graph(x)
        finally:
            self._lock.release()

    def _find(self, network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> _Graph | None:
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (x.shape, x.dtype, x.device, autocast)
        graph = self._graphs.pop(key, None)
        if graph is None or not graph.is_valid():
            self._calls[key] = self._calls.pop(key, 0) + 1
            if len(self._calls) > 100 * MAX_GRAPHS:
                self._calls.popitem(last=False)
            if self._calls[key] <= CALLS_BEFORE or any(_has_hooks(m) for m in network.modules()):
                return None
            graph = None  # frees the old one's memory first
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
            try:
                graph = _Graph(forward, x, [*network.parameters(), *network.buffers()])
            except RuntimeError as error:
                self._failed = True
                logger.warning("inference goes on without CUDA graphs (%s)", str(error).splitlines()[0])
                return None
        self._graphs[key] = graph
        return graph


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_replayable(network: nn.Module, x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and x.is_cuda
        and not network.training
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.cuda.is_current_stream_capturing()
    )


def graph_training(network: nn.Module, sample: Tensor, amp_dtype: torch.dtype | None = None) -> nn.Module:
    """Let a network's training replay recorded forwards and backwards, by ``torch.cuda.make_graphed_callables``.

    From then on a training forward takes inputs of this shape only, each must have its backward before the next
    forward, and gradients are those of one forward: do not accumulate them. Evaluation is as before. To be called before
    DDP wraps the network.

    Args:
        network: on its CUDA device.
        sample: an input of the shape, dtype and device of those to come.
        amp_dtype: of the autocast that training will use; None for none.

    Returns:
        the network itself.

    Raises:
        ValueError: an input that is not on a CUDA device.
    """
    if not sample.is_cuda:
        raise ValueError(f"CUDA graphs need a CUDA device, but the sample is on '{sample.device}'.")
    training = network.training
    network.train()
    with torch.autocast("cuda", amp_dtype, enabled=amp_dtype is not None, cache_enabled=False):
        torch.cuda.make_graphed_callables(network, (sample,))
    return network.train(training)
