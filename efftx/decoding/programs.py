"""One token a row by the kernels of `native`: for every type of layer that has them its operations.

What stands here is all that knows which layers have kernels. A block is one program where each of its layers has
operations; where one has none, and for more rows than `MOST_ROWS`, the block goes through its own forward with caches.

Shape suffixes: B batch, D d_model, E width of all heads together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import singledispatch
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.decoding.quantized import (
    Int4Linear,
    Int8Linear,
    Int8ModuleConvolution,
    Int8Multiplicative,
    QuantizedLinear,
    QuantizedSparseFF,
)
from efftx.layers.attention import AttentionCache, SoftmaxAttention
from efftx.layers.cache import KeyValueCache, Position, RecentInputs
from efftx.layers.cross_attention import CrossAttention, CrossCache
from efftx.layers.feedforward import FeedForward
from efftx.layers.lsh import LSHAttention, LSHCache
from efftx.layers.module_convolution import ModuleConvolution
from efftx.layers.multiplicative import Multiplicative
from efftx.layers.projections import DenseQKV
from efftx.layers.sparse_ff import SparseFF
from efftx.layers.sparse_loss import SparseLoss
from efftx.layers.sparse_qkv import SparseQKV, SparseQuery
from efftx.layers.sru import SRU, SRUBranch
from efftx.models.block import Block, BranchCache, Context
from efftx.models.streams import Streams
from efftx.native import library
from efftx.native.program import (
    MOST_ROWS,
    Columns8,
    Hashed,
    Normed,
    NotCompiledError,
    Program,
    Rows4,
    Rows8,
    Source,
    Stream,
    buffer,
    run,
    shape_of,
)
from efftx.ops.multiplicative import in_blocks

NARROW = 128
"""With fewer inputs a row of weights is too short for the kernel of products."""
BLOCKS_FROM, BLOCKS_MODULES = 1024, 8
"""Logits a module from which, and modules up to which, the projection is laid out in blocks of columns."""


class Mark(Protocol):
    """A profiler's mark: a part of a token's work has ended, now or at `moment` of `time.perf_counter`."""

    def __call__(self, component: str, moment: float | None = None, /) -> None:
        """`component` is the part's name."""
        ...


@singledispatch
def add_operations(layer: nn.Module, program: Program, x: Normed, y: Stream) -> None:
    """Appends y += layer(x) to a program; raises NotCompiledError for a layer, or a form of it, without kernels."""
    raise NotCompiledError(type(layer).__name__)


@add_operations.register
def _(layer: FeedForward, program: Program, x: Normed, y: Stream) -> None:
    if layer.activation is not F.relu:
        raise NotCompiledError("Another activation.")
    two = layer.layers
    hidden = buffer("hidden", two.w1.weight.shape[0])
    _product(program, x, two.w1, hidden, "feed-forward", relu=True)
    _product(program, hidden, two.w2, y, "feed-forward", adds=True)


def _hash_of(layer: SparseFF | QuantizedSparseFF) -> Hashed | None:
    """The token's hash, where it chooses or adds to the logits; NotCompiledError for `multiply_by_controller`."""
    config = layer.config
    if config.multiply_by_controller:
        raise NotCompiledError("Units times the controller's probabilities.")
    by_token = config.controller == "token"
    return Hashed(layer.salt, config.token_bias) if by_token or config.token_bias else None


@add_operations.register
def _(layer: SparseFF, program: Program, x: Normed, y: Stream) -> None:
    config, hashed, b1 = layer.config, _hash_of(layer), None if layer.b1 is None else layer.b1.detach()
    w1, w2, b2 = (weight.detach() for weight in (layer.w1, layer.w2, layer.b2))
    if config.controller == "oracle":
        hidden = buffer("hidden", w1.shape[0])
        _matvec(program, x, w1, b1, hidden, "feed-forward")
        program.largest_rows(hidden, w2, b2, config.N, y)
        return
    controller = [layer.c1.detach(), layer.c2.detach(), layer.c_bias.detach()] if config.has_controller else []
    program.sparse_ff(x, [*controller, w1, w2, b2], config.N, y, b1, hashed)


