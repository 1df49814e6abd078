"""Beam search finds what an exhaustive search finds where it is wide enough, and greedy decoding where it is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.decoding.beam import Beam, beam_search, length_normaliser
from efftx.decoding.generate import generate, most_likely
from efftx.decoding.uncached import UncachedSession
from tests.decoding.tables import Table, all_continuations

EOS = 1


class Counted(UncachedSession):
    """Counts its passes."""

    steps = 0

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return super().step(tokens_B)


def score(model: Table, prompt: list[int], tokens: list[int], penalty: float) -> float:
    return model.log_probability(prompt, tokens) / ((5 + len(tokens)) / 6) ** penalty


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.6, 1.0, 3.0]), st.sampled_from([EOS, None]), st.integers(1, 4))
@settings(max_examples=25)
def test_a_beam_as_wide_as_all_texts_is_exhaustive_search(
    seed: int, penalty: float, eos: int | None, max_new: int
) -> None:
    model, prompt, width = Table(3, seed, scale=2.0), [2], 3**max_new
    every = sorted(all_continuations(3, max_new, eos), key=lambda tokens: -score(model, prompt, tokens, penalty))
    n_best = min(4, len(every))
    found = beam_search(UncachedSession(model, 5), prompt, Beam(width, penalty, n_best), max_new, eos)
    # Texts of the same transitions in another order tie: which of them comes first says nothing.
    best = [score(model, prompt, tokens, penalty) for tokens in every[:n_best]]
    assert [score(model, prompt, h.tokens, penalty) for h in found] == pytest.approx(best)
    assert len({tuple(h.tokens) for h in found}) == n_best
    assert all(h.tokens in every for h in found)
    for hypothesis in found:
        assert hypothesis.log_probability == pytest.approx(model.log_probability(prompt, hypothesis.tokens))
        assert hypothesis.score == pytest.approx(score(model, prompt, hypothesis.tokens, penalty))


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.6, 3.0]))
def test_a_beam_of_one_is_greedy_decoding_at_every_penalty(seed: int, penalty: float) -> None:
    model, inputs = Table(5, seed), torch.tensor([[seed % 5]])
    (greedy,) = generate(UncachedSession(model, 10, inputs), [[3]], most_likely, 8, EOS)
    (found,) = beam_search(UncachedSession(model, 10, inputs), [3], Beam(1, penalty), 8, EOS)
    assert found.tokens == greedy.tokens
    assert found.log_probability == pytest.approx(greedy.log_probability)


def test_a_beam_of_one_takes_the_likeliest_of_tokens_that_are_nearly_alike() -> None:
    """In float32 their log-probabilities, near -ln 32000, are one number."""
    nearly_V = torch.zeros(32_000)
    nearly_V[7] = 3e-7

    def model(tokens_BL: torch.Tensor) -> torch.Tensor:
        return nearly_V.expand(*tokens_BL.shape, -1)

    (greedy,) = generate(UncachedSession(model, 4), [[]], most_likely, 2)
    (found,) = beam_search(UncachedSession(model, 4), [], Beam(1), 2)
    assert found.tokens == greedy.tokens == [7, 7]


def test_a_wider_beam_finds_what_greedy_decoding_walks_past() -> None:
    model = Table(4, 0)
    model.table.fill_(0.0)
    model.table[0, 0] = torch.tensor([0.0, -9.0, 1.0, 0.9])  # greedy takes 2, after which nothing is likely
    model.table[0, 3] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    (greedy,) = generate(UncachedSession(model, 4), [[]], most_likely, 3, EOS)
    (found,) = beam_search(UncachedSession(model, 4), [], Beam(2), 3, EOS)
    assert greedy.tokens[0] == 2
    assert found.tokens == [3, EOS]
    assert found.log_probability > greedy.log_probability


def test_what_has_ended_leaves_the_beam_narrower() -> None:
    model = Table(4, 0)
    model.table.fill_(-9.0)
    model.table[0, 0] = torch.tensor([-9.0, 1.0, 0.9, -9.0])  # two go on: one has ended, the other is 2
    model.table[0, 2] = torch.tensor([0.9, -9.0, -9.0, 1.0])  # a beam of one takes 3, after which nothing is likely
    model.table[2, 3] = torch.zeros(4)
    model.table[2, 0, EOS] = 9.0
    found = beam_search(UncachedSession(model, 9), [], Beam(2, n_best=2), 3, EOS)
    assert found[0].tokens == [EOS]
    assert found[1].tokens[:2] == [2, 3]


def test_it_stops_as_soon_as_nothing_can_come_among_the_best() -> None:
    model = Table(4, 0)
    model.table.fill_(0.0)
    model.table[0, 0, EOS] = 3.0  # about 0.87: the rest together is less likely already
    session = Counted(model, 50)
    assert beam_search(session, [], Beam(3), 40, EOS)[0].tokens == [EOS]
    assert session.steps == 0


def test_a_penalty_for_shortness_keeps_it_searching_and_is_obeyed() -> None:
    model = Table(4, 0)
    model.table.fill_(-9.0)
    model.table[0, 0] = torch.tensor([-9.0, 0.6, 0.0, -9.0])
    model.table[:, 2, 2] = 9.0
    found = {penalty: beam_search(UncachedSession(model, 50), [], Beam(2, penalty), 12, EOS) for penalty in (0.0, 2.0)}
    assert found[0.0][0].tokens == [EOS]
    assert found[2.0][0].tokens == [2] * 12


def test_the_normaliser_is_that_of_gnmt() -> None:
    assert [length_normaliser(n, 1.0) for n in (1, 7, 13)] == [1.0, 2.0, 3.0]
    assert length_normaliser(19, 0.5) == 2.0
    assert length_normaliser(19, 0.0) == 1.0


def test_each_step_is_told() -> None:
    told: list[int] = []
    beam_search(UncachedSession(Table(4, 0), 9), [2], Beam(2), 5, None, on_step=lambda: told.append(1))
    assert len(told) == 5


@pytest.mark.parametrize(
    ("max_new", "search"),
    [(0, Beam(2)), (9, Beam(2)), (3, Beam(2, n_best=3)), (3, Beam(2, n_best=0)), (3, Beam(2, -0.1))],
)
def test_what_is_no_search_is_refused(max_new: int, search: Beam) -> None:
    with pytest.raises(ValueError, match=r"no room|no search"):
        beam_search(UncachedSession(Table(4, 0), 9), [2], search, max_new)
