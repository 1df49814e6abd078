"""The time of a token in one attention layer against the context.

Shape suffixes: B batch (1 here), N tokens that are timed, L tokens of a sequence, H heads, R hashing rounds, E
candidates, D d_model.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from efftx.bench.decode_weights import last_level_cache
from efftx.errors import UserError, nearest
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import FixedConfig, FullConfig, LocalConfig, LSHConfig, StridedConfig
from efftx.layers.cache import Position
from efftx.layers.initialize import materialize, on_meta
from efftx.layers.lsh import LSHAttention, LSHCache
from efftx.layers.patterns import Pattern, make_pattern
from efftx.layers.projections import DenseQKV
from efftx.machine.timing import exclusive, no_garbage_collection, percentile
from efftx.ops.lsh_cache import candidates, fill, insert
from efftx.ops.recompute_state import RecomputeState
from efftx.reproduce.measures.measure import Measure, Parameters, fitted_exponent

KINDS = ("full", "local", "strided", "fixed", "lsh")
REPLAYED = 3


def context_time(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Seconds a token of one attention layer with shared queries and keys, projections included, against the context.

    `parameters`: d_model, n_heads, d_head, warm_up and tokens (steps that are not counted, and that are), compared_at
    (tokens); `row_parameters`: attention (`full`, `local`, `strided`, `fixed`, `lsh`) and the keys of its node
    (chunk_len, n_hashes, stride, c, mode, ...). The caches hold random keys and values, the inputs are Gaussian, the
    batch is 1. A column with `context` has the median `seconds`, `p99_seconds`, `tokens_per_second`, `cache_megabytes`
    (10^6 bytes of all that the cache holds) and `keys`, the mean number of earlier tokens that a head attends to; a
    column without has all but the first at the longest context. Every column has `time_exponent`, fitted over the
    contexts, and how far the steps are from the layer's pass over a whole sequence of compared_at tokens under the same
    rotations, relative in Euclidean norm: `distance_from_training` for independent Gaussian inputs, `uneven_distance`
    where one Gaussian vector is added to all of them, which fills buckets unevenly. Raises UserError for an unknown
    attention and a context shorter than the warm-up.
    """
    settings = {**parameters, **row_parameters}
    contexts = _contexts(parameters)
    with torch.inference_mode(), exclusive(), no_garbage_collection():
        timed = [_Decoding(settings, seed, context).timed() for context in contexts]
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        layer = _layer(settings, seed)
        torch.manual_seed(seed)
        x_BLD = torch.randn(1, int(settings["compared_at"]), int(settings["d_model"]))
        common_D = torch.randn(int(settings["d_model"]))
        overall = {
            "time_exponent": fitted_exponent(contexts, [at["seconds"] for at in timed]),
            "distance_from_training": distance_from_training(layer, x_BLD),
            "uneven_distance": distance_from_training(layer, x_BLD + common_D),
        }
    at_longest = {name: value for name, value in timed[-1].items() if name != "seconds"}
    metrics = {
        column: overall | (timed[contexts.index(int(where["context"]))] if "context" in where else at_longest)
        for column, where in parameters["columns"].items()
    }
    series = {name: [at[name] for at in timed] for name in timed[0]}
    series |= {"context": [float(context) for context in contexts]}
    series |= {"last_level_cache_megabytes": [last_level_cache() / 1e6]}
    return {"metrics": metrics, "series": series}


