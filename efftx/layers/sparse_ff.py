"""The sparse feed-forward layer: a controller chooses one unit of every block of hidden units, a token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import ceil, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.layers.cache import Position
from efftx.layers.cost import RANDOM_STATE_BYTES, Cost, Held, Read, Rows, Work, is_sliced, read_whole, sliced_bytes
from efftx.layers.initialize import BIAS_DEVIATION
from efftx.layers.settings import SparseFFConfig, check_sparse_ff, rank_of
from efftx.ops.chunking import chunked_with_choices
from efftx.ops.recompute_state import Choose, RecomputeState, choose
from efftx.ops.selected_rows import shared_plan
from efftx.ops.sparse_ff import (
    UnitWeights,
    choose_units,
    chosen_output,
    chosen_probability,
    controller_logits,
    hashed_units,
    sparse_ff_masked,
    sparse_ff_selected,
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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform matrices, W2 times sqrt(N) with `kernel_scaling`; Gaussian biases of deviation 1e-6."""
        weights, names = dict(self.named_parameters()), ("c1", "c2", "w1", "w2")
        for name in (name for name in names if name in weights):
            gain = sqrt(self.config.N) if name == "w2" and self.config.kernel_scaling else 1.0
            nn.init.xavier_uniform_(weights[name], gain)
        for name in (name for name in ("c_bias", "b2", "b1") if name in weights):
            nn.init.normal_(weights[name], std=BIAS_DEVIATION)

    def active_parameters(self) -> int:
        """Rows of one unit in every block, b2, and all that chooses the unit: the controller, or W1 for the oracle."""
        weights, n = dict(self.named_parameters()), self.config.N
        whole = {"c1", "c2", "c_bias", "b2"} | ({"w1", "b1"} if self.config.controller == "oracle" else set())
        return sum(p.numel() if name in whole else p.numel() // n for name, p in weights.items())

    def weight_reads(self) -> list[Read]:
        """The controller, and of every block one unit's rows; the oracle reads all of W1."""
        weights, n = dict(self.named_parameters()), self.config.N
        controller = [weights[name] for name in ("c1", "c2", "c_bias") if name in weights]
        first = read_whole("feed-forward", self.w1, self.b1)
        if self.config.controller != "oracle":
            first = Read("feed-forward", first.weights // n, first.bytes // n, chosen=True)
        second = Read("feed-forward", self.w2.numel() // n, self.w2.nbytes // n, chosen=True)
        return [read_whole("controller", *controller), first, second, read_whole("feed-forward", self.b2)]

    def cost(self, rows: Rows) -> Cost:
        """As of the dense layer: training multiplies the whole matrices; and the controller's products.

        Kept are two masks, the products before and after the mask, and the controller's inner numbers; where it is not
        trained, both products and the chosen ones with their 64-bit places. Such a one is not differentiated, and runs
        again only for its probabilities.
        """
        config, (d_ff, d_model) = self.config, self.w1.shape
        sliced, multiplies = is_sliced(self.chunk_len, rows.length), config.multiply_by_controller
        work = {"feedforward": Work(rows.length * 4.0 * d_model * d_ff, 2.0 + sliced)}
        rank, n_weights = 0, 2 * self.w1.numel()
        d, f = rows.bytes_per_feature * d_model, rows.bytes_per_feature * d_ff
        if config.has_controller:
            flops = rows.length * 2.0 * self.c1.shape[0] * (d_model + d_ff)
            frozen = Work(flops, float(sliced)) if multiplies else Work(flops, 0.0, reversed=0.0)
            work["feedforward_controller"] = Work(flops, 2.0 + sliced) if config.learns else frozen
        if config.learns:
            rank = self.c1.shape[0]
            n_weights += rank * (d_model + d_ff)
        kept, besides = self._held(f, rows.bytes_per_feature * d_model)
        kept += rows.bytes_per_feature * rank + (0 if config.learns else f / config.N * 8 / rows.element_bytes)
        choices = self._choice_bytes(rows)
        if sliced:
            kept, besides = 0.0, sliced_bytes(rows, self.chunk_len, kept + besides, d, n_weights)
        units = float(rows.batch * rows.length * d_ff)
        dropped, noise = units * (self.dropout > 0), 2 * units * (config.learns and config.temperature > 0)
        return Cost(work, kept, besides, choices, draws=dropped * (1 + sliced) + noise, redrawn=dropped, replayed=noise)

    def _held(self, f: float, d: float) -> Held:
        """Of `f` bytes of hidden units and `d` of the layer's output, without what is chosen.

        A tensor that only the product with W2 keeps is, under dropout, not kept: what dropout leaves is, and its mask.
        """
        config, drops = self.config, self.dropout > 0
        after, multiplies = config.mask_after, config.multiply_by_controller
        if not config.learns:
            return (2 + drops + 1 / config.N) * f, (1 + multiplies) * f + d * drops
        is_of_the_relu = not after and not multiplies  # the hidden units, which it keeps for itself
        kept = (4 + (multiplies and not after) + drops + (drops and is_of_the_relu) + multiplies / config.N) * f
        if drops:
            return kept, f + d if is_of_the_relu else 2 * f
        return kept, (3 if after else 1) * f if multiplies else 2 * f

    def _choice_bytes(self, rows: Rows) -> int:
        """The units, the random state after each choice, and the coin."""
        n, n_blocks = self.config.N, self.w1.shape[0] // self.config.N
        slices = ceil(rows.length / self.chunk_len) if is_sliced(self.chunk_len, rows.length) else 1
        index_bytes = next(size for size in (1, 2, 4) if size == 4 or n <= 2 ** (8 * size - (size > 1)))
        coin = 1 + RANDOM_STATE_BYTES if self.config.learns else 0
        return RANDOM_STATE_BYTES * slices + coin + rows.batch * rows.length * n_blocks * index_bytes

    def output_matrices(self) -> list[Tensor]:
        """What writes to the residual stream."""
        return [self.w2]

    def forward(self, x_BLD: Tensor, state: RecomputeState | None = None, token_BL: Tensor | None = None) -> Tensor:
        """(B, L, d_model) -> (B, L, d_model); `token_BL` are the tokens at these positions, for their hash.

        One token a row, outside training, reads only its chosen rows of W1 (but for the oracle) and W2. `state` keeps
        the coin as "hard" and the chosen units as "units" (B, L, d_ff / N), or "i.units" of slice i.
        """
        if x_BLD.shape[1] == 1 and state is None and not self.training and not torch.is_grad_enabled():
            return self._step(x_BLD, token_BL)
        tosses = self.training and self.config.learns
        hard = choose(state, "hard", partial(self._toss, x_BLD.device)) if tosses else None
        parameters = dict(self.named_parameters())
        read = (x_BLD, _given(token_BL)) if self.config.reads_ids else (x_BLD,)
        if not is_sliced(self.chunk_len, x_BLD.shape[1]):
            return self._run(parameters, partial(choose, state), hard, *read)

        def one_slice(own: Mapping[str, Tensor], make_choice: Choose, *read: Tensor) -> tuple[Tensor, ...]:
            return (self._run(own, make_choice, hard, *read),)

        return chunked_with_choices(one_slice, parameters, read, self.chunk_len, state)[0]

    @torch.no_grad()
    def choices(
        self, x_BLD: Tensor, generator: torch.Generator | None = None, token_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The units chosen without and with noise, (B, L, d_ff / N) each; `ops.sparse_ff.choice_statistics` reads them.

        The noise is drawn from `generator`, or from the random state; a choice that is not learned has none.
        """
        if self.config.learns:
            logits = self.controller(x_BLD, token_BL)
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

    def controller(self, x_BLD: Tensor, token_BL: Tensor | None = None) -> Tensor:
        """The logits of the units, (B, L, d_ff / N, N)."""
        return self._logits({"c1": self.c1, "c2": self.c2, "c_bias": self.c_bias}, x_BLD, token_BL)

    def _logits(self, own: Mapping[str, Tensor], x_BLD: Tensor, token_BL: Tensor | None) -> Tensor:
        n, bias = self.config.N, self.config.token_bias
        with torch.set_grad_enabled(self.config.learns and torch.is_grad_enabled()):
            logits = controller_logits(x_BLD, own["c1"], own["c2"], own["c_bias"], n)
            return with_token_bias(logits, self._hashed(token_BL), bias) if bias else logits

    def _hashed(self, token_BL: Tensor | None) -> Tensor:
        return hashed_units(_given(token_BL), self.w1.shape[0] // self.config.N, self.config.N, self.salt)

    @torch.no_grad()
    def _unlearned(
        self, own: Mapping[str, Tensor], x_BLD: Tensor, token_BL: Tensor | None, logits: Tensor | None = None
    ) -> Tensor:
        """The units that a frozen controller (of `logits` where they are known), the oracle or the hash chooses."""
        if self.config.controller == "frozen":
            return choose_units(self._logits(own, x_BLD, token_BL) if logits is None else logits)
        return self._uncontrolled(x_BLD, token_BL)

    def _uncontrolled(self, x_BLD: Tensor, token_BL: Tensor | None) -> Tensor:
        return self.largest(x_BLD) if self.config.controller == "oracle" else self._hashed(token_BL)

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
        n, multiply, weights = self.config.N, self.config.multiply_by_controller, _unit_weights(own)
        dropout = self.dropout if self.training else 0.0
        if self.config.controller == "oracle":
            dense = self._pre_activations(own, x_BLD)
            index = make_choice("units", lambda: choose_units(dense))
            return chosen_output(dense, weights, index, dropout=dropout)
        if not self.config.learns:
            logits = self._logits(own, x_BLD, token_BL) if multiply else None
            index = make_choice("units", lambda: self._unlearned(own, x_BLD, token_BL, logits))
            factor = None if logits is None else chosen_probability(logits, index)
            return sparse_ff_masked(x_BLD, weights, index, n, factor, dropout=dropout)
        logits = self._logits(own, x_BLD, token_BL)
        if hard is None:
            index = make_choice("units", lambda: choose_units(logits))
            factor = chosen_probability(logits, index) if multiply else None
            return sparse_ff_masked(x_BLD, weights, index, n, factor)
        index = make_choice("units", lambda: self._choose(logits))
        factor = torch.where(hard, chosen_probability(logits.detach(), index), 1.0) if multiply else None
        mask = training_mask(logits, index, hard)
        hidden = training_hidden(x_BLD, weights.w1, mask, factor, weights.b1, mask_after=self.config.mask_after)
        return F.linear(F.dropout(hidden, dropout), weights.w2.t(), weights.b2)

    def _step(self, x_B1D: Tensor, token_B1: Tensor | None) -> Tensor:
        n, (n_units, d_model) = self.config.N, self.w1.shape
        logits = self.controller(x_B1D, token_B1) if self.config.has_controller else None
        index = self._uncontrolled(x_B1D, token_B1) if logits is None else choose_units(logits)
        factor = None
        if logits is not None and self.config.multiply_by_controller:
            factor = chosen_probability(logits, index)
        plan = shared_plan(x_B1D.shape[0], n_units // n, d_model, n, x_B1D.device)
        weights = UnitWeights(self.w1, self.w2, self.b2, self.b1)
        return sparse_ff_selected(x_B1D, weights, index, n, factor, plan=plan)

    def new_cache(self, batch: int, capacity: int, like: Tensor, position: Position) -> None:
        """Nothing is kept from token to token."""


def _unit_weights(own: Mapping[str, Tensor]) -> UnitWeights:
    return UnitWeights(own["w1"], own["w2"], own["b2"], own.get("b1"))


def _given(token_BL: Tensor | None) -> Tensor:
    if token_BL is None:
        raise ValueError("This controller chooses by the tokens at the layer's positions: none were given.")
    return token_BL
