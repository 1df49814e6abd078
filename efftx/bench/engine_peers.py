"""Decoders of GPT-2's kind by engines of their own, where they are installed: CTranslate2's and llama.cpp's.

Each reads a file of random weights that is written for it, and works on threads of its own.
"""

from __future__ import annotations

import importlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efftx.bench.decode_timing import WARM_UP, Procedure, Reference, Timed, row_of, timed_tokens
from efftx.bench.decode_weights import refuse_bytes
from efftx.bench.peers import Peer
from efftx.errors import UserError
from efftx.layers.cost import Read
from efftx.native.pages import settle_process

_TILE, _GGUF = 2**20, "model.gguf"
_Measure = Callable[[Any, int, int, int, int], list[Timed]]


@dataclass(frozen=True)
class EnginePeer(Peer):
    """A decoder with random weights, which `make` writes into a folder: of a shape, for some positions, from a seed.

    `load` gives the engine that reads the folder, with room for those positions; `measure` what each of so many tokens
    takes it behind a context of random ones, of a vocabulary, from a seed. `quantization`: as the package names it, or
    None for float32. `weight_bytes`: of a weight of a matrix, with its share of scales that stand among them;
    `number_bytes`: of each number of a key or value that it keeps. `extra`: which one of efftx brings the package.
    """

    load: Callable[[Path, int], Any]
    measure: _Measure
    quantization: str | None = None
    weight_bytes: float = 4.0
    number_bytes: int = 4
    extra: str = "peers"
    close: Callable[[Any], None] = lambda engine: None

    def rows(
        self, name: str, shape: Any, procedure: Procedure, contexts: list[int], reference: Reference, *, seed: int
    ) -> tuple[list[dict[str, Any]], str]:
        """A row a context, and why there are none: empty where there are."""
        if self.version is None:
            return [], f"{self.package} is not installed; the extra `{self.extra}` brings it"
        n_positions = max(contexts) + procedure.tokens + WARM_UP + 2
        d, d_ff = shape.d_model, shape.d_ff
        block = 4 * d * d + 2 * d * d_ff
        n_weights = shape.n_blocks * block + shape.vocab_size * d
        n_bytes = int(self.weight_bytes * n_weights)
        rows = []
        with ExitStack() as opened:
            try:
                refuse_bytes(name, 3 * 4 * n_weights, 0)
                with tempfile.TemporaryDirectory(prefix="efftx-peer-") as folder:
                    self.make(shape, n_positions, Path(folder), seed, self.quantization)
                    engine = self.load(Path(folder), n_positions)
                opened.callback(self.close, engine)
                settle_process()  # as our own weights are: nothing of its is to be slow for its pages
                self.measure(engine, shape.vocab_size, 1, 1, seed)  # what this version lacks shows before any timing
            except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError) as error:
                return [], f"not with this version of {self.package} ({self.version}): {error}"
            except UserError as error:
                return [], error.message
            for context in contexts:
                reads = {
                    "everything else": Read("everything else", n_weights, n_bytes),
                    "attention": Read("attention", 0, self.number_bytes * 2 * shape.n_blocks * d * context),
                }
                facts = {
                    "name": name,
                    "peer": True,
                    "version": f"{self.package} {self.version}",
                    "note": self.note,
                    "length": context,
                    "width": d,
                    "components": {},
                    "n_blocks": 0,
                    "quantization": self.quantization,
                    "peak_bytes": n_bytes,
                    "distinct_blocks": shape.n_blocks,
                }
                measure = partial(self.measure, engine, shape.vocab_size, context, procedure.tokens, seed)
                rows.append(row_of(measure, reads, procedure, reference, **facts))
        return rows, ""


