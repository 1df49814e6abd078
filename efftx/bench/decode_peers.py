"""Decoders of other packages, where they are installed, token after token with their own caches: the 800M shape.

They run as they come: eager PyTorch, activations in float32, inference mode, batch 1. Copies of a model take turns, as
the blocks of the cases do, so that what a token reads is not in the last-level cache.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from efftx.bench.decode_cases import MEMORY_TOKENS, VOCABULARY
from efftx.bench.decode_timing import Procedure, Reference, Timed, row_of, timed_tokens
from efftx.bench.decode_weights import MARGIN, filled, nbytes, random_tile, refuse_bytes
from efftx.bench.engine_peers import ENGINES
from efftx.bench.peers import Peer
from efftx.errors import UserError
from efftx.layers.cost import Read


@dataclass(frozen=True)
class Shape:
    """Widths and depth of a peer's decoder: those of the 800M model."""

    d_model: int = 1024
    d_ff: int = 4096
    n_heads: int = 16
    n_blocks: int = 24
    vocab_size: int = VOCABULARY


SHAPE = Shape()


@dataclass(frozen=True)
class DecodingPeer(Peer):
    """A peer whose decoder is asked for a token.

    `make` gives the model of a shape with room for some positions; `blocks` its decoder's blocks, `ends` what stands
    behind them. `unread`: how the names of parameters end that no token reads; `n_rows`: rows of embeddings that it
    reads. `quantize` makes a float model that of the peer, in place, where its weights are `quantization`.
    """

    blocks: Callable[[Any], nn.ModuleList]
    ends: Callable[[Any], list[nn.Module]]
    call: Callable[[Any, Tensor, Tensor, Any], Tensor]
    has_cross_attention: bool
    unread: tuple[str, ...]
    n_rows: int
    quantization: str | None = None
    quantize: Callable[[Any], None] = lambda whole: None

    def reads(self, whole: Any, shape: Shape, context: int) -> dict[str, Read]:
        """Weights that a token reads, and the keys and values of the context and of the encoder's output."""
        parts = [self.blocks(whole), *self.ends(whole)]
        named = [(name, p) for part in parts for name, p in part.named_parameters()]
        read = [p for name, p in named if not name.endswith(self.unread)]
        n_embedded = self.n_rows * shape.d_model
        n = sum(p.numel() for p in read) + n_embedded
        n_bytes = sum(map(_stored_bytes, read)) + 4 * n_embedded
        n_keys = context + (MEMORY_TOKENS if self.has_cross_attention else 0)
        kept = 4 * 2 * shape.n_blocks * shape.d_model * n_keys
        return {"everything else": Read("everything else", n, n_bytes), "attention": Read("attention", 0, kept)}


def _stored_bytes(weight: Tensor) -> int:
    """The bytes of a weight, or of the tensors that one of a quantised kind is made of."""
    if not is_traceable_wrapper_subclass(weight):
        return weight.numel() * weight.element_size()
    names, _ = weight.__tensor_flatten__()
    return sum(_stored_bytes(getattr(weight, name)) for name in names)


_UNTIED: dict[str, Any] = {"tie_word_embeddings": False}


def _t5(shape: Shape, n_positions: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=shape.vocab_size,
            d_model=shape.d_model,
            d_kv=shape.d_model // shape.n_heads,
            d_ff=shape.d_ff,
            num_layers=1,
            num_decoder_layers=shape.n_blocks,
            num_heads=shape.n_heads,
            **_UNTIED,
        )
    )


def _t5_logits(whole: Any, token_11: Tensor, memory_1ED: Tensor, cache: Any) -> Tensor:
    logits: Tensor = whole(
        decoder_input_ids=token_11, encoder_outputs=(memory_1ED,), past_key_values=cache, use_cache=True
    ).logits
    return logits


def _gpt2(shape: Shape, n_positions: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=n_positions,
            n_embd=shape.d_model,
            n_inner=shape.d_ff,
            n_layer=shape.n_blocks,
            n_head=shape.n_heads,
            bos_token_id=0,
            eos_token_id=0,
            **_UNTIED,
        )
    )


def _gpt2_logits(whole: Any, token_11: Tensor, memory_1ED: Tensor, cache: Any) -> Tensor:
    logits: Tensor = whole(input_ids=token_11, past_key_values=cache, use_cache=True).logits
    return logits


def _quantize_to_int8(whole: Any) -> None:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of its kernels for cards that are not here
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    finally:
        logging.disable(before)
    quantize_(whole, Int8WeightOnlyConfig(version=2))


_JOINS = "its cache joins the new key and value to all those before"
_T5 = DecodingPeer(
    package="transformers",
    make=_t5,
    blocks=lambda whole: whole.decoder.block,
    ends=lambda whole: [whole.decoder.final_layer_norm, whole.lm_head],
    call=_t5_logits,
    has_cross_attention=True,
    unread=("EncDecAttention.k.weight", "EncDecAttention.v.weight"),
    n_rows=1,
    note=_JOINS,
)
TORCH_PEERS: Mapping[str, DecodingPeer] = {
    "transformers-t5": _T5,
    "transformers-gpt2": DecodingPeer(
        package="transformers",
        make=_gpt2,
        blocks=lambda whole: whole.transformer.h,
        ends=lambda whole: [whole.transformer.ln_f, whole.lm_head],
        call=_gpt2_logits,
        has_cross_attention=False,
        unread=("\0",),
        n_rows=2,
        note=f"no cross-attention; {_JOINS}",
    ),
    "torchao-t5-int8": replace(
        _T5,
        package="torchao",
        quantization="int8",
        quantize=_quantize_to_int8,
        note=f"transformers-t5 with int8 weights, each matrix written as floats before its product; {_JOINS}",
    ),
}
"""T5: the dense case's decoder with relative positions. GPT-2: its width and depth, without cross-attention."""
PEERS: Mapping[str, Peer] = {**TORCH_PEERS, **ENGINES}


