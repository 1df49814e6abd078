"""`efftx bench decode`: seconds a token of one row, part by part, against the bytes of weights that it must read.

Two protocols. `authors` (their timing test): batch 1, a short context, a warm-up, 12 steps of which the first two are
not counted; the token's time is the mean of the other ten. `steady`: at least 100 tokens at a stated context, median
and 99th percentile. Tokens of their own, every fourth, are timed part by part: the clock's calls cost time too. In
both the keys and values of the context are random, and so are the tokens that are read; the most likely next token is
computed and not fed back, so that a random model does not repeat itself.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from efftx.bench.decode_cases import CASES, case_named
from efftx.bench.decode_peers import PEERS, peer_rows
from efftx.bench.decode_weights import MARGIN, Weights, last_level_cache, make_weights
from efftx.bench.options import Options
from efftx.bench.timing import exclusive, machine, no_garbage_collection
from efftx.decoding.stack import Caches, step_block
from efftx.errors import UserError
from efftx.layers.cache import Place, no_lap
from efftx.layers.matrix import Read
from efftx.models.streams import split
from efftx.training.devices import resolve_device

PROTOCOLS = ("authors", "steady")
AUTHORS_STEPS, AUTHORS_IGNORED, AUTHORS_CONTEXT = 12, 2, 16
STEADY_TOKENS = 100
SPREAD = 2.0
"""The authors warn where the slowest of the counted steps takes more than twice the fastest."""
MEMORY_TOKENS = 16
REFERENCE_TURNS = 3
DEFAULT = ("800m-dense", "800m-ff64", "800m-qkv", "800m-ff-qkv")


@dataclass
class Lap:
    """Seconds by component: `mark(name)` gives what has passed since the mark before to `name`."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def begin(self) -> None:
        """The clock of one token starts."""
        self.seconds = {}
        self.last = time.perf_counter()

    def mark(self, component: str) -> None:
        """A part has ended."""
        now = time.perf_counter()
        self.seconds[component] = self.seconds.get(component, 0.0) + now - self.last
        self.last = now


class Tokens:
    """One model that decodes: `step()` is one token of `batch` rows, over the next blocks of the ring."""

    def __init__(self, weights: Weights, config: Any, *, batch: int, context: int, room: int, seed: int) -> None:
        self.weights, self.config, self.batch = weights, config, batch
        self.lap = Lap()
        generator = torch.Generator().manual_seed(seed)
        self._token_NB = torch.randint(weights.embedding_VD.shape[0], (room, batch), generator=generator)
        like = weights.embedding_VD
        blocks = weights.stack.blocks[: weights.n_blocks]
        while len(blocks) < weights.n_blocks:  # fewer distinct blocks than a token passes
            blocks = [*blocks, *weights.stack.blocks][: weights.n_blocks]
        with torch.inference_mode():
            self._caches: Caches = [
                [branch.cache_at_random(batch, context + room, context, MEMORY_TOKENS, like) for branch in block]
                for block in blocks
            ]
        self._place = Place(context)
        self._next, self._step = 0, 0
        self.block_seconds = 0.0

    @torch.inference_mode()
    def step(self, *, by_part: bool = False) -> Tensor:
        """The most likely next token of every row; its blocks' seconds are in `block_seconds`.

        `by_part`: the seconds of its parts are in `lap`.
        """
        self._place.lap = mark = self.lap.mark if by_part else no_lap
        ring, n_blocks = self.weights.stack.blocks, self.weights.n_blocks
        norm, logits_of = self.weights.heads[self._step % len(self.weights.heads)]
        self.lap.begin()
        started = self.lap.last
        x_BD = self.weights.embedding_VD.index_select(0, self._token_NB[self._step]) + self.weights.position_D
        streams = split(x_BD, self.config.reversible)
        for i in range(n_blocks):
            block = ring[(self._next + i) % len(ring)]
            streams = step_block(block, streams, self._caches[i], self._place)
        mark("everything else")
        self.block_seconds = time.perf_counter() - started
        h_BD = norm(streams[0] if len(streams) == 1 else (streams[0] + streams[1]) / 2)
        mark("everything else")
        chosen_B = logits_of(h_BD).argmax(-1)
        mark("logits")
        self._next += n_blocks
        self._step += 1
        self._place.advance()
        return chosen_B


