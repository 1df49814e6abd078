"""CTranslate2's decoder of the GPT-2 kind, in float32 and int8, where it is installed: it has threads of its own."""

from __future__ import annotations

import importlib
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efftx.bench.decode_timing import WARM_UP, Procedure, Reference, Timed, row_of
from efftx.bench.decode_weights import refuse_bytes
from efftx.bench.peers import Peer
from efftx.errors import UserError
from efftx.layers.cost import Read
from efftx.native.pages import settle_process


def write_model(shape: Any, n_positions: int, folder: Path, seed: int, quantization: str | None) -> None:
    """Writes a model of that shape, random weights, pre-norm, in the package's own format."""
    specs: Any = importlib.import_module("ctranslate2.specs.transformer_spec")
    common: Any = importlib.import_module("ctranslate2.specs.common_spec")
    spec = specs.TransformerDecoderModelSpec.from_config(
        shape.n_blocks, shape.n_heads, pre_norm=True, activation=common.Activation.RELU
    )
    generator = np.random.default_rng(seed)
    tile = generator.standard_normal(2**20, dtype=np.float32) * np.float32(shape.d_model**-0.5)

    def drawn(*size: int) -> Any:
        return np.resize(tile, size)

    def linear(layer: Any, n_out: int, n_in: int) -> None:
        layer.weight, layer.bias = drawn(n_out, n_in), np.zeros(n_out, np.float32)

    def norm(layer: Any) -> None:
        layer.gamma, layer.beta = np.ones(d, np.float32), np.zeros(d, np.float32)

    d, decoder = shape.d_model, spec.decoder
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


@dataclass(frozen=True)
class CTranslate2Peer(Peer):
    """A decoder with random weights; `quantization` as its converter names it, None for float32."""

    quantization: str | None

    def rows(
        self, name: str, shape: Any, procedure: Procedure, contexts: list[int], reference: Reference, *, seed: int
    ) -> tuple[list[dict[str, Any]], str]:
        """A row a context, and why there are none: empty where there are."""
        if self.version is None:
            return [], f"{self.package} is not installed; the extra `peers` brings it"
        n_positions = max(contexts) + procedure.tokens + WARM_UP + 2
        size = 1 if self.quantization else 4
        d, d_ff = shape.d_model, shape.d_ff
        block = 4 * d * d + 2 * d * d_ff
        n_weights = shape.n_blocks * block + shape.vocab_size * d
        try:
            refuse_bytes(name, 3 * 4 * n_weights, 0)
            with tempfile.TemporaryDirectory(prefix="efftx-ctranslate2-") as folder:
                self.make(shape, n_positions, Path(folder), seed, self.quantization)
                package = importlib.import_module("ctranslate2")
                engine = package.Generator(folder, device="cpu", intra_threads=torch.get_num_threads())
            settle_process()  # as our own weights are: nothing of its is to be slow for its pages
            _timed(engine, shape.vocab_size, 1, 1, seed)  # what this version lacks shows before anything is measured
        except (ImportError, AttributeError, TypeError) as error:
            return [], f"not with this version of {self.package} ({self.version}): {error}"
        except UserError as error:
            return [], error.message
        rows = []
        for context in contexts:
            reads = {
                "everything else": Read("everything else", n_weights, size * n_weights),
                "attention": Read("attention", 0, 4 * 2 * shape.n_blocks * d * context),
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
                "peak_bytes": size * n_weights,
                "distinct_blocks": shape.n_blocks,
            }
            measure = partial(_timed, engine, shape.vocab_size, context, procedure.tokens, seed)
            rows.append(row_of(measure, reads, procedure, reference, **facts))
        return rows, ""


def _timed(engine: Any, vocab_size: int, context: int, tokens: int, seed: int) -> list[Timed]:
    """Seconds between tokens of one generation behind `context` random ones, as the engine says that it has each."""
    prompt = np.random.default_rng(seed).integers(1, vocab_size, context).astype(str).tolist()
    ended: list[float] = []

    def keep_time(step: Any) -> bool:
        ended.append(time.perf_counter())
        return False

    n = WARM_UP + tokens + 1
    how = {"sampling_topk": 1, "end_token": [], "include_prompt_in_result": False}
    engine.generate_batch([prompt], max_length=n, min_length=n, callback=keep_time, **how)
    seconds = [later - before for before, later in pairwise(ended)]
    return [Timed(each, None, 0.0) for each in seconds[-tokens:]]


_GPT2 = "GPT-2's kind, without cross-attention; times between tokens of one generation"
_INT8 = f"{_GPT2}; int8 weights and activations"
CTRANSLATE2 = {
    "ctranslate2-gpt2": CTranslate2Peer("ctranslate2", write_model, _GPT2, None),
    "ctranslate2-gpt2-int8": CTranslate2Peer("ctranslate2", write_model, _INT8, "int8"),
}
