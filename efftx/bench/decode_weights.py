"""Weights for timing a token: enough distinct ones that none is still in the last-level cache when it is read again.

A token passes n blocks and the logits. Blocks stand in a ring, their kinds of attention in the model's order, and a
token takes the next n of it, so that the distance between two reads of the same weight is `MARGIN` caches at least.
Rows of a sparse feed-forward layer, of which a token reads one of N, are shared by more blocks: they come around N
times more seldom. The tokens of a batch read more of them, and the rows come around sooner: the largest batch counts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efftx.bench.decode_cases import Case, blocks_until_kinds_repeat
from efftx.core.memory import available_memory
from efftx.decoding.programs import DecodingBlock, decoding_block, logits_of
from efftx.decoding.quantized import ROUNDED, Quantization, QuantizedSparseFF, quantized, weight_bytes
from efftx.errors import UserError
from efftx.layers.cost import Read, n_parameters, read_whole, sum_by_component
from efftx.layers.sparse_ff import SparseFF
from efftx.models.build import build_on_meta

MARGIN = 8
ASSUMED_CACHE = 64 * 2**20
"""Where the system does not tell the size of its last-level cache."""
_TILE = 2**24


def last_level_cache() -> int:
    """Bytes of the largest cache that the first core sees."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes) or ASSUMED_CACHE


@dataclass
class Weights:
    """Blocks and logits in rings, laid out for decoding; `distinct_bytes` is the size of all of them.

    `reads` are those of one token, and `chosen` what of them is rows that it chooses.
    """

    blocks: list[DecodingBlock]
    heads: list[tuple[nn.LayerNorm, Callable[[Tensor], Tensor]]]
    embedding_VD: Tensor  # noqa: N815
    position_D: Tensor  # noqa: N815
    n_blocks: int
    reads: dict[str, Read]
    chosen: dict[str, Read]
    distinct_bytes: int
    n_distinct_blocks: int
    n_distinct_row_sets: int


def make_weights(
    case: Case, *, seed: int = 0, dtype: torch.dtype = torch.float32, cache_bytes: int | None = None, batch: int = 1
) -> Weights:
    """The rings for `case`, `batch` tokens at once and a last-level cache of `cache_bytes` (None: this machine's).

    UserError, before anything is allocated, where they do not fit into memory.
    """
    cache_bytes = last_level_cache() if cache_bytes is None else cache_bytes
    config = case.config()
    refuse_too_large(case, cache_bytes, batch=batch)
    of_model, head = _on_meta(case, dtype)
    plan = _plan(_sizes(of_model, head, case), case, cache_bytes, batch)
    tile = random_tile(seed, dtype)
    rows = [[tile_filled(w, tile, i) for w in _row_weights(of_model[0])] for i in range(plan.row_sets)]
    blocks: list[DecodingBlock] = []
    for i in range(plan.blocks):  # one after the other: in float they would not all fit beside their quantised forms
        made: Any = _with_rows(filled(of_model[i % len(of_model)], tile, i), rows[i % plan.row_sets] if rows else [])
        if case.quantization:
            first = blocks[i % plan.row_sets].block if i >= plan.row_sets > 0 else None
            made = quantized(made, case.quantization, rows_of=first)
        blocks.append(decoding_block(made, two_streams=config.reversible.enabled))
    _read_rows(blocks)
    own_heads: list[Any] = [filled(head, tile, i + 1) for i in range(plan.heads)]
    linears = [of_head.linear for of_head in own_heads]
    if case.quantization:
        linears = [quantized(linear, case.quantization, rounds=True) for linear in linears]
    of_blocks = [read for i in range(case.n_blocks) for read in blocks[i % len(blocks)].block.weight_reads()]
    position_D = torch.zeros(config.d_model, dtype=dtype)
    around = read_whole("everything else", own_heads[0].norm, position_D)
    return Weights(
        blocks=blocks,
        heads=[(of_head.norm, logits_of(linear)) for of_head, linear in zip(own_heads, linears, strict=True)],
        embedding_VD=tile_filled(torch.empty(case.vocab_size, config.d_model, device="meta", dtype=dtype), tile, 3),
        position_D=position_D,
        n_blocks=case.n_blocks,
        reads=sum_by_component([*of_blocks, read_whole("logits", linears[0]), around]),
        chosen=sum_by_component(read for read in of_blocks if read.chosen),
        distinct_bytes=plan.bytes,
        n_distinct_blocks=plan.blocks,
        n_distinct_row_sets=plan.row_sets,
    )


