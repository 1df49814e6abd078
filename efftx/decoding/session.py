"""Decoding with caches: a prompt is read at once, then one token a row at a time.

Shape suffixes: B batch, L tokens of a prompt with the 0 in front, E encoder tokens, D d_model, V vocabulary, T
capacity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efftx.core.counts import count
from efftx.data.vocabulary import PAD
from efftx.decoding.programs import decoding_block, logits_of, step_blocks
from efftx.decoding.quantization import Quantization
from efftx.decoding.quantized import quantized
from efftx.errors import UserError
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.cache import Position
from efftx.layers.cost import Read, read_whole, sum_by_component
from efftx.layers.cross_attention import CrossAttention
from efftx.layers.lsh import LSHAttention, rotations_shared
from efftx.layers.positions import CoupledPositions, LearnedPositions
from efftx.machine.devices import free_memory
from efftx.models.block import Block, Branch, Context
from efftx.models.decoder import Decoder
from efftx.models.encoder_decoder import EncoderDecoder
from efftx.models.streams import Streams, merge, run_blocks, split
from efftx.ops.coupling import coupled_positions, is_separator


class PreparedModel:
    """A model's weights laid out for decoding, once: any number of sessions may use them one after the other.

    The model goes into evaluation mode, and joined matrices take over its weights' memory. With a
    `quantization` the dense matrices and the rows of sparse feed-forward layers are read as int8 or int4 in every step;
    prompts and the encoder run through the layers as they are. The model may go on training; some of what is laid out
    are copies, so that it has to be prepared again then.
    """

    def __init__(self, model: Decoder | EncoderDecoder, *, quantization: Quantization | None = None) -> None:
        self.model = model.eval()
        for branch in self.branches():
            for layer in (branch.core, branch.beside):
                _check_decodable(layer)
        with torch.inference_mode(False):  # joined matrices become the model's weights, which may train again
            blocks = [quantized(block, quantization) if quantization else block for block in model.blocks]
            two_streams = model.reversible.enabled
            self.blocks = [decoding_block(b, two_streams=two_streams) for b in blocks if isinstance(b, Block)]
            linear = model.head.linear
            self.lm_head = quantized(linear, quantization, rounds=True) if quantization else linear
            self.logits = logits_of(self.lm_head)
        self.embedding = model.embedding.weight.detach()
        self._laid_out = self._state_of_weights()

    def check_current(self) -> None:
        """RuntimeError where the model trains, or its weights are no longer those that were laid out."""
        if self.model.training or self._laid_out != self._state_of_weights():
            raise RuntimeError("The model has been trained or changed since it was prepared: prepare it again.")

    def branches(self) -> list[Branch]:
        """The branches of all the decoder's blocks, in their order."""
        return [branch for block in self.model.blocks if isinstance(block, Block) for branch in block.branches()]

    def reads(self) -> dict[str, Read]:
        """What one token of one row reads of weights, by component."""
        of_blocks = [read for block in self.blocks for read in block.block.weight_reads()]
        row = self.embedding[0]  # and as much of positions
        around = read_whole("everything else", self.model.head.norm, row, row)
        return sum_by_component([*of_blocks, read_whole("logits", self.lm_head), around])

    def _state_of_weights(self) -> list[tuple[int, torch.dtype, torch.device, int]]:
        """Which tensors the weights are, and how often each was written to."""
        weights = self.model.parameters()
        return [(id(w), w.dtype, w.device, 0 if w.is_inference() else w._version) for w in weights]


def key_bytes(blocks: Iterable[Block], context: int, memory: int = 0) -> int:
    """Bytes of the keys and values, in float32, that one token of one row reads behind `context` others in `blocks`.

    `memory`: an encoder's tokens, where there is cross-attention.
    """
    n_numbers = 0
    for core in (branch.core for block in blocks for branch in block.branches()):
        if isinstance(core, CrossAttention):
            n_numbers += memory * core.query.n_heads * core.d_head
        elif isinstance(core, (SoftmaxAttention, LSHAttention)):
            n_numbers += core.keys_of_token(context) * core.project.n_heads * core.d_head
    return 4 * 2 * n_numbers


