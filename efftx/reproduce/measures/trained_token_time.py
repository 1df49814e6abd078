"""What a trained model knows and what its tokens cost, of one and the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from efftx.bench.decode_timing import Reference
from efftx.bench.decode_weights import last_level_cache
from efftx.config.schema import Config
from efftx.decoding.session import CachedSession, PreparedModel, key_bytes
from efftx.machine.devices import set_determinism
from efftx.machine.timing import interleaved
from efftx.models.build import Model
from efftx.models.decoder import Decoder
from efftx.plan import active_parameters
from efftx.reproduce.measures.measure import Measure, Parameters
from efftx.reproduce.measures.trained import configured, replayed_losses, trained_model

PROMPT, WARM_UP = 16, 4


def trained_token_time(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """The quality of a trained decoder, and milliseconds a token of it, in turns with a dense one trained as it was.

    `parameters`: overrides, those of every row; against, further ones of the dense model; tokens, how many are timed;
    `row_parameters`: further overrides, as `against` in the dense row. Both are trained, or finished runs of theirs are
    taken. One row, float32, greedy, behind a prompt of 16 tokens of the test split. Between any two tokens a matrix
    larger than the processor's cache is read, so that weights come from memory, as those of a large model do. Metrics,
    the same under every column: the run's on the test split (`loss`, `accuracy`, ...), `parameters_read` that a token
    reads, `token_milliseconds`, `speedup` over the dense model, and `share_of_read` (%: what the token in the middle
    reads of weights, keys and values, over what the machine can read in its time).
    """
    mine, other = _configurations(parameters, seed, row_parameters)
    model, dataset, quality = trained_model(mine)
    set_determinism(mine.n_threads)
    tokens, cache = int(parameters["tokens"]), last_level_cache()
    reference = Reference(torch.device("cpu"), int(parameters.get("cache_bytes", cache)))
    read = active_parameters(model)
    prompt = dataset.batch("test", 0, 0, 1).tokens_BL[0][:PROMPT].tolist()
    step, n_bytes = _stepper(model, prompt, tokens)
    calls: dict[str, Callable[[], object]] = {"before": reference.turn, "token": step}
    if other != mine:
        calls |= {"between": reference.turn, "other token": _stepper(trained_model(other).model, prompt, tokens)[0]}
    timed = interleaved(calls, repeats=tokens, device=torch.device("cpu"), warm_up=WARM_UP)
    seconds = timed["token"].seconds
    metrics = {
        **quality,
        "parameters_read": float(read),
        "token_milliseconds": 1e3 * seconds,
        "speedup": timed["other token"].seconds / seconds if other != mine else 1.0,
        "share_of_read": 100 * n_bytes / seconds / reference.read_rate(),
    }
    series = {"spread": [timed["token"].spread], "gigabytes a second, read": [reference.read_rate() / 1e9]}
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series, "threads": mine.n_threads}


def first_losses(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """The losses of the first three steps of the row's training."""
    return replayed_losses(_configurations(parameters, seed, row_parameters)[0])


def _configurations(parameters: Parameters, seed: int, row_parameters: Parameters) -> tuple[Config, Config]:
    """The row's, and that of the dense model beside it."""
    base = parameters["overrides"]
    return configured([*base, *row_parameters["overrides"]], seed), configured([*base, *parameters["against"]], seed)


def _stepper(model: Model, prompt: list[int], tokens: int) -> tuple[Callable[[], object], int]:
    """A call that decodes the most likely next token, of which there is room for `tokens`; and the bytes it reads.

    Keys and values are those of the token in the middle.
    """
    assert isinstance(model, Decoder)  # an encoder's rows would want its inputs
    prepared = PreparedModel(model)
    session = CachedSession(prepared, 1 + len(prompt) + WARM_UP + tokens, 1)
    logits = session.start([prompt])

    def step() -> None:
        nonlocal logits
        logits = session.step(logits.argmax(-1))

    blocks = [block.block for block in prepared.blocks]
    n_bytes = sum(read.bytes for read in prepared.reads().values())
    return step, n_bytes + key_bytes(blocks, 1 + len(prompt) + WARM_UP + tokens // 2)


MEASURES = {"trained_token_time": Measure(trained_token_time, first_losses)}