def bench_decode(options: Options) -> dict[str, Any]:
    """Rows of seconds a token for every name, one model after the other, all against the first.

    Options: names (of `decode_cases`, or a peer), protocol, context (several: a row each), batch (likewise), tokens,
    widths (names=width-dense,width-sparse at each), seed, device. A row has, beside the keys of every bench, p50, p99,
    block_seconds, weights, bytes, bandwidth (bytes / seconds), share_of_read, share_of_matvec, components, ratio_to_first,
    and what the weights were.
    """
    names = _names(options)
    protocol = options.name("protocol", PROTOCOLS, "authors")
    contexts = options.numbers("context", [AUTHORS_CONTEXT])
    batches = options.numbers("batch", [1])
    tokens = options.number("tokens", AUTHORS_STEPS if protocol == "authors" else STEADY_TOKENS)
    seed = options.number("seed", 1) - 1
    device = resolve_device(options.name("device", ("cpu",), "cpu"))
    options.refuse_rest()
    if protocol == "authors" and tokens <= AUTHORS_IGNORED:
        raise UserError("bad_value", f"tokens={tokens} must be more than the {AUTHORS_IGNORED} that are not counted.")
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    with exclusive():
        reference = Reference(device)
        for name in names:
            if name in PEERS:
                found, why = peer_rows(name, protocol, contexts, tokens, reference)
                rows += found
                skipped += [{"name": name, "length": contexts[0], "why": why}] if why else []
                continue
            rows += decode_rows(name, protocol, contexts, batches, tokens, seed, reference)
    _compare(rows)
    return {
        "bench": "decode",
        "rows": rows,
        "skipped": skipped,
        "protocol": protocol,
        "machine": {
            **machine(device, repeats=tokens),
            "last_level_cache_bytes": last_level_cache(),
            "margin": MARGIN,
            "pinned": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "read_bytes_per_second": reference.read_rate(),
            "matvec_bytes_per_second": reference.matvec_rate(),
        },
    }


