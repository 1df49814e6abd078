"""What a layer must do alike when it is run a second time: random numbers, discrete choices, and precision.

Reversible and chunked training run a layer twice, once forward and once more in the backward pass. Dropout masks,
hash buckets and argmax choices of the second run must be those of the first, although the rebuilt inputs differ from
the original ones in the last bits (Reformer: buckets are stored, never hashed anew).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

Choose = Callable[[str, Callable[[], Tensor]], Tensor]
"""`RecomputeState.choose`, or what stands for it: the choice kept under a name, made where there is none yet."""

_State = tuple[Tensor, Tensor | None]


def _random_state(device: torch.device) -> _State:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: _State, device: torch.device) -> None:
    cpu_state, gpu_state = state
    torch.set_rng_state(cpu_state)
    if gpu_state is not None:
        torch.cuda.set_rng_state(gpu_state, device)


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Leaves the random states of the CPU, and of `device`, as they are, whatever is drawn inside."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class RecomputeState:
    """The random state and the named choices of one layer's first run, played back in every later one.

    A choice given to the constructor is played back from the first run on: tests hold buckets fixed that way.
    """

    def __init__(self, choices: dict[str, Tensor] | None = None) -> None:
        self.choices: dict[str, Tensor] = dict(choices or {})
        self._start: _State | None = None
        self._after: dict[str, _State] = {}
        self._running_on: torch.device | None = None

    def choose(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The choice kept under `name`; `make` is called for it the first time only.

        Inside `random_state`, a later run goes on from the random state that `make` left: what is drawn afterwards
        (dropout behind drawn hash rotations) must not depend on whether the choice was drawn or played back.
        """
        made = name not in self.choices
        if made:
            self.choices[name] = make().detach()
        if self._running_on is not None:
            if made:
                self._after[name] = _random_state(self._running_on)
            elif name in self._after:
                _set_random_state(self._after[name], self._running_on)
        return self.choices[name]

    @contextmanager
    def random_state(self, device: torch.device) -> Iterator[None]:
        """Records the random state on the first use and restores it, for the inside only, on later ones."""
        self._running_on = device
        try:
            if self._start is None:
                self._start = _random_state(device)
                yield
            else:
                with forked_rng(device):
                    _set_random_state(self._start, device)
                    yield
        finally:
            self._running_on = None

    def nbytes(self) -> int:
        """Bytes held for playing back: the choices and the random states."""
        states = [*self._after.values(), *([] if self._start is None else [self._start])]
        held = [*self.choices.values(), *(t for state in states for t in state if t is not None)]
        return sum(t.numel() * t.element_size() for t in held)


def choose(state: RecomputeState | None, name: str, make: Callable[[], Tensor]) -> Tensor:
    """`state.choose`, or a fresh choice where nothing is to be replayed."""
    return make().detach() if state is None else state.choose(name, make)


def autocast_of(x: Tensor) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast setting that holds now on `x`'s device, as a context that can be entered later."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext
    return partial(torch.autocast, kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
