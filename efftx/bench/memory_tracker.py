"""Peak of live tensor bytes: what a computation holds at its fullest moment, whatever the allocator makes of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTracker(TorchDispatchMode):
    """Follows every storage that is made while the mode is on, from the operator that makes it to its release.

    What exists before (weights, a batch) does not count, nor does what a kernel allocates and frees inside itself.
    Views count once. The mode slows every operator down: never time what runs under it. `resizes`: storages may be
    emptied and filled between two operators, as FSDP does with gathered weights; all are looked at before each of them.
    """

    def __init__(self, *, resizes: bool = False) -> None:
        super().__init__()
        self._living: weakref.WeakSet[UntypedStorage] | None = weakref.WeakSet() if resizes else None
        self._changes: list[tuple[int, int]] = []  # (a storage's number, bytes gained or lost), in order
        self._known: dict[int, tuple[int, int]] = {}  # address -> number (0: made elsewhere), bytes
        self._n_made = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in self._living or ():
            self._count(storage)
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor, made_here=False)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, made_here=True)
        return out

    def peak_bytes(self, excluding: Iterable[Tensor] = ()) -> int:
        """The most bytes alive at one time, those of `excluding` (tensors that still live) left out at all times."""
        left_out = {self._known[a][0] for a in map(_address, excluding) if a in self._known}
        now = peak = 0
        for number, change in self._changes:
            if number not in left_out:
                now += change
                peak = max(peak, now)
        return peak

    def bytes_now(self) -> int:
        """Bytes alive now."""
        return sum(change for _, change in self._changes)

    def _see(self, tensor: Tensor, *, made_here: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._known:
            self._n_made += made_here
            number = self._n_made if made_here else 0
            self._known[address] = (number, 0)
            weakref.finalize(storage, self._release, address)
            if self._living is not None and made_here:
                self._living.add(storage)
        self._count(storage)

    def _count(self, storage: UntypedStorage) -> None:
        address, n_bytes = storage._cdata, storage.nbytes()
        number, before = self._known[address]
        if number and n_bytes != before:  # new, or resized by an operator that writes into a given tensor
            self._known[address] = (number, n_bytes)
            self._changes.append((number, n_bytes - before))

    def _release(self, address: int) -> None:
        number, n_bytes = self._known.pop(address)
        if number:
            self._changes.append((number, -n_bytes))


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