@add_operations.register
def _(layer: QuantizedSparseFF, program: Program, x: Normed, y: Stream) -> None:
    config, hashed = layer.config, _hash_of(layer)
    if config.controller == "oracle":
        hidden = buffer("hidden", layer.n_units)
        _product(program, x, layer.all_w1, hidden, "feed-forward")
        program.largest_rows(hidden, layer.rows()[1], layer.b2, config.N, y)
        return
    if not config.has_controller:
        program.sparse_ff_quantized(x, None, layer.rows(), (layer.b2,), config.N, y, layer.b1, hashed)
        return
    first: Any
    second: Any
    first, second = layer.controller  # both `Int8Linear`
    controller, biases = (first.rows(), second.rows()), (second.bias, layer.b2)
    program.sparse_ff_quantized(x, controller, layer.rows(), biases, config.N, y, layer.b1, hashed)


@add_operations.register(SoftmaxAttention)
@add_operations.register(LSHAttention)
def _(layer: Any, program: Program, x: Normed, y: Stream) -> None:
    if isinstance(layer, SoftmaxAttention) and not layer.pattern.in_order:
        raise NotCompiledError("Keys that are not kept in their order.")
    project, last = layer.project, _output_of(layer.project)
    n_heads, width = project.n_heads, project.n_heads * layer.d_head
    q, k, v = add_projections(project, program, x)
    if last is None and width != x.weight.numel():
        raise NotCompiledError("Heads that are not the model's width.")
    heads: Tensor | Stream = y if last is None else buffer("heads", width)
    put = program.attend(q, (k, v), n_heads, heads, scale=layer.scale, adds=last is None)

    def bind(cache: AttentionCache, n: int) -> None:
        assert isinstance(cache.kv, KeyValueCache)
        start = cache.kv.first(n)
        put(cache.kv.k_BHTd, cache.kv.v_BHTv, n, start, max(n, start + 1) if project.share_qk else n + 1)

    program.each_step(bind)
    if last is not None:
        _product(program, heads, last, y, "output", adds=True)


@add_operations.register
def _(layer: CrossAttention, program: Program, x: Normed, y: Stream) -> None:
    query, last = layer.query, _output_of(layer.query)
    if isinstance(query, SparseQuery):
        (q,) = _modules(program, x, query.multiplicative, [query.convolution], "query")
    else:
        q = buffer("qkv", query.q.weight.shape[0])
        _product(program, x, query.q, q, "QKV")
    heads: Tensor | Stream = y if last is None else buffer("heads", q.shape[-1])
    put = program.attend(q, None, query.n_heads, heads, scale=layer.scale, adds=last is None)

    def bind(cache: CrossCache, n: int) -> None:
        put(cache.k_BHEd, cache.v_BHEd, 0, 0, cache.k_BHEd.shape[2])

    program.each_step(bind)
    if last is not None:
        _product(program, heads, last, y, "output", adds=True)


@singledispatch
def add_projections(project: nn.Module, program: Program, x: Normed) -> tuple[Tensor, Tensor | None, Tensor]:
    """Appends what gives queries, keys (None where they are the queries) and values: where these will be, (E) each."""
    raise NotCompiledError(type(project).__name__)


@add_projections.register
def _(project: DenseQKV, program: Program, x: Normed) -> tuple[Tensor, Tensor | None, Tensor]:
    if project.d_qk < project.d_head:
        raise NotCompiledError("Queries and keys that are narrower than values.")
    linears = [project.qk, project.v] if project.share_qk else [project.q, project.k, project.v]
    weight, bias = joined(linears)
    qkv_E = buffer("qkv", sum(linear.weight.shape[0] for linear in linears))
    _matvec(program, x, weight, bias, qkv_E, "QKV")
    parts = qkv_E.chunk(len(linears), -1)
    return parts[0], None if project.share_qk else parts[1], parts[-1]


