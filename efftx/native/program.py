"""Programs for `kernels.cpp`: what one token does in a block of layers, as a list of operations that one call runs.

`decoding.programs` appends a layer's operations; where it cannot (another precision, a missing kernel, a layer that has
none) `NotCompiledError` is raised and the block goes through its own forward, which is the oracle. One row or a few,
weights in float32, int8 or int4, on the CPU. What lies between operations is in buffers that all programs share, for
one runs at a time.

Shape suffixes: B rows of a batch, D d_model, U units, G blocks of them, N units a block, R rank, S modules, m width of
a module, H heads, d width of a head, O outputs, F positions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efftx.native.library import Kernels, kernels, room, usable
from efftx.native.pages import settle

LONGEST = 32
"""Operations of a program at most."""
MOST_ROWS = 32
"""Rows of a batch at most."""
MATVEC, CHOOSE, CHOSEN_ROWS, MODULES, ATTEND, BLOCKED_PRODUCT, RECURRENT_UNIT, SUM = range(8)
MATVEC_INT8, CHOOSE_INT8, CHOSEN_ROWS_INT8, MATVEC_INT4, CHOSEN_ROWS_INT4 = range(8, 13)
CHOOSE_HASHED, LARGEST_ROWS, LARGEST_ROWS_INT8, LARGEST_ROWS_INT4 = range(13, 17)
MODULES_INT8, BLOCKED_PRODUCT_INT8 = range(17, 19)
_SALT, _TOKENS = 7, 9
"""Where an operation has the salt of a hash, in `size`, and the tokens, in `at`."""
_BLOCK = 512
"""Inputs that the int8 operations round to int16 with one scale."""


class NotCompiledError(Exception):
    """A layer, or its form here, that the kernels do not have."""


@dataclass(frozen=True)
class Stream:
    """A residual stream of the block: the first or the second as the block is entered."""

    index: int


class Normed(NamedTuple):
    """A stream through a LayerNorm: weight and bias (D), and what is added to the variance."""

    stream: Stream
    weight: Tensor
    bias: Tensor
    eps: float


class Rows8(NamedTuple):
    """Rows of weights q (O, D) int8, of which row o stands for q[o] scale[o]; scale (O) float32."""

    q: Tensor
    scale: Tensor


class Columns8(NamedTuple):
    """Weights q (.., I, O) int8, of which column o stands for q[.., o] scale[o]; scale (O) float32."""

    q: Tensor
    scale: Tensor


class Rows4(NamedTuple):
    """Rows of `width` weights in int4, packed (O, P) uint8 as `ops.int4.quantize_groups` makes them."""

    packed: Tensor
    width: int


class Hashed(NamedTuple):
    """A hash of the token names a unit of every block: `ops.sparse_ff.hashed_units` at this salt.

    `bias`: what it adds to the unit's logit, where a controller chooses.
    """

    salt: int
    bias: float = 0.0


class Op(ctypes.Structure):
    """`Op` of kernels.cpp, where it is said what `size` and `at` hold."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("adds", ctypes.c_int64),
        ("relu", ctypes.c_int64),
        ("size", ctypes.c_int64 * 8),
        ("eps", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("norm_w", ctypes.c_void_p),
        ("norm_b", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("at", ctypes.c_void_p * 12),
        ("x_step", ctypes.c_int64),
        ("y_step", ctypes.c_int64),
        ("step", ctypes.c_int64 * 12),
    )


Source = Tensor | Stream | Normed | None
"""What an operation reads: numbers where they lie, a stream, a normed one, or what was normed last."""
Bind = Callable[[Any, int], None]
"""Puts a cache, and the number of tokens behind this one, into an operation."""

_buffers: dict[str, Tensor] = {}


def buffer(name: str, n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room for `n` numbers of every row between two operations, (MOST_ROWS, n); a program keeps a hold of it."""
    held = _buffers.get(name)
    if held is None or held.numel() < MOST_ROWS * n:
        with torch.inference_mode(False):
            held = _buffers[name] = torch.empty(MOST_ROWS * n, dtype=dtype)
    return held[: MOST_ROWS * n].view(MOST_ROWS, n)


class Program:
    """Operations, and what has to be put into them before each token.

    What they read and write are streams, buffers (rows, n), or tensors of any shape where there is a single row.
    """

    def __init__(self) -> None:
        library = kernels()
        if library is None:
            raise NotCompiledError("There are no kernels.")
        self.library: Kernels = library
        self.ops = (Op * LONGEST)()
        self.n_ops = 0
        self._streams: list[tuple[int, str, int]] = []  # operation, field, which stream
        self._binds: list[tuple[int, str, Bind]] = []
        self._read_tokens: list[int] = []  # operations
        self.components: list[str] = []
        self._kept: list[Tensor] = []
        self.width = self.own = self.common = self.common_a_thread = 0  # floats of room, see `_needs`
        self._branch: tuple[int, str] = (0, "core")
        self._bound: tuple[int, ...] = ()

    def enter(self, branch: int, part: str) -> None:
        """What follows belongs to a branch of the block, and its caches are in that attribute of the branch's."""
        self._branch = (branch, part)

    def each_step(self, bind: Bind) -> None:
        """`bind` is called with the branch's cache before every token."""
        self._binds.append((*self._branch, bind))

    def matvec(
        self,
        x: Source,
        weight: Tensor | Rows8 | Rows4,
        bias_O: Tensor | None,
        y: Tensor | Stream,
        component: str,
        *,
        adds: bool = False,
        relu: bool = False,
    ) -> None:
        """y (O) = or += W x + bias, of a weight (O, D) in float32 or of rows in int8 or int4.

        For int8 x is rounded to int16: half a step of the largest of every 512 of its values over 32,767 at most. For
        int4 likewise, of every 64 of them, over 32,639 where there is a single row.
        """
        at: tuple[Tensor | None, ...]
        n_outputs, width = shape_of(weight)
        if isinstance(weight, Rows8):
            kind, at = MATVEC_INT8, (weight.q, bias_O, weight.scale)
        elif isinstance(weight, Rows4):
            kind, at = MATVEC_INT4, (weight.packed, bias_O)
        else:
            kind, at = MATVEC, (weight, bias_O)
        self._needs(own=_prepared_size(weight))
        op = self._add(kind, x, y, component, (width, n_outputs), at, adds=adds)
        op.relu = relu

    def sparse_ff_quantized(
        self,
        x: Normed,
        controller: tuple[Rows8, Rows8] | None,
        rows: tuple[Rows8, Rows8] | tuple[Rows4, Rows4],
        biases: Sequence[Tensor],
        N: int,
        y: Stream,
        b1_U: Tensor | None = None,
        hashed: Hashed | None = None,
    ) -> None:
        """As `sparse_ff`, of a controller c1, c2 in int8 and rows of w1 and w2 in int8 or int4; biases c_bias and b2.

        x is rounded as in `matvec`. The int8 rows of w2 are packed, (U, P) uint8 (`ops.int8.pack_rows`).
        """
        *c_bias_U, b2_D = biases
        n_rows, width = shape_of(rows[0])
        n_blocks = n_rows // N
        w1_UP, w2_UP = (each.packed if isinstance(each, Rows4) else each.q for each in rows)
        row_bytes = (w1_UP.shape[1], w2_UP.shape[1])
        row_G = buffer("row", n_blocks, torch.int64)
        if controller:
            c1, c2 = controller
            rank = c1.q.shape[0]
            c2_GRN = c2.q.view(n_blocks, N, rank).transpose(1, 2).contiguous()
            chooser = (c1.q, c2_GRN, *c_bias_U, w1_UP, w2_UP, row_G, c1.scale, c2.scale)
            op = self._add(CHOOSE_INT8, x, None, "controller", (width, n_blocks, N, rank, *row_bytes), chooser)
            self._hashes(op, hashed)
            self._needs(own=max(_prepared_size(c1), 2 * N), common=rank)
        else:
            self._choose_hashed(x, (w1_UP, w2_UP, row_G), (width, n_blocks, N, *row_bytes), hashed)
        scales = [each.scale for each in rows if isinstance(each, Rows8)]
        kind = CHOSEN_ROWS_INT8 if scales else CHOSEN_ROWS_INT4
        size, at = (width, n_blocks, row_bytes[1]), (w1_UP, w2_UP, b2_D, row_G, b1_U, *scales)
        self._add(kind, None, y, "feed-forward", size, at, adds=True)
        self._needs(own=_prepared_size(rows[0]), common_a_thread=width)

    def sparse_ff(
        self,
        x: Normed,
        parameters: Sequence[Tensor],
        N: int,
        y: Stream,
        b1_U: Tensor | None = None,
        hashed: Hashed | None = None,
    ) -> None:
        """y += b2 + sum_g relu(x . w1[g] + b1[g]) w2[g] of one unit g a block, which c2 (c1 x) + c_bias chooses.

        Parameters: c1 (R, D), c2 (U, R), c_bias (U), w1 and w2 (U, D), b2 (D). `hashed`: the token's hash adds its bias
        to the logits; without c1, c2 and c_bias it chooses alone. NotCompiledError for a controller whose N is not
        whole vectors.
        """
        *controller, w1_UD, w2_UD, b2_D = parameters
        n_blocks, width = w1_UD.shape[0] // N, w1_UD.shape[1]
        if not usable(*parameters):
            raise NotCompiledError("Other than float32 on the CPU.")
        row_G = buffer("row", n_blocks, torch.int64)
        if controller:
            if N % self.library.lanes:
                raise NotCompiledError(f"Blocks of {N} units are not whole vectors.")
            c1_RD, c2_UR, c_bias_U = controller
            rank = c1_RD.shape[0]
            # A block's part of the second matrix, transposed: the sums of a block are vectors beside each other.
            c2_GRN = c2_UR.view(n_blocks, N, rank).transpose(1, 2).contiguous()
            chooser = (c1_RD, c2_GRN, c_bias_U, w1_UD, w2_UD, row_G)
            op = self._add(CHOOSE, x, None, "controller", (width, n_blocks, N, rank), chooser)
            self._hashes(op, hashed)
            self._needs(own=N, common=rank)
        else:
            self._choose_hashed(x, (w1_UD, w2_UD, row_G), (width, n_blocks, N, 4 * width, 4 * width), hashed)
        chosen = (w1_UD, w2_UD, b2_D, row_G, b1_U)
        self._add(CHOSEN_ROWS, None, y, "feed-forward", (width, n_blocks), chosen, adds=True)
        self._needs(common_a_thread=width)

    def _choose_hashed(
        self, x: Normed, rows: tuple[Tensor, Tensor, Tensor], size: Sequence[int], hashed: Hashed | None
    ) -> None:
        """The rows that the hash names; `rows`: w1, w2 and where the choice will be."""
        if hashed is None:
            raise NotCompiledError("Neither a controller nor a hash.")
        op = self._add(CHOOSE_HASHED, x, None, "controller", size, (None, None, None, *rows))
        self._hashes(op, hashed)

    def _hashes(self, op: Op, hashed: Hashed | None) -> None:
        """Has `op`, the operation added last, read the tokens and hash them."""
        if hashed is None:
            return
        op.size[_SALT], op.scale = hashed.salt, hashed.bias
        self._read_tokens.append(self.n_ops - 1)

    def largest_rows(self, h_U: Tensor, w2: Tensor | Rows8 | Rows4, b2_D: Tensor, N: int, y: Stream) -> None:
        """y += b2 + sum_g relu(h[g]) w2[g] of the unit g of every block of N that has the largest h.

        w2 (U, D) in float32, or rows in int8, packed (`ops.int8.pack_rows`), or int4.
        """
        width, at = b2_D.numel(), [b2_D]
        if isinstance(w2, Rows8):
            kind, rows, at = LARGEST_ROWS_INT8, w2.q, [b2_D, w2.scale]
        elif isinstance(w2, Rows4):
            kind, rows = LARGEST_ROWS_INT4, w2.packed
        else:
            kind, rows = LARGEST_ROWS, w2
        size = (width, rows.shape[0] // N, N, rows.shape[1])
        self._add(kind, h_U, y, "feed-forward", size, (None, rows, *at), adds=True)
        self._needs(common_a_thread=width)

    def modules(
        self,
        x: Normed,
        shared: tuple[Tensor, Tensor, Tensor] | tuple[Rows8, Columns8, Tensor],
        convolutions: Sequence[tuple[Tensor | Columns8, Tensor]],
        y_nSm: Tensor,
        recent_of: Callable[[Any], Any],
    ) -> None:
        """A multiplicative layer, gate (S, D), proj (D, m), bias (S m), and one to three convolutions over it.

        Each is a kernel (F, modules, m, m) and a bias (m). `recent_of` finds the `RecentInputs` of the layer's outputs
        in the branch's cache. Gate, projection and kernels in int8, all of them or none: gated inputs are then rounded
        to int16, half a step of the largest of `chunk` of them at most, and the convolutions' inputs of the largest of
        their module.
        """
        gate, proj, bias_O = shared
        kernels_FKmm = [kernel for kernel, _ in convolutions]
        in_int8 = isinstance(gate, Rows8)
        if any(isinstance(kernel, Columns8) != in_int8 for kernel in kernels_FKmm):
            raise NotCompiledError("Some weights in int8 and some in float32.")
        (S, width), m = _numbers(gate).shape, _numbers(proj).shape[1]
        shapes = [_numbers(kernel).shape for kernel in kernels_FKmm]
        square = all(shape[2:] == (m, m) for shape in shapes)
        if m % self.library.lanes or not square or S * m != bias_O.shape[0] or not 1 <= len(convolutions) <= 3:
            raise NotCompiledError("Modules of this shape.")
        n_positions, seen = shapes[0][0], [shape[1] for shape in shapes] + [0, 0]
        weights: list[Tensor | None] = [_numbers(gate), _numbers(proj), bias_O, None]
        if isinstance(gate, Rows8):
            assert isinstance(proj, Columns8)
            if width % 2:
                raise NotCompiledError("An odd number of inputs.")
            weights[1] = _in_pairs(proj.q)
            for kernel, bias_m in convolutions:
                assert isinstance(kernel, Columns8)
                weights += [_in_pairs(kernel.q), torch.stack([bias_m, kernel.scale])]
            weights += [None] * (10 - len(weights))
            weights.append(torch.cat([gate.scale, proj.scale]))
            rows = n_positions * (S + max(seen) - 1)
            self._needs(own=S + S * self.library.chunk // 2, common=rows * (1 + m // 2))
        else:
            weights += [tensor for kernel, bias_m in convolutions for tensor in (_numbers(kernel), bias_m)]
            self._needs(own=S * self.library.chunk)
        kind = MODULES_INT8 if in_int8 else MODULES
        op = self._add(kind, x, y_nSm, "QKV", (width, S, m, n_positions, 0, *seen[:3]), weights)
        self._needs(common_a_thread=S * m)
        size, at, step = op.size, op.at, op.step

        def bind(cache: Any, n: int) -> None:
            recent = recent_of(cache)
            size[4], step[3] = recent.row_size, recent.batch_step
            at[3] = recent.next_address()

        self.each_step(bind)

    def attend(
        self,
        q_Hd: Tensor,
        new: tuple[Tensor | None, Tensor] | None,
        n_heads: int,
        y: Tensor | Stream,
        *,
        scale: float,
        adds: bool,
    ) -> Callable[[Tensor, Tensor, int, int, int], None]:
        """y (H d) = or += softmax attention; gives what binds keys and values (B, H, T, d), place, first and end.

        A `new` key and value are written to their place before; no key: the query at unit length.
        """
        d = q_Hd.shape[-1] // n_heads
        k_new, v_new = new or (None, None)
        op = self._add(ATTEND, None, y, "attention", (n_heads, 0, d), (q_Hd, k_new, v_new), adds=adds)
        op.scale = scale
        size, at, step = op.size, op.at, op.step
        for i, tensor in enumerate((q_Hd, k_new, v_new)):
            step[i] = 0 if tensor is None else _step(tensor)
        held: list[Any] = [None]

        def bind(k_BHTd: Tensor, v_BHTd: Tensor, place: int, first: int, end: int) -> None:
            if held[0] is not k_BHTd:
                held[0], capacity = k_BHTd, k_BHTd.shape[2]
                size[1], at[3], at[4] = capacity, k_BHTd.data_ptr(), v_BHTd.data_ptr()
                step[3], step[4] = k_BHTd.stride(0), v_BHTd.stride(0)
                self._needs(own=capacity + d + self.library.lanes)
            size[3], size[4], size[5] = place, first, end

        return bind

    def recurrent_unit(self, x_d: Tensor, kernel: Tensor, bias: Tensor, y_d: Tensor, layer: int) -> None:
        """y = an SRU layer of d units, kernel (d, 3d) and bias (3d); the cache is the `SRUCache`."""
        d = x_d.shape[-1]
        op = self._add(RECURRENT_UNIT, x_d, y_d, "SRU", (d,), (kernel, bias))
        self._needs(common=3 * d)
        at, step = op.at, op.step

        def bind(state: Any, n: int) -> None:
            at[2], step[2] = state.c_BNd.data_ptr() + 4 * layer * d, state.c_BNd.stride(0)

        self.each_step(bind)

    def blocked_product(
        self, x: Source, gate: Tensor | Rows8, proj_nDC: Tensor | Columns8, m: int, y_O: Tensor
    ) -> None:
        """y (S m): few gated copies of x, gate (S, D), times a projection in blocks of columns
        (`ops.multiplicative.in_blocks`).

        In int8 the projection has a scale for every column of the blocks, and gated inputs are rounded to int16, half a
        step of the largest of every 512 at most.
        """
        (S, width), (n, _, C) = _numbers(gate).shape, _numbers(proj_nDC).shape
        if C % (2 * self.library.lanes):
            raise NotCompiledError(f"Blocks of {C} columns.")
        size = (width, S, n, C, m)
        if not isinstance(gate, Rows8):
            self._add(BLOCKED_PRODUCT, x, y_O, "logits", size, (gate, _numbers(proj_nDC)))
            self._needs(common=S * width)
            return
        assert isinstance(proj_nDC, Columns8)
        if width % 2:
            raise NotCompiledError("An odd number of inputs.")
        weights = (gate.q, _in_pairs(proj_nDC.q), torch.cat([gate.scale, proj_nDC.scale]))
        self._add(BLOCKED_PRODUCT_INT8, x, y_O, "logits", size, weights)
        self._needs(common=S * (-(-width // _BLOCK) + width // 2))

    def sum(self, x: Tensor, y_1: Tensor) -> None:
        """y (1) = the sum of x, of any shape: what reading it takes at best."""
        self._add(SUM, None, y_1, "sum", (x.numel(),), (x,))
        self._needs(common_a_thread=16)

    def settle(self) -> None:
        """The program is whole: what it reads is moved to huge pages."""
        settle(self._kept)

    @property
    def reads_tokens(self) -> bool:
        """Whether an operation chooses by the token."""
        return bool(self._read_tokens)

    def bind(
        self, pointers: tuple[int, ...], caches: Sequence[Any], n: int, *, width: int = 0, token_B: Tensor | None = None
    ) -> None:
        """Puts in what differs from token to token: where the streams lie, the branches' caches, `n` tokens before.

        `width`: numbers from one row of a stream to the next, where there are several. `token_B`: the rows' tokens,
        int64, where they are read; whoever runs the program keeps them until then.
        """
        for i in self._read_tokens:
            assert token_B is not None
            self.ops[i].at[_TOKENS] = token_B.data_ptr()
        if (*pointers, width) != self._bound:
            self._bound = (*pointers, width)
            for i, field, stream in self._streams:
                setattr(self.ops[i], field, pointers[stream])
                setattr(self.ops[i], f"{field}_step", width)
        for branch, part, bind in self._binds:
            bind(getattr(caches[branch], part), n)

    def _add(
        self,
        kind: int,
        x: Source,
        y: Tensor | Stream | None,
        component: str,
        size: Sequence[int],
        at: Sequence[Tensor | None],
        *,
        adds: bool = False,
    ) -> Op:
        i = self.n_ops
        if i == LONGEST:
            raise NotCompiledError(f"More than {LONGEST} operations.")
        # Of queries, keys and values parts of a buffer's rows are read, each without a gap.
        weights = [t[0] if kind == ATTEND and _step(t) else t for t in at if t is not None]
        if not usable(*(t for t in weights if t.is_floating_point())):
            raise NotCompiledError("Other than float32 on the CPU.")
        if not all(t.is_contiguous() and t.device.type == "cpu" for t in weights):
            raise NotCompiledError("Elsewhere than on the CPU.")
        op = self.ops[i]
        op.kind, op.adds, op.relu = kind, adds, False
        for place, value in enumerate(size):
            op.size[place] = value
        for place, tensor in enumerate(at):
            op.at[place] = None if tensor is None else tensor.data_ptr()
        op.x_step = _step(x) if isinstance(x, Tensor) and not isinstance(x, Normed) else 0
        op.y_step = _step(y) if isinstance(y, Tensor) else 0
        if isinstance(x, Normed):
            op.norm_w, op.norm_b, op.eps = x.weight.data_ptr(), x.bias.data_ptr(), x.eps
            weights += [x.weight, x.bias]
            self._streams.append((i, "x", x.stream.index))
            self.width = max(self.width, -(-size[0] // 16) * 16)
        elif isinstance(x, Stream):
            self._streams.append((i, "x", x.index))
        elif x is not None:
            op.x = x.data_ptr()
            weights.append(x)
        if isinstance(y, Stream):
            self._streams.append((i, "y", y.index))
        elif y is not None:
            op.y = y.data_ptr()
            weights.append(y)
        self._kept += weights
        self.components.append(component)
        self.n_ops += 1
        return op

    def _needs(self, *, own: int = 0, common: int = 0, common_a_thread: int = 0) -> None:
        """Room, in floats, that an operation needs: a thread's own, everyone's, and everyone's for each thread."""
        self.own = max(self.own, own)
        self.common = max(self.common, common)
        self.common_a_thread = max(self.common_a_thread, common_a_thread)


def shape_of(weight: Tensor | Rows8 | Rows4) -> tuple[int, int]:
    """Outputs and inputs."""
    if isinstance(weight, Rows4):
        return weight.packed.shape[0], weight.width
    n_outputs, width = (weight.q if isinstance(weight, Rows8) else weight).shape
    return n_outputs, width


def _numbers(weight: Tensor | Rows8 | Columns8) -> Tensor:
    """Those that a weight is read as."""
    return weight if isinstance(weight, Tensor) else weight.q


def _in_pairs(q: Tensor) -> Tensor:
    """A copy of (.., I, O) with two rows side by side, (.., I / 2, O, 2), as products of pairs of int16 take them."""
    return q.unflatten(-2, (-1, 2)).transpose(-1, -2).contiguous()


def _prepared_size(weight: Tensor | Rows8 | Rows4) -> int:
    """Floats of room for inputs as such rows take them: whole blocks of int16, with a scale each.

    For int4 a scale is of fewer inputs, and those of a single row of inputs are kept in another form beside it.
    """
    blocks = -(-shape_of(weight)[1] // _BLOCK)
    if isinstance(weight, Rows8):
        return blocks * (_BLOCK // 2 + 1)
    return blocks * _BLOCK if isinstance(weight, Rows4) else 0


def _step(tensor: Tensor) -> int:
    """Numbers from one row of a buffer to the next; 0 for a single row."""
    return tensor.stride(0) if tensor.dim() == 2 and tensor.shape[0] == MOST_ROWS else 0


def reading(x: Tensor) -> Callable[[], object]:
    """Reads all of x once, as fast as can be: a sum by the kernels, or by PyTorch where there are none."""
    try:
        program = Program()
        program.sum(x, torch.empty(1))
    except NotCompiledError:
        return x.sum
    return lambda: run([program])


def run(programs: Sequence[Program], mark: Callable[[str, float], None] | None = None, *, rows: int = 1) -> None:
    """Runs programs, which were bound, one after the other in a single call; `mark` is told when each part ended."""
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(f"Programs run for 1 to {MOST_ROWS} rows, not {rows}.")
    n, n_threads = len(programs), torch.get_num_threads()
    width = own = common = common_a_thread = 0
    for p in programs:
        width, own = max(width, p.width), max(own, p.own)
        common, common_a_thread = max(common, p.common), max(common_a_thread, p.common_a_thread)
    ops = (ctypes.c_void_p * n)(*(ctypes.addressof(p.ops) for p in programs))
    n_ops = (ctypes.c_int64 * n)(*(p.n_ops for p in programs))
    ended = None if mark is None else (ctypes.c_double * sum(n_ops))()
    a_thread, several = width + own, rows if rows > 1 else 0
    address = room(n_threads * a_thread + several * a_thread + rows * (n_threads * common_a_thread + common))
    programs[0].library.run(ops, n_ops, n, rows, address, a_thread, width, ended, n_threads)
    if mark is not None and ended is not None:
        for component, moment in zip((c for p in programs for c in p.components), ended, strict=True):
            mark(component, moment)
