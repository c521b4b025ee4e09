"""Count what a run moves and holds: bytes handed to collectives, stored on this rank, kept for backward passes.

Counted are the whole tensors of a collective: what an all-gather makes, what a reduce-scatter takes, what an all-reduce
works on. What goes over the wire follows from the number of ranks and the algorithm, and is not seen from here.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {  # torch's operator, its name here, and which of its arguments is the whole tensor
    "_allgather_base_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "allreduce_": ("all-reduce", 0),
    "allgather_": ("exchange", 0),
    "broadcast_": ("broadcast", 0),
    "all_gather_into_tensor": ("all-gather", None),
    "reduce_scatter_tensor": ("reduce-scatter", 0),
    "all_reduce": ("all-reduce", 0),
}


class Collectives(TorchDispatchMode):
    """While active: ``bytes[kind]`` and ``calls[kind]`` of this rank's collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace in ("c10d", "_c10d_functional") and name in KINDS:
            kind, position = KINDS[name]
            whole = result if position is None else args[position]
            self.bytes[kind] += sum(num_bytes(leaf) for leaf in tree_leaves(whole) if isinstance(leaf, Tensor))
            self.calls[kind] += 1
        return result


def num_bytes(tensor: Tensor) -> int:
    """What this rank holds of a tensor."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def stored(model, optimizer) -> dict[str, int]:
    """Bytes on this rank, by what they are."""
    parameters = list(model.parameters())
    state = [leaf for leaf in tree_leaves(optimizer.state_dict()) if isinstance(leaf, Tensor) and leaf.ndim]
    return {
        "weights": sum(map(num_bytes, parameters)),
        "gradients": sum(num_bytes(p.grad) for p in parameters if p.grad is not None),
        "optimizer": sum(map(num_bytes, state)),
    }


class Kept:
    """Bytes kept for backward passes: the most that any one forward left behind."""

    def __init__(self, model) -> None:
        self.most = 0
        self._model = model

    @contextmanager
    def forward(self):
        """Around one forward; weights do not count."""
        weights = {p.untyped_storage().data_ptr() for p in self._model.parameters() if not isinstance(p, DTensor)}
        found: dict[int, tuple[int, Tensor]] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no address is reused
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self.most = max(self.most, sum(size for size, _ in found.values()))