def first_steps(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of `context_time` compares: the squared lengths of the first outputs at the shortest context."""
    with torch.inference_mode():
        decoding = _Decoding({**parameters, **row_parameters}, seed, min(_contexts(parameters)))
        return [float(decoding.step().double().square().sum()) for _ in range(REPLAYED)]


def distance_from_training(layer: Any, x_BLD: Tensor) -> float:
    """|steps - whole| / |whole| of the layer's outputs token by token and over the whole sequence, rotations alike.

    The rotations are drawn from PyTorch's random state.
    """
    position = Position()
    cache = layer.new_cache(x_BLD.shape[0], x_BLD.shape[1], x_BLD, position)
    steps = []
    for x_B1D in x_BLD.split(1, dim=1):
        steps.append(layer(x_B1D, cache=cache))
        position.advance()
    hashed = isinstance(cache, LSHCache)
    state = RecomputeState({"buckets": cache.buckets_of(layer.project(x_BLD)[0])}) if hashed else None
    whole_BLD = layer(x_BLD, state)
    return float((torch.cat(steps, 1) - whole_BLD).norm() / whole_BLD.norm())


class _Decoding:
    """A layer that decodes behind `context` random tokens; the uncounted steps are the last of them."""

    def __init__(self, parameters: Parameters, seed: int, context: int) -> None:
        self._parameters, self._context = parameters, context
        self._warm_up, self._tokens = int(parameters["warm_up"]), int(parameters["tokens"])
        d_model, before = int(parameters["d_model"]), context - self._warm_up
        if before < 1:
            raise UserError("bad_value", f"A context of {context} tokens has no room for {self._warm_up} to warm up.")
        self.layer, self._position = _layer(parameters, seed), Position(before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._x_NBD = torch.randn(self._warm_up + self._tokens, 1, d_model)
            self.cache = self.layer.new_cache(1, context + self._tokens, self._x_NBD, self._position)
            self.cache.fill_at_random(before)
        self._inputs = iter(self._x_NBD)

    def step(self) -> Tensor:
        """The layer's output for the next token, (1, 1, d_model)."""
        y_B1D: Tensor = self.layer(next(self._inputs).unsqueeze(1), cache=self.cache)
        self._position.advance()
        return y_B1D

    def timed(self) -> dict[str, float]:
        """What a column with this context shows; takes all the steps there are."""
        seconds = []
        for _ in range(self._warm_up + self._tokens):
            started = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - started)
        counted = seconds[self._warm_up :]
        return {
            "seconds": statistics.median(counted),
            "p99_seconds": percentile(counted, 0.99),
            "tokens_per_second": 1 / statistics.median(counted),
            "cache_megabytes": sum(kept.nbytes for kept in self._kept()) / 1e6,
            "keys": self._keys(),
        }

    def _kept(self) -> list[Tensor]:
        kept = list(self.cache.kv.tensors())
        if self._parameters["attention"] == "lsh":
            kept += [*self.cache.hash_vectors.tensors(), *self.cache.table]
        return kept

    def _keys(self) -> float:
        """The mean number of earlier tokens that a head attends to, over the counted tokens."""
        counted = range(self._context, self._context + self._tokens)
        if self._parameters["attention"] == "lsh":
            return distinct_candidates(self.cache, counted)
        pattern, n_heads = _pattern(self._parameters), int(self._parameters["n_heads"])
        position = torch.arange(counted.stop)
        seen = (pattern.sees(head, torch.tensor(n), position[:n]).sum() for n in counted for head in range(n_heads))
        return float(sum(seen)) / (len(counted) * n_heads)


def distinct_candidates(cache: LSHCache, tokens: range) -> float:
    """How many different positions the buckets of a token hold, the mean over heads and `tokens`, whose keys are there.

    The cache's table is then what it was after the last of them.
    """
    bucket_BHRL = cache.buckets_of(cache.kv.k_BHTd[:, :, : tokens.stop])
    fill(cache.table, bucket_BHRL[..., : tokens.start])
    counts = []
    for n in tokens:
        found_BHE = candidates(cache.table, bucket_BHRL[..., n]).sort(-1).values
        different_BHE = found_BHE >= 0
        different_BHE[..., 1:] &= found_BHE[..., 1:] != found_BHE[..., :-1]
        counts.append(float(different_BHE.sum(-1).double().mean()))
        insert(cache.table, bucket_BHRL[..., n], n)
    return statistics.fmean(counts)


def _contexts(parameters: Parameters) -> list[int]:
    return sorted({int(where["context"]) for where in parameters["columns"].values() if "context" in where})


def _layer(parameters: Parameters, seed: int) -> Any:
    """The layer with fresh weights, queries and keys shared."""
    kind, d_head = str(parameters["attention"]), int(parameters["d_head"])
    if kind not in KINDS:
        raise UserError("bad_value", f"There is no attention '{kind}' that decodes.", nearest(kind, KINDS))
    with on_meta():
        d_model, n_heads = int(parameters["d_model"]), int(parameters["n_heads"])
        projections = DenseQKV(d_model, n_heads, d_head, share_qk=True, bias=False)
        layer: Any
        if kind == "lsh":
            hashing = LSHConfig(n_hashes=int(parameters["n_hashes"]), chunk_len=int(parameters["chunk_len"]))
            layer = LSHAttention(hashing, projections, attention_dropout=0.0)
        else:
            layer = SoftmaxAttention(_pattern(parameters), projections, d_head=d_head, attention_dropout=0.0)
    materialize(layer, torch.device("cpu"), seed)
    return layer.eval()


def _pattern(parameters: Parameters) -> Pattern:
    """The pattern of softmax attention, from the keys of its node among `parameters`."""
    kind = str(parameters["attention"])
    node = {"full": FullConfig, "local": LocalConfig, "strided": StridedConfig, "fixed": FixedConfig}[kind]
    keys = {field.name: parameters[field.name] for field in fields(node) if field.name in parameters}
    return make_pattern(kind, node(**keys), max(_contexts(parameters)))


MEASURES = {
    "context_time": Measure(context_time, first_steps),
}
