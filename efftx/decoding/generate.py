"""Generation: what follows a prompt, one token after another, however each token is chosen.

A strategy is a function from logits to tokens. Shape suffixes: B rows of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from efftx.errors import NotFiniteError

Choose = Callable[[Tensor], Tensor]
"""Logits (B, V) -> the tokens (B,) that the rows go on with."""
OnToken = Callable[[int, int], object]
"""Told the row and the token as soon as a token is chosen."""


class Session(Protocol):
    """One generation with a model, for a given encoder's input where it has one."""

    capacity: int
    """Decoder tokens that a row may have in all, its prompt included."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) of the token after each prompt; called once. Prompts may differ in length, or be empty."""
        ...

    def step(self, tokens_B: Tensor) -> Tensor:
        """Logits (B, V) of the token after `tokens_B`, one more a row."""
        ...

    def reorder(self, rows_B: Tensor) -> None:
        """Row i goes on as what row `rows_B[i]` was."""
        ...


class Continuation(NamedTuple):
    """The tokens after a prompt, up to and with the end of sequence, and their log-probability in nats.

    It is the model's own, of temperature 1 and the whole vocabulary, whatever the tokens were drawn from.
    """

    tokens: list[int]
    log_probability: float


def most_likely(logits_BV: Tensor) -> Tensor:
    """Greedy decoding: the most likely token of each row, the first of several."""
    return logits_BV.argmax(-1)


def tempered(logits_BV: Tensor, temperature: float) -> Tensor:
    """Logits of the distribution p^(1 / temperature), normalised; `temperature` above 0, however small."""
    # Below the largest logit, in float64: no temperature makes an infinity of it, and the others only fall to -inf.
    below_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).double()
    return (below_BV / temperature).to(logits_BV.dtype)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """The logits of each row's `k` most likely tokens, all others -inf (Fan et al. 2018); of equal ones the first."""
    order_BV = logits_BV.argsort(dim=-1, descending=True, stable=True)
    return logits_BV.scatter(-1, order_BV[:, k:], -torch.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """The logits of each row's nucleus, all others -inf (Holtzman et al. 2020).

    It is the smallest set of most likely tokens whose probabilities reach `p` in sum, of equal ones the first.
    """
    order_BV = logits_BV.argsort(dim=-1, descending=True, stable=True)
    probability_BV = logits_BV.softmax(-1).gather(-1, order_BV)
    before_BV = probability_BV.cumsum(-1) - probability_BV
    # The most likely token stays, however small p is.
    is_out_BV = (before_BV >= p) & (torch.arange(logits_BV.shape[1], device=logits_BV.device) > 0)
    return logits_BV.masked_fill(torch.zeros_like(is_out_BV).scatter(-1, order_BV, is_out_BV), -torch.inf)


@dataclass(frozen=True)
class Draw:
    """Draws from what temperature, then top-k, then top-p leave; `top_k` None and `top_p` 1 leave all.

    All draws come from `generator`, and are computed where it lives: a generator on the CPU draws the same on any
    device.
    """

    generator: torch.Generator
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """One token a row, (B,)."""
        return torch.multinomial(self.probabilities(logits_BV), 1, generator=self.generator)[:, 0].to(logits_BV.device)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """What is drawn from: (B, V) float32, on the generator's device."""
        left_BV = tempered(logits_BV.to(self.generator.device, torch.float32), self.temperature)
        if self.top_k is not None:
            left_BV = keep_top_k(left_BV, self.top_k)
        if self.top_p < 1.0:
            left_BV = keep_top_p(left_BV, self.top_p)
        return left_BV.softmax(-1)


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    max_new: int,
    eos: int | None = None,
    on_token: OnToken | None = None,
) -> list[Continuation]:
    """What follows each prompt: at most `max_new` tokens, up to and with `eos` where a row comes to it.

    A row that has ended stays so: what it says while others go on is dropped. ValueError where the longest prompt and
    `max_new` tokens are more than a row can have, NotFiniteError where the model gives a NaN or an infinity.
    """
    if not prompts:
        return []
    longest = max(map(len, prompts))
    if max_new < 1 or longest + max_new > session.capacity:
        message = f"There is no room for max_new={max_new} tokens after {longest}: a row has {session.capacity}."
        raise ValueError(message)
    tokens: list[list[int]] = [[] for _ in prompts]
    log_probability = [0.0] * len(prompts)
    going = set(range(len(prompts)))
    logits_BV = session.start(prompts)
    while True:
        refuse_not_finite(logits_BV)
        chosen_B = choose(logits_BV)
        log_probability_B = log_probabilities(logits_BV).gather(-1, chosen_B[:, None])[:, 0].tolist()
        for row, token in enumerate(chosen_B.tolist()):
            if row not in going:
                continue
            tokens[row].append(token)
            log_probability[row] += log_probability_B[row]
            if on_token is not None:
                on_token(row, token)
            if token == eos or len(tokens[row]) == max_new:
                going.remove(row)
        if not going:
            return [Continuation(*row) for row in zip(tokens, log_probability, strict=True)]
        logits_BV = session.step(chosen_B)


def refuse_not_finite(logits_BV: Tensor) -> None:
    """Raises NotFiniteError for a row with a NaN or an infinity, by which nothing can be chosen.

    Tokens may be ruled out by -inf, but not all of them.
    """
    if not bool(logits_BV.amax(-1).isfinite().all()):  # the largest is a NaN where one is
        raise NotFiniteError(
            "not_finite",
            "The model gives a NaN or an infinity for the next token: its weights are too large to compute with.",
            "Train again with a lower optimizer.lr or with training.clip_norm.",
        )


def log_probabilities(logits_BV: Tensor) -> Tensor:
    """Log-probabilities in nats, (B, V), in float32 at least."""
    return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(-1)
