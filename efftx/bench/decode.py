"""`efftx bench decode`: seconds a token of one row, part by part, against the bytes of weights that it must read.

Two protocols. `authors` (their timing test): batch 1, a short context, a warm-up, 12 steps of which the first two are
not counted; the token's time is the mean of the other ten. `steady`: 100 tokens unless told otherwise at a stated
context, median and 99th percentile. Tokens of their own, every fourth, are timed part by part: the clock's calls cost
time too. In both the keys and values of the context are random, and so are the tokens that are read; the most likely
next token is computed and not fed back, so that a random model does not repeat itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from efftx.bench.decode_cases import CASES, MEMORY_TOKENS, Case, case_named
from efftx.bench.decode_peers import PEERS, peer_rows
from efftx.bench.decode_timing import (
    AUTHORS_CONTEXT,
    AUTHORS_IGNORED,
    AUTHORS_STEPS,
    PROTOCOLS,
    STEADY_TOKENS,
    WARM_UP,
    Procedure,
    Profile,
    Reference,
    decode_row,
    parts_marked,
    reference_bytes,
)
from efftx.bench.decode_weights import MARGIN, Weights, last_level_cache, make_weights, refuse_too_large
from efftx.config.schema import Config
from efftx.config.values import RANGES, Range
from efftx.decoding.programs import DecodingBlock, Mark, step_blocks
from efftx.decoding.session import key_bytes
from efftx.errors import UserError, nearest
from efftx.layers.cache import Position
from efftx.layers.cost import Read
from efftx.layers.cross_attention import CrossAttention
from efftx.machine import timing
from efftx.machine.devices import resolve_device
from efftx.machine.timing import exclusive, interleaved, machine
from efftx.models.block import Branch, BranchCache, Context
from efftx.models.streams import merge, run_blocks, split
from efftx.options import LENGTH, REPEATS, SEED, Options

PROMPT_REPEATS = 3
"""Prompts of each length that are timed."""
DEFAULT = ("800m-dense", "800m-ff64", "800m-qkv", "800m-ff-qkv")


class Tokens:
    """One model that decodes: `step()` is one token of `batch` rows, over the next blocks of the ring."""

    def __init__(self, weights: Weights, config: Any, *, batch: int, context: int, room: int, seed: int) -> None:
        self.weights, self.config, self.batch = weights, config, batch
        self.profile = Profile()
        generator = torch.Generator().manual_seed(seed)
        self._token_NB = torch.randint(weights.embedding_VD.shape[0], (room, batch), generator=generator)
        like = weights.embedding_VD
        self._position = Position(context + _in_front(config))
        self._next, self._step = 0, 0
        self._head = 0  # of the ring: prompts take their turn in it too, but no token of `_token_NB`
        self.block_seconds = 0.0
        with torch.inference_mode():
            self._caches = [
                [self._cache_at_random(branch, self._position.n + room, like) for branch in block.block.branches()]
                for block in self._next_blocks()
            ]

    def last_seconds(self) -> tuple[dict[str, float], float]:
        """Seconds by component of the last token, and of its blocks together."""
        return self.profile.seconds, self.block_seconds

    def step_by_part(self) -> Tensor:
        """One token more, the seconds of its parts in `profile`."""
        with parts_marked((block.block for block in self._next_blocks()), self.profile.mark):
            return self._token(self.profile)

    def step(self) -> Tensor:
        """The most likely next token of every row; its blocks' seconds are in `block_seconds`."""
        return self._token(None)

    @torch.inference_mode()
    def _token(self, profile: Profile | None) -> Tensor:
        profiler: Mark | None = None if profile is None else profile.mark
        mark = profiler or _no_mark
        norm, logits_of = self._next_head()
        if profile is not None:
            profile.begin()
        token_B = self._token_NB[self._step]
        x_BD = self.weights.embedding_VD.index_select(0, token_B) + self.weights.position_D
        streams = split(x_BD.unsqueeze(1), self.config.reversible)
        blocks, context = self._next_blocks(), Context(token_BL=token_B.unsqueeze(1))
        mark("everything else")
        started = time.perf_counter()
        streams = step_blocks(blocks, streams, self._caches, self._position, context, profiler)
        mark("everything else")
        self.block_seconds = time.perf_counter() - started
        h_BD = norm(merge(streams, self.config.reversible.merge).squeeze(1))
        mark("everything else")
        chosen_B = logits_of(h_BD).argmax(-1)
        mark("logits")
        self._next += self.weights.n_blocks
        self._step += 1
        self._position.advance()
        return chosen_B

    @torch.inference_mode()
    def read_prompt(self, length: int) -> Tensor:
        """The most likely token after a prompt of random tokens, `length` in every row, from empty caches."""
        like, position = self.weights.embedding_VD, Position()
        token_BL = torch.randint(like.shape[0], (self.batch, length))
        norm, logits_of = self._next_head()
        blocks = [each.block for each in self._next_blocks()]
        caches = [[self._new_cache(branch, length, like, position) for branch in block.branches()] for block in blocks]
        x_BLD = torch.nn.functional.embedding(token_BL, like) + self.weights.position_D
        streams = run_blocks(blocks, split(x_BLD, self.config.reversible), Context(token_BL=token_BL), caches=caches)
        self._next += self.weights.n_blocks
        chosen_B: Tensor = logits_of(norm(merge(streams, self.config.reversible.merge)[:, -1])).argmax(-1)
        return chosen_B

    def _next_blocks(self) -> list[DecodingBlock]:
        """The next of the ring, which may have fewer distinct ones than a token passes."""
        ring = self.weights.blocks
        return [ring[(self._next + i) % len(ring)] for i in range(self.weights.n_blocks)]

    def _next_head(self) -> tuple[torch.nn.LayerNorm, Callable[[Tensor], Tensor]]:
        ring = self.weights.heads
        self._head += 1
        return ring[(self._head - 1) % len(ring)]

    def _cache_at_random(self, branch: Branch, capacity: int, like: Tensor) -> BranchCache:
        """As if the context, and the encoder's output, had been read."""
        cache = self._new_cache(branch, capacity, like, self._position)
        if cache.core is not None and not isinstance(branch.core, CrossAttention):
            cache.core.fill_at_random(self._position.n)
        return cache

    def _new_cache(self, branch: Branch, capacity: int, like: Tensor, position: Position) -> BranchCache:
        """An empty cache; that of cross-attention holds keys and values of an encoder's output, at random."""
        cache = branch.new_cache(self.batch, capacity, like, position)
        if isinstance(branch.core, CrossAttention):
            shape = (self.batch, branch.core.query.n_heads, MEMORY_TOKENS, branch.core.d_head)
            cache.core.fill(torch.randn(shape, dtype=like.dtype), torch.randn(shape, dtype=like.dtype), None)
        return cache


