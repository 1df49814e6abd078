"""How a token is timed: the two protocols, the seconds of its parts, and what the machine reads at best meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from efftx.bench.decode_weights import MARGIN
from efftx.core.durations import SPREAD
from efftx.decoding.programs import Mark
from efftx.decoding.quantized import QuantizedSparseFF
from efftx.layers.cost import Read
from efftx.layers.feedforward import FeedForward
from efftx.layers.projections import DenseQKV, DenseQuery
from efftx.layers.sparse_ff import SparseFF
from efftx.layers.sparse_qkv import SparseQKV, SparseQuery
from efftx.machine.timing import no_garbage_collection, percentile, stolen_seconds
from efftx.models.block import Block
from efftx.native.program import reading

PROTOCOLS = ("authors", "steady")
AUTHORS_STEPS, AUTHORS_IGNORED, AUTHORS_CONTEXT = 12, 2, 16
STEADY_TOKENS = 100
REFERENCE_TURNS = 3
WARM_UP = 4
"""Tokens before the first that is timed, in both protocols."""
PARTS_EVERY = 4
"""So many tokens are timed as a whole for each that is timed part by part."""
WIDTH = 9216
"""Of the reference's rows: that of the paper's largest models."""
ORDER = ("QKV", "attention", "output", "controller", "feed-forward", "SRU", "logits", "everything else")


@dataclass(frozen=True)
class Procedure:
    """How a token is timed: by which of `PROTOCOLS`, over how many tokens, and how often all of that."""

    protocol: str
    tokens: int
    repeats: int = 1

    @property
    def room(self) -> int:
        """Tokens that are decoded in one time, those that are timed by part and those to warm up among them."""
        return WARM_UP + self.tokens + ceil(self.tokens / PARTS_EVERY)

    def counted(self, timed: list[Timed]) -> list[Timed]:
        """Of the tokens of one time those that count."""
        return timed[AUTHORS_IGNORED:] if self.protocol == "authors" else timed


@dataclass
class Profile:
    """Seconds by component: `mark(name)` gives what has passed since the mark before to `name`."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def begin(self) -> None:
        """The clock of one token starts."""
        self.seconds = {}
        self.last = time.perf_counter()

    def mark(self, component: str, moment: float | None = None) -> None:
        """A part has ended, now or at `moment` of the same clock."""
        now = time.perf_counter() if moment is None else moment
        self.seconds[component] = self.seconds.get(component, 0.0) + now - self.last
        self.last = now


@contextmanager
def parts_marked(blocks: Iterable[Block], mark: Mark) -> Iterator[None]:
    """Meanwhile every part of a layer that runs by its own forward tells `mark` when it has ended."""
    wrapped: dict[tuple[int, str], nn.Module] = {}

    def wrap(layer: nn.Module, method: str, after: str, before: str | None = None) -> None:
        call = getattr(layer, method)

        def marked(*args: Any, **options: Any) -> Any:
            if before is not None:
                mark(before)
            result = call(*args, **options)
            mark(after)
            return result

        if (id(layer), method) not in wrapped:
            wrapped[id(layer), method] = layer
            vars(layer)[method] = marked

    for branch in (branch for block in blocks for branch in block.branches()):
        wrap(branch.norm, "forward", "everything else")
        for layer in branch.core.modules():
            if isinstance(layer, (DenseQKV, DenseQuery, SparseQKV, SparseQuery)):
                wrap(layer, "forward", "QKV")
                has_output = any(True for _ in getattr(layer, "o", nn.Sequential()).parameters())
                wrap(layer, "output", "output" if has_output else "attention", before="attention")
            elif isinstance(layer, (FeedForward, SparseFF, QuantizedSparseFF)):
                wrap(layer, "forward", "feed-forward")
            if isinstance(layer, SparseFF):
                wrap(layer, "controller", "controller")
            elif isinstance(layer, QuantizedSparseFF) and layer.config.has_controller:
                wrap(layer.controller, "forward", "controller")
        if branch.beside is not None:
            wrap(branch.beside, "forward", "SRU")
    try:
        yield
    finally:
        for (_, method), layer in wrapped.items():
            del vars(layer)[method]


def reference_bytes(cache_bytes: int) -> int:
    """What the reference takes of memory: a matrix `MARGIN` times as large as the cache, of 64 MiB at least."""
    return max(2**26, MARGIN * cache_bytes) // (4 * WIDTH) * 4 * WIDTH


