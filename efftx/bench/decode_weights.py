"""Weights for timing a token: enough distinct ones that none is still in the last-level cache when it is read again.

A token passes n blocks and the logits. Blocks stand in a ring, and a token takes the next n of it, so that the distance
between two reads of the same weight is `MARGIN` caches at least. Rows of a sparse feed-forward layer, of which a token
reads one of N, are shared by more blocks: they come around N times more seldom.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efftx.bench.decode_cases import Case
from efftx.decoding.session import available_memory
from efftx.decoding.stack import StackStepper, sum_by_component
from efftx.errors import UserError
from efftx.layers.matrix import Read, matrix_of
from efftx.layers.sparse_ff import SparseFF
from efftx.layers.sparse_loss import SparseLoss
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
    """Blocks and logits in rings, laid out for decoding; `distinct_bytes` is the size of all of them."""

    stack: StackStepper
    heads: list[tuple[nn.LayerNorm, Any]]
    embedding_VD: Tensor
    position_D: Tensor
    n_blocks: int
    reads: dict[str, Read]
    distinct_bytes: int
    n_distinct_blocks: int
    n_distinct_row_sets: int


def make_weights(
    case: Case, *, seed: int = 0, dtype: torch.dtype = torch.float32, cache_bytes: int | None = None
) -> Weights:
    """The rings for `case` and a last-level cache of `cache_bytes` (None: this machine's); UserError, before anything is allocated, where they do not fit into memory."""
    config = case.config()
    with torch.device("meta"):
        model = build_on_meta(config, case.vocab_size).to(dtype)
    template, head = model.blocks[0], model.head
    sizes = _sizes(template, head, case)
    plan = _plan(sizes, case, last_level_cache() if cache_bytes is None else cache_bytes)
    _refuse_too_large(case, plan)
    tile = _random_tile(seed, dtype)
    rows = [[tile_filled(w, tile, i) for w in _row_weights(template)] for i in range(plan.row_sets)]
    blocks = [
        _with_rows(_filled(template, tile, i), rows[i % plan.row_sets] if rows else []) for i in range(plan.blocks)
    ]
    stack = StackStepper(blocks, int8=case.int8)
    heads = []
    for i in range(plan.heads):
        own = _filled(head, tile, i + 1)
        linear: Any = own.linear
        made = linear.stepper() if isinstance(linear, SparseLoss) else matrix_of(linear, int8=case.int8)
        heads.append((own.norm, made))
    if case.int8:
        for block in blocks:
            _forget(block)
    block_reads = [read for block in stack.blocks[:1] for branch in block for read in branch.reads()] * case.n_blocks
    reads = sum_by_component([*block_reads, heads[0][1].read("logits"), _around(head, config.d_model)])
    return Weights(
        stack=stack,
        heads=heads,
        embedding_VD=tile_filled(torch.empty(case.vocab_size, config.d_model, device="meta", dtype=dtype), tile, 3),
        position_D=torch.zeros(config.d_model, dtype=dtype),
        n_blocks=case.n_blocks,
        reads=reads,
        distinct_bytes=plan.bytes,
        n_distinct_blocks=plan.blocks,
        n_distinct_row_sets=plan.row_sets,
    )


@dataclass(frozen=True)
class _Sizes:
    always: int
    rows: int
    rows_read: int
    head: int
    embedding: int


@dataclass(frozen=True)
class _Plan:
    blocks: int
    row_sets: int
    heads: int
    bytes: int


def _sizes(block: nn.Module, head: nn.Module, case: Case) -> _Sizes:
    rows = sum(w.nbytes for w in _row_weights(block))
    cross = sum(w.nbytes for w in _unread(block))
    always = sum(p.nbytes for p in block.parameters()) - rows - cross
    n = next((m.config.N for m in block.modules() if isinstance(m, SparseFF)), 1)
    width = head.norm.normalized_shape[0]  # type: ignore[union-attr, index]
    embedding = case.vocab_size * width * 4
    factor = 4 if case.int8 else 1
    return _Sizes(always // factor, rows // factor, rows // factor // n, _nbytes(head) // factor, embedding)


def _plan(sizes: _Sizes, case: Case, cache_bytes: int) -> _Plan:
    """How many distinct blocks, sets of rows and heads keep reads of one weight `MARGIN` caches apart."""
    apart = MARGIN * cache_bytes
    token = case.n_blocks * (sizes.always + sizes.rows_read) + sizes.head
    tokens = math.ceil(apart / token)
    blocks = min(tokens * case.n_blocks, max(1, math.ceil(apart / (sizes.always + sizes.rows_read))))
    heads = max(1, min(tokens, math.ceil(apart / sizes.head)))
    row_sets = 0
    if sizes.rows and blocks:
        n = sizes.rows / sizes.rows_read
        row_sets = min(blocks, max(2 if sizes.rows < 2**30 else 1, math.ceil(apart * case.n_blocks / (n * token))))
    total = blocks * sizes.always + row_sets * sizes.rows + heads * sizes.head + sizes.embedding
    return _Plan(blocks, row_sets, heads, total)


def _refuse_too_large(case: Case, plan: _Plan) -> None:
    free = available_memory()
    if free is not None and plan.bytes > 0.9 * free:
        raise UserError(
            "too_large",
            f"{case.name} takes {plan.bytes / 1e9:.1f} GB of weights, and {free / 1e9:.1f} GB of memory are free.",
            "Choose a smaller one with names=, or fewer blocks with names=...-blocksN.",
        )


def _row_weights(block: nn.Module) -> list[Tensor]:
    return [w for m in block.modules() if isinstance(m, SparseFF) for w in (m.w1, m.w2)]


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


def _filled(template: nn.Module, tile: Tensor, i: int) -> nn.Module:
    """A copy with values for all that a token reads; rows of sparse feed-forward layers stay on meta."""
    module = copy.deepcopy(template).eval()
    skipped = {id(w) for w in (*_row_weights(module), *_unread(module))}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) in skipped:
                continue
            if isinstance(owner, nn.LayerNorm):
                value = torch.ones(parameter.shape) if name == "weight" else torch.zeros(parameter.shape)
                value = value.to(parameter.dtype)
            else:
                value = tile_filled(parameter, tile, i + len(name) + parameter.numel())
            setattr(owner, name, nn.Parameter(value, requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return module


def _random_tile(seed: int, dtype: torch.dtype) -> Tensor:
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


def _forget(block: nn.Module) -> None:
    """Float weights that were rounded to int8 are not read again."""
    for owner in block.modules():
        if isinstance(owner, nn.Linear):
            owner.weight = nn.Parameter(owner.weight.to("meta"), requires_grad=False)


def _around(head: nn.Module, d_model: int) -> Read:
    norm = sum(p.numel() for p in head.norm.parameters())  # type: ignore[union-attr, operator]
    n = norm + d_model
    return Read("everything else", n, 4 * n)


def _nbytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
