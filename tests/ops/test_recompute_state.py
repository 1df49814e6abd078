"""A second run draws the first run's random numbers and takes its choices, and nobody outside notices."""

from __future__ import annotations

import pytest
import torch

from efftx.ops.recompute_state import RecomputeState, autocast_of, choose

CPU = torch.device("cpu")


def draw(state: RecomputeState) -> torch.Tensor:
    with state.random_state(CPU):
        return torch.rand(4)


def test_the_first_run_draws_as_if_nothing_were_recorded() -> None:
    torch.manual_seed(5)
    expected = [torch.rand(4), torch.rand(4)]
    torch.manual_seed(5)
    assert torch.equal(draw(RecomputeState()), expected[0])
    assert torch.equal(torch.rand(4), expected[1])


def test_every_later_run_draws_the_first_runs_numbers_and_leaves_the_global_state() -> None:
    torch.manual_seed(5)
    state = RecomputeState()
    first = draw(state)
    torch.rand(3)
    rng_state = torch.get_rng_state()
    for _ in range(2):
        assert torch.equal(draw(state), first)
        assert torch.equal(torch.get_rng_state(), rng_state)


def test_the_global_state_comes_back_after_an_error_inside() -> None:
    state = RecomputeState()
    draw(state)
    rng_state = torch.get_rng_state()

    def fail() -> None:
        with state.random_state(CPU):
            raise KeyError(float(torch.rand(1)))

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_a_choice_is_made_once_and_carries_no_graph() -> None:
    state = RecomputeState()
    weight = torch.ones(2, requires_grad=True)
    first = state.choose("mask", lambda: weight * 2)
    assert not first.requires_grad
    assert state.choose("mask", lambda: pytest.fail("made again")) is first
    assert state.choose("other", lambda: torch.zeros(1)) is not first


def test_a_choice_given_from_outside_is_never_made() -> None:
    given = torch.arange(3)
    state = RecomputeState({"buckets": given})
    assert choose(state, "buckets", lambda: pytest.fail("made again")) is given


def test_without_a_replay_every_choice_is_fresh() -> None:
    made = [choose(None, "buckets", lambda: torch.zeros(1)) for _ in range(2)]
    assert made[0] is not made[1]


def test_its_bytes_are_those_of_choices_and_random_state() -> None:
    state = RecomputeState({"buckets": torch.zeros(3, 5, dtype=torch.int64)})
    assert state.nbytes() == 120
    draw(state)
    assert state.nbytes() == 120 + torch.get_rng_state().numel()


def choose_and_draw(state: RecomputeState) -> tuple[torch.Tensor, torch.Tensor]:
    with state.random_state(CPU):
        chosen = state.choose("rotations", lambda: torch.randn(3))
        return chosen, torch.rand(4)


def test_what_is_drawn_after_a_random_choice_is_the_same_though_the_choice_is_not_drawn_again() -> None:
    torch.manual_seed(5)
    state = RecomputeState()
    chosen, drawn = choose_and_draw(state)
    rng_state = torch.get_rng_state()
    again, drawn_again = choose_and_draw(state)
    assert again is chosen
    assert torch.equal(drawn_again, drawn)
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_a_choice_outside_a_recorded_run_moves_no_random_state() -> None:
    state = RecomputeState()
    state.choose("rotations", lambda: torch.randn(3))
    rng_state = torch.get_rng_state()
    state.choose("rotations", lambda: torch.randn(3))
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_autocast_is_entered_again_as_it_was() -> None:
    x = torch.zeros(1)
    outside = autocast_of(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = autocast_of(x)
        with outside():
            assert not torch.is_autocast_enabled("cpu")
    with inside():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    with autocast_of(torch.zeros(1, device="meta"))():
        assert not torch.is_autocast_enabled("cpu")


def test_a_replay_inside_another_goes_on_from_the_random_state_after_a_choice_at_both_levels() -> None:
    """A slice of a reversible layer: run forward in the outer run, and twice more from the outer run's choices."""

    def nested(outer: RecomputeState, inner: RecomputeState) -> tuple[torch.Tensor, torch.Tensor]:
        with inner.random_state(CPU):
            chosen = inner.choose("units", lambda: outer.choose("0.units", lambda: torch.randn(3)))
            return chosen, torch.rand(4)

    torch.manual_seed(5)
    outer, second = RecomputeState(), RecomputeState()
    with outer.random_state(CPU):
        first = nested(outer, RecomputeState())
    torch.rand(7)
    with outer.random_state(CPU):
        again = nested(outer, second)
    backward = nested(outer, second)
    for chosen, drawn in (again, backward):
        assert chosen.data_ptr() == first[0].data_ptr()
        assert torch.equal(drawn, first[1])