@dataclass(frozen=True)
class Counted:
    """What `make_weights` would give, counted from shapes: weights that a token reads, of them those of a block."""

    weights: int
    block_weights: float
    distinct_blocks: int
    distinct_bytes: int


def counted(case: Case, cache_bytes: int, batch: int = 1) -> Counted:
    """In float32, the weights those of one row, laid out for `batch` rows; nothing is allocated."""
    blocks, head = _on_meta(case, torch.float32)
    sizes = _sizes(blocks, head, case)
    plan = _plan(sizes, case, cache_bytes, batch)
    linear = n_parameters(head.get_submodule("linear"))
    d_model = case.config().d_model  # of the positions' row
    weights = (case.n_blocks * (sizes.always + sizes.rows_read) + sizes.head) // 4 + d_model
    return Counted(weights, (weights - linear) / max(case.n_blocks, 1), plan.blocks, plan.bytes)


def refuse_too_large(case: Case, cache_bytes: int, *, beside: int = 0, batch: int = 1) -> None:
    """UserError where the weights of `case` and `beside` more bytes do not fit into the memory that is free.

    Nothing is allocated.
    """
    plan = _plan(_sizes(*_on_meta(case, torch.float32), case), case, cache_bytes, batch)
    refuse_bytes(case.name, plan.bytes, beside)


def refuse_bytes(name: str, weights: int, beside: int = 0) -> None:
    """UserError where `weights` bytes and `beside` more do not fit into the memory that is free."""
    free = available_memory()
    if free is not None and weights + beside > 0.9 * free:
        more = f" and {beside / 1e9:.1f} GB beside them" if beside else ""
        raise UserError(
            "too_large",
            f"{name} takes {weights / 1e9:.1f} GB of weights{more}, and {free / 1e9:.1f} GB of memory are free.",
            "Choose a smaller one with names=, or fewer blocks with names=...-blocksN.",
        )


def _on_meta(case: Case, dtype: torch.dtype) -> tuple[list[nn.Module], nn.Module]:
    """The blocks of the model up to where their kinds of attention come again, and its head, without memory."""
    config = case.config()
    model: Any = build_on_meta(config, case.vocab_size).to(dtype)
    return list(model.blocks)[: blocks_until_kinds_repeat(config)], model.head


@dataclass(frozen=True)
class _Sizes:
    always: int
    rows: int
    rows_read: int
    head: int
    embedding: int
    kinds: int


@dataclass(frozen=True)
class _Plan:
    blocks: int
    row_sets: int
    heads: int
    bytes: int


