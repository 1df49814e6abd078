"""What a layer must do alike when it is run a second time: its random numbers and its discrete choices.

Reversible and chunked training run a layer twice, once forward and once more in the backward pass. Dropout masks,
hash buckets and argmax choices of the second run must be those of the first, although the rebuilt inputs differ from
the original ones in the last bits (Reformer: buckets are stored, never hashed anew).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Replay:
    """The random state and the named choices of one layer's first run, played back in every later one.

    A choice given to the constructor is played back from the first run on: tests hold buckets fixed that way.
    """

    def __init__(self, choices: dict[str, Tensor] | None = None) -> None:
        self.choices: dict[str, Tensor] = dict(choices or {})
        self._states: tuple[Tensor, Tensor | None] | None = None

    def choose(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The choice kept under `name`; `make` is called for it the first time only."""
        if name not in self.choices:
            self.choices[name] = make().detach()
        return self.choices[name]

    @contextmanager
    def random_state(self, device: torch.device) -> Iterator[None]:
        """Records the random state on the first use and restores it, for the inside only, on later ones."""
        on_gpu = device.type == "cuda"
        if self._states is None:
            self._states = (torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None)
            yield
            return
        cpu_state, gpu_state = self._states
        with torch.random.fork_rng(devices=[device] if on_gpu else []):
            torch.set_rng_state(cpu_state)
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state, device)
            yield

    def replay_bytes(self) -> int:
        """Bytes held for playing back: the choices and the random states."""
        held = list(self.choices.values()) + [s for s in self._states or () if s is not None]
        return sum(t.numel() * t.element_size() for t in held)


def choose(replay: Replay | None, name: str, make: Callable[[], Tensor]) -> Tensor:
    """`replay.choose`, or a fresh choice where nothing is to be replayed."""
    return make().detach() if replay is None else replay.choose(name, make)
