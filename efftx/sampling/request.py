"""What is asked of `efftx sample`, read from its key=value words and checked as far as the words alone tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from efftx.config.values import RANGES, Range
from efftx.decoding.quantization import QUANTIZATIONS, Quantization
from efftx.errors import UserError
from efftx.options import COUNT, SEED, decimal, whole

LENGTH_PENALTY = 0.6
"""That of T5's and of GNMT's decoding."""
_DRAWS = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Request:
    """Greedy decoding, unless one of `temperature`, `top_k`, `top_p` makes it draw, or `beam` search.

    `prompt`: text that a language model goes on from; `input`: text for an encoder; without them a row of the test
    split is taken. `max_new`: tokens at most (None: what is usual for the model). `n`: samples, with `beam` the n best.
    `seed`: of what is drawn, hash rotations among it. `quantization`: weights as int8 or int4. `threads`: None for the
    run's. Of pictures and sounds, which are drawn at temperature 1 unless told otherwise: `complete`, the share of a
    row that is given, of the file at `path` (the word `data.path`) or else of test rows; `out`, the file to write.
    """

    prompt: str | None = None
    input: str | None = None
    max_new: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    beam: int | None = None
    length_penalty: float | None = None
    n: int = 1
    seed: int = 0
    quantization: Quantization | None = None
    threads: int | None = None
    complete: float | None = None
    path: str | None = None
    out: str | None = None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return any(getattr(self, key) is not None for key in _DRAWS)


_WORDS = {"path": "data.path"}
OPTIONS = tuple(_WORDS.get(field.name, field.name) for field in dataclasses.fields(Request))


def read_request(words: Mapping[str, str]) -> Request:
    """The request of `key=value` words whose keys are among OPTIONS; UserError, with what to do, for a bad value."""
    fields = {word: name for name, word in _WORDS.items()}
    request = Request(**{fields.get(key, key): _READ[key](key, word) for key, word in words.items()})
    for key in ("prompt", "input"):
        if getattr(request, key) == "":
            raise UserError("bad_value", f"{key}= is empty.", f"Write {key}='some text', or leave it out: {_EXAMPLE}.")
    for key in ("data.path", "out"):
        if words.get(key) == "":
            raise UserError("bad_value", f"{key}= is empty.", "Give a file, or leave it out.")
    if request.prompt is not None and request.input is not None:
        message = "prompt= and input= are both given."
        raise UserError("bad_value", message, "A language model takes prompt=, a model with an encoder input=.")
    _check_strategy(request)
    return request


def _check_strategy(request: Request) -> None:
    drawing = next((key for key in _DRAWS if getattr(request, key) is not None), None)
    if request.beam is not None and drawing is not None:
        message = f"beam={request.beam} draws nothing, but {drawing}={getattr(request, drawing)} is given."
        raise UserError("bad_value", message, f"Leave one of beam and {drawing} out.")
    if request.beam is None and request.length_penalty is not None:
        message = f"length_penalty={request.length_penalty:g} would change nothing without a beam."
        raise UserError("dead_key", message, "Set beam=4, or leave length_penalty out.")
    if request.beam is not None and request.n > request.beam:
        message = f"n={request.n} is more than a beam of {request.beam} holds."
        raise UserError("bad_value", message, f"Set beam={request.n} or more.")


def check_text(request: Request) -> None:
    """UserError for what only pictures and sounds have, and for several texts that would all be the same."""
    for key, word in (("complete", "complete"), ("path", "data.path"), ("out", "out")):
        if getattr(request, key) is not None:
            message = f"{word}= is for pictures and sounds, and this run's data is text."
            raise UserError("dead_key", message, f"Leave {word} out; prompt= is what a text goes on from.")
    if request.n > 1 and request.beam is None and not request.draws:
        message = f"n={request.n} samples would all be the same: without temperature the likeliest token is taken."
        raise UserError("bad_value", message, "Set temperature=1 to draw them, or beam= for the n best.")


def _text(key: str, word: str) -> str:
    return word


def _quantization(key: str, word: str) -> str:
    if word not in QUANTIZATIONS:
        raise UserError(
            "bad_value", f"{key}={word} is none of {', '.join(QUANTIZATIONS)}.", f"Leave {key} out for float32."
        )
    return word


def _whole(allowed: Range, hint: str = "") -> Callable[[str, str], int]:
    return lambda key, word: whole(key, word, allowed, hint)


def _decimal(allowed: Range, hint: str = "") -> Callable[[str, str], float]:
    return lambda key, word: decimal(key, word, allowed, hint)


_GREEDY = "Leave temperature out for greedy decoding, which takes the most likely token; 1 draws as the model says."
_EXAMPLE = "then a row of the test split is taken"
_ROWS = Range(1, 2**16)
_READ: dict[str, Callable[[str, str], Any]] = {
    "prompt": _text,
    "input": _text,
    "max_new": _whole(Range(1, 2**24)),
    "temperature": _decimal(Range(0, 1e6, open_=True), _GREEDY),
    "top_k": _whole(
        COUNT, "top_k=40 draws from the 40 likeliest tokens; leave it out to draw from all, or for greedy decoding."
    ),
    "top_p": _decimal(Range(0, 1, open_=True), "top_p=0.9 draws from the likeliest tokens that hold 90 %."),
    "beam": _whole(_ROWS, "beam=1 is greedy decoding, and so is leaving beam out."),
    "length_penalty": _decimal(Range(0, 100), "0 ranks by log-probability alone, 0.6 is usual."),
    "n": _whole(_ROWS),
    "seed": _whole(SEED, "For instance seed=0."),
    "quantization": _quantization,
    "threads": _whole(RANGES["threads"]),
    "complete": _decimal(
        Range(0, 1, open_=True, below=True), "complete=0.5 gives the first half of a row, and draws the rest."
    ),
    "data.path": _text,
    "out": _text,
}
