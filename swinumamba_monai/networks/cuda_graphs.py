# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A network's launches recorded once and replayed (CUDA graphs): issuing them one by one from Python takes longer than
a GPU needs for them. Off: ``cuda_graphs=False`` of the network, ``--network_def#cuda_graphs False`` of a bundle.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

logger = logging.getLogger(__name__)

# Number of graphs kept at a time of each kind; each holds the memory of one forward, or of one forward and backward.
MAX_GRAPHS = 4
# Number of calls with the same kind of input before it is recorded, so that images of many sizes cost nothing. The
# first kind that is trained with is recorded at once: what a step without a recording leaves free is in pieces, between
# the gradients and the optimizer's state, and the graph cannot have it.
CALLS_BEFORE = 2

Forward = Callable[[Tensor], list[Tensor]]


class CUDAGraphs:
    """Replays the forward of a network, and its backward in training, where that gives what running it would give.

    A forward is recorded when the same shape, dtype and autocast come for the third time, the first that is trained
    with at once. It is run as usual on a CPU, inside ``torch.compile``, a trace or another recording, for subclasses of
    ``Tensor`` and inputs that want a gradient, where a module has a forward hook, in a replica of ``DataParallel``,
    while another thread replays, and in training before the backward of the last replay. New values in the parameters
    are seen; parameters that moved, or whose ``requires_grad`` changed, are recorded anew. Parameters of heads that a
    loss leaves out get gradients of zero, not None. Copies and pickles begin empty.

    Args:
        training: whether forwards with gradients are recorded too.

    >>> graphs, layer = CUDAGraphs(), nn.Linear(3, 2)
    >>> [y.shape for y in graphs.run(layer, lambda x: [layer(x)], torch.zeros(1, 3))]
    [torch.Size([1, 2])]
    """

    def __init__(self, training: bool = True) -> None:
        self.training = training
        self._lock = threading.Lock()  # of a replay, whose memory is one
        self._is_recording = False
        self._calls: OrderedDict[tuple, int] = OrderedDict()
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._failed = False

    def __reduce__(self) -> tuple:
        return CUDAGraphs, (self.training,)

    def run(self, network: nn.Module, forward: Forward, x: Tensor, kind: object = None) -> list[Tensor]:
        """``forward(x)``, replayed if it can be.

        Args:
            network: network whose parameters and modules ``forward`` uses.
            forward: function of one tensor that returns a list of tensors, in each mode of the network and for each
                ``kind`` computed the same way for all inputs of a shape.
            x: input of ``forward``.
            kind: anything hashable that also decides on what ``forward`` computes.
        """
        if self._failed or self._is_recording or not self._can_replay(network, x):
            return forward(x)
        if not self._lock.acquire(blocking=False):  # another thread replays
            return forward(x)
        try:
            graph = self._find(network, forward, x, kind)
            return forward(x) if graph is None else graph.replay(x)
        finally:
            self._lock.release()

    def _can_replay(self, network: nn.Module, x: Tensor) -> bool:
        return (
            type(x) is Tensor
            and x.is_cuda
            and not (torch.is_grad_enabled() and (x.requires_grad or not network.training or not self.training))
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.cuda.is_current_stream_capturing()
        )

    def _find(self, network: nn.Module, forward: Forward, x: Tensor, kind: object) -> _Graph | None:
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (x.shape, x.dtype, x.device, autocast, kind, network.training, torch.is_grad_enabled())
        graph = self._graphs.pop(key, None)
        if graph is None or not graph.is_valid():
            graph = None  # its memory is free for the new one
            self._calls[key] = self._calls.pop(key, 0) + 1
            if len(self._calls) > 100 * MAX_GRAPHS:
                self._calls.popitem(last=False)
            is_first = torch.is_grad_enabled() and not any(other[-1] for other in self._calls if other != key)
            if (self._calls[key] <= CALLS_BEFORE and not is_first) or not _is_plain(network):
                return None
            same_kind = [other for other in self._graphs if other[-1] == key[-1]]  # with gradients, or without
            if len(same_kind) >= MAX_GRAPHS:
                del self._graphs[same_kind[0]]
            self._is_recording = True
            try:
                graph = (_TrainingGraph if torch.is_grad_enabled() else _Graph)(network, forward, x)
            except RuntimeError as error:
                self._failed = True
                logger.warning("going on without CUDA graphs: %s", str(error).splitlines()[0])
                return None
            finally:
                self._is_recording = False
        self._graphs[key] = graph
        return None if graph.is_busy() else graph


def has_hooks(m: nn.Module) -> bool:
    """Whether a module has hooks that its forward or the backward of that calls."""
    return any((m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks))


def _is_plain(network: nn.Module) -> bool:
    """Whether nothing happens in a forward but the network's own work."""
    return not any(map(has_hooks, network.modules())) and all(p.is_leaf for p in network.parameters())


