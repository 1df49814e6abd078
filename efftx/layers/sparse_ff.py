"""The sparse feed-forward layer: a controller chooses one unit of every block of hidden units, a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.cache import Place
from efftx.layers.matrix import FloatMatrix, Int8Matrix, Read
from efftx.layers.settings import SparseFFConfig, check_sparse_ff, rank_of
from efftx.native.program import Normed, NotCompiledError, Program, Stream
from efftx.ops.chunking import chunked_with_choices
from efftx.ops.int8 import int8_rows_dot, int8_rows_sum, pack_rows, quantize_rows
from efftx.ops.replay import Choose, Replay, choose
from efftx.ops.selected_rows import dot_with, shared_plan, sum_with
from efftx.ops.sparse_ff import (
    choose_units,
    chosen_probability,
    controller_logits,
    sparse_ff_masked,
    training_hidden,
    training_mask,
)


class SparseFF(nn.Module):
    """relu((x W1) * mask) W2 + b2 with at most one active unit in every block of N; a first bias does not exist.

    Training multiplies by a noisy hard mask or by the soft one, evaluation keeps the unit of the largest logit.
    Dropout is on the hidden units, as in the dense layer (the authors' is on the output alone, where the block has its
    own). `chunk_len` positions at a time where not 0. Parameters (U = d_ff units, a unit's row each): c1 (rank,
    d_model), c2 (U, rank), c_bias (U), w1 and w2 (U, d_model), b2 (d_model). Raises UserError for keys that do not fit.
    """

    def __init__(
        self, config: SparseFFConfig, d_model: int, d_ff: int, *, dropout: float = 0.0, chunk_len: int = 0
    ) -> None:
        super().__init__()
        check_sparse_ff(config, d_model, d_ff)
        self.config = config
        self.dropout = dropout
        self.chunk_len = chunk_len
        rank = rank_of(config, d_model, d_ff)
        self.c1 = nn.Parameter(torch.empty(rank, d_model))
        self.c2 = nn.Parameter(torch.empty(d_ff, rank))
        self.c_bias = nn.Parameter(torch.empty(d_ff))
        self.w1 = nn.Parameter(torch.empty(d_ff, d_model))
        self.w2 = nn.Parameter(torch.empty(d_ff, d_model))
        self.b2 = nn.Parameter(torch.empty(d_model))

    def reset_parameters(self) -> None:
        """Glorot-uniform matrices, W2 times sqrt(N) with `kernel_scaling`; Gaussian biases of deviation 1e-6."""
        for matrix in (self.c1, self.c2, self.w1, self.w2):
            gain = sqrt(self.config.N) if matrix is self.w2 and self.config.kernel_scaling else 1.0
            nn.init.xavier_uniform_(matrix, gain)
        for bias in (self.c_bias, self.b2):
            nn.init.normal_(bias, std=1e-6)

    def forward(self, x_BLD: Tensor, replay: Replay | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model).

        `replay` keeps the coin as "hard" and the chosen units as "units" (B, L, d_ff / N), or "i.units" of slice i.
        """
        hard = choose(replay, "hard", partial(self._toss, x_BLD.device)) if self.training else None
        parameters = dict(self.named_parameters())
        if not self.chunk_len or self.chunk_len >= x_BLD.shape[1]:
            return self._run(parameters, partial(choose, replay), x_BLD, hard)

        def one_slice(own: Mapping[str, Tensor], make_choice: Choose, x: Tensor) -> tuple[Tensor, ...]:
            return (self._run(own, make_choice, x, hard),)

        return chunked_with_choices(one_slice, parameters, (x_BLD,), self.chunk_len, replay)[0]

    @torch.no_grad()
    def choices(self, x_BLD: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The units chosen without and with noise, (B, L, d_ff / N) each; `ops.sparse_ff.choice_statistics` reads them.

        The noise is drawn from `generator`, or from the random state.
        """
        logits = controller_logits(x_BLD, self.c1, self.c2, self.c_bias, self.config.N)
        return choose_units(logits), self._choose(logits, generator)

    def _toss(self, device: torch.device) -> Tensor:
        return torch.rand((), device=device) < self.config.quant_prob

    def _choose(self, logits_BLGN: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if not self.config.temperature:
            return choose_units(logits_BLGN)
        dtype = torch.promote_types(logits_BLGN.dtype, torch.float32)
        uniform = torch.rand(logits_BLGN.shape, dtype=dtype, device=logits_BLGN.device, generator=generator)
        return choose_units(logits_BLGN, uniform, self.config.temperature)

    def _run(self, own: Mapping[str, Tensor], make_choice: Choose, x_BLD: Tensor, hard: Tensor | None) -> Tensor:
        """The layer with explicit parameters; `hard` is the coin of a training step, None in evaluation."""
        n, multiply = self.config.N, self.config.multiply_by_controller
        logits = controller_logits(x_BLD, own["c1"], own["c2"], own["c_bias"], n)
        if hard is None:
            index = make_choice("units", lambda: choose_units(logits))
            factor = chosen_probability(logits, index) if multiply else None
            return sparse_ff_masked(x_BLD, own["w1"], own["w2"], own["b2"], index, n, factor)
        index = make_choice("units", lambda: self._choose(logits))
        factor = torch.where(hard, chosen_probability(logits.detach(), index), 1.0) if multiply else None
        hidden = training_hidden(x_BLD, own["w1"], training_mask(logits, index, hard), factor)
        return F.linear(F.dropout(hidden, self.dropout), own["w2"].t(), own["b2"])

    def stepper(self, *, int8: bool = False) -> SparseFFStepper:
        """The layer for one token at a time: only the chosen rows are read."""
        return SparseFFStepper(self, int8=int8)


class _Rows(NamedTuple):
    """For a number of tokens: the rows at which their blocks begin, (B G), and the products with chosen ones."""

    first: Tensor
    dot: Callable[[Tensor, Tensor], Tensor]
    sum: Callable[[Tensor, Tensor], Tensor]


class SparseFFStepper:
    """`SparseFF` for one token a row: the controller, and d_ff / N rows of W1 and of W2, each one contiguous read.

    With `int8` the controller's matrices and the rows are int8, W2's packed with their scales.
    """

    def __init__(self, layer: SparseFF, *, int8: bool) -> None:
        self._layer, self._config = layer, layer.config
        matrix = Int8Matrix if int8 else FloatMatrix
        self._c1, self._c2 = matrix(layer.c1), matrix(layer.c2, layer.c_bias)
        self._c1_of, self._c2_of = self._c1.product, self._c2.product
        self._w1, self._w2, self._b2 = (w.detach() for w in (layer.w1, layer.w2, layer.b2))
        self._n_units, self._d_model = self._w1.shape
        self._rows: dict[int, _Rows] = {}
        self._int8, self._n, self._multiply = int8, self._config.N, self._config.multiply_by_controller
        if int8:
            self._w1, self._scale = quantize_rows(self._w1)
            self._w2 = pack_rows(*quantize_rows(self._w2))

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> None:
        """Nothing is kept from token to token."""

    def prefill(self, x_BLD: Tensor, cache: None, n_B: Tensor | None) -> Tensor:
        """The layer's own forward."""
        y_BLD: Tensor = self._layer(x_BLD)
        return y_BLD

    def step(self, x_BD: Tensor, cache: None, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model)."""
        # Blocks of all rows of the batch one after the other: a view more costs as much as a sum.
        logits_SN = self._c2_of(self._c1_of(x_BD)).view(-1, self._n)
        index_S = torch.max(logits_SN, -1)[1]
        place.lap("controller")
        rows = self._rows.get(x_BD.shape[0]) or self._rows_of(x_BD)
        row_S = rows.first + index_S
        hidden_S = rows.dot(x_BD, row_S).relu_()
        if self._multiply:
            hidden_S *= chosen_probability(logits_SN, index_S)
        y_BD = rows.sum(hidden_S, row_S).add_(self._b2)
        place.lap("feed-forward")
        return y_BD

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """One token of one row as operations; raises NotCompiledError in int8 and where probabilities multiply."""
        if self._int8 or self._multiply:
            raise NotCompiledError("Int8 rows, or the controller's probabilities.")
        layer = self._layer
        parameters = [w.detach() for w in (layer.c1, layer.c2, layer.c_bias, layer.w1, layer.w2, layer.b2)]
        program.sparse_ff(x, parameters, self._n, y)

    def reads(self) -> list[Read]:
        """What a token reads: all of the controller, one row of W1 and of W2 a block, and the bias."""
        n_rows = self._n_units // self._config.N
        n_bytes = n_rows * (self._w1[0].nbytes + self._w2[0].nbytes + (2 if self._int8 else 0)) + self._b2.nbytes
        selected = Read("feed-forward", (2 * n_rows + 1) * self._d_model, n_bytes)
        return [self._c1.read("controller"), self._c2.read("controller"), selected]

    def _rows_of(self, x_BD: Tensor) -> _Rows:
        """Made once for each size of a batch."""
        batch, w1, w2 = x_BD.shape[0], self._w1, self._w2
        plan = shared_plan(batch, self._n_units // self._n, self._d_model, self._n, x_BD.device)
        first_S = plan.first.repeat(batch) if batch > 1 else plan.first
        if self._int8:
            scale, shape = self._scale, plan.shape
            made = _Rows(
                first_S,
                lambda x, row: int8_rows_dot(x, w1, scale, row.view(shape)).flatten(),
                lambda h, row: int8_rows_sum(h.view(shape), w2, row.view(shape), plan),
            )
        else:
            made = _Rows(first_S, dot_with(w1, plan), sum_with(w2, plan))
        self._rows[batch] = made
        return made