@add_projections.register
def _(project: SparseQKV, program: Program, x: Normed) -> tuple[Tensor, Tensor | None, Tensor]:
    maps = [project.qk, project.v] if hasattr(project, "qk") else [project.q, project.k, project.v]
    convolutions = [layer for layer in maps if isinstance(layer, ModuleConvolution)]
    plain = len(convolutions) == len(maps) and not project.concat_input and not project.average_qk
    if project.multiplicative is None or not plain:
        raise NotCompiledError("Other than a multiplicative layer and convolutions over it alone.")
    parts = _modules(program, x, project.multiplicative, convolutions, "projections")
    return parts[0], None if project.share_qk else parts[1], parts[-1]


def add_beside(layer: nn.Module, program: Program, stream: Stream) -> Callable[[Stream], None]:
    """Appends what stands beside a core up to its last product, which the given function adds to a stream."""
    if not isinstance(layer, SRUBranch):
        raise NotCompiledError(type(layer).__name__)
    norm = Normed(stream, layer.norm.weight.detach(), layer.norm.bias.detach(), layer.norm.eps)
    x, out = buffer("recurrent", layer.into.out_features), layer.out
    program.matvec(norm, layer.into.weight.detach(), layer.into.bias.detach(), x, "SRU")
    for i, one in enumerate(layer.layers):
        assert isinstance(one, SRU)
        y = buffer(f"recurrent {i}", x.shape[-1])
        program.recurrent_unit(x, one.kernel.detach(), one.bias.detach(), y, i)
        x = y
    return lambda y: program.matvec(x, out.weight.detach(), out.bias.detach(), y, "SRU", adds=True)