def _no_mark(component: str, moment: float | None = None) -> None:
    """What is called at each part's end where no profiler times the parts."""


@dataclass(frozen=True)
class Asked:
    """What every case is timed at: a row for every batch and context, and prompts of some lengths in every batch."""

    procedure: Procedure
    contexts: Sequence[int]
    batches: Sequence[int]
    prompts: Sequence[int]
    seed: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max([max(self.contexts) + self.procedure.room, *self.prompts])


def bench_decode(options: Options) -> dict[str, Any]:
    """Rows of seconds a token for every name, one model after the other, all against the first.

    Options: names (of `decode_cases`, or a peer), protocol, context (several: a row each), batch (likewise), tokens,
    repeats (of all tokens of a row, from the same context, in turns with what the machine reads at best), prompts
    (lengths whose time to the first token is taken too, whatever the context, by the decoder alone; none of quantised
    models, whose prompts go through layers in float32), widths (names=width-dense,width-sparse at each), seed, device,
    cache_bytes (in place of the cache that is found).
    A row has, beside the keys of every bench, tokens_per_second (of all rows of the batch), p50, p99, uneven,
    stolen_share (of the processors' time: what the host of a virtual machine kept of it while tokens were timed, None
    where that is not known), first_token_seconds (by length of the prompt), block_seconds, weights, bytes, bandwidth
    (bytes / seconds), share_of_read, share_of_matvec, overhead_share, components, ratio_to_first and
    block_ratio_to_first (None where the first has no row of that batch and context), and what the weights were; a
    peer's row has its version and a note, no components and no first tokens, and is of batch 1. The tokens that count
    stand behind `context` others and the ones before them; `bytes` are those in the middle. UserError for what cannot
    be, and, before anything is allocated, for a model that does not fit into memory.
    """
    names = _names(options)
    protocol = options.name("protocol", PROTOCOLS, "authors")
    tokens = options.number("tokens", AUTHORS_STEPS if protocol == "authors" else STEADY_TOKENS, REPEATS)
    asked = Asked(
        Procedure(protocol, tokens, options.number("repeats", 1, Range(1, 1000))),
        options.numbers("context", [AUTHORS_CONTEXT], LENGTH),
        options.numbers("batch", [1], RANGES["training.batch_size"]),
        options.numbers("prompts", [], LENGTH),
        options.number("seed", 0, SEED),
    )
    cache_bytes = options.number("cache_bytes", last_level_cache(), Range(1, 2**40))
    device = resolve_device(options.name("device", ("cpu",), "cpu"))
    options.refuse_rest()
    _check_tokens(protocol, tokens)
    for case in (case_named(name) for name in names if name not in PEERS):
        kept = _kept_bytes(case.config(), case.n_blocks, max(asked.batches), asked.longest)
        refuse_too_large(case, cache_bytes, beside=kept + reference_bytes(cache_bytes), batch=max(asked.batches))
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    with exclusive():
        reference = Reference(device, cache_bytes)
        for name in names:
            if name in PEERS:
                of_peer, why = _peer_rows(name, asked, reference)
                rows += of_peer
                skipped += [{"name": name, "length": asked.contexts[0], "why": why}] if why else []
                continue
            rows += decode_rows(name, asked, reference)
            if asked.prompts and case_named(name).quantization:
                why = "its first tokens, for a quantised model reads its prompt in float32"
                skipped.append({"name": name, "length": asked.contexts[0], "why": why})
        if not rows:
            reference.turn()
    _compare(rows, names[0])
    return {
        "bench": "decode",
        "rows": rows,
        "skipped": skipped,
        "protocol": protocol,
        "machine": {
            **machine(device, repeats=tokens * asked.procedure.repeats, warm_up=WARM_UP, order=_order(asked.procedure)),
            "prompts": _how_prompts() if asked.prompts else None,
            "last_level_cache_bytes": cache_bytes,
            "margin": MARGIN,
            "reference_bytes": reference.n_bytes,
            "pinned": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "read_bytes_per_second": reference.read_rate(),
            "matvec_bytes_per_second": reference.matvec_rate(),
        },
    }