def peer_rows(
    name: str, procedure: Procedure, contexts: list[int], reference: Reference, *, seed: int = 0
) -> tuple[list[dict[str, Any]], str]:
    """The rows of the peer `name`, one a context, and why there are none: empty where there are."""
    shape = SHAPE
    if name in ENGINES:
        return ENGINES[name].rows(name, shape, procedure, contexts, reference, seed=seed)
    peer = TORCH_PEERS[name]
    if peer.version is None:
        return [], f"{peer.package} is not installed; the extra `peers` brings it"
    try:
        with torch.device("meta"):
            template = peer.make(shape, max(contexts) + procedure.room + 1)
            stored = copy.deepcopy(template)
            peer.quantize(stored)
        reads = peer.reads(stored, shape, max(contexts))
        n_copies = math.ceil(MARGIN * reference.cache_bytes / reads["everything else"].bytes)
        n_bytes = n_copies * reads["everything else"].bytes
        float_bytes = nbytes(template) if peer.quantization else 0  # of one, before it is quantised
        stored_bytes = n_copies * sum(map(_stored_bytes, stored.parameters()))
        refuse_bytes(name, stored_bytes + float_bytes, reads["attention"].bytes)
        tile = random_tile(seed, torch.float32)
        copies = []
        for i in range(n_copies):
            copies.append(filled(template, tile, i))
            peer.quantize(copies[i])
        _Decoding(peer, copies, shape, 1, 1, seed).step()  # what this version lacks shows before anything is timed
    except (ImportError, AttributeError, TypeError, RuntimeError, AssertionError) as error:
        return [], f"not with this version of {peer.package} ({peer.version}): {error}"
    except UserError as error:
        return [], error.message
    rows = []
    for context in contexts:
        measure = partial(_timed, peer, copies, shape, context, procedure, seed)
        facts = {
            "name": name,
            "peer": True,
            "version": f"{peer.package} {peer.version}",
            "note": peer.note,
            "length": context,
            "width": shape.d_model,
            "components": {},
            "n_blocks": shape.n_blocks,
            "quantization": peer.quantization,
            "peak_bytes": n_bytes,
            "distinct_blocks": n_copies * shape.n_blocks,
        }
        rows.append(row_of(measure, peer.reads(stored, shape, context), procedure, reference, **facts))
    return rows, ""


def _timed(
    peer: DecodingPeer, copies: list[nn.Module], shape: Shape, context: int, procedure: Procedure, seed: int
) -> list[Timed]:
    with _Decoding(peer, copies, shape, context, procedure.room, seed) as model:
        return timed_tokens(model, procedure.tokens)


class _Decoding:
    """`step()` is one token of the next copy; behind `context` random keys and values in one cache for all copies.

    The blocks are timed within `with`: the copies' hooks keep it, and its cache, alive until then.
    """

    def __init__(
        self, peer: DecodingPeer, copies: list[nn.Module], shape: Shape, context: int, room: int, seed: int
    ) -> None:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        self._peer, self._copies, self._next = peer, copies, 0
        self._token_N = torch.randint(shape.vocab_size, (room,), generator=torch.Generator().manual_seed(seed))
        self._memory_1ED = torch.randn(1, MEMORY_TOKENS, shape.d_model)
        self._block_started = self._block_seconds = 0.0
        self._hooks: list[RemovableHandle] = []
        self_attention = DynamicCache()
        self._cache: Any = (
            EncoderDecoderCache(self_attention, DynamicCache()) if peer.has_cross_attention else self_attention
        )
        with torch.inference_mode():
            # The first token makes the encoder's keys and values; the rest of the context is as if it had been read.
            peer.call(copies[0], torch.zeros(1, 1, dtype=torch.int64), self._memory_1ED, self._cache)
            shape_kv = (1, shape.n_heads, context - 1, shape.d_model // shape.n_heads)
            for layer in range(shape.n_blocks if context > 1 else 0):
                self_attention.update(torch.randn(shape_kv), torch.randn(shape_kv), layer)

    def __enter__(self) -> Self:
        for each in self._copies:
            blocks = self._peer.blocks(each)
            self._hooks.append(blocks[0].register_forward_pre_hook(self._enter))
            self._hooks.append(blocks[-1].register_forward_hook(self._leave))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @torch.inference_mode()
    def step(self) -> Tensor:
        """The most likely next token."""
        whole = self._copies[self._next % len(self._copies)]
        token_11 = self._token_N[self._next].view(1, 1)
        self._next += 1
        return self._peer.call(whole, token_11, self._memory_1ED, self._cache).argmax(-1)

    def step_by_part(self) -> None:
        """Its parts are not timed."""

    def last_seconds(self) -> tuple[dict[str, float], float]:
        """No components, and the seconds of the last token's blocks."""
        return {}, self._block_seconds

    def _enter(self, *_: object) -> None:
        self._block_started = time.perf_counter()

    def _leave(self, *_: object) -> None:
        self._block_seconds = time.perf_counter() - self._block_started