class _Graph:
    """A recorded forward, and the memory it reads and writes."""

    def __init__(self, network: nn.Module, forward: Forward, x: Tensor) -> None:
        self.tensors = [*network.parameters(), *network.buffers()]
        self.state = self._read_state()
        self.hooks = [hooks for m in network.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.last_use = torch.cuda.Event()
        autocast = torch.is_autocast_enabled("cuda")
        # weights that autocast keeps until its context ends would be gone at the first replay
        context = torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=autocast, cache_enabled=False)
        random_state = torch.cuda.get_rng_state(x.device)
        gradients = torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad()  # inference_mode(False) enables
        try:
            with torch.inference_mode(False), gradients, context:
                self.x = x.detach().clone(memory_format=torch.contiguous_format)
                self._record(network, forward)
        except RuntimeError:  # which may have left the random numbers waiting for the recording to end
            generator = torch.cuda.default_generators[x.device.index]
            generator.graphsafe_set_state(torch.Generator(x.device).graphsafe_get_state())
            raise
        finally:
            torch.cuda.set_rng_state(random_state, x.device)

    def _read_state(self) -> list[tuple[int, bool]]:
        return [(t.data_ptr(), t.requires_grad) for t in self.tensors]

    def is_valid(self) -> bool:
        return not any(self.hooks) and self.state == self._read_state()

    def is_busy(self) -> bool:
        """Whether a replay would overwrite what is still needed."""
        return False

    def _record(self, network: nn.Module, forward: Forward) -> None:
        forward(self.x)  # libraries set themselves up at a first call
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.heads = forward(self.x)

    def replay(self, x: Tensor) -> list[Tensor]:
        torch.cuda.current_stream().wait_event(self.last_use)  # which may have been on another stream
        self.x.copy_(x)
        self.graph.replay()
        heads = [head.clone() for head in self.heads]
        self.last_use.record()
        return heads


class _Bound(nn.Module):
    """A function with the network that it computes with, for ``functional_call`` to put other tensors in there."""

    def __init__(self, network: nn.Module, function: Forward) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.function(x)


class _Pass:
    """One replayed forward, until its backward."""

    done = False


class _TrainingGraph(_Graph):
    """A recorded forward and its backward."""

    _last_pass: weakref.ref[_Pass] | None = None

    def is_busy(self) -> bool:
        last = self._last_pass and self._last_pass()
        return last is not None and not last.done

    def _record(self, network: nn.Module, forward: Forward) -> None:
        bound = _Bound(network, forward)
        trained = {name: p for name, p in bound.named_parameters() if p.requires_grad}
        self.parameters = list(trained.values())
        if len({p.dtype for p in self.parameters}) != 1:
            raise RuntimeError("the trained parameters are not of one dtype.")

        def run_forward() -> tuple[list[Tensor], list[Tensor]]:
            # Stand-ins that share the parameters' memory: an earlier loss that is still alive would tie the backward of
            # the parameters themselves to the stream that it ran on.
            stand_ins = {name: p.detach().requires_grad_() for name, p in trained.items()}
            return list(stand_ins.values()), functional_call(bound, stand_ins, (self.x,))

        def run_backward(parameters: Sequence[Tensor], heads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(heads, parameters, self.dheads, allow_unused=True)

        def step() -> None:
            parameters, heads = run_forward()
            self.dheads = [torch.zeros_like(head) for head in heads]
            run_backward(parameters, heads)

        step()  # libraries set themselves up at a first call
        # What cuBLAS took for this stream then, tens of MB, is of no further use: the recording takes its own.
        torch._C._cuda_clearCublasWorkspaces()
        self.graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            parameters, heads = run_forward()
        with torch.cuda.graph(self.backward_graph, pool=self.graph.pool(), capture_error_mode="thread_local"):
            grads = run_backward(parameters, heads)
        self.is_used = [grad is not None for grad in grads]
        self.grads = [grad for grad in grads if grad is not None]
        self.heads = [head.detach() for head in heads]

    def replay(self, x: Tensor) -> list[Tensor]:
        return list(_Replay.apply(self, x, *self.parameters))

    def begin(self, x: Tensor) -> tuple[_Pass, list[Tensor]]:
        heads = super().replay(x)
        this_pass = _Pass()
        self._last_pass = weakref.ref(this_pass)
        return this_pass, heads

    def finish(self, this_pass: _Pass, dheads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the parameters, in memory of their own."""
        if self._last_pass() is not this_pass:
            raise RuntimeError(
                "a later forward has overwritten what this second backward needs; build the network with "
                "cuda_graphs=False to go backward more than once."
            )
        for static, dhead in zip(self.dheads, dheads):
            static.zero_() if dhead is None else static.copy_(dhead)
        self.backward_graph.replay()
        this_pass.done = True
        grads = iter(_copies(self.grads))
        self.last_use.record()
        return [next(grads) if is_used else None for is_used in self.is_used]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors of one dtype, in few launches; each begins where vectors of four may be loaded."""
    sizes = [-(-t.numel() // 4) * 4 for t in tensors]
    parts = tensors[0].new_empty(sum(sizes)).split(sizes)
    copies = [part[: t.numel()].view(t.shape) for part, t in zip(parts, tensors)]
    torch._foreach_copy_(copies, tensors)
    return copies


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph: _TrainingGraph, x: Tensor, *parameters: Tensor):
        ctx.graph = graph
        ctx.this_pass, heads = graph.begin(x)
        ctx.set_materialize_grads(False)
        return tuple(heads)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *dheads: Tensor | None):
        return None, None, *ctx.graph.finish(ctx.this_pass, dheads)