def _peer_rows(name: str, asked: Asked, reference: Reference) -> tuple[list[dict[str, Any]], str]:
    """As `peer_rows`; none where a batch of one row is not asked for, since a peer decodes no other."""
    if 1 not in asked.batches:
        return [], "batch 1 only"
    return peer_rows(name, asked.procedure, list(asked.contexts), reference, seed=asked.seed)


def _order(procedure: Procedure) -> str:
    if procedure.protocol == "steady":
        return "one model after another, medians"
    return (
        f"one model after another; the first {AUTHORS_IGNORED} of {procedure.tokens} tokens are not counted, the mean "
        "of the others, medians of their blocks and parts"
    )


def _how_prompts() -> dict[str, Any]:
    return {"warm_up": timing.WARM_UP, "repeats": PROMPT_REPEATS, "order": timing.IN_TURNS}


def decode_rows(name: str, asked: Asked, reference: Reference) -> list[dict[str, Any]]:
    """The rows of one case; its weights are made, read and let go here."""
    case = case_named(name)
    config = case.config()
    weights = make_weights(case, seed=asked.seed, cache_bytes=reference.cache_bytes, batch=max(asked.batches))
    _once_around(weights, config, asked)
    rows: list[dict[str, Any]] = []
    for batch, context in product(asked.batches, asked.contexts):
        room = asked.procedure.room
        make = partial(Tokens, weights, config, batch=batch, context=context, room=room, seed=asked.seed)
        reads = _with_context(weights, config, batch, context + asked.procedure.room // 2)
        facts = {
            "name": name,
            "length": context,
            "batch": batch,
            "width": config.d_model,
            "n_blocks": weights.n_blocks,
            "quantization": case.quantization,
            "peak_bytes": weights.distinct_bytes,
            "distinct_blocks": weights.n_distinct_blocks,
            "distinct_row_sets": weights.n_distinct_row_sets,
        }
        row = decode_row(make, reads, asked.procedure, reference, **facts)
        if context == asked.contexts[0]:  # a prompt starts from empty caches, and is read in float
            timed = asked.prompts and case.quantization is None
            first_tokens = _first_tokens(make(), asked.prompts) if timed else {}
        rows.append({**row, "first_token_seconds": first_tokens})
    return rows


def _once_around(weights: Weights, config: Config, asked: Asked) -> None:
    """Untimed tokens until every block and head of the rings has been read, for the reason given with `_read_rows`."""
    n = max(len(weights.heads), -(-len(weights.blocks) // max(weights.n_blocks, 1)))
    model = Tokens(weights, config, batch=1, context=min(asked.contexts), room=n, seed=asked.seed)
    for _ in range(n):
        model.step()


def _first_tokens(model: Tokens, prompts: Sequence[int]) -> dict[str, float]:
    """Seconds to the first token after prompts of these lengths."""
    read = {str(length): partial(model.read_prompt, length) for length in prompts}
    timed = interleaved(read, repeats=PROMPT_REPEATS, device=torch.device("cpu"))
    return {length: timing.seconds for length, timing in timed.items()}


def _check_tokens(protocol: str, tokens: int) -> None:
    if protocol == "authors" and tokens <= AUTHORS_IGNORED:
        raise UserError(
            "bad_value",
            f"tokens={tokens} must be more than the {AUTHORS_IGNORED} that are not counted.",
            f"The authors time {AUTHORS_STEPS}.",
        )


def _in_front(config: Config) -> int:
    """Tokens of an encoder's that stand in front of every row."""
    return MEMORY_TOKENS if config.stack == "concatenated" else 0


def _kept_bytes(config: Config, n_blocks: int, batch: int, context: int) -> int:
    """Bytes of the keys and values of `context` tokens a row, and of the encoder's where there is cross-attention."""
    n_self = config.attention_per_block * (context + _in_front(config))
    n_cross = MEMORY_TOKENS if config.stack == "encoder_decoder" else 0
    return 4 * 2 * batch * n_blocks * config.n_heads * config.width_of_head * (n_self + n_cross)


def _with_context(weights: Weights, config: Config, batch: int, context: int) -> dict[str, Read]:
    """Weights, the keys and values of the context, and the rows of a sparse feed-forward that a whole batch chooses.

    A row that several tokens choose is read once: N (1 - (1 - 1/N)^batch) rows of a block of N are expected, as if
    every token chose by itself. What else a token reads of that layer, the whole batch reads once.
    """
    reads = dict(weights.reads)
    if weights.n_blocks:
        blocks = (weights.blocks[i % len(weights.blocks)].block for i in range(weights.n_blocks))
        n_bytes = key_bytes(blocks, context + _in_front(config), MEMORY_TOKENS)
        reads["attention"] = Read("attention", 0, batch * n_bytes)
    for part, rows in weights.chosen.items():
        n, one = config.sparse_ff.N, reads[part]
        more = n * (1 - (1 - 1 / n) ** batch) - 1
        reads[part] = Read(part, one.weights + round(more * rows.weights), one.bytes + round(more * rows.bytes))
    return reads


def _names(options: Options) -> list[str]:
    widths = options.numbers("widths", [0], RANGES["d_model"])
    names = options.words("names")
    if widths != [0]:
        if names:
            raise UserError("bad_override", "widths= chooses the names itself.", "Leave names= out, or widths=.")
        return [f"width-{width}-{kind}" for width in widths for kind in ("dense", "sparse")]
    for name in names:
        if name not in PEERS:
            _check_name(name)
    return names or [*DEFAULT, *PEERS]


def _check_name(name: str) -> Case:
    try:
        return case_named(name)
    except UserError as error:
        if error.kind != "unknown_name":
            raise
        raise UserError(error.kind, error.message, nearest(name, [*CASES, *PEERS])) from None


def _compare(rows: list[dict[str, Any]], first_name: str) -> None:
    """`ratio_to_first`: how many times faster than the first name at the same batch and context, token and block.

    None where it has no such row. Where widths are compared, against the first name of the same width.
    """
    by_width = first_name.startswith("width-")
    name_of_width: dict[int, str] = {}
    firsts: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in rows:
        name = name_of_width.setdefault(row["width"], row["name"]) if by_width else first_name
        key = (name, row["batch"], row["length"])
        if row["name"] == name:
            firsts[key] = row
        first = firsts.get(key)
        row["ratio_to_first"] = first["seconds"] / row["seconds"] if first else None
        seconds, theirs = row["block_seconds"], first["block_seconds"] if first else None
        row["block_ratio_to_first"] = theirs / seconds if seconds and theirs else None
