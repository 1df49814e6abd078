"""What it costs to decode a token of a model: the latency that every training ends with.

Batch 1, a prompt of 16 tokens (fewer where rows are short), greedy; two tokens are not counted. It is the model as it
was trained, at its own width: most of what it reads may lie in the processor's cache. `efftx bench decode` measures at
the papers' widths, with weights far beyond the cache.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efftx.core.artifact import read_document, write_document
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.errors import UserError
from efftx.machine.devices import environment
from efftx.models.decoder import Decoder
from efftx.models.encoder_decoder import EncoderDecoder
from efftx.native.program import reading
from efftx.ops.recompute_state import forked_rng

PROMPT, TOKENS, IGNORED = 16, 24, 2
READ_BYTES = 2**28
"""Enough to be read from memory on most machines; a larger cache makes the share smaller, not larger."""


def decoding_latency(model: Decoder | EncoderDecoder, row_L: Tensor, inputs_1E: Tensor | None) -> dict[str, float]:
    """`decode_ms` a token, its inverse `decode_tokens_per_second`, and `decode_bandwidth_share` of the machine's reads.

    `decode_spread` is the slowest token over the fastest: what else runs on the machine shows there.
    `row_L` are a target's tokens, whose first stand as the prompt of a language model; `inputs_1E` an encoder's row.
    Empty where a row has no room for three tokens. The model is left in evaluation mode, its weights the same, laid out
    for decoding.
    """
    n_prompt = 0 if inputs_1E is not None else max(0, min(PROMPT, len(row_L) // 2))
    n_tokens = min(TOKENS, len(row_L) - n_prompt - 1)
    if n_tokens <= IGNORED:
        return {}
    prepared = PreparedModel(model)
    session = CachedSession(prepared, n_prompt + n_tokens + 1, 1, inputs_1E)
    with forked_rng(row_L.device):
        torch.manual_seed(0)
        logits = session.start([row_L[:n_prompt].tolist()])
    seconds = []
    for _ in range(n_tokens):
        started = time.perf_counter()
        logits = session.step(logits.argmax(-1))
        int(logits[0, 0] > 0)  # waits for the device
        seconds.append(time.perf_counter() - started)
    counted = seconds[IGNORED:]
    token = statistics.median(counted)
    n_bytes = sum(read.bytes for read in prepared.reads().values())
    metrics = {
        "decode_ms": 1000 * token,
        "decode_tokens_per_second": 1 / token,
        "decode_spread": max(counted) / min(counted),
    }
    rate = read_rate() if row_L.device.type == "cpu" else 0.0
    return {**metrics, "decode_bandwidth_share": n_bytes / token / rate} if rate else metrics


def read_rate() -> float:
    """Bytes a second that this process's threads read from memory, measured once a day for each number of threads."""
    here = f"{environment().processor}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}"
    kept = Path(tempfile.gettempdir()) / "efftx-read-rate.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        known = read_document(kept) or {}
    if not isinstance(known.get(here), float):
        read = reading(torch.ones(READ_BYTES // 4))
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - started)
        of_today = {k: v for k, v in known.items() if k.endswith(here[-10:])}
        known = of_today | {here: READ_BYTES / min(seconds[1:])}
        with contextlib.suppress(OSError):  # a measured number is good without being kept
            write_document(kept, known)
    return float(known[here])