class Reference:
    """What the machine reads at best: a sum over, and a product with, one matrix far larger than its cache.

    Every row takes its turns between the models' own, so that a disturbance shows in both.
    """

    def __init__(self, device: torch.device) -> None:
        n_bytes = max(2**30, MARGIN * last_level_cache())
        width = 9216
        self._matrix = torch.full((n_bytes // 4 // width, width), 0.5, device=device)
        self._vector = torch.full((width,), 0.25, device=device)
        self._out = torch.empty(self._matrix.shape[0], device=device)
        self.n_bytes = self._matrix.nbytes
        self.reads: list[float] = []
        self.products: list[float] = []

    @torch.inference_mode()
    def turn(self) -> None:
        """One sum and one product, timed."""
        started = time.perf_counter()
        self._matrix.sum()
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


def decode_rows(
    name: str, protocol: str, contexts: list[int], batches: list[int], tokens: int, seed: int, reference: Reference
) -> list[dict[str, Any]]:
    """The rows of one case; its weights are made, read and let go here."""
    case = case_named(name)
    config = case.config()
    weights = make_weights(case, seed=seed)
    rows = []
    for batch in batches:
        for context in contexts:
            turn = len(reference.reads)
            room = WARM_UP + tokens + tokens // LAP_EVERY + 1
            model = Tokens(weights, config, batch=batch, context=context, room=room, seed=seed)
            reference.turn()
            timed = timed_tokens(model, tokens)
            for _ in range(REFERENCE_TURNS - 1):
                reference.turn()
            read_rate, matvec_rate = reference.read_rate(turn), reference.matvec_rate(turn)
            reads = _with_context(weights.reads, config, weights.n_blocks, batch, context)
            row = summary(timed, protocol, reads, read_rate, matvec_rate)
            rows.append(
                {
                    "name": name,
                    "peer": False,
                    "length": context,
                    "batch": batch,
                    "width": config.d_model,
                    "pass": "decode",
                    "protocol": protocol,
                    **row,
                    "block_seconds": row["block_seconds"] / weights.n_blocks,
                    "n_blocks": weights.n_blocks,
                    "int8": case.int8,
                    "peak_bytes": weights.distinct_bytes,
                    "distinct_blocks": weights.n_distinct_blocks,
                    "distinct_row_sets": weights.n_distinct_row_sets,
                }
            )
    return rows


WARM_UP = 4
LAP_EVERY = 4
"""So many tokens are timed as a whole for each that is timed part by part."""


def _with_context(reads: Mapping[str, Read], config: Any, n_blocks: int, batch: int, context: int) -> dict[str, Read]:
    """Weights, the keys and values of the context, and, of a sparse feed-forward, other rows for each row of a batch."""
    n_self = config.attention_per_block * context
    n_cross = MEMORY_TOKENS if config.stack == "encoder_decoder" else 0
    kept = 4 * 2 * batch * n_blocks * config.n_heads * config.width_of_head * (n_self + n_cross)
    found = {**reads, "attention": Read("attention", 0, kept)}
    if config.sparse_ff.N:
        rows = reads["feed-forward"]
        found["feed-forward"] = Read("feed-forward", batch * rows.weights, batch * rows.bytes)
    return found


def timed_tokens(model: Tokens, tokens: int) -> list[tuple[float, dict[str, float] | None, float]]:
    """(seconds, seconds by component, seconds of the blocks) of each of `tokens` steps, after `WARM_UP` uncounted.

    The parts, of a token that follows, stand with every `LAP_EVERY`th, the last among them; None with the others.
    """
    found = []
    with no_garbage_collection():
        for i in range(-WARM_UP, tokens):
            started = time.perf_counter()
            model.step()
            seconds = time.perf_counter() - started
            if i < 0:
                continue
            blocks, parts = model.block_seconds, None
            if (tokens - 1 - i) % LAP_EVERY == 0:
                model.step(by_part=True)
                parts = dict(model.lap.seconds)
            found.append((seconds, parts, blocks))
    return found


def summary(
    timed: list[tuple[float, dict[str, float] | None, float]],
    protocol: str,
    reads: Mapping[str, Read],
    read_rate: float,
    matvec_rate: float,
) -> dict[str, Any]:
    """Seconds a token under a protocol, its parts, and what reading its weights alone would take."""
    counted = timed[AUTHORS_IGNORED:] if protocol == "authors" else timed
    seconds = [t for t, _, _ in counted]
    token = statistics.mean(seconds) if protocol == "authors" else statistics.median(seconds)
    n_bytes = sum(read.bytes for read in reads.values())
    by_part = [laps for _, laps, _ in counted if laps is not None]
    parts = sorted({name for laps in by_part for name in laps} | set(reads), key=_order)
    components = {}
    for part in parts:
        own = statistics.median(laps.get(part, 0.0) for laps in by_part)
        read = reads.get(part, Read(part, 0, 0))
        components[part] = {
            "seconds": own,
            "weights": read.weights,
            "bytes": read.bytes,
            "bound_seconds": read.bytes / read_rate,
            "share_of_read": read.bytes / own / read_rate if own else 0.0,
        }
    return {
        "seconds": token,
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "p50": statistics.median(seconds),
        "p99": sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))],
        "uneven": max(seconds) > SPREAD * min(seconds),
        "tokens": len(seconds),
        "block_seconds": statistics.median(blocks for _, _, blocks in counted),
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


def _names(options: Options) -> list[str]:
    widths = options.numbers("widths", [0])
    known = [*CASES, *PEERS]
    given = options.words("names")
    if widths != [0]:
        return [f"width-{width}-{kind}" for width in widths for kind in ("dense", "sparse")]
    for name in given:
        if name not in known:
            case_named(name)
    return given or [*DEFAULT, *PEERS]


ORDER = ("QKV", "attention", "output", "controller", "feed-forward", "SRU", "logits", "everything else")


def _order(component: str) -> int:
    return ORDER.index(component)


def _compare(rows: list[dict[str, Any]]) -> None:
    """`ratio_to_first`: how many times faster than the first row of the same batch and context, token and block."""
    for row in rows:
        alike = (r for r in rows if (r["batch"], r["length"]) == (row["batch"], row["length"]))
        first = (
            next(alike) if "width" not in str(rows[0]["name"]) else next(r for r in alike if r["width"] == row["width"])
        )
        row["ratio_to_first"] = first["seconds"] / row["seconds"]
        own, theirs = row["block_seconds"], first["block_seconds"]
        row["block_ratio_to_first"] = theirs / own if own and theirs else None
