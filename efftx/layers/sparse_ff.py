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
    chosen_output,
    chosen_probability,
    controller_logits,
    hashed_units,
    sparse_ff_masked,
    training_hidden,
    training_mask,
    with_token_bias,
)


class SparseFF(nn.Module):
    """relu((x W1) * mask) W2 + b2 with at most one active unit in every block of N; `config.form` has other forms.

    Training multiplies by a noisy hard mask or by the soft one, evaluation keeps the unit of the largest logit; where
    the choice is not learned, training does as evaluation. Dropout is on the hidden units, as in the dense layer (the
    authors' is on the output alone, where the block has its own). `chunk_len` positions at a time where not 0; `salt`
    tells the hashes of the layers of a stack apart. Parameters (U = d_ff units, a unit's row each): c1 (rank, d_model),
    c2 (U, rank), c_bias (U) where there is a controller, which take no gradient where it is frozen; w1 and w2 (U,
    d_model), b2 (d_model), and in some forms b1 (U). Raises UserError for keys that do not fit.
    """

    c1: nn.Parameter
    c2: nn.Parameter
    c_bias: nn.Parameter
    b1: nn.Parameter | None

    def __init__(
        self,
        config: SparseFFConfig,
        d_model: int,
        d_ff: int,
        *,
        dropout: float = 0.0,
        chunk_len: int = 0,
        salt: int = 0,
    ) -> None:
        super().__init__()
        check_sparse_ff(config, d_model, d_ff)
        self.config = config
        self.dropout = dropout
        self.chunk_len = chunk_len
        self.salt = salt
        if config.has_controller:
            rank, learns = rank_of(config, d_model, d_ff), config.learns
            self.c1 = nn.Parameter(torch.empty(rank, d_model), requires_grad=learns)
            self.c2 = nn.Parameter(torch.empty(d_ff, rank), requires_grad=learns)
            self.c_bias = nn.Parameter(torch.empty(d_ff), requires_grad=learns)
        self.w1 = nn.Parameter(torch.empty(d_ff, d_model))
        self.w2 = nn.Parameter(torch.empty(d_ff, d_model))
        self.b2 = nn.Parameter(torch.empty(d_model))
        self.b1 = nn.Parameter(torch.empty(d_ff)) if config.first_bias else None

    def reset_parameters(self) -> None:
        """Glorot-uniform matrices, W2 times sqrt(N) with `kernel_scaling`; Gaussian biases of deviation 1e-6."""
        own, names = dict(self.named_parameters()), ("c1", "c2", "w1", "w2")
        for name in (name for name in names if name in own):
            gain = sqrt(self.config.N) if name == "w2" and self.config.kernel_scaling else 1.0
            nn.init.xavier_uniform_(own[name], gain)
        for name in (name for name in ("c_bias", "b2", "b1") if name in own):
            nn.init.normal_(own[name], std=1e-6)

    def active_parameters(self) -> int:
        """Rows of one unit in every block, b2, and all that chooses the unit: the controller, or W1 for the oracle."""
        own, n = dict(self.named_parameters()), self.config.N
        whole = {"c1", "c2", "c_bias", "b2"} | ({"w1", "b1"} if self.config.controller == "oracle" else set())
        return sum(p.numel() if name in whole else p.numel() // n for name, p in own.items())

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.w2]

    def forward(self, x_BLD: Tensor, replay: Replay | None = None, token_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); `token_BL` are the tokens at these positions, for their hash.

        `replay` keeps the coin as "hard" and the chosen units as "units" (B, L, d_ff / N), or "i.units" of slice i.
        """
        tosses = self.training and self.config.learns
        hard = choose(replay, "hard", partial(self._toss, x_BLD.device)) if tosses else None
        parameters = dict(self.named_parameters())
        read = (x_BLD, _given(token_BL)) if self.config.reads_ids else (x_BLD,)
        if not self.chunk_len or self.chunk_len >= x_BLD.shape[1]:
            return self._run(parameters, partial(choose, replay), hard, *read)

        def one_slice(own: Mapping[str, Tensor], make_choice: Choose, *read: Tensor) -> tuple[Tensor, ...]:
            return (self._run(own, make_choice, hard, *read),)

        return chunked_with_choices(one_slice, parameters, read, self.chunk_len, replay)[0]

    @torch.no_grad()
    def choices(
        self, x_BLD: Tensor, generator: torch.Generator | None = None, token_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The units chosen without and with noise, (B, L, d_ff / N) each; `ops.sparse_ff.choice_statistics` reads them.

        The noise is drawn from `generator`, or from the random state; a choice that is not learned has none.
        """
        if self.config.learns:
            logits = self._logits(dict(self.named_parameters()), x_BLD, token_BL)
            return choose_units(logits), self._choose(logits, generator)
        quiet = self._unlearned(dict(self.named_parameters()), x_BLD, token_BL)
        return quiet, quiet

    @torch.no_grad()
    def largest(self, x_BLD: Tensor) -> Tensor:
        """The units of the largest pre-activations, (B, L, d_ff / N): what `controller=oracle` would choose."""
        return choose_units(self._pre_activations(dict(self.named_parameters()), x_BLD))

    def _toss(self, device: torch.device) -> Tensor:
        return torch.rand((), device=device) < self.config.quant_prob

    def _choose(self, logits_BLGN: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if not self.config.temperature:
            return choose_units(logits_BLGN)
        dtype = torch.promote_types(logits_BLGN.dtype, torch.float32)
        uniform = torch.rand(logits_BLGN.shape, dtype=dtype, device=logits_BLGN.device, generator=generator)
        return choose_units(logits_BLGN, uniform, self.config.temperature)

    def _logits(self, own: Mapping[str, Tensor], x_BLD: Tensor, token_BL: Tensor | None) -> Tensor:
        n, bias = self.config.N, self.config.token_bias
        with torch.set_grad_enabled(self.config.learns and torch.is_grad_enabled()):
            logits = controller_logits(x_BLD, own["c1"], own["c2"], own["c_bias"], n)
            return with_token_bias(logits, self._hashed(own, token_BL), bias) if bias else logits

    def _hashed(self, own: Mapping[str, Tensor], token_BL: Tensor | None) -> Tensor:
        return hashed_units(_given(token_BL), own["w1"].shape[0] // self.config.N, self.config.N, self.salt)

    @torch.no_grad()
    def _unlearned(
        self, own: Mapping[str, Tensor], x_BLD: Tensor, token_BL: Tensor | None, logits: Tensor | None = None
    ) -> Tensor:
        """The units that a frozen controller (of `logits` where they are known), the oracle or the hash chooses."""
        if self.config.controller == "frozen":
            return choose_units(self._logits(own, x_BLD, token_BL) if logits is None else logits)
        if self.config.controller == "oracle":
            return self.largest(x_BLD)
        return self._hashed(own, token_BL)

    def _pre_activations(self, own: Mapping[str, Tensor], x_BLD: Tensor) -> Tensor:
        return F.linear(x_BLD, own["w1"], own.get("b1")).unflatten(-1, (-1, self.config.N))

    def _run(
        self,
        own: Mapping[str, Tensor],
        make_choice: Choose,
        hard: Tensor | None,
        x_BLD: Tensor,
        token_BL: Tensor | None = None,
    ) -> Tensor:
        """The layer with explicit parameters; `hard` is the coin of a step that trains the controller, else None."""
        n, multiply, b1 = self.config.N, self.config.multiply_by_controller, own.get("b1")
        dropout = self.dropout if self.training else 0.0
        if self.config.controller == "oracle":
            dense = self._pre_activations(own, x_BLD)
            index = make_choice("units", lambda: choose_units(dense))
            return chosen_output(dense, own["w2"], own["b2"], index, dropout=dropout)
        if not self.config.learns:
            logits = self._logits(own, x_BLD, token_BL) if multiply else None
            index = make_choice("units", lambda: self._unlearned(own, x_BLD, token_BL, logits))
            factor = None if logits is None else chosen_probability(logits, index)
            return sparse_ff_masked(x_BLD, own["w1"], own["w2"], own["b2"], index, n, factor, b1, dropout=dropout)
        logits = self._logits(own, x_BLD, token_BL)
        if hard is None:
            index = make_choice("units", lambda: choose_units(logits))
            factor = chosen_probability(logits, index) if multiply else None
            return sparse_ff_masked(x_BLD, own["w1"], own["w2"], own["b2"], index, n, factor, b1)
        index = make_choice("units", lambda: self._choose(logits))
        factor = torch.where(hard, chosen_probability(logits.detach(), index), 1.0) if multiply else None
        mask = training_mask(logits, index, hard)
        hidden = training_hidden(x_BLD, own["w1"], mask, factor, b1, mask_after=self.config.mask_after)
        return F.linear(F.dropout(hidden, dropout), own["w2"].t(), own["b2"])

    def stepper(self, *, int8: bool = False) -> SparseFFStepper:
        """The layer for one token at a time: only the chosen rows are read."""
        kinds: dict[str, type[SparseFFStepper]] = {"oracle": OracleStepper, "token": TokenStepper}
        return kinds.get(self.config.controller, SparseFFStepper)(self, int8=int8)


def _given(token_BL: Tensor | None) -> Tensor:
    if token_BL is None:
        raise ValueError("This controller chooses by the tokens at the layer's positions: none were given.")
    return token_BL


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
        self._w1, self._w2, self._b2 = (w.detach() for w in (layer.w1, layer.w2, layer.b2))
        self._b1 = None if layer.b1 is None else layer.b1.detach()
        self._n_units, self._d_model = self._w1.shape
        self._rows: dict[int, _Rows] = {}
        self._int8, self._n, self._multiply = int8, self._config.N, self._config.multiply_by_controller
        self._lay_out_choice(Int8Matrix if int8 else FloatMatrix)
        if int8:
            self._w1, self._scale = quantize_rows(self._w1)
            self._w2 = pack_rows(*quantize_rows(self._w2))

    def _lay_out_choice(self, matrix: type[FloatMatrix] | type[Int8Matrix]) -> None:
        layer = self._layer
        self._c1, self._c2 = matrix(layer.c1), matrix(layer.c2, layer.c_bias)
        self._c1_of, self._c2_of = self._c1.product, self._c2.product

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> None:
        """Nothing is kept from token to token."""

    def prefill(self, x_BLD: Tensor, cache: None, n_B: Tensor | None, token_BL: Tensor | None = None) -> Tensor:
        """The layer's own forward."""
        y_BLD: Tensor = self._layer(x_BLD, None, token_BL)
        return y_BLD

    def step(self, x_BD: Tensor, cache: None, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model)."""
        index_S, logits_SN = self._choose(x_BD, place)
        rows = self._rows.get(x_BD.shape[0]) or self._rows_of(x_BD)
        row_S = rows.first + index_S
        hidden_S = rows.dot(x_BD, row_S)
        if self._b1 is not None:
            hidden_S += self._b1[row_S]
        hidden_S.relu_()
        if self._multiply:
            hidden_S *= chosen_probability(logits_SN, index_S)
        y_BD = rows.sum(hidden_S, row_S).add_(self._b2)
        place.lap("feed-forward")
        return y_BD

    def _choose(self, x_BD: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        # Blocks of all rows of the batch one after the other: a view more costs as much as a sum.
        logits_SN = self._c2_of(self._c1_of(x_BD)).view(-1, self._n)
        if self._config.token_bias:
            logits_SN = with_token_bias(logits_SN, self._hashed(place), self._config.token_bias)
        index_S = torch.max(logits_SN, -1)[1]
        place.lap("controller")
        return index_S, logits_SN

    def _hashed(self, place: Place) -> Tensor:
        n_blocks, salt = self._n_units // self._n, self._layer.salt
        return hashed_units(_given(place.token_B), n_blocks, self._n, salt).flatten()

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """One token of one row as operations.

        Raises NotCompiledError in int8, where probabilities multiply, and where the token has a say.
        """
        if self._int8 or self._multiply or self._config.token_bias:
            raise NotCompiledError("Int8 rows, the controller's probabilities, or the token's hash.")
        layer = self._layer
        parameters = [w.detach() for w in (layer.c1, layer.c2, layer.c_bias, layer.w1, layer.w2, layer.b2)]
        program.sparse_ff(x, parameters, self._n, y, self._b1)

    def reads(self) -> list[Read]:
        """What a token reads: all of the controller, one row of W1 and of W2 a block, and the biases."""
        return [self._c1.read("controller"), self._c2.read("controller"), self._read_of_rows(self._w1, self._w2)]

    def _read_of_rows(self, *of: Tensor) -> Read:
        """One row a block of each matrix `of`, and the biases."""
        n_rows = self._n_units // self._config.N
        first = len(of) == 2  # W1's scales in int8 and b1 are read beside its rows
        n_bias = n_rows if first and self._b1 is not None else 0
        n_bytes = n_rows * (sum(w[0].nbytes for w in of) + (2 if first and self._int8 else 0))
        n_bytes += self._b2.nbytes + n_bias * self._b2.element_size()
        return Read("feed-forward", (len(of) * n_rows + 1) * self._d_model + n_bias, n_bytes)

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


class OracleStepper(SparseFFStepper):
    """The largest pre-activation of each block: all of W1 is read, and of W2 the chosen rows. A bound, not a saving."""

    def _lay_out_choice(self, matrix: type[FloatMatrix] | type[Int8Matrix]) -> None:
        self._all_w1 = matrix(self._layer.w1, self._layer.b1)
        self._all_of = self._all_w1.product

    def step(self, x_BD: Tensor, cache: None, place: Place) -> Tensor:
        """(B, d_model) -> (B, d_model)."""
        hidden_S, index_S = torch.max(self._all_of(x_BD).view(-1, self._n), -1)
        rows = self._rows.get(x_BD.shape[0]) or self._rows_of(x_BD)
        y_BD = rows.sum(hidden_S.relu_(), rows.first + index_S).add_(self._b2)
        place.lap("feed-forward")
        return y_BD

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """Raises NotCompiledError: a bound has no kernel of its own."""
        raise NotCompiledError("The largest pre-activations.")

    def reads(self) -> list[Read]:
        """What a token reads: all of W1, one row of W2 a block, and the biases."""
        return [self._all_w1.read("feed-forward"), self._read_of_rows(self._w2)]


class TokenStepper(SparseFFStepper):
    """The units of the token's hash: no controller is read."""

    def _lay_out_choice(self, matrix: type[FloatMatrix] | type[Int8Matrix]) -> None:
        """There is no controller."""

    def _choose(self, x_BD: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """By the tokens of `place`; there are no logits, and nothing reads what stands for them."""
        return self._hashed(place), x_BD

    def compile(self, program: Program, x: Normed, y: Stream) -> None:
        """Raises NotCompiledError: programs know no tokens."""
        raise NotCompiledError("Units chosen by the token.")

    def reads(self) -> list[Read]:
        """What a token reads: one row of W1 and of W2 a block, and the biases."""
        return [self._read_of_rows(self._w1, self._w2)]