def _sizes(blocks: Sequence[Any], head: Any, case: Case) -> _Sizes:
    """Bytes of a block, in the mean over those that differ, and of the rest."""
    rows = [w for block in blocks for w in _row_weights(block)]
    of_blocks, of_head = sum(read.bytes for block in blocks for read in block.weight_reads()), nbytes(head)
    n_rows = sum(w.nbytes for w in rows)
    n, n_blocks = case.config().sparse_ff.N or 1, len(blocks)
    always = of_blocks - n_rows // n
    if case.quantization:
        always -= sum(w.nbytes - size for block in blocks for w, size in _rounded(block, case.quantization))
        n_rows = sum(weight_bytes(w, case.quantization) for w in rows)
        if isinstance(head.linear, nn.Linear):
            of_head -= head.linear.weight.nbytes - weight_bytes(head.linear.weight, case.quantization)
    embedding = case.vocab_size * case.config().d_model * 4
    return _Sizes(always // n_blocks, n_rows // n_blocks, n_rows // n // n_blocks, of_head, embedding, n_blocks)


def _plan(sizes: _Sizes, case: Case, cache_bytes: int, batch: int) -> _Plan:
    """How many distinct blocks, sets of rows and heads keep reads of one weight `MARGIN` caches apart.

    A token reads one of N rows of a sparse feed-forward, `batch` tokens together 1 - (1 - 1/N)^batch of all.
    """
    apart = MARGIN * cache_bytes
    token = case.n_blocks * (sizes.always + sizes.rows_read) + sizes.head
    tokens = math.ceil(apart / token)
    blocks = min(tokens * case.n_blocks, max(1, math.ceil(apart / (sizes.always + sizes.rows_read))))
    blocks = math.ceil(blocks / sizes.kinds) * sizes.kinds
    heads = max(1, min(tokens, math.ceil(apart / sizes.head)))
    row_sets = 0
    if sizes.rows and blocks:
        share = 1 - (1 - sizes.rows_read / sizes.rows) ** batch
        of_batch = case.n_blocks * (sizes.always + share * sizes.rows) + sizes.head
        fewest = 2 if sizes.rows < 2**30 else 1
        row_sets = min(blocks, max(fewest, math.ceil(apart * case.n_blocks * share / of_batch)))
    total = blocks * sizes.always + row_sets * sizes.rows + heads * sizes.head + sizes.embedding
    return _Plan(blocks, row_sets, heads, total)


def _row_weights(block: nn.Module) -> list[Tensor]:
    rows: list[Tensor] = []
    for module in block.modules():
        if isinstance(module, SparseFF):
            rows += [module.w1, module.w2]
        elif isinstance(module, QuantizedSparseFF):
            rows += module.row_tensors()
    return rows


def _unread(block: nn.Module) -> Iterator[Tensor]:
    """Keys and values of the encoder's output are made once a sequence: no token reads their weights."""
    for name, parameter in block.named_parameters():
        if name.startswith("cross_attention.core.k.") or name.startswith("cross_attention.core.v."):
            yield parameter


def _with_rows(block: nn.Module, rows: list[Tensor]) -> nn.Module:
    layers = [m for m in block.modules() if isinstance(m, SparseFF)]
    for layer, (w1, w2) in zip(layers, zip(rows[::2], rows[1::2], strict=True), strict=True):
        layer.w1, layer.w2 = nn.Parameter(w1, requires_grad=False), nn.Parameter(w2, requires_grad=False)
    return block


def filled(template: nn.Module, tile: Tensor, i: int) -> nn.Module:
    """A copy with values for all that a token reads; rows of sparse feed-forward layers stay on meta.

    A parameter that two modules share is filled once.
    """
    module = copy.deepcopy(template).eval()
    skipped = {id(w) for w in (*_row_weights(module), *_unread(module))}
    made: dict[int, nn.Parameter] = {}
    for owner in list(module.modules()):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) in skipped:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(_values(owner, name, parameter, tile, i), requires_grad=False)
            setattr(owner, name, made[id(parameter)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return module


def _values(owner: nn.Module, name: str, parameter: Tensor, tile: Tensor, i: int) -> Tensor:
    if "LayerNorm" in type(owner).__name__:
        return torch.full(parameter.shape, float(name == "weight"), dtype=parameter.dtype)
    return tile_filled(parameter, tile, i + len(name) + parameter.numel())


def random_tile(seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers between -1/2 and 1/2 from which `tile_filled` takes."""
    return torch.rand(_TILE, dtype=dtype, generator=torch.Generator().manual_seed(seed)).sub_(0.5)


def tile_filled(like: Tensor, tile: Tensor, i: int) -> Tensor:
    """A tensor of the shape of `like`, of small random numbers: drawing billions of them anew would take minutes."""
    made = torch.empty(like.numel(), dtype=like.dtype)
    fan_in = like.shape[-1] if like.dim() > 1 else 1e4
    for start in range(0, made.numel(), _TILE):
        part = made[start : start + _TILE]
        offset = (i * 7919) % (_TILE - min(part.numel(), _TILE - 1))
        source = tile[offset : offset + part.numel()]
        part[: source.numel()] = source
        part[source.numel() :] = tile[: part.numel() - source.numel()]
    return made.mul_(math.sqrt(12.0 / fan_in)).view(like.shape)


def _rounded(block: nn.Module, quantization: Quantization) -> Iterator[tuple[Tensor, int]]:
    """The weights that are rounded and every token reads, of dense layers and the controller's: what they take then."""
    for owner in block.modules():
        if isinstance(owner, ROUNDED):
            linears = (m.weight for m in owner.modules() if isinstance(m, nn.Linear))
            yield from ((w, weight_bytes(w, quantization)) for w in linears)
        elif isinstance(owner, SparseFF) and owner.config.has_controller:
            yield from ((w, weight_bytes(w, "int8")) for w in (owner.c1, owner.c2))


def _read_rows(blocks: Iterable[DecodingBlock]) -> None:
    """Every row of the sparse feed-forward layers is read once, as in a model that has decoded for a while.

    A token reads few of them, so that most would be read in a timing for the first time since they were written; in a
    virtual machine that was seen to take several times as long.
    """
    rows = {w.data_ptr(): w for block in blocks for w in _row_weights(block.block)}
    for w in rows.values():
        w.amax()


def nbytes(module: nn.Module) -> int:
    """Bytes of all parameters, a shared one once."""
    return sum(p.nbytes for p in module.parameters())