class CachedSession:
    """One generation of `batch` rows: `start` reads the prompts, `step` one more token a row.

    `capacity`: tokens a decoder's row may have in all, its prompt included. `inputs_BE` are an encoder's tokens, 0
    where padded. Raises UserError for a capacity beyond the model's positions, and, before anything is allocated,
    where the caches do not fit into memory; ValueError for inputs that are not the model's or not of `batch` rows, and
    RuntimeError for a model that has changed since it was prepared.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        capacity: int,
        batch: int,
        inputs_BE: Tensor | None = None,
    ) -> None:
        prepared.check_current()
        self.prepared, self.capacity, self.batch = prepared, capacity, batch
        self.inputs_BE = inputs_BE
        model = prepared.model
        if min(capacity, batch) < 1:
            raise ValueError(f"A session has at least one row of one token, not {batch} of {capacity}.")
        if isinstance(model, Decoder) != (inputs_BE is None):
            raise ValueError("A model with an encoder wants its inputs, and no other takes any.")
        if inputs_BE is not None and len(inputs_BE) != batch:
            raise ValueError(f"{batch} rows want as many of the encoder's inputs, not {len(inputs_BE)}.")
        self._refuse_too_large()
        with torch.inference_mode():
            self._position_TD = _table(model.positions, capacity)
        self._position_B: Tensor | None = None  # of each row's last token, where positions are coupled
        self._started = False

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) of the token after each row's prompt; prompts may differ in length, or be empty.

        Raises UserError for a prompt that leaves no room for a token, and for a token that the model does not have.
        """
        lengths = self._check(prompts)
        device = self.prepared.embedding.device
        longest = max(lengths) + 1
        tokens_BL = torch.zeros(self.batch, longest, dtype=torch.int64)
        for row, prompt in zip(tokens_BL, prompts, strict=True):
            row[1 : len(prompt) + 1] = torch.tensor(prompt, dtype=torch.int64)
        tokens_BL = tokens_BL.to(device)
        n_B = torch.tensor(lengths, device=device) + 1
        x_BLD = torch.nn.functional.embedding(tokens_BL, self.prepared.embedding)
        if self._position_TD is not None:
            x_BLD = x_BLD + self._position_TD[self._positions_of(tokens_BL, n_B)]
        streams, context, before_B = self._enter(x_BLD, tokens_BL)
        end_B = n_B if before_B is None else n_B + before_B
        room = self.capacity + (0 if self.inputs_BE is None or before_B is None else self.inputs_BE.shape[1])
        # Joined to an encoder, a row's last token need not stand at the end even where all rows are alike.
        self._position = Position(own_B=end_B if bool((end_B != streams[0].shape[1]).any()) else None)
        blocks: Any = self.prepared.model.blocks
        like = self.prepared.embedding
        self._caches = [
            [branch.new_cache(self.batch, room, like, self._position) for branch in block.branches()]
            for block in blocks
        ]
        streams = run_blocks(blocks, streams, context, caches=self._caches)
        last = tuple(s[torch.arange(self.batch, device=device), end_B - 1] for s in streams)
        self._position.end_prompt(end_B)
        self._tokens = Position()
        self._tokens.end_prompt(n_B)
        self._started = True
        return self._logits(last)

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) of the token after `tokens_B`, which every row goes on with.

        Raises UserError where a row is full, ValueError for other than one token a row, and RuntimeError before
        `start`.
        """
        self._check_rows(tokens_B)
        if self._tokens.n >= self.capacity:
            raise UserError(
                "too_long", f"A row has {self._tokens.n} tokens already, all that there is room for.", "Ask for fewer."
            )
        x_BD = self.prepared.embedding.index_select(0, tokens_B)
        if self._position_TD is not None:
            x_BD = x_BD + self._position_TD[self._position_after(tokens_B)]
        streams = split(x_BD.unsqueeze(1), self.prepared.model.reversible)
        context = Context(token_BL=tokens_B.unsqueeze(1))
        streams = step_blocks(self.prepared.blocks, streams, self._caches, self._position, context)
        self._position.advance()
        self._tokens.advance()
        return self._logits(tuple(stream.squeeze(1) for stream in streams))

    @torch.inference_mode()
    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was.

        ValueError for other than one number a row, and RuntimeError before `start`.
        """
        self._check_rows(rows_B)
        for kept in self._caches:
            for cache in kept:
                cache.reorder(rows_B)
        self._position.reorder(rows_B)
        self._tokens.reorder(rows_B)
        if self._position_B is not None:
            self._position_B = self._position_B[rows_B]

    def _positions_of(self, tokens_BL: Tensor, n_B: Tensor) -> slice | Tensor:
        """Where in the table the positions of the prompts' tokens are, of which each row has `n_B`."""
        positions = self.prepared.model.positions
        if not isinstance(positions, CoupledPositions):
            return slice(tokens_BL.shape[1])
        position_BL = coupled_positions(tokens_BL, positions.separators)
        self._position_B = position_BL[torch.arange(self.batch, device=n_B.device), n_B - 1]
        return position_BL

    def _position_after(self, tokens_B: Tensor) -> int | Tensor:
        """Where in the table the position of each row's next token, `tokens_B`, is."""
        if self._position_B is None:
            return self._tokens.n if self._tokens.n_B is None else self._tokens.n_B
        positions = self.prepared.model.positions
        assert isinstance(positions, CoupledPositions)
        self._position_B = torch.where(is_separator(tokens_B, positions.separators), 0, self._position_B + 1)
        return self._position_B

    def _enter(self, x_BLD: Tensor, token_BL: Tensor) -> tuple[Streams, Context, Tensor | None]:
        """The stack's first streams, what its branches read beside them, and the encoder's tokens in front of a row."""
        model = self.prepared.model
        if isinstance(model, Decoder):
            return split(x_BLD, model.reversible), Context(token_BL=token_BL if model.reads_ids else None), None
        assert self.inputs_BE is not None
        alike = bool((self.inputs_BE == self.inputs_BE[:1]).all())  # a beam's rows, or a sample's
        with rotations_shared(model):
            encoded = model.encode(self.inputs_BE[:1] if alike else self.inputs_BE)
        encoded = tuple(stream_BED.expand(self.batch, -1, -1) for stream_BED in encoded)
        is_token_BE = self.inputs_BE != PAD
        streams, context = model.enter(x_BLD, token_BL, encoded, self.inputs_BE)
        joins = streams[0].shape[1] > x_BLD.shape[1]
        return streams, context, is_token_BE.sum(1) if joins else None

    def _logits(self, streams: Streams) -> Tensor:
        model = self.prepared.model
        return self.prepared.logits(model.head.norm(merge(streams, model.reversible.merge)))

    def _check_rows(self, given_B: Tensor) -> None:
        if not self._started:
            raise RuntimeError("A session begins with `start`.")
        if given_B.shape != (self.batch,):
            raise ValueError(f"{self.batch} rows want one number each, not {tuple(given_B.shape)}.")

    def _check(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        if len(prompts) != self.batch:
            raise ValueError(f"{self.batch} rows want as many prompts, not {len(prompts)}.")
        n_tokens = self.prepared.embedding.shape[0]
        for prompt in prompts:
            if len(prompt) >= self.capacity:
                raise UserError(
                    "too_long",
                    f"A prompt of {count(len(prompt), 'token')} leaves no room in a row of "
                    f"{count(self.capacity, 'token')}.",
                    f"Give at most {count(self.capacity - 1, 'token')}.",
                )
            for token in prompt:
                if not 0 <= token < n_tokens:
                    raise UserError("bad_token", f"Token {token} is not among the {n_tokens} of the vocabulary.")
        return [len(prompt) for prompt in prompts]

    def _refuse_too_large(self) -> None:
        needed, free = self.cache_bytes() + self._table_bytes(), free_memory(self.prepared.embedding.device)
        if free is not None and needed > free:
            raise UserError(
                "too_large",
                f"The caches of {self.batch} rows of {self.capacity} tokens and their positions take "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free.",
                "Take fewer rows or fewer tokens.",
            )

    def _table_bytes(self) -> int:
        positions, like = self.prepared.model.positions, self.prepared.embedding
        # A learned table is read where it is; all others are made for the session.
        is_made = positions is not None and not isinstance(positions, LearnedPositions)
        return self.capacity * like.shape[1] * like.element_size() * is_made

    def cache_bytes(self) -> int:
        """Memory of keys and values, nearly all that the caches take."""
        n_inputs = 0 if self.inputs_BE is None else self.inputs_BE.shape[1]
        cores: list[Any] = [branch.core for branch in self.prepared.branches()]
        across = [core for core in cores if isinstance(core, CrossAttention)]
        own = [core for core in cores if hasattr(core, "project")]
        n_own = self.capacity + (0 if across else n_inputs)  # without cross-attention the inputs stand in front
        n_numbers = sum(_kept(core, n_own) * core.project.n_heads * core.d_head for core in own)
        n_numbers += n_inputs * sum(core.query.n_heads * core.d_head for core in across)
        return 2 * self.batch * round(n_numbers) * self.prepared.embedding.element_size()


def _check_decodable(layer: nn.Module | None) -> None:
    if layer is not None and not hasattr(layer, "new_cache"):
        raise UserError(
            "not_decodable",
            f"{type(layer).__name__} cannot be decoded: it has no method `new_cache`.",
            "Give it one as efftx/layers/feedforward.py has it, where nothing is kept from token to token, or "
            "efftx/layers/sru.py; training needs none.",
        )


def _kept(core: Any, n_tokens: int) -> float:
    """Tokens whose keys an attention layer keeps of `n_tokens`, the mean over its heads."""
    return core.pattern.cached(n_tokens) if isinstance(core, SoftmaxAttention) else float(n_tokens)


def _table(positions: nn.Module | None, capacity: int) -> Tensor | None:
    """The embeddings of positions 0 .. capacity - 1, (T, D), made once; UserError where the model has fewer."""
    if positions is None:
        return None
    table_TD: Tensor = positions(capacity)
    if table_TD.shape[0] < capacity:
        raise UserError(
            "too_long",
            f"The model has positions for {table_TD.shape[0]} tokens, and {capacity} are asked for.",
            f"Ask for at most {table_TD.shape[0]} in all.",
        )
    return table_TD
