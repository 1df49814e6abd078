"""What one token of one row reads of a model's weights, part by part: numbers and bytes, by the type of the layer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any, NamedTuple

from torch import Tensor, nn

from efftx.decoding.int8 import Int8SparseFF
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.cross_attention import CrossAttention
from efftx.layers.feedforward import FeedForward
from efftx.layers.lsh import LSHAttention
from efftx.layers.projections import DenseQKV, DenseQuery
from efftx.layers.sparse_ff import SparseFF
from efftx.layers.sparse_qkv import SparseQKV, SparseQuery
from efftx.layers.sru import SRUBranch
from efftx.models.block import Branch


class Read(NamedTuple):
    """What one token of one row reads for a part of the model: numbers and bytes of weights."""

    component: str
    weights: int
    bytes: int


def read_whole(component: str, *parts: nn.Module | Tensor | None) -> Read:
    """All weights of some modules and tensors."""
    tensors: list[Tensor] = []
    for part in parts:
        if isinstance(part, nn.Module):
            tensors += [*part.parameters(), *part.buffers()]
        elif part is not None:
            tensors.append(part)
    return Read(component, sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors))


@singledispatch
def reads(layer: nn.Module) -> list[Read]:
    """What a token reads of a layer's weights; of one without a rule of its own, all."""
    return [read_whole("everything else", layer)]


@reads.register
def _(branch: Branch) -> list[Read]:
    beside = [] if branch.beside is None else reads(branch.beside)
    return [read_whole("everything else", branch.norm), *reads(branch.core), *beside]


@reads.register
def _(layer: FeedForward) -> list[Read]:
    return [read_whole("feed-forward", layer)]


@reads.register
def _(layer: SRUBranch) -> list[Read]:
    return [read_whole("SRU", layer)]


@reads.register(SoftmaxAttention)
@reads.register(LSHAttention)
def _(layer: Any) -> list[Read]:
    return reads(layer.project)


@reads.register
def _(layer: CrossAttention) -> list[Read]:
    # Keys and values of the encoder's output are made once a sequence.
    return reads(layer.query)


@reads.register(DenseQKV)
@reads.register(DenseQuery)
@reads.register(SparseQKV)
@reads.register(SparseQuery)
def _(layer: nn.Module) -> list[Read]:
    parts = dict(layer.named_children())
    output = parts.pop("o", None)
    return [read_whole("QKV", *parts.values()), read_whole("output", output)]


@reads.register(SparseFF)
@reads.register(Int8SparseFF)
def _(layer: Any) -> list[Read]:
    """The controller, and a row of W1 and of W2 a block, with the row's bias and scale; the oracle reads all of W1."""
    n_rows = layer.w1.shape[0] // layer.config.N
    if layer.config.controller == "oracle":
        w1 = getattr(layer, "all_w1", None)
        first = read_whole("feed-forward", *((layer.w1, layer.b1) if w1 is None else (w1,)))
    else:
        row = read_whole("feed-forward", layer.w1[0], None if layer.b1 is None else layer.b1[0])
        n_scale_bytes = layer.scale[0].nbytes if isinstance(layer, Int8SparseFF) else 0
        first = Read("feed-forward", n_rows * row.weights, n_rows * (row.bytes + n_scale_bytes))
    rows_of_w2 = Read("feed-forward", n_rows * layer.b2.numel(), n_rows * layer.w2[0].nbytes)
    found = [first, rows_of_w2, read_whole("feed-forward", layer.b2)]
    if layer.config.has_controller:
        of_float = (getattr(layer, name, None) for name in ("c1", "c2", "c_bias"))
        found.insert(0, read_whole("controller", *(layer.controller,) if isinstance(layer, Int8SparseFF) else of_float))
    return found


def sum_by_component(all_reads: Iterable[Read]) -> dict[str, Read]:
    """The reads of one token added up by component; those of nothing are left out."""
    total: dict[str, Read] = {}
    for read in all_reads:
        before = total.get(read.component, Read(read.component, 0, 0))
        if read.weights:
            total[read.component] = Read(read.component, before.weights + read.weights, before.bytes + read.bytes)
    return total
