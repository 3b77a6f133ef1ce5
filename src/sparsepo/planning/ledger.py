"""Counting what tensors take, without the tensors: every storage is entered when an operation makes it and struck out when
nothing holds it any longer.

Used around operations on fake tensors (shapes without memory), so that a training step of any model can be followed on any
machine: what autograd saves, what mixed precision casts and what checkpointing throws away are what PyTorch really does.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ALIGNMENT = 512  # bytes to which CUDA's caching allocator rounds
_ATTENTION = "_scaled_dot_product_"  # fused: flash, efficient, cuDNN's, the CPU's
# Part → factor on its bytes on one device
Factors = dict[str, float]


class Ledger(TorchDispatchMode):
    """Live bytes by part, their peak, operations, floating-point operations and bytes moved, of what runs inside.

    Args:
        factors: on a part's bytes in the total whose peak is looked for (a part that is sharded over n devices: 1/n).

    ``peak`` is what every part held when the total was largest; ``phases`` the largest total in each phase. ``traffic``
    counts the bytes that operations other than products read and write.
    """

    def __init__(self, factors: Factors | None = None) -> None:
        super().__init__()
        self.factors = factors or {}
        self.live: defaultdict[str, int] = defaultdict(int)
        self.total = self.highest = 0.0
        self.peak: dict[str, int] = {}
        self.peak_phase = ""
        self.phases: defaultdict[str, float] = defaultdict(float)
        self.flops: defaultdict[str, int] = defaultdict(int)
        self.operations: defaultdict[str, int] = defaultdict(int)
        self.traffic: defaultdict[str, int] = defaultdict(int)
        self._part, self._phase = "activations", "start"
        self._entries: dict[int, tuple[str, int]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """New tensors belong to this part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def phase(self, name: str) -> None:
        """What follows belongs to this phase of the step."""
        self._phase = name

    def enter(self, tensor: Tensor, part: str | None = None) -> None:
        """Count a tensor's storage, if it is not counted yet; with ``part``, move it there if it is."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            if part is not None and self._entries[key][0] != part:
                old, size = self._entries[key]
                self._entries[key] = (part, size)
                self._change(old, -size)
                self._change(part, size)
            return
        size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        self._entries[key] = (part or self._part, size)
        weakref.finalize(storage, self._leave, key)
        self._change(part or self._part, size)

    def pass_through(self, size: int) -> None:
        """Memory that an operation takes and gives back within itself."""
        self._change(self._part, size)
        self._change(self._part, -size)

    def _leave(self, key: int) -> None:
        part, size = self._entries.pop(key)
        self._change(part, -size)

    def _change(self, part: str, size: int) -> None:
        self.live[part] += size
        self.total += size * self.factors.get(part, 1.0)
        if size > 0:
            self.phases[self._phase] = max(self.phases[self._phase], self.total)
            if self.total > self.highest:
                self.highest, self.peak, self.peak_phase = self.total, dict(self.live), self._phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = False
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor):
                made = True
                self.enter(item)
        if made and not func.is_view:
            self.operations[self._phase] += 1
            self._count(func, args, kwargs or {}, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        if name.startswith(_ATTENTION):
            backward = name.endswith("_backward")
            query, key, value = args[1:4] if backward else args[:3]
            self.flops[self._phase] += attention_flops(query, key, value, backward)
            if name == f"{_ATTENTION}flash_attention_backward":
                expanded = 0 if query.shape[1] == key.shape[1] else 2 * query.numel() * query.element_size()
                # sums of the queries' gradient; keys' and values' a head
                self.pass_through(4 * query.numel() + expanded)
        elif func.overloadpacket in flop_registry:
            self.flops[self._phase] += int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
        elif not name.startswith(("empty", "new_empty", "detach")):
            outs = out if isinstance(out, (tuple, list)) else (out,)
            moved = [t for t in (*args, *outs) if isinstance(t, Tensor)]
            self.traffic[self._phase] += sum(t.numel() * t.element_size() for t in moved)


def attention_flops(query: Tensor, key: Tensor, value: Tensor, backward: bool) -> int:
    """Operations of attention over (B, heads, T, D): scores and their products with values; backward, scores again and
    the gradients of scores, values, queries and keys. Keys may have fewer heads: a group of queries shares them."""
    batch, heads, length, width = query.shape
    columns = 3 * width + 2 * value.shape[-1] if backward else width + value.shape[-1]
    return int(2 * batch * heads * length * key.shape[2] * columns)


def bytes_of(tensors: Any) -> int:
    """Bytes of tensors as the allocator rounds them, each storage once."""
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())


def dtype_of(name: str) -> torch.dtype:
    """A torch type from its name."""
    found: torch.dtype = getattr(torch, name)
    return found