def joined(linears: Sequence[Any]) -> tuple[Tensor | Rows8 | Rows4, Tensor | None]:
    """Weight and bias of several linear layers, all plain, int8 or int4, of one input as one product.

    The layers' own weights become views of the joined ones, so that nothing is kept twice. Raises NotCompiledError for
    weights that the kernels cannot read, which then stay as they are.
    """
    in_int8, in_int4 = (all(isinstance(linear, kind) for linear in linears) for kind in (Int8Linear, Int4Linear))
    plain = all(isinstance(linear, nn.Linear) and library.usable(linear.weight, linear.bias) for linear in linears)
    if not (in_int8 or in_int4 or plain):
        raise NotCompiledError("Other than float32, int8 or int4 on the CPU.")
    with torch.no_grad():
        weight_OI = torch.cat([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        bias_O = torch.cat(biases) if biases else None
        first = 0
        for linear in linears:
            last = first + linear.weight.shape[0]
            _view_in_place(linear, "weight", weight_OI[first:last])
            if bias_O is not None:
                _view_in_place(linear, "bias", bias_O[first:last])
            first = last
        if in_int8:
            return Rows8(weight_OI, torch.cat([linear.rows().scale for linear in linears])), bias_O
        if in_int4:
            return Rows4(weight_OI, linears[0].n_inputs), bias_O
    return weight_OI, bias_O


def _view_in_place(linear: nn.Module, name: str, view: Tensor) -> None:
    """Gives a weight the memory of `view`; one that was made in inference mode takes none, and is replaced."""
    weight = getattr(linear, name)
    if isinstance(weight, nn.Parameter) and weight.is_inference():
        setattr(linear, name, nn.Parameter(view, requires_grad=weight.requires_grad))
    else:
        weight.data = view


def _output_of(project: nn.Module) -> nn.Linear | QuantizedLinear | None:
    """The product after the heads, None where there is none."""
    last = getattr(project, "o", None)
    if isinstance(last, nn.Sequential):
        if len(last) > 1:
            raise NotCompiledError("Several layers of outputs.")
        last = last[0] if len(last) else None
    if last is not None and not isinstance(last, (nn.Linear, QuantizedLinear)):
        raise NotCompiledError("An output that is not dense.")
    return last


def _product(program: Program, x: Source, linear: Any, y: Tensor | Stream, component: str, **how: bool) -> None:
    if not isinstance(linear, (nn.Linear, QuantizedLinear)):
        raise NotCompiledError("A matrix that is neither float32 nor quantised.")
    bias = None if linear.bias is None else linear.bias.detach()
    weight = linear.rows() if isinstance(linear, QuantizedLinear) else linear.weight.detach()
    _matvec(program, x, weight, bias, y, component, **how)


def _matvec(
    program: Program,
    x: Source,
    weight: Tensor | Rows8 | Rows4,
    bias_O: Tensor | None,
    y: Tensor | Stream,
    component: str,
    **how: bool,
) -> None:
    n_outputs, width = shape_of(weight)
    if width < NARROW < n_outputs:
        raise NotCompiledError("A matrix of narrow rows.")
    program.matvec(x, weight, bias_O, y, component, **how)


def _modules(
    program: Program, x: Normed, shared: Multiplicative, convolutions: Sequence[ModuleConvolution], kept: str
) -> Sequence[Tensor]:
    """A multiplicative layer and convolutions over it: where their outputs will be, (E) each.

    `kept` is the attribute of the layer's cache that has their inputs.
    """
    if shared.bias is None:
        raise NotCompiledError("A multiplicative layer without a bias.")
    weights = [(_kernel_of(layer), layer.bias.detach()) for layer in convolutions]
    y_nSm = buffer("qkv", len(weights) * shared.bias.numel())

    def inputs(cache: Any) -> RecentInputs:
        recent: RecentInputs = getattr(cache, kept).inputs["qk"]
        return recent

    bias = shared.bias.detach()
    if isinstance(shared, Int8Multiplicative):
        gate, proj = Rows8(shared.gate, shared.gate_scale), Columns8(shared.proj, shared.proj_scale)
        program.modules(x, (gate, proj, bias), weights, y_nSm, inputs)
    else:
        program.modules(x, (shared.gate.detach(), shared.proj.detach(), bias), weights, y_nSm, inputs)
    return y_nSm.chunk(len(weights), -1)


def _kernel_of(layer: ModuleConvolution) -> Tensor | Columns8:
    kernel = layer.kernel.detach()
    return Columns8(kernel, layer.scale) if isinstance(layer, Int8ModuleConvolution) else kernel


class DecodingBlock(NamedTuple):
    """A block, and for a few rows its program, where it has one; `turns`: two streams have changed places after."""

    block: Block
    program: Program | None
    turns: bool

    def bound(
        self, streams: Streams, caches: Sequence[BranchCache], position: Position, token_BL: Tensor | None
    ) -> Program | None:
        """The program for the streams of a few rows, of one token each; None where the block's forward has to run."""
        if self.program is None or position.n_B is not None or (self.program.reads_tokens and token_BL is None):
            return None
        for cache in caches:
            core = cache.core
            if isinstance(core, LSHCache) or (isinstance(core, CrossCache) and core.mask_BE is not None):
                return None
        pointers = tuple(stream.data_ptr() for stream in streams)
        self.program.bind(pointers, caches, position.n, width=streams[0].shape[-1], token_B=token_BL)
        return self.program


def decoding_block(block: Block, *, two_streams: bool) -> DecodingBlock:
    """The block with its program: none where there are no kernels, or a layer has no operations."""
    branches = block.branches()
    turns = two_streams and len(branches) % 2 == 1
    read, write = Stream(1 if two_streams else 0), Stream(0)
    try:
        program = Program()
        for i, branch in enumerate(branches):
            norm, then = branch.norm, None
            if branch.beside is not None:  # it reads the stream itself, before anything is added to it
                program.enter(i, "beside")
                then = add_beside(branch.beside, program, read)
            program.enter(i, "core")
            normed = Normed(read, norm.weight.detach(), norm.bias.detach(), norm.eps)
            add_operations(branch.core, program, normed, write)
            if then is not None:
                then(write)
            if two_streams:
                read, write = write, read
    except NotCompiledError:
        return DecodingBlock(block, None, turns)
    program.settle()
    return DecodingBlock(block, program, turns)


def step_blocks(
    blocks: Sequence[DecodingBlock],
    streams: Streams,
    caches: Sequence[Sequence[BranchCache]],
    position: Position,
    context: Context,
    mark: Mark | None = None,
) -> Streams:
    """The streams of one token a row, (B, 1, D) each, after all blocks; those that have programs run in one call."""
    streams = tuple(stream.clone(memory_format=torch.contiguous_format) for stream in streams)  # programs write to them
    rows = streams[0].shape[0]
    token_BL = None if context.token_BL is None else context.token_BL.long().contiguous()
    due: dict[int, Program] = {}

    def run_due() -> None:
        if due:
            run(list(due.values()), mark, rows=rows)
            due.clear()

    for block, kept in zip(blocks, caches, strict=True):
        if id(block) in due:  # the same block once more would be bound twice
            run_due()
        program = block.bound(streams, kept, position, token_BL) if rows <= MOST_ROWS else None
        if program is None:
            run_due()
            streams = block.block(streams, context, caches=kept)
        else:
            due[id(block)] = program
            if block.turns:
                streams = streams[::-1]
    run_due()
    return streams


class KernelLogits:
    """Logits by a kernel, for a few rows: of a linear layer, plain or quantised, or a sparse loss layer of few modules.

    Of the latter a copy of the projection is kept, in blocks of columns. Raises NotCompiledError where there is none.
    """

    def __init__(self, layer: Any) -> None:
        self._layer, self._bias, self._program = layer, None, Program()
        if isinstance(layer, SparseLoss):
            shared = layer.layer
            n_modules, d_module = shared.gate.shape[0], shared.proj.shape[1]
            if d_module < BLOCKS_FROM or n_modules > BLOCKS_MODULES or shared.proj.device.type != "cpu":
                raise NotCompiledError("Many modules, or few outputs of each.")
            self._out, self._bias = buffer("logits", n_modules * d_module), shared.bias
            self._program.blocked_product(Stream(0), *_blocked_factors(shared), d_module, self._out)
            self._d_out = shared.d_out
        else:
            self._d_out = layer.weight.shape[0]
            self._out = buffer("logits", self._d_out)
            _product(self._program, Stream(0), layer, self._out, "logits")
        self._program.settle()

    def __call__(self, h_TD: Tensor) -> Tensor:
        """(.., D) -> logits (.., vocabulary)."""
        rows, width = h_TD.numel() // h_TD.shape[-1], h_TD.shape[-1]
        if not 1 <= rows <= MOST_ROWS:
            logits: Tensor = self._layer(h_TD)
            return logits
        h_TD = h_TD.contiguous()
        self._program.bind((h_TD.data_ptr(),), [], 0, width=width)
        run([self._program], rows=rows)
        y = self._out[:rows, : self._d_out]
        y = y.clone() if self._bias is None else y + self._bias
        return y.view(*h_TD.shape[:-1], -1)


def _blocked_factors(shared: Multiplicative) -> tuple[Tensor | Rows8, Tensor | Columns8]:
    """Gate and projection, the latter in blocks of columns."""
    proj = in_blocks(shared.proj.detach())
    if not isinstance(shared, Int8Multiplicative):
        return shared.gate.detach(), proj
    surplus = proj.shape[0] * proj.shape[2] - shared.proj.shape[1]
    return Rows8(shared.gate, shared.gate_scale), Columns8(proj, F.pad(shared.proj_scale, (0, surplus)))


def logits_of(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    """What gives the logits: the layer itself, or its kernel for a few rows, where it has one."""
    with suppress(NotCompiledError):
        return KernelLogits(linear)
    return linear