class Reference:
    """What the machine reads at best: a sum over, and a product with, one matrix far larger than its cache.

    Every row takes its turns between the models' own, so that a disturbance shows in both.
    """

    def __init__(self, device: torch.device, cache_bytes: int) -> None:
        self.cache_bytes = cache_bytes
        self._matrix = torch.full((reference_bytes(cache_bytes) // 4 // WIDTH, WIDTH), 0.5, device=device)
        self._vector = torch.full((WIDTH,), 0.25, device=device)
        self._out = torch.empty(self._matrix.shape[0], device=device)
        self.n_bytes = self._matrix.nbytes
        self._read = reading(self._matrix)
        self.reads: list[float] = []
        self.products: list[float] = []

    @torch.inference_mode()
    def turn(self) -> None:
        """One sum and one product, timed."""
        started = time.perf_counter()
        self._read()
        self.reads.append(time.perf_counter() - started)
        started = time.perf_counter()
        torch.mv(self._matrix, self._vector, out=self._out)
        self.products.append(time.perf_counter() - started)

    def read_rate(self, since: int = 0) -> float:
        """Bytes a second of the sums since turn `since`, by their median."""
        return self.n_bytes / statistics.median(self.reads[since:])

    def matvec_rate(self, since: int = 0) -> float:
        """Bytes a second of the products since turn `since`, by their median."""
        return self.n_bytes / statistics.median(self.products[since:])


class Decoder(Protocol):
    """A model that decodes token after token."""

    def step(self) -> object:
        """One token."""
        ...

    def step_by_part(self) -> object:
        """One token more, its parts timed where they can be."""
        ...

    def last_seconds(self) -> tuple[Mapping[str, float], float]:
        """Seconds of the last token by component, and of its blocks together."""
        ...


class Timed(NamedTuple):
    """Of one token its seconds, those of its parts where they were timed, and those of its blocks.

    `stolen`: the steal time meanwhile, in seconds over all processors (`stolen_seconds`), None where it is not known.
    """

    seconds: float
    parts: dict[str, float] | None
    blocks: float
    stolen: float | None = None


def timed_tokens(model: Decoder, tokens: int) -> list[Timed]:
    """What each of `tokens` steps takes, after `WARM_UP` uncounted.

    The parts are those of one token more after every `PARTS_EVERY`th, the last among them; None with the others.
    """
    repetitions = []
    with no_garbage_collection():
        for i in range(-WARM_UP, tokens):
            stolen, started = stolen_seconds(), time.perf_counter()
            model.step()
            seconds = time.perf_counter() - started
            if i < 0:
                continue
            since = stolen_seconds()
            meanwhile = None if stolen is None or since is None else since - stolen
            blocks, parts = model.last_seconds()[1], None
            if (tokens - 1 - i) % PARTS_EVERY == 0:
                model.step_by_part()
                parts = dict(model.last_seconds()[0])
            repetitions.append(Timed(seconds, parts, blocks, meanwhile))
    return repetitions


def decode_row(
    make: Callable[[], Decoder], reads: Mapping[str, Read], procedure: Procedure, reference: Reference, **facts: Any
) -> dict[str, Any]:
    """A row of the bench: the `summary` of the steps of what `make` gives, anew each time, as `row_of`."""
    return row_of(lambda: timed_tokens(make(), procedure.tokens), reads, procedure, reference, **facts)


def row_of(
    measure: Callable[[], list[Timed]],
    reads: Mapping[str, Read],
    procedure: Procedure,
    reference: Reference,
    **facts: Any,
) -> dict[str, Any]:
    """A row of the bench: the `summary` of what `measure` gives, as often as is asked, in turns with the reference.

    `facts` are what it says of the model: its name, length, width, n_blocks, peak_bytes and distinct_blocks at least.
    """
    turn = len(reference.reads)
    reference.turn()
    counted: list[Timed] = []
    for _ in range(procedure.repeats):
        counted += procedure.counted(measure())
        reference.turn()
    for _ in range(REFERENCE_TURNS - 2):
        reference.turn()
    row = summary(counted, procedure.protocol, reads, reference.read_rate(turn), reference.matvec_rate(turn))
    n_blocks = facts["n_blocks"]
    return {
        **{"peer": False, "version": None, "note": "", "batch": 1, "quantization": None, "distinct_row_sets": 0},
        **{"pass": "decode", "protocol": procedure.protocol, "repeats": procedure.repeats, "first_token_seconds": {}},
        "tokens_per_second": facts.get("batch", 1) / row["seconds"],
        **row,
        **facts,
        "block_seconds": row["block_seconds"] / n_blocks if n_blocks else None,
    }


def summary(
    counted: list[Timed],
    protocol: str,
    reads: Mapping[str, Read],
    read_rate: float,
    matvec_rate: float,
) -> dict[str, Any]:
    """Seconds a token under a protocol, its parts, and what reading its weights alone would take."""
    seconds = [timed.seconds for timed in counted]
    stolen = [timed.stolen for timed in counted if timed.stolen is not None]
    token = statistics.mean(seconds) if protocol == "authors" else statistics.median(seconds)
    n_bytes = sum(read.bytes for read in reads.values())
    by_part = [timed.parts for timed in counted if timed.parts is not None]
    parts = sorted({name for seconds_of in by_part for name in seconds_of} | set(reads), key=_order)
    components = {}
    for part in parts:
        median_seconds = statistics.median(seconds_of.get(part, 0.0) for seconds_of in by_part) if by_part else 0.0
        read = reads.get(part, Read(part, 0, 0))
        components[part] = {
            "seconds": median_seconds,
            "weights": read.weights,
            "bytes": read.bytes,
            "bound_seconds": read.bytes / read_rate,
            "share_of_read": read.bytes / median_seconds / read_rate if median_seconds else 0.0,
        }
    return {
        "seconds": token,
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "p50": statistics.median(seconds),
        "p99": percentile(seconds, 0.99),
        "uneven": max(seconds) > SPREAD * min(seconds),
        "tokens": len(seconds),
        "stolen_share": sum(stolen) / sum(seconds) / (os.cpu_count() or 1) if len(stolen) == len(counted) else None,
        "block_seconds": statistics.median(timed.blocks for timed in counted),
        "weights": sum(read.weights for read in reads.values()),
        "bytes": n_bytes,
        "bound_seconds": n_bytes / read_rate,
        "ratio_to_bound": token / (n_bytes / read_rate),
        "bandwidth": n_bytes / token,
        "share_of_read": n_bytes / token / read_rate,
        "share_of_matvec": n_bytes / token / matvec_rate,
        "overhead_share": 1 - n_bytes / token / matvec_rate,
        "components": components,
    }


def _order(component: str) -> int:
    return ORDER.index(component)
