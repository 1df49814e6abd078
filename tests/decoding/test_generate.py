"""Each way to choose a token is compared with its definition, and drawing with the probabilities drawn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efftx.decoding.beam import Beam, beam_search
from efftx.decoding.generate import Draw, generate, keep_top_k, keep_top_p, most_likely, tempered
from efftx.decoding.uncached import UncachedSession, greedy
from efftx.errors import NotFiniteError
from tests.decoding.tables import Table

N_DRAWS = 20_000
logits = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=9)  # many ties


def by_rank(row: list[float]) -> list[int]:
    """Tokens from the most to the least likely; of equal ones the first."""
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def kept(logits_V: torch.Tensor) -> set[int]:
    return set(logits_V.isfinite().nonzero()[:, 0].tolist())


def test_temperature_is_the_power_of_the_probabilities() -> None:
    row = torch.tensor([[0.5, 1.5, -1.0]])
    powers = row.softmax(-1) ** (1 / 0.7)
    torch.testing.assert_close(tempered(row, 0.7).softmax(-1), powers / powers.sum())


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 1e-300}, {"top_k": 2, "top_p": 0.5}])
def test_a_temperature_near_zero_takes_the_most_likely_token(temperature: float, settings: dict[str, Any]) -> None:
    rows = torch.tensor([[1.0, 0.5, 1.5, -2.0], [-300.0, -2e4, 7e3, 3e38]])
    draw = Draw(torch.Generator().manual_seed(0), temperature=temperature, **settings)
    assert torch.equal(draw.probabilities(rows).argmax(-1), torch.tensor([2, 3]))
    assert torch.equal(draw.probabilities(rows).sum(-1), torch.ones(2))
    assert draw(rows).tolist() == [2, 3]


@pytest.mark.parametrize(
    "row", [[0.0, torch.nan, 1.0], [0.0, torch.inf, 1.0], [-torch.inf] * 3], ids=["NaN", "infinity", "none finite"]
)
def test_a_model_whose_logits_say_nothing_is_told_so(row: list[float]) -> None:
    model = Table(3, 2)
    model.table[:] = torch.tensor(row)
    for choose in (most_likely, Draw(torch.Generator().manual_seed(0))):
        with pytest.raises(NotFiniteError, match="NaN or an infinity for the next token"):
            generate(UncachedSession(model, 9), [[2]], choose, 4)
    with pytest.raises(NotFiniteError, match="NaN or an infinity for the next token"):
        beam_search(UncachedSession(model, 9), [2], Beam(2), 4)


def test_tokens_that_the_model_rules_out_are_never_said() -> None:
    model = Table(3, 2)
    model.table[:] = torch.tensor([-torch.inf, 0.0, -torch.inf])
    for choose in (most_likely, Draw(torch.Generator().manual_seed(0))):
        assert generate(UncachedSession(model, 9), [[2]], choose, 4)[0].tokens == [1] * 4


@given(logits, st.integers(1, 12))
def test_top_k_keeps_the_k_most_likely_and_their_logits(row: list[float], k: int) -> None:
    found = keep_top_k(torch.tensor([row]), k)[0]
    assert kept(found) == set(by_rank(row)[:k])
    assert all(found[token] == row[token] for token in kept(found))


@given(logits, st.floats(0.01, 1.0))
def test_the_nucleus_is_the_smallest_set_of_most_likely_tokens_that_reaches_p(row: list[float], p: float) -> None:
    probability = torch.tensor(row, dtype=torch.float64).softmax(0)
    order = by_rank(row)
    sizes = [n for n in range(1, len(row) + 1) if float(probability[order[:n]].sum()) >= p - 1e-12]
    expected = order[: sizes[0] if sizes else len(row)]
    assert kept(keep_top_p(torch.tensor([row], dtype=torch.float64), p)[0]) in (
        set(expected),
        # A border that is p itself falls on either side of it by rounding.
        *([set(order[: len(expected) + 1])] if abs(float(probability[expected].sum()) - p) < 1e-9 else []),
    )


def test_a_row_is_cut_by_its_own_order() -> None:
    rows = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert [kept(row) for row in keep_top_k(rows, 1)] == [{0}, {2}]
    assert [kept(row) for row in keep_top_p(rows, 0.1)] == [{0}, {2}]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.6}, {0, 1}),
        # After top-k 2 the first token holds over 0.6 by itself: top-p is of what top-k left.
        ({"top_k": 2, "top_p": 0.6}, {0}),
        # The temperature comes first: it flattens what top-p adds up.
        ({"temperature": 9.0, "top_p": 0.6}, {0, 1, 2}),
    ],
)
def test_temperature_then_top_k_then_top_p(settings: dict[str, float], expected: set[int]) -> None:
    probability = torch.tensor([0.45, 0.25, 0.15, 0.1, 0.05])
    draw = Draw(torch.Generator().manual_seed(0), **settings)  # type: ignore[arg-type]
    found = draw.probabilities(probability.log()[None])[0]
    assert set(found.nonzero()[:, 0].tolist()) == expected
    assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_k": 3}, {"temperature": 1.5, "top_p": 0.8}])
def test_tokens_are_drawn_as_often_as_their_probability_says(settings: dict[str, float]) -> None:
    row = torch.tensor([1.0, 0.2, -0.5, 2.0, 0.0, -1.0])
    draw = Draw(torch.Generator().manual_seed(3), **settings)  # type: ignore[arg-type]
    expected = draw.probabilities(row[None])[0].double() * N_DRAWS
    counts = torch.bincount(draw(row.expand(N_DRAWS, -1)), minlength=6).double()
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert chi_square < 25.0, "of at most 5 degrees of freedom it is above 25 once in 7000 times"


def test_the_same_seed_draws_the_same_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    found = [
        generate(UncachedSession(Table(6, 1), 9), [[1]] * 3, Draw(torch.Generator().manual_seed(seed)), 8)
        for seed in (5, 5, 6)
    ]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 2**31))
def test_greedy_decoding_is_the_most_likely_token_after_the_most_likely_ones(rows: int, n: int, seed: int) -> None:
    model, inputs = Table(6, seed), torch.randint(6, (rows, 1), generator=torch.Generator().manual_seed(seed))
    found = generate(UncachedSession(model, n, inputs), [[]] * rows, most_likely, n, eos=1)
    assert [row.tokens for row in found] == greedy(model, inputs, n)
    for row, continuation in zip(inputs, found, strict=True):
        before, last, expected = 0, 0, []
        while len(expected) < n and 1 not in expected:
            before, last = last, int((model.table[before, last] + model.table[0, row[0]]).argmax())
            expected.append(last)
        assert continuation.tokens == expected


def test_a_continuation_has_the_log_probability_of_its_tokens_whatever_drew_them() -> None:
    model, prompts = Table(6, 2), [[3, 4], [], [5]]
    draw = Draw(torch.Generator().manual_seed(0), temperature=3.0, top_k=4)
    for prompt, found in zip(prompts, generate(UncachedSession(model, 9), prompts, draw, 6, eos=1), strict=True):
        assert found.log_probability == pytest.approx(model.log_probability(prompt, found.tokens))


def test_rows_end_by_themselves_and_are_told_token_by_token() -> None:
    told: list[list[int]] = [[] for _ in range(6)]
    prompts = [[i % 3] for i in range(6)]
    draw = Draw(torch.Generator().manual_seed(1))
    found = generate(UncachedSession(Table(4, 3), 12), prompts, draw, 9, 1, lambda row, token: told[row].append(token))
    assert [row.tokens for row in found] == told
    lengths = {len(row.tokens) for row in found}
    assert len(lengths) > 2, "rows end at different places"
    assert all(1 not in row.tokens[:-1] for row in found)
    assert all(row.tokens[-1] == 1 or len(row.tokens) == 9 for row in found)


def test_no_pass_is_made_for_a_token_that_nobody_wants() -> None:
    class Counted(UncachedSession):
        steps = 0

        def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            return super().step(tokens_B)

    session = Counted(Table(4, 3), 5)
    generate(session, [[2, 3]], most_likely, 3)
    assert session.steps == 2


@pytest.mark.parametrize("max_new", [0, 4])
def test_more_tokens_than_there_is_room_for_are_refused(max_new: int) -> None:
    with pytest.raises(ValueError, match="no room"):
        generate(UncachedSession(Table(4, 3), 5), [[1], [2, 3]], most_likely, max_new)
