"""Beam search: the likeliest continuations that a search of bounded width finds.

Shape suffixes: W hypotheses of the beam, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efftx.decoding.generate import Session, refuse_not_finite


class Hypothesis(NamedTuple):
    """A continuation, its log-probability in nats, and what it is ranked by."""

    tokens: list[int]
    log_probability: float
    score: float


def length_normaliser(length: int, length_penalty: float) -> float:
    """((5 + length) / 6)^length_penalty, by which log-probabilities are divided (Wu et al. 2016, GNMT, equation 14)."""
    return float(((5 + length) / 6) ** length_penalty)


class Beam(NamedTuple):
    """A search with a beam of `width` hypotheses for the `n_best` best."""

    width: int
    length_penalty: float = 0.0
    n_best: int = 1


def beam_search(
    session: Session,
    prompt: Sequence[int],
    search: Beam,
    max_new: int,
    eos: int | None = None,
    *,
    on_step: Callable[[], object] | None = None,
) -> list[Hypothesis]:
    """What a `search` finds after `prompt`, the best first.

    A hypothesis is ranked by its log-probability over `length_normaliser` of its tokens, the end of sequence among
    them. At each step the `width` likeliest of all continuations by a token go on, less one for every hypothesis that
    is finished: one that comes to `eos` leaves the beam and is kept, which makes it narrower (Sutskever et al. 2014).
    A width of 1 is thus greedy decoding at every penalty. What has `max_new` tokens is kept as it stands. The search
    stops when no hypothesis of the beam can come among the `n_best` any more: its log-probability only falls, so that
    over the normaliser of `max_new` tokens it bounds all that can become of it.

    `session` has `width` rows, all for the same encoder's input. ValueError where there is no room for `max_new`
    tokens, `n_best` is above `width`, or the penalty is negative, which the bound does not hold for; NotFiniteError
    where the model gives a NaN or an infinity.
    """
    width, length_penalty, n_best = search
    if max_new < 1 or len(prompt) + max_new > session.capacity:
        message = f"There is no room for max_new={max_new} tokens after {len(prompt)}: a row has {session.capacity}."
        raise ValueError(message)
    if not 1 <= n_best <= width or length_penalty < 0:
        raise ValueError(f"n_best={n_best} of width={width} at length_penalty={length_penalty} is no search.")

    def finish(tokens: list[int], log_probability: float) -> None:
        score = log_probability / length_normaliser(len(tokens), length_penalty)
        finished.append(Hypothesis(tokens, log_probability, score))
        finished.sort(key=lambda hypothesis: -hypothesis.score)

    finished: list[Hypothesis] = []
    beam: list[tuple[list[int], float]] = [([], 0.0)]
    logits_WV = session.start([prompt] * width)
    for n_tokens in range(1, max_new + 1):
        refuse_not_finite(logits_WV[: len(beam)])
        so_far_W1 = torch.tensor([[log_probability] for _, log_probability in beam], dtype=torch.float64)
        # In float64: in float32 the log-probabilities of logits that nearly tie are one number.
        total_WV = so_far_W1 + logits_WV[: len(beam)].cpu().double().log_softmax(-1)
        rows, tokens, totals = _largest(total_WV, width - len(finished))
        chosen = zip(rows, tokens, totals, strict=True)
        extended = [(row, [*beam[row][0], token], total) for row, token, total in chosen]
        if on_step is not None:
            on_step()
        going = [(row, hypothesis, total) for row, hypothesis, total in extended if hypothesis[-1] != eos]
        for _, hypothesis, total in extended:
            if hypothesis[-1] == eos or n_tokens == max_new:
                finish(hypothesis, total)
        if n_tokens == max_new or not going or _is_decided(finished, n_best, going[0][2], max_new, length_penalty):
            break
        beam = [(hypothesis, total) for _, hypothesis, total in going]
        # Rows that no hypothesis needs any more go on as the first one, and are not read.
        idle = width - len(going)
        parents_W = torch.tensor([row for row, _, _ in going] + [going[0][0]] * idle, device=logits_WV.device)
        chosen_W = torch.tensor([h[-1] for h, _ in beam] + [beam[0][0][-1]] * idle, device=logits_WV.device)
        session.reorder(parents_W)
        logits_WV = session.step(chosen_W)
    return finished[:n_best]


def _largest(total_WV: Tensor, k: int) -> tuple[list[int], list[int], list[float]]:
    """Row, token and value of the `k` largest entries, the largest first; of equal ones the first."""
    total = total_WV.flatten()
    least = total.topk(min(k, len(total))).values[-1]  # topk itself does not say which of equal ones it takes
    candidates = (total >= least).nonzero()[:, 0]
    values, order = total[candidates].sort(descending=True, stable=True)
    chosen, n_tokens = candidates[order[:k]], total_WV.shape[1]
    return (chosen // n_tokens).tolist(), (chosen % n_tokens).tolist(), values[:k].tolist()


def _is_decided(
    finished: Sequence[Hypothesis], n_best: int, likeliest: float, max_new: int, length_penalty: float
) -> bool:
    if len(finished) < n_best:
        return False
    return finished[n_best - 1].score >= likeliest / length_normaliser(max_new, length_penalty)