def _random_tile(seed: int, d_model: int) -> Any:
    """Numbers that matrices are filled with, over and over: to draw each of them takes longer than to decode."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal(_TILE, dtype=np.float32) * np.float32(d_model**-0.5)


def _random_tokens(seed: int, vocab_size: int, n: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(1, vocab_size, n).tolist()
    return drawn


# ---- CTranslate2 -----------------------------------------------------------------------------------------------------


def write_ctranslate2(shape: Any, n_positions: int, folder: Path, seed: int, quantization: str | None) -> None:
    """Writes a model of that shape, pre-norm, in CTranslate2's format; `quantization` as its converter names it."""
    specs: Any = importlib.import_module("ctranslate2.specs.transformer_spec")
    common: Any = importlib.import_module("ctranslate2.specs.common_spec")
    spec = specs.TransformerDecoderModelSpec.from_config(
        shape.n_blocks, shape.n_heads, pre_norm=True, activation=common.Activation.RELU
    )
    d, decoder = shape.d_model, spec.decoder
    tile = _random_tile(seed, d)

    def drawn(*size: int) -> Any:
        return np.resize(tile, size)

    def linear(layer: Any, n_out: int, n_in: int) -> None:
        layer.weight, layer.bias = drawn(n_out, n_in), np.zeros(n_out, np.float32)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(d, np.float32), np.zeros(d, np.float32)

    decoder.scale_embeddings = False
    decoder.embeddings.weight = drawn(shape.vocab_size, d)
    decoder.position_encodings.encodings = drawn(n_positions, d)
    norm(decoder.layer_norm)
    decoder.projection.weight = drawn(shape.vocab_size, d)
    for block in decoder.layer:
        norm(block.self_attention.layer_norm)
        linear(block.self_attention.linear[0], 3 * d, d)
        linear(block.self_attention.linear[1], d, d)
        norm(block.ffn.layer_norm)
        linear(block.ffn.linear_0, shape.d_ff, d)
        linear(block.ffn.linear_1, d, shape.d_ff)
    spec.register_vocabulary([str(i) for i in range(shape.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))


def _load_ctranslate2(folder: Path, n_positions: int) -> Any:
    package = importlib.import_module("ctranslate2")
    return package.Generator(str(folder), device="cpu", intra_threads=torch.get_num_threads())


def _measure_ctranslate2(engine: Any, vocab_size: int, context: int, tokens: int, seed: int) -> list[Timed]:
    """Seconds between tokens of one generation, as the engine says that it has each."""
    prompt = [str(token) for token in _random_tokens(seed, vocab_size, context)]
    ended: list[float] = []

    def keep_time(step: Any) -> bool:
        ended.append(time.perf_counter())
        return False

    n = WARM_UP + tokens + 1
    how = {"sampling_topk": 1, "end_token": [], "include_prompt_in_result": False}
    engine.generate_batch([prompt], max_length=n, min_length=n, callback=keep_time, **how)
    seconds = [later - before for before, later in pairwise(ended)]
    return [Timed(each, None, 0.0) for each in seconds[-tokens:]]


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


def write_gguf(shape: Any, n_positions: int, folder: Path, seed: int, quantization: str | None) -> None:
    """Writes a model of that shape in llama.cpp's format; `quantization`: of its matrices, as ggml names it."""
    gguf: Any = importlib.import_module("gguf")
    d, d_ff = shape.d_model, shape.d_ff
    kind = gguf.GGMLQuantizationType[quantization or "F32"]
    tile = gguf.quants.quantize(_random_tile(seed, d).reshape(-1, 32), kind)
    writer = gguf.GGUFWriter(folder / _GGUF, "gpt2")
    n_positions = _context(n_positions)
    writer.add_context_length(n_positions)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(d_ff)
    writer.add_block_count(shape.n_blocks)
    writer.add_head_count(shape.n_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, n_out: int, n_in: int) -> None:
        row = tile.size * n_in // _TILE  # in bytes where it is quantised, in blocks of 32 weights
        writer.add_tensor(f"{name}.weight", np.resize(tile, (n_out, row)), raw_dtype=kind)

    def vectors(name: str, bias: int, gain: int | None = None) -> None:
        writer.add_tensor(f"{name}.bias", np.zeros(bias, np.float32))
        if gain is not None:
            writer.add_tensor(f"{name}.weight", np.ones(gain, np.float32))

    matrix("token_embd", shape.vocab_size, d)
    writer.add_tensor("position_embd.weight", np.resize(_random_tile(seed, d), (n_positions, d)))
    for i in range(shape.n_blocks):
        for name, n_out, n_in in (
            ("attn_qkv", 3 * d, d),
            ("attn_output", d, d),
            ("ffn_up", d_ff, d),
            ("ffn_down", d, d_ff),
        ):
            matrix(f"blk.{i}.{name}", n_out, n_in)
            vectors(f"blk.{i}.{name}", n_out)
        for name in ("attn_norm", "ffn_norm"):
            vectors(f"blk.{i}.{name}", d, d)
    vectors("output_norm", d, d)
    matrix("output", shape.vocab_size, d)
    with closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _context(n_positions: int) -> int:
    """The positions that llama.cpp makes of `n_positions`: it rounds up to 256."""
    return math.ceil(n_positions / 256) * 256


def _load_llama(folder: Path, n_positions: int) -> Any:
    package = importlib.import_module("llama_cpp")
    threads = torch.get_num_threads()
    return package.Llama(
        str(folder / _GGUF),
        n_ctx=_context(n_positions),
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=0,
        use_mmap=False,
        verbose=False,
    )


class _Llama:
    """`step()` is one token of an engine behind `context` random ones, and the most likely next one."""

    def __init__(self, engine: Any, vocab_size: int, context: int, room: int, seed: int) -> None:
        self._engine, drawn = engine, _random_tokens(seed, vocab_size, context + room)
        self._tokens: Iterator[int] = iter(drawn[context:])
        engine.reset()
        engine.eval(drawn[:context])

    def step(self) -> int:
        """The most likely next token."""
        self._engine.eval([next(self._tokens)])
        chosen: int = self._engine.sample(top_k=1, temp=0.0)
        return chosen

    def step_by_part(self) -> None:
        """Its parts are not timed."""

    def last_seconds(self) -> tuple[dict[str, float], float]:
        """Neither components nor blocks are timed."""
        return {}, 0.0


def _measure_llama(engine: Any, vocab_size: int, context: int, tokens: int, seed: int) -> list[Timed]:
    return timed_tokens(_Llama(engine, vocab_size, context, WARM_UP + tokens, seed), tokens)


_GPT2 = "GPT-2's kind, without cross-attention"
_BETWEEN = f"{_GPT2}; times between tokens of one generation"
_HALF_KEYS = f"{_GPT2}; keys and values in float16"
_ctranslate2 = partial(
    EnginePeer, "ctranslate2", write_ctranslate2, load=_load_ctranslate2, measure=_measure_ctranslate2
)
_llama = partial(
    EnginePeer,
    "llama-cpp-python",
    write_gguf,
    load=_load_llama,
    close=lambda engine: engine.close(),
    measure=_measure_llama,
    number_bytes=2,
    extra="llama",
)
ENGINES = {
    "ctranslate2-gpt2": _ctranslate2(note=_BETWEEN),
    "ctranslate2-gpt2-int8": _ctranslate2(
        note=f"{_BETWEEN}; int8 weights and activations", quantization="int8", weight_bytes=1.0
    ),
    "llama-cpp-gpt2": _llama(note=_HALF_KEYS),
    "llama-cpp-gpt2-q8_0": _llama(note=_HALF_KEYS, quantization="Q8_0", weight_bytes=34 / 32),
    "llama-cpp-gpt2-q4_0": _llama(note=_HALF_KEYS, quantization="Q4_0", weight_bytes=18 / 32),
}
