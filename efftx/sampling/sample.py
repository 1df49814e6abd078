"""`efftx sample`: text, pictures or sound from the newest checkpoint of a run.

Shape suffixes: B rows of a batch, E input tokens of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efftx.core.counts import count
from efftx.data.dataset import open_dataset
from efftx.data.rendering import Rendering
from efftx.data.tokenizer import VOCABULARY_FILE, VocabularyConfig
from efftx.decoding.beam import Beam, beam_search
from efftx.decoding.generate import Draw, Session, generate, most_likely
from efftx.decoding.quantization import Quantization
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.errors import UserError
from efftx.layers.positions import most_positions
from efftx.models.build import Model
from efftx.ops.recompute_state import forked_rng
from efftx.sampling.files import read_starts, write_files
from efftx.sampling.request import LENGTH_PENALTY, Request, check_text
from efftx.sampling.streaming import TextStream
from efftx.sampling.trained import Trained

MAX_NEW = 256
"""Tokens that a language model goes on for, unless told otherwise or there is less room."""
_LONGEST_EXAMPLE = 256


@dataclass(frozen=True)
class Given:
    """What a generation starts from: `tokens` of a prompt, or of an encoder's input; `text` as the model reads it.

    `from_test` says that a row of the test split was taken, for want of a text. `starts`: what each row begins with,
    where that is no text; `tokens` are then the first one's.
    """

    tokens: list[int]
    text: str
    from_test: bool
    starts: tuple[list[int], ...] = ()

    def prompts(self, width: int) -> list[list[int]]:
        """What each of `width` rows of a language model begins with."""
        return list(self.starts) or [self.tokens] * width


@dataclass(frozen=True)
class Sample:
    """The tokens of one, their text, and their log-probability in nats; `score` is what a beam ranks it by."""

    text: str
    tokens: list[int]
    log_probability: float
    score: float | None = None


@dataclass(frozen=True)
class Samples:
    """All samples of a request, the best or the first one first; tokens a second count those of all samples.

    `files` are those that hold them where they are no texts.
    """

    trained: Trained
    given: Given
    samples: list[Sample]
    tokens_per_second: float
    seed: int
    files: list[Path]

    def to_json(self) -> dict[str, Any]:
        """`run`, `step`, `seed`, `kind`, `files`, `from_test_split`, `samples` and `tokens_per_second`."""
        return {
            "run": str(self.trained.run),
            "step": self.trained.step,
            "seed": self.seed,
            "kind": self.trained.rendering.kind,
            "files": [str(path) for path in self.files],
            "from_test_split": self.given.from_test,
            "samples": [
                self._start(number)
                | {"tokens": sample.tokens, "log_probability": sample.log_probability}
                | ({} if sample.score is None else {"score": sample.score})
                for number, sample in enumerate(self.samples)
            ],
            "tokens_per_second": self.tokens_per_second,
        }

    def _start(self, number: int) -> dict[str, Any]:
        if self.given.starts:
            return {"given": self.given.starts[number]}
        key = "prompt" if self.trained.is_language_model else "input"
        return {key: self.given.text, "text": self.samples[number].text}


def make_session(
    model: Model,
    capacity: int,
    batch: int,
    inputs_BE: Tensor | None = None,
    *,
    quantization: Quantization | None = None,
) -> Session:
    """A session of `batch` rows of at most `capacity` tokens; with a `quantization` its weights are read so."""
    return CachedSession(PreparedModel(model, quantization=quantization), capacity, batch, inputs_BE)


def read_given(trained: Trained, request: Request) -> Given:
    """The prompt or input of `request`, or else of the test split's first row.

    UserError for a text that the vocabulary cannot write, that is none, or that the model does not take. Of pictures
    and sounds `sampling.files.read_starts`.
    """
    if trained.rendering.kind != "text":
        starts = read_starts(trained, request)
        return Given(starts[0], "", request.complete is not None and request.path is None, tuple(starts))
    check_text(request)
    key = "prompt" if trained.is_language_model else "input"
    other = "input" if trained.is_language_model else "prompt"
    if getattr(request, other) is not None:
        what = "has no encoder to read an input" if other == "input" else "reads an input, not a prompt"
        message = f"{other}= is given, but the run {trained.run} {what} (stack={trained.config.stack})."
        raise UserError("bad_value", message, f"Give {key}=: {trained.rendering.form}.")
    text = getattr(request, key)
    if text is None:
        tokens = _example(trained)
    else:
        tokens = trained.rendering.encode(text)
        if not tokens:
            message = f"{key}='{text}' holds no token."
            raise UserError("bad_value", message, f"Write {trained.rendering.form}, or leave {key} out.")
        if key == "input" and trained.rendering.ends_inputs and trained.rendering.eos is not None:
            tokens = [*tokens, trained.rendering.eos]
    return Given(tokens, trained.rendering.decode(tokens), from_test=text is None)


def sample(
    trained: Trained,
    given: Given,
    request: Request,
    *,
    on_text: Callable[[str], object] | None = None,
    on_token: Callable[[], object] | None = None,
) -> Samples:
    """What the model says after `given`, as `request` asks.

    `on_text` is told the text of a single sample as it comes, which a beam has not; `on_token`, one token of one
    sample, or a beam's step. UserError where the prompt, or the tokens asked for, are more than the model has
    positions for.
    """
    prompt = given.tokens if trained.is_language_model else []
    max_new = n_new_of(trained, given, request)
    rendering, width = trained.rendering, request.beam or request.n
    inputs_BE = None
    device = next(trained.model.parameters()).device
    if not trained.is_language_model:
        inputs_BE = torch.tensor([given.tokens] * width, device=device)
    prompts = given.prompts(width) if trained.is_language_model else [prompt] * width
    stream = TextStream(rendering.decode, prompt)

    def hear(row: int, token: int) -> None:
        if on_text is not None and width == 1:
            on_text(stream.push(token))
        if on_token is not None:
            on_token()

    with forked_rng(device), torch.no_grad():
        torch.manual_seed(request.seed)  # hash attention draws its rotations from the global generators
        session = make_session(
            trained.model, len(prompt) + max_new, width, inputs_BE, quantization=request.quantization
        )
        started = time.perf_counter()
        continuations: list[tuple[list[int], float, float | None]]
        if request.beam is not None:
            penalty = LENGTH_PENALTY if request.length_penalty is None else request.length_penalty
            search = Beam(width, penalty, request.n)
            continuations = list(beam_search(session, prompt, search, max_new, rendering.eos, on_step=on_token))
        else:
            choice = _choice(request, draws=request.draws or rendering.kind != "text")
            continuations = [
                (tokens, log_probability, None)
                for tokens, log_probability in generate(session, prompts, choice, max_new, rendering.eos, hear)
            ]
        seconds = time.perf_counter() - started
    if on_text is not None and request.beam is None and width == 1:
        on_text(stream.finish())
    speed = sum(len(tokens) for tokens, _, _ in continuations) / seconds
    if rendering.kind != "text":
        rows = [[*start, *one[0]] for start, one in zip(prompts, continuations, strict=True)]
        files = write_files(trained, request, rows)
        return Samples(trained, given, [Sample("", *one) for one in continuations], speed, request.seed, files)
    n_before = len(rendering.decode(prompt))
    samples = [Sample(rendering.decode([*prompt, *one[0]])[n_before:], *one) for one in continuations]
    return Samples(trained, given, samples, speed, request.seed, [])


def n_new_of(trained: Trained, given: Given, request: Request) -> int:
    """How many tokens may come: `max_new`, or what is usual and fits. UserError where there is no room for them."""
    config = trained.config
    if not trained.is_language_model:
        # Only the decoder is shifted, and has a position more for it.
        most = most_positions(replace(config.positions, before_shift=False), config.data.length)
        if most is not None and len(given.tokens) > most:
            message = (
                f"The input has {count(len(given.tokens), 'token')}, and the encoder has {count(most, 'position')}."
            )
            raise UserError("too_long", message, f"Shorten it to {count(most, 'token')}, its end among them.")
    n_prompt = len(given.tokens) if trained.is_language_model else 0
    most = most_positions(config.positions, config.target_length)
    room = None if most is None else most - n_prompt
    if room is not None and room < 1:
        message = (
            f"The prompt has {count(n_prompt, 'token')}, and the model has {count(n_prompt + room, 'position')} for it "
            "and what follows."
        )
        raise UserError("too_long", message, f"Shorten the prompt to at most {count(n_prompt + room - 1, 'token')}.")
    if request.max_new is None:
        usual = MAX_NEW if trained.is_language_model else config.target_length
        if trained.rendering.kind != "text":
            usual = max(config.data.length - n_prompt, 1)
        return usual if room is None else min(usual, room)
    if trained.rendering.kind == "picture" and request.max_new > (left := config.data.length - n_prompt):
        message = f"max_new={request.max_new} is more than is left of a picture of {config.data.length:,} tokens."
        raise UserError("too_long", message, f"Set max_new={left} or less.")
    if room is not None and request.max_new > room:
        message = f"max_new={request.max_new} is too much: the model has {most:,} positions"
        message += f", and the prompt takes {n_prompt:,}." if n_prompt else "."
        raise UserError("too_long", message, f"Set max_new={room} or less.")
    return request.max_new


def _choice(request: Request, *, draws: bool) -> Callable[[Tensor], Tensor]:
    if not draws:
        return most_likely
    return Draw(
        torch.Generator().manual_seed(request.seed),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=request.top_k,
        top_p=1.0 if request.top_p is None else request.top_p,
    )


def _example(trained: Trained) -> list[int]:
    """The encoder's input in the first row of the test split, without padding; or the row's beginning as a prompt.

    That is what the loss does not count, or, where it counts all, the first half, at most 256 tokens.
    """
    config = trained.config
    kept = trained.run / VOCABULARY_FILE
    if isinstance(config.data, VocabularyConfig) and kept.exists():
        config = replace(config, data=replace(config.data, tokenizer_path=str(kept)))
    try:
        batch = open_dataset(config.data, config.objective).batch("test", 0, 0, 1)
    except UserError as error:
        key = "prompt" if trained.is_language_model else "input"
        hint = f"Give {key}=: {trained.rendering.form}. {error.hint}"
        message = f"No {key}= is given, and there is no test split to take one from. {error.message}"
        raise UserError(error.kind, message, hint) from error
    if batch.inputs_BE is not None:
        row = batch.inputs_BE[0].tolist()
        return row[: max(i for i, token in enumerate(row) if token) + 1]
    row, counts = batch.tokens_BL[0].tolist(), batch.weights_BL[0] > 0
    n = int(counts.int().argmax()) or min(max(len(row) // 2, 1), _LONGEST_EXAMPLE)
    return _whole(row[:n], trained.rendering)


def _whole(tokens: Sequence[int], rendering: Rendering) -> list[int]:
    """`tokens` without a character that is cut at their end."""
    n = len(tokens)
    while n > 1 and rendering.decode(tokens[:n]).endswith("\ufffd"):
        n -= 1
    return list(tokens[: n if rendering.decode(tokens[:n]).strip("\ufffd") else len(tokens)])
